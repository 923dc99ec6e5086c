"""Prompts → sampled responses with their log-probabilities: slots that are refilled, on a copy of the parameters.

`generate` is the contract; another engine may stand behind it. What it promises:

- Every response is drawn from softmax(logits / temperature), or from what top-k and top-p leave of it, and its
  log-probabilities are recorded under both. It ends with a stop token, which belongs to it, or is cut at the limit.
- Every random number is named by (key, prompt cursor, sample, position): neither slots, nor the order of admission, nor windows,
  nor processes, nor an interruption change it. With the same parameters and `Engine` the responses are the same, bit for bit.
- Nothing leaves the process: hosts decode their own prompts.

How: a fixed number of slots decode together for a window of tokens (one program); between windows the host takes
finished responses out and fills their slots with the next (prompt, sample). A prompt is prefilled once, and copied into
each sample's slot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from reval_jax import config as config_lib
from reval_jax import types
from reval_jax.sampler import scheduler, steps
from reval_jax.sampler.engine import (
    Engine,
)
from reval_jax.sampler.scheduler import Tokens


class Sampling(NamedTuple):
    """How tokens are drawn and what ends a response; runtime values, so that changing them compiles nothing."""

    temperature: float = 1.0  # logits are divided by it
    top_k: int = 0  # tokens kept; 0 keeps all
    top_p: float = 1.0  # probability mass kept; 1 keeps all
    stop_ids: tuple[int, ...] = ()  # token ids that end a response


def sampling_of(settings: config_lib.Rollout, stop_ids: tuple[int, ...]) -> Sampling:
    """How a run's settings draw tokens, with the model's stop tokens.

    Raises:
      ValueError: more stop tokens than a program has room for.
    """
    _check_stop_ids(stop_ids)
    return Sampling(settings.temperature, settings.top_k, settings.top_p, stop_ids)


def generate(
    engine: Engine,
    params: Any,
    prompts: types.Prompts,
    key: jax.Array,
    *,
    samples_per_prompt: int,
    sampling: Sampling,
    max_tokens: np.ndarray | int | None = None,
    finished: Mapping[tuple[int, int], types.Response] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_tokens: Callable[[list[Tokens]], None] | None = None,
    on_finished: Callable[[list[types.Response]], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> types.Rollout:
    """`samples_per_prompt` responses to each prompt; what is promised of them is said in this module's docstring.

    Args:
      params: from `hand_over`.
      prompts: n prompts, each of at least one token.
      key: a round's key (`keys.named_key(seed, purpose, round)`); consumed.
      max_tokens: where each response is cut, tokens, the stop token included; i32[n, samples_per_prompt] or one for all. By
        default the engine's, which none may exceed.
      finished: responses by (prompt, sample) that are there already, from an interrupted call with the same arguments.
      on_progress: called with (responses done, responses in all) between windows.
      on_tokens: called between windows with the tokens that are new in every response under way.
      on_finished: called between windows with the responses that are now complete.
      should_stop: asked between windows.

    Raises:
      Interrupted: `should_stop` said so; what was finished has been passed to `on_finished`.
      ValueError: a prompt is empty or longer than the engine's, or the settings exceed what it was made for.
    """
    limits = _limits(engine, prompts, sampling, max_tokens, samples_per_prompt)
    every = [(prompt, sample) for prompt in range(len(prompts.tokens)) for sample in range(samples_per_prompt)]
    done = dict(finished or {})
    under_way: dict[tuple[int, int], list[Tokens]] = {}
    windows = scheduler.run(
        engine,
        params,
        prompts,
        [request for request in every if request not in done],
        key,
        steps.sampling_params(sampling.temperature, sampling.top_k, sampling.top_p),
        stop_ids=steps.padded_stop_ids(sampling.stop_ids),
        max_tokens=limits,
        should_stop=should_stop,
    )
    for made in windows:
        ended = []
        for new in made:
            under_way.setdefault((new.prompt, new.sample), []).append(new)
            if new.is_finished:
                ended.append(_joined(under_way.pop((new.prompt, new.sample)), sampling))
        done |= {(response.prompt, response.sample): response for response in ended}
        if on_tokens:
            on_tokens(made)
        if ended and on_finished:
            on_finished(ended)
        if on_progress:
            on_progress(len(done), len(every))
    return _rollout([done[request] for request in every])


def num_programs(engine: Engine) -> int:
    """Programs that were compiled for the engine so far."""
    return steps.num_compiled(steps.of(engine))


def _limits(
    engine: Engine,
    prompts: types.Prompts,
    sampling: Sampling,
    max_tokens: np.ndarray | int | None,
    samples_per_prompt: int,
) -> np.ndarray:
    """i32[n, samples_per_prompt] where each response is cut; all settings are checked against what the engine was made for."""
    for index, tokens in enumerate(prompts.tokens):
        if not 0 < len(tokens) <= engine.max_prompt_tokens:
            raise ValueError(
                f"prompt {index} has {len(tokens)} tokens; the sampler was made for 1 to {engine.max_prompt_tokens}. Raise "
                "task.max_prompt_tokens, or leave the prompt out."
            )
    asked = np.asarray(engine.max_response_tokens if max_tokens is None else max_tokens, np.int32)
    limits = np.broadcast_to(asked, (len(prompts.tokens), samples_per_prompt))
    if not np.all((limits > 0) & (limits <= engine.max_response_tokens)):
        raise ValueError(
            f"max_tokens={asked} was asked of a sampler made for 1 to {engine.max_response_tokens} response tokens. Raise "
            "rollout.max_response_tokens."
        )
    _check_stop_ids(sampling.stop_ids)
    return limits


def _check_stop_ids(stop_ids: tuple[int, ...]) -> None:
    if len(stop_ids) > steps.MAX_STOP_IDS:
        raise ValueError(f"{len(stop_ids)} token ids end a response: {stop_ids}. Use at most {steps.MAX_STOP_IDS}.")


def _joined(parts: list[Tokens], sampling: Sampling) -> types.Response:
    tokens, log_prob, truncated_log_prob = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("tokens", "log_prob", "truncated_log_prob")
    )
    is_truncated = int(tokens[-1]) not in sampling.stop_ids
    return types.Response(parts[0].prompt, parts[0].sample, tokens, log_prob, truncated_log_prob, is_truncated)


def _rollout(responses: list[types.Response]) -> types.Rollout:
    return types.Rollout(
        prompt=np.array([response.prompt for response in responses], np.int32),
        sample=np.array([response.sample for response in responses], np.int32),
        tokens=np.concatenate([response.tokens for response in responses]),
        log_prob=np.concatenate([response.log_prob for response in responses]),
        truncated_log_prob=np.concatenate([response.truncated_log_prob for response in responses]),
        length=np.array([len(response.tokens) for response in responses], np.int32),
        is_truncated=np.array([response.is_truncated for response in responses], bool),
    )
