"""The loop of the paper's Algorithm 1: prompts → sampler → verifier → replay → batch → objective → update → checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import math
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from reval_jax import (
    adaptation,
    algorithms,
    batch,
    checkpoint,
    collected,
    distributed,
    evaluate,
    metrics,
    priorities,
    reference,
    replay,
    rollout,
    round_metrics,
    run_directory,
    sampler,
    setup,
    sinks,
    timing,
    types,
    update,
    verifier,
)
from reval_jax import config as config_lib
from reval_jax import console as console_lib
from reval_jax import programs as programs_lib
from reval_jax.setup import Components, RunState


class Outcome(NamedTuple):
    """How `train` ended."""

    run_dir: Path
    rounds: int  # rounds finished in this directory, those of earlier calls included
    is_preempted: bool  # stopped by SIGTERM or SIGHUP: the same command resumes
    lines: list[types.Json]  # metrics.jsonl


def train(
    config: config_lib.Config,
    run_dir: Path,
    *,
    console: console_lib.Console,
    programs: programs_lib.Programs | None = None,
) -> Outcome:
    """Trains, or resumes, the run in `run_dir` until its rounds are done, its stop score is reached, or a signal asks it to stop.

    Args:
      programs: for many runs in one process, which then share their compiled programs.

    Raises:
      ValueError: the config, the model, the data or the directory can't be used; nothing was written.
      RuntimeError: something failed that is not the user's input; the last checkpoint is intact.
      checkpoint.SaveError: a checkpoint could not be saved; the one before is intact.
      FloatingPointError: `update.max_skipped` updates in a row were not finite; the last checkpoint is intact.
      owner.LostError: another run has taken the directory over while this one was stopped.
      verifier.UnreliableError: grading failed for more than `verifier.max_failed_share` of a round; the last checkpoint is
        intact.
    """
    components, run = setup.prepare(config, run_dir, console=console, programs=programs)
    standing = functools.partial(run_directory.standing, components.directory)
    preemption = distributed.Preemption(grace_seconds=config.run.grace_seconds, standing=standing)
    actor = rollout.synchronous(components, preemption)
    outcome: sinks.Outcome = "failed"
    try:
        with preemption, setup.live(components):
            try:
                if run.progress.round == 0:
                    run = write_baseline(components, run, preemption)
                while not is_done(config, run.progress) and not preemption.is_agreed:
                    run = play_round(components, run, actor, preemption)
                    components.store.check()
                    is_last = preemption.agree() or is_done(config, run.progress)
                    if is_last or run.progress.round % config.checkpoint.every == 0:
                        with components.clock.phase("save"):
                            save(components, run)
            except sampler.Interrupted:
                # This round begins again on resume; its finished responses are in the journal.
                if not is_saved(components, run):
                    save(components, run)
            components.store.wait()
            note_saved(components)
        is_preempted = preemption.is_agreed and not is_done(config, run.progress)
        outcome = "preempted" if is_preempted else "finished"
    except KeyboardInterrupt:
        outcome = "preempted"
        raise
    except ValueError as error:
        # Wrong settings were refused in `prepare`. A ValueError here is a bug, of this package or of the user's own function, so
        # its traceback is kept.
        raise RuntimeError(f"the run in {run_dir} failed after its start; the last checkpoint is intact") from error
    except OSError as error:
        error.filename = error.filename or str(run_dir)  # a failed write names no file
        raise
    finally:
        with contextlib.ExitStack() as services:  # each is closed, whatever the end of another raises
            services.callback(components.owner.release)
            services.callback(lambda: components.sinks.close(outcome))
            services.callback(components.store.close)
            services.callback(components.grader.close)
    try:
        lines = metrics.read(components.directory.metrics)
    except ValueError as error:  # others have changed the file, and the run has ended well
        console.log(f"note: {error}")
        lines = []
    return Outcome(run_dir, run.progress.round, is_preempted, lines)


def is_saved(components: Components, run: RunState) -> bool:
    """Whether a checkpoint holds this state, or the run has not begun."""
    return run.progress.round == (components.store.latest() or 0)


def stop_if_asked(preemption: distributed.Preemption) -> None:
    """Ends the round before it is complete: a collective call.

    Raises:
      sampler.Interrupted: some process was asked to stop; on every process alike.
    """
    if preemption.agree():
        raise sampler.Interrupted


def play_round(
    components: Components, run: RunState, actor: rollout.Actor, preemption: distributed.Preemption
) -> RunState:
    """One iteration of Algorithm 1; writes its rollouts and its line of metrics.

    An update donates the arrays of the state before it. So a round that is interrupted after its first update can only be
    played again from a checkpoint, and one whose start was not saved goes on to its end.

    Raises:
      sampler.Interrupted: a process was asked to stop; `run` is intact, or a checkpoint holds it.
      verifier.UnreliableError, FloatingPointError: as `check_verdicts` and `learn`.
    """
    config, round, was_saved = components.config, run.progress.round, is_saved(components, run)

    # Line 3: sample trajectories from pi_theta for a batch of questions, and grade them.
    sampled = actor.collect(actor.start(run))
    check_verdicts(components, sampled, round)

    # Line 4: insert them, with stored responses and what the algorithm freezes of a round; the oldest leave.
    before = run.buffer.trajectories
    buffer = replay.add(run.buffer, collected.freeze(components, run, sampled.trained_on))

    # Lines 5 and 6, K times: draw a batch, update theta on it.
    state, buffer, updates = learn(components, run, buffer, preemption)
    joined = replay.gather(buffer.trajectories, replay.of_round(buffer, round))

    # §5.5.2: every so many rounds, or once it has been caught up with, pi_ref <- pi_theta.
    adapted, measured = adapt(config, run.progress.adaptation, updates)
    check_processes_agree(buffer, sampled.cursor, int(state.num_updates), adapted)
    run = run._replace(state=state, buffer=buffer)
    if run.reference is not None and adaptation.is_reset_due(adapted, round, config.update):
        run, adapted = reset_reference(components, run, run.reference), adaptation.after_reset(adapted, round)

    score = float(sampled.all.raw_reward.mean())
    is_good = config.run.stop_score is not None and score >= config.run.stop_score
    progress = checkpoint.Progress(
        round=round + 1,
        cursor=sampled.cursor,
        reference_version=run.reference.version if run.reference else 0,
        rounds_at_stop_score=run.progress.rounds_at_stop_score + 1 if is_good else 0,
        adaptation=adapted,
    )
    run = run._replace(progress=progress)
    line = {
        "training/round": round + 1,
        **round_metrics.rollout(config, sampled.all, sampled.trained_on),
        **round_metrics.updates(updates, buffer.trajectories, round),
        **round_metrics.by_age(updates, buffer.trajectories, round),
        **round_metrics.buffer(buffer.trajectories, round),
        **round_metrics.evicted(before, buffer.trajectories, round),
        **round_metrics.pool(config, joined),
        **round_metrics.distance(config, joined),
        "training/trajectories": (round + 1) * config.fresh_size,
        "training/updates": int(state.num_updates),
        **measured,
    }
    if components.benchmarks and config.eval.every and (round + 1) % config.eval.every == 0:
        line |= evaluate_policy(components, run, preemption, may_stop=was_saved)
    rollout.write(components, sampled, round)
    return write_line(components, run, line)


def check_verdicts(components: Components, sampled: rollout.RoundRollout, round: int) -> None:
    """Refuses a round whose grading failed too often; writes its rollouts first, for debugging.

    Raises:
      verifier.UnreliableError: on every process alike.
    """
    try:
        kinds = np.concatenate([sampled.all.verdict, sampled.greedy_verdict])
        verifier.check_failures(kinds, components.config.verifier)
    except verifier.UnreliableError:
        rollout.write(components, sampled, round)
        raise


def learn(
    components: Components, run: RunState, buffer: replay.Buffer, preemption: distributed.Preemption
) -> tuple[update.TrainState, replay.Buffer, round_metrics.Updates]:
    """K updates: the state after them, the buffer with its scores and use counts, and what the updates did.

    Raises:
      sampler.Interrupted: as `play_round`.
      FloatingPointError: too many updates in a row were not finite.
    """
    config, algorithm, state, round = components.config, components.algorithm, run.state, run.progress.round
    was_saved = is_saved(components, run)
    limits = algorithms.limits(config, algorithm)
    measured: list[dict[str, float]] = []
    batches: list[np.ndarray] = []
    numbers: list[algorithms.PerTrajectory] = []  # of each update, on the host: f32[n] each
    begins_fresh, count = False, algorithm.num_updates
    if config.update.max_updates_per_round:
        count = adaptation.num_updates(run.progress.adaptation, config.update)
    with components.console.working(f"round {round + 1}: updating") as report:
        may_train = algorithm.may_train(buffer.trajectories)
        for index in range(count):
            if index == 0 or was_saved:
                stop_if_asked(preemption)
            rows, weight = drawn(algorithm.draw(buffer, round, index), may_train)
            report(index + 1, count)
            if not rows.size:
                continue
            begins_fresh |= index == 0 and config.update.fresh_first
            buffer = collected.score_stale(components, run.reference, buffer, rows)
            with components.clock.phase("update"):
                trajectories, mesh = replay.gather(buffer.trajectories, rows), components.meshes.learner
                arrangement = batch.arrange(trajectories, mesh, limits=limits)
                packed = batch.pack(trajectories, mesh, limits=limits, arrangement=arrangement, weight=weight)
                state, result, per_trajectory = components.step(state, packed)
                measured.append({name: float(value) for name, value in distributed.fetch(result).items()})
            if (row_length := packed.tokens.shape[2]) not in components.row_lengths:
                components.row_lengths.add(row_length)
                components.console.log(f"the update's program for rows of {row_length} tokens is ready")
            batches.append(rows)
            if per_trajectory is not None:
                fetched = distributed.fetch(per_trajectory)
                numbers.append(jax.tree.map(functools.partial(batch.per_trajectory, arrangement=arrangement), fetched))
                buffer = priorities.renewed(buffer, rows, np.asarray(numbers[-1].residual), config.replay)
            if not int(state.skipped_in_a_row):  # a skipped update has learned nothing from its rows
                buffer = replay.with_uses(buffer, rows)
            check_finite(state, config.update.max_skipped, round)
    done = round_metrics.Updates(
        metrics=measured,
        batches=batches,
        begins_fresh=begins_fresh,
        is_on_policy=begins_fresh and config.rollout.policy == "learner",
        num_skipped=int(state.num_skipped),
        numbers=numbers,
        rewards=[buffer.trajectories.reward[rows] for rows in batches],
        groups=[buffer.trajectories.cursor[rows] for rows in batches],
    )
    return state, buffer, done


def drawn(draw: algorithms.Draw, may_train: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """The rows of a draw that may enter the loss, and their weights."""
    is_kept = may_train[draw.rows]
    return draw.rows[is_kept], None if draw.weight is None else draw.weight[is_kept]


def adapt(
    config: config_lib.Config,
    state: adaptation.Adaptation,
    done: round_metrics.Updates,
) -> tuple[adaptation.Adaptation, dict[str, float]]:
    """The state of `adaptation` after a round's updates, and the numbers that it follows from."""
    settings = config.update
    measured: dict[str, float] = {}
    if settings.max_updates_per_round:
        shares = round_metrics.unexplained(done, settings.beta)
        state = adaptation.with_reuse(state, *shares, settings)
        measured |= {
            "reuse/unexplained_fresh": shares[0],
            "reuse/unexplained_replayed": shares[1],
            "reuse/next_updates": adaptation.num_updates(state, settings),
        }
    if settings.reference_reset_pull:
        ratio = round_metrics.pull_ratio(done, settings.beta)
        state = adaptation.with_pull(state, ratio)
        measured |= {"reset/pull_ratio": ratio, "reset/pull_average": state.pull}
    return state, measured


def check_finite(state: update.TrainState, max_skipped: int, round: int) -> None:
    """Ends a run whose updates are not finite.

    Raises:
      FloatingPointError: `max_skipped` updates in a row were skipped.
    """
    if int(state.skipped_in_a_row) >= max_skipped:
        raise FloatingPointError(
            f"{max_skipped} updates in a row had a loss or gradient that is not finite "
            f"(update.max_skipped={max_skipped}, round {round + 1}); parameters are those before them. "
            "Lower optimizer.learning_rate, raise update.beta, or look at the last rollouts."
        )


def reset_reference(components: Components, run: RunState, current: reference.Reference) -> RunState:
    """The run with the policy as its reference instead of `current`; `reset_optimizer` and `reset_replay` begin more anew."""
    config, state, buffer = components.config, run.state, run.buffer
    if config.update.reset_optimizer:
        fresh = update.init_optimizer(state.params, components.optimizer, components.meshes.learner)
        state = state._replace(opt_state=fresh)
    buffer = replay.init(buffer.capacity) if config.update.reset_replay else priorities.forgotten(buffer)
    with components.clock.phase("reference_store"):
        current = reference.reset(current, state.params, config=config)
    return run._replace(state=state, reference=current, buffer=buffer)


def write_baseline(components: Components, run: RunState, preemption: distributed.Preemption) -> RunState:
    """The untrained policy's evaluation, as the line of round 0."""
    if not components.config.eval.every or not components.benchmarks:
        return run
    return write_line(components, run, {"training/round": 0, **evaluate_policy(components, run, preemption)})


def evaluate_policy(
    components: Components, run: RunState, preemption: distributed.Preemption, *, may_stop: bool = True
) -> dict[str, float]:
    """Metrics of every benchmark under the current policy.

    Raises:
      sampler.Interrupted: with `may_stop`, a process was asked to stop.
    """
    measured: dict[str, float] = {}
    with components.clock.phase("eval"):
        params = components.sampler.sync_weights(run.state.params)
    policy = sampler.SamplingPolicy(components.sampler, params, components.tokenizer, components.sampling.stop_ids)
    for benchmark in components.benchmarks:
        result = None
        with (
            components.clock.phase("eval"),
            components.console.working(f"evaluating {benchmark.name}") as report,
            contextlib.suppress(sampler.Interrupted, verifier.StoppedError),
        ):
            result = evaluate.run(
                policy,
                benchmark,
                config=components.config,
                round=run.progress.round,
                grader=components.grader,
                on_progress=report,
                should_stop=lambda: may_stop and preemption.is_requested,
            )
        if (may_stop and preemption.agree()) or result is None:
            raise sampler.Interrupted
        components.console.log(f"  {evaluate.summary(result)}")
        measured |= evaluate.as_metrics(result)
    return measured


def check_processes_agree(buffer: replay.Buffer, cursor: int, num_updates: int, adapted: adaptation.Adaptation) -> None:
    """Compares the state that every process computes by itself: a collective call.

    Raises:
      ValueError: two processes hold different buffers or counters; training would mix them.
    """
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256()
    for name, values in buffer.trajectories._asdict().items():
        digest.update(name.encode() + values.tobytes())
    distributed.check_agreement(
        {
            "prompt cursor": str(cursor),
            "number of updates": str(num_updates),
            "replay buffer": digest.hexdigest()[:16],
            "state of update.max_updates_per_round and update.reference_reset_pull": str(adapted),
        }
    )


def write_line(components: Components, run: RunState, line: types.Json) -> RunState:
    """Writes the round's metrics with the seconds of its phases; the run with the file's new length.

    The save that follows is counted in the next line.
    """
    seconds = components.clock.read()
    peak, num_devices = components.peak, components.meshes.learner.size
    seconds |= round_metrics.speed(line, seconds, components.architecture, peak.flops * num_devices)
    if math.isnan(seconds.get("perf/mfu", 0.0)):
        components.console.log(f"note: {timing.impossible('perf/mfu', peak.source)}")
    if line["training/round"]:
        components.console.round_line(components.config.run.rounds, line | seconds)
    line = {**line, **seconds}
    components.owner.check()
    components.writer.write(line)
    components.sinks.write(line)
    note_saved(components)
    return run._replace(progress=dataclasses.replace(run.progress, metrics_bytes=components.writer.num_bytes))


def note_saved(components: Components) -> None:
    """Records, in one process, that the run has a checkpoint, once one is committed."""
    if jax.process_index() == 0:
        run_directory.note_saved(components.directory)


def save(components: Components, run: RunState) -> None:
    """Saves everything that a resumed run needs.

    Raises:
      owner.LostError: another run has taken the directory over.
    """
    components.store.save(run.progress.round, setup.checkpoint_state(run), components.config)


def is_done(config: config_lib.Config, progress: checkpoint.Progress) -> bool:
    """Whether no round remains."""
    has_stopped = config.run.stop_score is not None and progress.rounds_at_stop_score >= config.run.stop_rounds
    return has_stopped or progress.round >= config.run.rounds
