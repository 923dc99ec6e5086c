"""Sets up a run: its components and its state. Everything wrong is refused here, before anything is written."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import optax

from reval_jax import (
    algorithms,
    checkpoint,
    config_checks,
    distributed,
    evaluate,
    mesh,
    metrics,
    model,
    owner,
    peers,
    policy,
    pool,
    prompts,
    provenance,
    reference,
    replay,
    run_directory,
    sampler,
    sinks,
    timing,
    update,
    verifier,
    weights,
)
from reval_jax import config as config_lib
from reval_jax import console as console_lib
from reval_jax import programs as programs_lib
from reval_jax import trajectories as trajectories_lib

if TYPE_CHECKING:
    import transformers


class Components(NamedTuple):
    """The settings, functions and services of a run; a checkpoint holds none of them."""

    config: config_lib.Config
    architecture: model.Architecture
    tokenizer: transformers.PreTrainedTokenizerBase
    meshes: mesh.Meshes
    data: prompts.Dataset
    pool: pool.Pool | None  # of rollout.pool
    benchmarks: list[evaluate.Benchmark]
    algorithm: algorithms.Algorithm
    sampler: sampler.Sampler
    sampling: sampler.Sampling  # of a round; its stop_ids are the model's and the template's
    grader: verifier.Grader  # starts its processes with the first answer that needs one; `train` closes it
    optimizer: optax.GradientTransformation
    step: Callable[..., Any]  # of update.make_step, at the run's learning rate
    score: reference.Scorer | None  # None where the algorithm has no reference
    score_tokens: jax.stages.Wrapped | None  # of token_scores.make_scorer; None where nothing is scored per token
    peak: timing.Peak  # of one of the learner's devices: for MFU
    store: checkpoint.Store
    directory: run_directory.RunDirectory
    owner: owner.Owner  # `train` releases it
    writer: metrics.Writer
    sinks: sinks.Sinks
    clock: metrics.Clock
    console: console_lib.Console
    row_lengths: set[int]  # tokens of the batch rows that the update is compiled for so far


class RunState(NamedTuple):
    """The part of a run that a checkpoint holds, between two rounds."""

    state: update.TrainState
    reference: reference.Reference | None
    buffer: replay.Buffer
    progress: checkpoint.Progress


def prepare(
    config: config_lib.Config,
    run_dir: Path,
    *,
    console: console_lib.Console,
    programs: programs_lib.Programs | None = None,
) -> tuple[Components, RunState]:
    """The components of the run in `run_dir` and its state: from its last checkpoint, or new.

    Args:
      programs: of earlier runs in this process, among which this run finds its own or leaves them.

    Raises:
      ValueError: the config, the devices, the model, the data or the directory can't be used, or another run uses it; nothing
        was written.
      checkpoint.SaveError: there is no space for a checkpoint; nothing was written.
    """
    config_checks.check(config)
    distributed.start()
    if jax.process_index() > 0:
        console = console_lib.Console(is_quiet=True)
    distributed.check_agreement(_shared(config, run_dir))
    run_directory.inspect(run_dir, config)
    held = hold(run_dir, log=console.log)
    peers.advise(functools.partial(_advice, run_dir), release=held.release)
    try:
        return _prepare(config, run_dir, held, console=console, programs=programs or programs_lib.Programs())
    except BaseException:
        held.release()
        raise


def live(components: Components) -> contextlib.AbstractContextManager[None]:
    """The view of the run that a terminal shows during its rounds."""
    file, rounds, clock = components.directory.metrics, components.config.run.rounds, components.clock
    past = metrics.read(file, drops_incomplete=True) if file.exists() else []  # process 0 may be writing
    return components.console.live(rounds, past, phase=lambda: clock.current)


def hold(run_dir: Path, *, log: Callable[[str], None]) -> owner.Owner:
    """Makes this run the directory's only one, in process 0; every process sees that it is: a collective call.

    Raises:
      ValueError: another run uses the directory, or the processes do not share it; on every process alike.
      OSError: process 0 cannot write in it.
    """
    if jax.process_count() == 1:
        return owner.acquire(run_dir, log=log)

    def told(text: str) -> str:
        return distributed.gather_bytes(text.encode())[0].decode()

    if jax.process_index() == 0:
        try:
            held = owner.acquire(run_dir, log=log, on_wait=lambda: told("wait"))
        except (ValueError, OSError) as error:
            told(f"refused {error}")
            raise
        told(f"held {held.nonce}")
    else:
        while (word := told("")) == "wait":
            pass
        result, _, text = word.partition(" ")
        if result == "refused":
            raise ValueError(text)
        held = owner.follow(run_dir, text)
    place = f"{Path.cwd() / run_dir} on host {socket.gethostname()}"
    seen = distributed.gather_bytes(f"{int(held.is_seen(patience_s=30.0))}{place}".encode())
    if any(answer.startswith(b"0") for answer in seen):
        held.release()
        listed = "; ".join(f"process {index}: {answer[1:].decode()}" for index, answer in enumerate(seen))
        raise ValueError(
            f"--run-dir {run_dir} is not the same directory for all processes, so no checkpoint could be saved ({listed}). Name "
            "a directory on a file system that all of them share, by the same path."
        )
    return held


def _shared(config: config_lib.Config, run_dir: Path) -> dict[str, str]:
    """What has to be equal on all processes for their collective calls to fit each other, by name."""
    settings = {
        f"{section}.{field}": str(value)
        for section, fields in config_lib.to_tree(config).items()
        for field, value in fields.items()
    }
    devices = f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}"
    packages = {f"package {name}": version for name, version in run_directory.package_versions().items()}
    return {"--run-dir": str(Path.cwd() / run_dir), **settings, "devices of the process": devices, **packages}


def _advice(run_dir: Path) -> str:
    """What to do after another process was lost."""
    standing = run_directory.standing(run_directory.RunDirectory(run_dir))
    return f"{standing} To resume, run the same on every host again: {peers.command()}"


def _prepare(
    config: config_lib.Config,
    run_dir: Path,
    held: owner.Owner,
    *,
    console: console_lib.Console,
    programs: programs_lib.Programs,
) -> tuple[Components, RunState]:
    """`prepare` in a directory that this run holds, so that what it reads there stays as it is."""
    verifier.check(config.verifier)
    algorithm = algorithms.choose(config)
    opens = sinks.choose(config.run.sinks)
    meshes = mesh.make_meshes(config.mesh)
    trajectories_lib.check_divides(config.rollout.prompts_per_round, jax.process_count())
    changes = run_directory.inspect(run_dir, config)

    architecture, tokenizer, model_stop_ids = weights.read(config.model.path)
    architecture = dataclasses.replace(architecture, has_value_head="value_head" in algorithm.reads)
    date = template_date(run_dir)
    stop_ids = prompts.stop_ids(config.task, tokenizer, model_stop_ids, date=date)
    data = prompts.load(config.task, tokenizer, date=date)
    stored = pool.of_run(config, data, stop_ids)
    fingerprints = {"data_fingerprint": data.fingerprint, "pool_fingerprint": stored.fingerprint if stored else ""}
    benchmarks = evaluate.load(config, tokenizer, date=date)
    origin = provenance.of_run(config, architecture, stop_ids, benchmarks)
    moved = provenance.compare(run_directory.facts(run_dir), origin, run_dir=run_dir)
    prompt_tokens = [*data.tokens, *(tokens for each in benchmarks for tokens in each.prompts.tokens)]
    make_sampler = sampler.engines.choose(config.rollout.engine)
    engine = make_sampler(architecture.without_value_head(), meshes, config, longest(prompt_tokens))
    sampling = sampler.sampling_of(config.rollout, stop_ids, records_mean_log_prob="mean_log_prob" in algorithm.reads)
    scores_tokens = algorithm.fill is not None or stored is not None
    compiled = programs.of(config, architecture, algorithm, meshes.learner, scores_tokens=scores_tokens)
    directory = run_directory.RunDirectory(run_dir)
    store = checkpoint.Store(directory.checkpoints, config.checkpoint, held=held, log=console.log)
    latest, passed_over = store.newest_whole()
    start = _Start(config, algorithm, architecture, compiled.optimizer, meshes.learner)
    run = start.new() if latest is None else start.resumed(store, latest)
    notes = _notes(config, architecture, meshes.learner)
    distributed.check_agreement({**fingerprints, **origin.inputs, "notes": str(notes), "last saved round": str(latest)})
    store.check_space(checkpoint_state(run))
    is_writer = jax.process_index() == 0
    if is_writer:
        metrics.check(directory.metrics, keep_bytes=run.progress.metrics_bytes, round=run.progress.round)
        run_directory.claim(
            run_dir,
            config,
            **fingerprints,
            template_date=date,
            inputs=origin.inputs,
            surroundings=origin.surroundings,
            changes=moved,
            round=run.progress.round,
        )
        passed_over += store.begin()
    # After the last refusal, which is then the only message.
    _say_start(console, run_dir, latest, passed_over, changes, moved, notes)
    components = Components(
        config=config,
        architecture=architecture,
        tokenizer=tokenizer,
        meshes=meshes,
        data=data,
        pool=stored,
        benchmarks=benchmarks,
        algorithm=algorithm,
        sampler=engine,
        sampling=sampling,
        grader=verifier.Grader(config, log=console.log),
        **compiled._asdict(),
        peak=timing.device_peak(config.model.compute_dtype),
        store=store,
        directory=directory,
        owner=held,
        writer=_writer(directory, run.progress, console),
        sinks=sinks.Sinks(opens if is_writer else {}, config, run_dir, log=console.log),
        clock=metrics.Clock(),
        console=console,
        row_lengths=set(),
    )
    return components, run


def _writer(
    directory: run_directory.RunDirectory, progress: checkpoint.Progress, console: console_lib.Console
) -> metrics.Writer:
    """The writer of metrics.jsonl, which goes on after the lines of these rounds; it writes in process 0 only."""
    return metrics.Writer(
        directory.metrics,
        keep_bytes=progress.metrics_bytes,
        round=progress.round,
        is_active=jax.process_index() == 0,
        log=console.log,
    )


def _say_start(
    console: console_lib.Console,
    run_dir: Path,
    latest: int | None,
    passed_over: list[str],
    changes: list[str],
    moved: list[str],
    notes: list[str],
) -> None:
    """Prints what the run goes on from, which settings and surroundings have changed, and what the user may want to know."""
    if latest is not None:
        for note in passed_over:
            console.log(f"note: {note}")
        console.log(f"resuming {run_dir} after round {latest}")
    for change in [*changes, *moved]:
        console.log(f"resuming with {change}")
    if provenance.may_change_bits(moved):
        console.log("note: the run goes on validly, but not bit for bit as on the machine before")
    for note in notes:
        console.log(f"note: {note}")


def _notes(config: config_lib.Config, architecture: model.Architecture, devices: jax.sharding.Mesh) -> list[str]:
    """Facts that a user wants to know before a long run, though the run works."""
    notes = mesh.kept_whole(
        devices, model.logical_axes(architecture), model.abstract_params(architecture), mesh.LEARNER_AXES
    )
    if config.max_tokens > architecture.max_positions:
        notes.append(
            f"prompt and response may be {config.max_tokens} tokens long (task.max_prompt_tokens + rollout.max_response_tokens), "
            f"more than the {architecture.max_positions} positions the model was published for"
        )
    if note := policy.attention_note(architecture, devices, config):
        notes.append(note)
    return notes


def checkpoint_state(run: RunState) -> checkpoint.CheckpointState:
    """The run as a checkpoint stores it: the learner's counters are stored with the optimizer."""
    return checkpoint.CheckpointState(
        params=run.state.params,
        optimizer=run.state._replace(params=None),  # type: ignore[arg-type]
        reference=run.reference.params if run.reference else None,
        replay=run.buffer.trajectories,
        progress=run.progress,
    )


class _Start(NamedTuple):
    """The inputs of a run's first state."""

    config: config_lib.Config
    algorithm: algorithms.Algorithm
    architecture: model.Architecture
    optimizer: optax.GradientTransformation
    mesh: jax.sharding.Mesh  # the learner's

    def new(self) -> RunState:
        """The state before the first round, with the published weights."""
        params = place_params(weights.load(self.config.model.path).params, self.architecture, self.mesh)
        start = reference.init(params, config=self.config) if self.algorithm.has_reference else None
        state = update.init(params, self.optimizer, self.mesh)
        return RunState(state, start, replay.init(self.config.replay.capacity), checkpoint.Progress())

    def resumed(self, store: checkpoint.Store, round: int) -> RunState:
        """The state that was saved after this round."""
        params = update.abstract_params(self.architecture, self.mesh)
        abstract = checkpoint.CheckpointState(
            params=params,
            optimizer=update.abstract(params, self.optimizer, self.mesh)._replace(params=None),  # type: ignore[arg-type]
            reference=reference.abstract(params, config=self.config) if self.algorithm.has_reference else None,
            replay=replay.empty(),
            progress=checkpoint.Progress(),
        )
        saved = store.restore(round, abstract)
        return RunState(
            state=saved.optimizer._replace(params=saved.params),
            reference=None
            if saved.reference is None
            else reference.restored(saved.reference, saved.progress.reference_version, config=self.config),
            buffer=replay.init(self.config.replay.capacity)._replace(trajectories=saved.replay),
            progress=saved.progress,
        )


def template_date(run_dir: Path | None) -> str:
    """The date that a chat template prints as today's: the one recorded in a run, or else today.

    All processes get the first one's, on both sides of midnight and in any time zone: a collective call.
    """
    own = (run_directory.template_date(run_dir) if run_dir else "") or prompts.today()
    return distributed.gather_bytes(own.encode())[0].decode()


def place_params(params: model.Params, architecture: model.Architecture, devices: jax.sharding.Mesh) -> model.Params:
    """Host parameters on the learner's mesh, with the initial value head if the architecture has one and they do not."""
    placement = jax.tree.map(lambda leaf: leaf.sharding, update.abstract_params(architecture, devices))
    return mesh.put(model.with_value_head(architecture, params), placement)


def longest(prompt_tokens: Iterable[np.ndarray]) -> int:
    """Tokens of the longest prompt."""
    return max(len(tokens) for tokens in prompt_tokens)
