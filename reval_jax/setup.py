"""Config → everything a run is made of, every refusal before anything is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from reval_jax import (
    algorithms,
    checkpoint,
    distributed,
    evaluate,
    keys,
    mesh,
    metrics,
    model,
    prompts,
    reference,
    replay,
    run_directory,
    sampler,
    sinks,
    update,
    verifier,
    weights,
)
from reval_jax import config as config_lib
from reval_jax import console as console_lib
from reval_jax import trajectories as trajectories_lib
from reval_jax.tools.bench import timing


class Parts(NamedTuple):
    """What a run is made of: built once, never changed."""

    config: config_lib.Config
    tokenizer: Any
    mesh: jax.sharding.Mesh
    data: prompts.Dataset
    benchmarks: list[evaluate.Benchmark]
    algorithm: algorithms.Algorithm
    engine: sampler.Engine
    sampling: sampler.Sampling  # of a round; its stop_ids are the model's and the template's
    grader: verifier.Grader  # its processes start with the first answer that needs one; whoever trains closes it
    optimizer: optax.GradientTransformation
    step: Any  # update.make_step
    score: reference.Scorer | None  # None where the algorithm has no reference
    peak_tokens_per_s: float  # of an update whose 6 · parameters · tokens ran at the matmul's rate: what MFU divides by
    store: checkpoint.Store
    run: run_directory.RunDirectory
    writer: metrics.Writer
    sinks: sinks.Sinks
    clock: metrics.Clock
    console: console_lib.Console


class Run(NamedTuple):
    """What a run has become, between two rounds."""

    state: update.TrainState
    reference: reference.Reference | None
    buffer: replay.Buffer
    progress: checkpoint.Progress


def prepare(config: config_lib.Config, run_dir: Path, *, console: console_lib.Console) -> tuple[Parts, Run]:
    """The parts of the run in `run_dir` and its state: from its last checkpoint, or new.

    Raises:
      ValueError: the config, the devices, the model, the data or the directory can't be used; nothing was written.
    """
    config_lib.check(config)
    verifier.check(config.verifier)
    distributed.start()
    if jax.process_index() > 0:
        console = console_lib.Console(is_quiet=True)
    algorithm = algorithms.choose(config)
    opens = sinks.choose(config.run.sinks)
    learner_mesh = mesh.make(config.mesh)
    trajectories_lib.check_divides(config.rollout.prompts_per_round, jax.process_count())
    changes = run_directory.inspect(run_dir, config)

    architecture, tokenizer, model_stop_ids = weights.read(config.model.path)
    stop_ids = prompts.stop_ids(config.task, tokenizer, model_stop_ids)
    data = prompts.load(config.task, tokenizer)
    benchmarks = evaluate.load(config, tokenizer)
    prompt_tokens = [*data.tokens, *(tokens for each in benchmarks for tokens in each.prompts.tokens)]
    engine = sampler.from_config(architecture, learner_mesh, config, max_prompt_tokens=longest(prompt_tokens))
    sampling = sampler.sampling_of(config.rollout, stop_ids)
    optimizer = update.make_optimizer(config.optimizer)
    directory = run_directory.RunDirectory(run_dir)
    # Opening the checkpoints of a new run makes the directory, and the weights can still be refused.
    store = checkpoint.Store(directory.checkpoints, config.checkpoint) if directory.checkpoints.exists() else None
    latest = store.latest() if store else None
    if store is None or latest is None:
        run = _begin(config, algorithm, architecture, optimizer, learner_mesh)
    else:
        run = _resume(config, algorithm, architecture, optimizer, learner_mesh, store, latest)
        console.say(f"resuming {run_dir} after round {latest}")
    for change in changes:
        console.say(f"resuming with {change}")
    for note in _notes(config, architecture, learner_mesh):
        console.say(f"note: {note}")
    identity = f"{config_lib.results_hash(config)} {data.fingerprint} {architecture} after round {latest}"
    distributed.check_agreement(identity, "settings, training data, model or checkpoint")
    is_writer = jax.process_index() == 0
    if is_writer:
        metrics.check(directory.metrics, keep_bytes=run.progress.metrics_bytes)
        run_directory.claim(run_dir, config, data_fingerprint=data.fingerprint, round=run.progress.round)
    parts = Parts(
        config=config,
        tokenizer=tokenizer,
        mesh=learner_mesh,
        data=data,
        benchmarks=benchmarks,
        algorithm=algorithm,
        engine=engine,
        sampling=sampling,
        grader=verifier.Grader(config, say=console.say),
        optimizer=optimizer,
        step=update.make_step(architecture, optimizer, learner_mesh, loss=algorithm.loss, config=config),
        score=reference.make_scorer(architecture, learner_mesh, config=config) if algorithm.has_reference else None,
        peak_tokens_per_s=_peak_tokens_per_s(architecture, config.model.compute_dtype),
        store=store or checkpoint.Store(directory.checkpoints, config.checkpoint),
        run=directory,
        writer=metrics.Writer(directory.metrics, keep_bytes=run.progress.metrics_bytes, is_active=is_writer),
        sinks=sinks.Sinks(opens if is_writer else {}, config, run_dir, say=console.say),
        clock=metrics.Clock(),
        console=console,
    )
    return parts, run


def _notes(config: config_lib.Config, architecture: model.Architecture, devices: jax.sharding.Mesh) -> list[str]:
    """What works but a user would want to know before a long run."""
    notes = mesh.kept_whole(
        devices, model.logical_axes(architecture), model.abstract_params(architecture), mesh.LEARNER_AXES
    )
    if config.max_tokens > architecture.max_positions:
        notes.append(
            f"prompt and response may be {config.max_tokens} tokens long (task.max_prompt_tokens + rollout.max_response_tokens), "
            f"more than the {architecture.max_positions} positions the model was published for"
        )
    return notes


def _peak_tokens_per_s(architecture: model.Architecture, compute_dtype: str) -> float:
    num_params = sum(leaf.size for leaf in jax.tree.leaves(model.abstract_params(architecture)))
    return jax.device_count() * timing.device_peak(compute_dtype) / (6 * num_params)


def everything(run: Run) -> checkpoint.Everything:
    """The run in the form checkpoints take it: the learner's counters travel with the optimizer."""
    return checkpoint.Everything(
        params=run.state.params,
        optimizer=run.state._replace(params=None),  # type: ignore[arg-type]
        reference=run.reference.params if run.reference else None,
        replay=run.buffer.trajectories,
        progress=run.progress,
    )


def _begin(
    config: config_lib.Config,
    algorithm: algorithms.Algorithm,
    architecture: model.Architecture,
    optimizer: optax.GradientTransformation,
    devices: jax.sharding.Mesh,
) -> Run:
    params = place_params(weights.load(config.model.path).params, architecture, devices)
    start = reference.init(params, config=config) if algorithm.has_reference else None
    state = update.init(params, optimizer, devices)
    return Run(state, start, replay.init(config.replay.capacity), checkpoint.Progress())


def _resume(
    config: config_lib.Config,
    algorithm: algorithms.Algorithm,
    architecture: model.Architecture,
    optimizer: optax.GradientTransformation,
    devices: jax.sharding.Mesh,
    store: checkpoint.Store,
    latest: int,
) -> Run:
    params = update.abstract_params(architecture, devices)
    state = update.abstract(params, optimizer, devices)
    frozen = None
    if algorithm.has_reference:
        frozen = jax.tree.map(
            lambda leaf, dtype: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding),
            params,
            model.compute_dtypes(params, config.model.compute_dtype),
        )
    buffer = replay.init(config.replay.capacity)
    like = Run(state, reference.Reference(frozen, 0) if frozen else None, buffer, checkpoint.Progress())
    saved = store.restore(latest, everything(like))
    return Run(
        state=saved.optimizer._replace(params=saved.params),
        reference=reference.Reference(
            reference.place(saved.reference, config.update.reference_memory), saved.progress.reference_version
        )
        if saved.reference is not None
        else None,
        buffer=buffer._replace(trajectories=saved.replay),
        progress=saved.progress,
    )


def place_params(params: Any, architecture: model.Architecture, devices: jax.sharding.Mesh) -> Any:
    """Host parameters on the learner's mesh."""
    placement = jax.tree.map(lambda leaf: leaf.sharding, update.abstract_params(architecture, devices))
    return mesh.put(params, placement)


class Policy(NamedTuple):
    """A policy to look at."""

    params: Any  # float32, on the learner's mesh
    architecture: model.Architecture
    tokenizer: Any
    stop_ids: tuple[int, ...]
    mesh: jax.sharding.Mesh
    source: str  # what was loaded
    round: int  # of the checkpoint; 0 for published weights


def load_policy(config: config_lib.Config, run_dir: Path | None, *, round: int | None = None) -> Policy:
    """The last checkpoint (or `round`'s) of a run; without a run, or for its round 0, the published weights.

    Raises:
      ValueError: the run has no such checkpoint, or the model can't be read.
    """
    if round is not None and run_dir is None:
        raise ValueError(
            f"--round {round} names a checkpoint, but no run to take it from. Add --run-dir, or leave it out."
        )
    distributed.start()
    devices = mesh.make(config.mesh)
    architecture, tokenizer, model_stop_ids = weights.read(config.model.path)
    stop_ids = prompts.stop_ids(config.task, tokenizer, model_stop_ids)
    if run_dir is None or round == 0:
        params = place_params(weights.load(config.model.path).params, architecture, devices)
        return Policy(params, architecture, tokenizer, stop_ids, devices, config.model.path, 0)
    store = checkpoint.Store.open(run_dir / "checkpoints")
    chosen = store.choose(round)
    params = store.restore_params(chosen, update.abstract_params(architecture, devices))
    store.close()
    return Policy(params, architecture, tokenizer, stop_ids, devices, f"{run_dir}, round {chosen}", chosen)


def sampling_copy(policy: Policy, config: config_lib.Config, *, max_prompt_tokens: int) -> tuple[Any, sampler.Engine]:
    """The sampler's parameters and engine for the policy, and prompts of up to `max_prompt_tokens`."""
    engine = sampler.from_config(policy.architecture, policy.mesh, config, max_prompt_tokens=max_prompt_tokens)
    return sampler.hand_over(policy.params, policy.mesh, engine), engine


def longest(prompt_tokens: Iterable[np.ndarray]) -> int:
    """Tokens of the longest prompt."""
    return max(len(tokens) for tokens in prompt_tokens)


def respond(
    policy: Policy,
    config: config_lib.Config,
    question: str,
    num_samples: int,
    *,
    on_text: Callable[[int, str, bool], None] | None = None,
) -> list[dict[str, Any]]:
    """Responses to one question: text, tokens, log-probability, whether cut.

    Args:
      on_text: called with (sample, what is new of its text, whether it is complete) while responses are sampled.

    Raises:
      ValueError: the rendered prompt is longer than `task.max_prompt_tokens`.
    """
    asked = prompts.from_question(question, config.task, policy.tokenizer)
    devices = jax.local_device_count()
    slots = min(config.rollout.decode_slots, max(2, -(-num_samples // devices)) * devices)
    settings = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, decode_slots=slots))
    params, engine = sampling_copy(policy, settings, max_prompt_tokens=longest(asked.tokens))
    rollout = sampler.generate(
        engine,
        params,
        asked,
        keys.named_key(config.run.seed, "sample"),
        samples_per_prompt=num_samples,
        sampling=sampler.sampling_of(config.rollout, policy.stop_ids),
        on_tokens=_text_of(policy.tokenizer, on_text) if on_text else None,
    )
    texts = evaluate.decode(policy.tokenizer, rollout.tokens, rollout.length)
    cuts = np.cumsum(rollout.length)[:-1]
    log_probs, truncated_log_probs = np.split(rollout.log_prob, cuts), np.split(rollout.truncated_log_prob, cuts)
    return [
        {
            "text": text,
            "num_tokens": int(rollout.length[index]),
            "log_prob": float(log_probs[index].sum()),
            "truncated_log_prob": float(truncated_log_probs[index].sum()),
            "is_truncated": bool(rollout.is_truncated[index]),
        }
        for index, text in enumerate(texts)
    ]


def _text_of(tokenizer: Any, on_text: Callable[[int, str, bool], None]) -> Callable[[list[sampler.Tokens]], None]:
    """A listener to tokens that passes text on; a character whose bytes are not all there yet waits for them."""
    seen: dict[int, tuple[list[int], str]] = {}

    def listen(made: list[sampler.Tokens]) -> None:
        for new in made:
            tokens, before = seen.get(new.sample, ([], ""))
            tokens = tokens + new.tokens.tolist()
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            if not new.is_finished:
                text = text.rstrip("\ufffd")
            seen[new.sample] = tokens, text
            on_text(new.sample, text[len(before) :], new.is_finished)

    return listen
