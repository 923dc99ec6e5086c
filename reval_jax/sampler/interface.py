"""What a sampler promises, and the records that callers and engines exchange.

- Every response is drawn from softmax(logits / temperature), or from what top-k and top-p leave of it, and its
  log-probabilities are recorded under both. It ends with a stop token, which belongs to it, or is cut at the limit.
- Every random number is a function of (key, prompt cursor, sample, position) alone, so slots, the order of admission, windows,
  processes and interruptions cannot change it. With the same parameters and engine the responses are the same, bit for bit.
- Each process samples its own prompts; a call does not communicate with other processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import jax
import numpy as np

from reval_jax import types

if TYPE_CHECKING:
    import transformers


class Sampling(NamedTuple):
    """How tokens are sampled, what ends a response and what is recorded.

    Runtime values, so that changing them compiles nothing, but for `records_mean_log_prob`: with and without it are two
    programs, as truncated and full sampling are on GPUs.
    """

    temperature: float = 1.0  # logits are divided by it
    top_k: int = 0  # tokens kept; 0 keeps all
    top_p: float = 1.0  # probability mass kept; 1 keeps all
    stop_ids: tuple[int, ...] = ()  # token ids that end a response
    records_mean_log_prob: bool = False  # whether responses hold `mean_log_prob`


class Chunk(NamedTuple):
    """The n tokens that one window added to a response."""

    prompt: int  # index into the prompts
    sample: int  # 0 … N−1
    tokens: np.ndarray  # i32[n]
    log_prob: np.ndarray  # f32[n] as of types.Response
    truncated_log_prob: np.ndarray  # f32[n] as of types.Response
    is_finished: bool
    mean_log_prob: np.ndarray | None = None  # f32[n] as of types.Response


class Interrupted(Exception):  # noqa: N818  It is no error: the caller wanted it.
    """Sampling was stopped between two windows because `Hooks.should_stop` returned True."""


class Hooks(NamedTuple):
    """Functions that `generate` calls once a window; by default none.

    `should_stop` is asked before a window is decoded, the others get a window's tokens while the next one is.
    """

    on_progress: Callable[[int, int], None] | None = None  # (finished responses, all responses)
    on_chunks: Callable[[list[Chunk]], None] | None = None  # the new tokens of every response under way
    on_finished: Callable[[list[types.Response]], None] | None = None  # the responses that the window finished
    should_stop: Callable[[], bool] = lambda: False  # whether to stop here, with `Interrupted`


NO_HOOKS = Hooks()


class Generate(Protocol):
    """Samples `samples_per_prompt` responses to each prompt; the result is in (prompt, sample) order.

    Args:
      params: from `Sampler.sync_weights`.
      prompts: n prompts, each of at least one token.
      key: a round's key (`keys.named_key(seed, purpose, round)`); consumed.
      max_tokens: the limit of each response, in tokens, its stop token included; i32[n, samples_per_prompt] or one for all. By
        default `rollout.max_response_tokens`, which none may exceed.
      finished: responses by (prompt, sample) of an interrupted call with the same arguments; they are not sampled again.

    Raises:
      Interrupted: `hooks.should_stop` returned True; finished responses have been passed to `hooks.on_finished`.
      ValueError: a prompt is empty or too long, or the settings exceed what the engine can run.
    """

    def __call__(  # noqa: D102
        self,
        params: types.PyTree,
        prompts: types.Prompts,
        key: jax.Array,
        *,
        samples_per_prompt: int,
        sampling: Sampling,
        max_tokens: np.ndarray | int | None = None,
        finished: Mapping[tuple[int, int], types.Response] | None = None,
        hooks: Hooks = NO_HOOKS,
    ) -> list[types.Response]: ...


def joined_mean_log_prob(responses: Sequence[types.Response], *, objective: str, engine: str) -> np.ndarray:
    """f32[sum of n]: the mean log-probabilities of responses that an algorithm reads, end to end.

    Args:
      objective, engine: the run's `update.objective` and `rollout.engine`, for the message.

    Raises:
      ValueError: a response has none, or not one a token: the engine does not heed `Sampling.records_mean_log_prob`.
    """
    for response in responses:
        found = None if response.mean_log_prob is None else np.shape(response.mean_log_prob)
        if found != np.shape(response.tokens):
            numbers = "no mean_log_prob" if found is None else f"mean_log_prob of shape {list(found)}"
            raise ValueError(
                f"update.objective={objective} reads the mean log-probability over the vocabulary in the state of every "
                f"sampled token, but rollout.engine={engine} returned a response of {len(response.tokens)} tokens with "
                f"{numbers}. Fill types.Response.mean_log_prob, f32[{len(response.tokens)}], when "
                "sampling.records_mean_log_prob is set (docs/howto/sampler_engine.md), or set rollout.engine=jax."
            )
    return np.concatenate([np.asarray(response.mean_log_prob, np.float32) for response in responses])


class Sampler(NamedTuple):
    """An engine that is ready to sample: all that the loop, evaluation and `reval sample` know of it."""

    sync_weights: Callable[[types.PyTree], types.PyTree]  # the learner's parameters → the sampler's copy, in its layout
    generate: Generate


class SamplingPolicy(NamedTuple):
    """A policy that is ready to sample."""

    sampler: Sampler
    params: types.PyTree  # from `sampler.sync_weights`
    tokenizer: transformers.PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]  # token ids that end a response
