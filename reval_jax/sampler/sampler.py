"""The sampler of this package: slots that are refilled, on a copy of the parameters. `interface` says what it promises.

A fixed number of slots decode together for a window of tokens (one program); between windows the host takes finished
responses out and fills their slots with the next (prompt, sample). A prompt is prefilled once, and copied into each
sample's slot.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from reval_jax import config as config_lib
from reval_jax import model, types
from reval_jax.sampler import scheduler, steps
from reval_jax.sampler.engine import Engine
from reval_jax.sampler.interface import NO_HOOKS, Chunk, Hooks, Sampling


def sampling_of(
    settings: config_lib.Rollout, stop_ids: tuple[int, ...], *, records_mean_log_prob: bool = False
) -> Sampling:
    """How a run samples tokens: its settings with the model's stop tokens.

    Args:
      records_mean_log_prob: the algorithm reads `types.Response.mean_log_prob`.

    Raises:
      ValueError: more stop tokens than a program has room for.
    """
    _check_stop_ids(stop_ids)
    return Sampling(settings.temperature, settings.top_k, settings.top_p, stop_ids, records_mean_log_prob)


def generate(
    engine: Engine,
    params: model.Params,
    prompts: types.Prompts,
    key: jax.Array,
    *,
    samples_per_prompt: int,
    sampling: Sampling,
    max_tokens: np.ndarray | int | None = None,
    finished: Mapping[tuple[int, int], types.Response] | None = None,
    hooks: Hooks = NO_HOOKS,
) -> list[types.Response]:
    """`samples_per_prompt` responses to each prompt, in (prompt, sample) order, as `interface.Generate` describes it."""
    limits = _limits(engine, prompts, sampling, max_tokens, samples_per_prompt)
    requests = [(prompt, sample) for prompt in range(len(prompts.tokens)) for sample in range(samples_per_prompt)]
    responses = dict(finished or {})
    under_way: dict[tuple[int, int], list[Chunk]] = {}
    job = scheduler.Job(
        engine,
        params,
        prompts,
        [request for request in requests if request not in responses],
        key,
        steps.sampling_params(sampling.temperature, sampling.top_k, sampling.top_p),
        steps.padded_stop_ids(sampling.stop_ids),
        limits,
        sampling.records_mean_log_prob,
    )
    for chunks in scheduler.run(job, should_stop=hooks.should_stop):
        ended = []
        for chunk in chunks:
            under_way.setdefault((chunk.prompt, chunk.sample), []).append(chunk)
            if chunk.is_finished:
                ended.append(_joined(under_way.pop((chunk.prompt, chunk.sample)), sampling))
        responses |= {(response.prompt, response.sample): response for response in ended}
        if hooks.on_chunks:
            hooks.on_chunks(chunks)
        if ended and hooks.on_finished:
            hooks.on_finished(ended)
        if hooks.on_progress:
            hooks.on_progress(len(responses), len(requests))
    return [responses[request] for request in requests]


def num_programs(engine: Engine) -> int:
    """Programs compiled for the engine so far."""
    return steps.num_compiled(steps.compiled(engine))


def _limits(
    engine: Engine,
    prompts: types.Prompts,
    sampling: Sampling,
    max_tokens: np.ndarray | int | None,
    samples_per_prompt: int,
) -> np.ndarray:
    """i32[n, samples_per_prompt]: the limit of each response; raises for what the engine cannot run."""
    for index, tokens in enumerate(prompts.tokens):
        if not 0 < len(tokens) <= engine.max_prompt_tokens:
            raise ValueError(
                f"prompt {index} has {len(tokens)} tokens; the sampler takes 1 to {engine.max_prompt_tokens}. Raise "
                "task.max_prompt_tokens, or leave the prompt out."
            )
    requested = np.asarray(engine.max_response_tokens if max_tokens is None else max_tokens, np.int32)
    limits = np.broadcast_to(requested, (len(prompts.tokens), samples_per_prompt))
    if not np.all((limits > 0) & (limits <= engine.max_response_tokens)):
        raise ValueError(
            f"max_tokens={requested} for a sampler of 1 to {engine.max_response_tokens} response tokens. Raise "
            "rollout.max_response_tokens."
        )
    _check_stop_ids(sampling.stop_ids)
    return limits


def _check_stop_ids(stop_ids: tuple[int, ...]) -> None:
    if len(stop_ids) > steps.MAX_STOP_IDS:
        raise ValueError(f"{len(stop_ids)} token ids end a response: {stop_ids}. Use at most {steps.MAX_STOP_IDS}.")


def _joined(parts: list[Chunk], sampling: Sampling) -> types.Response:
    names = ["tokens", "log_prob", "truncated_log_prob"]
    if sampling.records_mean_log_prob:
        names.append("mean_log_prob")
    whole = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    is_truncated = int(whole["tokens"][-1]) not in sampling.stop_ids
    return types.Response(prompt=parts[0].prompt, sample=parts[0].sample, is_truncated=is_truncated, **whole)
