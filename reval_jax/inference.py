"""A trained or published policy, loaded to look at: for `reval eval`, `sample`, `export` and the demo."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reval_jax import checkpoint, distributed, keys, mesh, model, prompts, sampler, setup, update, weights
from reval_jax import config as config_lib

if TYPE_CHECKING:
    import transformers


class Policy(NamedTuple):
    """A policy on the learner's mesh."""

    params: model.Params  # float32
    architecture: model.Architecture
    tokenizer: transformers.PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]
    meshes: mesh.Meshes
    source: str  # the checkpoint or model that it was loaded from
    round: int  # of the checkpoint; 0 for published weights
    template_date: str  # that a chat template prints as today's: the run's, or today
    value_head: model.Params | None = None  # that the run trained beside the policy


def load_policy(
    config: config_lib.Config, run_dir: Path | None, *, round: int | None = None, is_checked: bool = False
) -> Policy:
    """The last whole checkpoint (or `round`'s) of a run; without a run, or for its round 0, the published weights.

    Args:
      is_checked: `round` comes from `checkpoint.Store.choose`, so its files are not read once more.

    Raises:
      ValueError: the run has no such checkpoint, or the model can't be read.
    """
    if round is not None and run_dir is None:
        raise ValueError(
            f"--round {round} names a checkpoint, but no run has been named. Add --run-dir, or leave --round out."
        )
    distributed.start()
    meshes = mesh.make_meshes(config.mesh)
    architecture, tokenizer, model_stop_ids = weights.read(config.model.path)
    date = setup.template_date(run_dir)
    stop_ids = prompts.stop_ids(config.task, tokenizer, model_stop_ids, date=date)
    if run_dir is None or round == 0:
        params = setup.place_params(weights.load(config.model.path).params, architecture, meshes.learner)
        return Policy(params, architecture, tokenizer, stop_ids, meshes, config.model.path, 0, date)
    store = checkpoint.Store.open(run_dir / "checkpoints")
    chosen = round if is_checked and round is not None else store.choose(round)
    saved = dataclasses.replace(architecture, has_value_head=store.has_value_head(chosen))
    params = store.restore_params(chosen, update.abstract_params(saved, meshes.learner))
    store.close()
    source, policy_params = f"{run_dir}, round {chosen}", model.without_value_head(params)
    head = params.get("value_head")
    return Policy(policy_params, architecture, tokenizer, stop_ids, meshes, source, chosen, date, value_head=head)


def ready(policy: Policy, config: config_lib.Config, prompt_tokens: Iterable[np.ndarray]) -> sampler.SamplingPolicy:
    """The policy with its own sampler, compiled for these prompts.

    Args:
      prompt_tokens: the token ids i32[P] of every prompt; the longest bounds the sampler's cache.
    """
    make = sampler.engines.choose(config.rollout.engine)
    chosen = make(policy.architecture, policy.meshes, config, setup.longest(prompt_tokens))
    return sampler.SamplingPolicy(chosen, chosen.sync_weights(policy.params), policy.tokenizer, policy.stop_ids)


class Answer(NamedTuple):
    """One response to a question, as `reval sample` shows it."""

    text: str
    num_tokens: int
    log_prob: float  # nats, of the whole response, under softmax(logits / temperature)
    truncated_log_prob: float  # nats, after top-k and top-p
    is_truncated: bool


def respond(
    policy: Policy,
    config: config_lib.Config,
    question: str,
    num_samples: int,
    *,
    on_text: Callable[[int, str, bool], None] | None = None,
) -> list[Answer]:
    """Responses to one question.

    Args:
      on_text: called with (sample, its new text, whether it is complete) while responses are sampled.

    Raises:
      ValueError: the rendered prompt is longer than `task.max_prompt_tokens`.
    """
    prompt = prompts.from_question(question, config.task, policy.tokenizer, date=policy.template_date)
    devices = policy.meshes.sampler.size
    slots = min(config.rollout.decode_slots, max(2, -(-num_samples // devices)) * devices)
    fitted = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, decode_slots=slots))
    sampling_policy = ready(policy, fitted, prompt.tokens)
    responses = sampling_policy.sampler.generate(
        sampling_policy.params,
        prompt,
        keys.named_key(config.run.seed, "sample"),
        samples_per_prompt=num_samples,
        sampling=sampler.sampling_of(config.rollout, policy.stop_ids),
        hooks=sampler.Hooks(on_chunks=streamed_text(policy.tokenizer, on_text, policy.stop_ids) if on_text else None),
    )
    texts = prompts.decode(policy.tokenizer, [response.tokens for response in responses], policy.stop_ids)
    return [
        Answer(
            text,
            len(response.tokens),
            float(response.log_prob.sum()),
            float(response.truncated_log_prob.sum()),
            response.is_truncated,
        )
        for text, response in zip(texts, responses, strict=True)
    ]


def streamed_text(
    tokenizer: transformers.PreTrainedTokenizerBase,
    on_text: Callable[[int, str, bool], None],
    stop_ids: Sequence[int],
) -> Callable[[list[sampler.Chunk]], None]:
    """A hook for `generate` that decodes tokens as they come; holds back incomplete UTF-8 sequences."""
    shown: dict[int, tuple[list[int], str]] = {}

    def decode(chunks: list[sampler.Chunk]) -> None:
        for chunk in chunks:
            tokens, before = shown.get(chunk.sample, ([], ""))
            tokens = tokens + chunk.tokens.tolist()
            (text,) = prompts.decode(tokenizer, [np.array(tokens, np.int32)], stop_ids)
            if not chunk.is_finished:
                text = text.rstrip("\ufffd")
            shown[chunk.sample] = tokens, text
            on_text(chunk.sample, text[len(before) :], chunk.is_finished)

    return decode
