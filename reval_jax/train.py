"""The loop of the paper's Algorithm 1: prompts → sampler → verifier → replay → batch → objective → update → checkpoint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from reval_jax import (
    batch,
    checkpoint,
    distributed,
    evaluate,
    metrics,
    reference,
    replay,
    sampler,
    setup,
    types,
    update,
    verifier,
)
from reval_jax import config as config_lib
from reval_jax import console as console_lib
from reval_jax import rollout as rollout_lib
from reval_jax.setup import Parts, Run


class Outcome(NamedTuple):
    """How `train` ended."""

    run_dir: Path
    rounds: int  # rounds finished, of all that were ever played in this directory
    is_preempted: bool  # stopped by SIGTERM after a save: the same command goes on
    lines: list[dict[str, Any]]  # metrics.jsonl


def train(config: config_lib.Config, run_dir: Path, *, console: console_lib.Console) -> Outcome:
    """Plays, or resumes, the run in `run_dir` until its rounds are done, its stop score is reached, or SIGTERM comes.

    Raises:
      ValueError: the config, the model, the data or the directory can't be used; nothing was written.
      RuntimeError: something failed that is not the user's input; the last checkpoint stands.
      FloatingPointError: `update.max_skipped` updates in a row were not finite; the last checkpoint stands.
      verifier.UnreliableError: grading failed for more than `verifier.max_failed_share` of a round; the last checkpoint stands.
    """
    parts, run = setup.prepare(config, run_dir, console=console)
    preemption = distributed.Preemption()
    try:
        with preemption:
            if run.progress.round == 0:
                run = write_baseline(parts, run)
            while not is_done(config, run.progress) and not preemption.is_agreed:
                try:
                    run = play_round(parts, run, preemption)
                except sampler.Interrupted:
                    # The round begins again from here; its finished responses wait in the journal.
                    if run.progress.round > (parts.store.latest() or 0):
                        parts.store.save(run.progress.round, setup.everything(run), config)
                    break
                preemption.agree()
                is_last = is_done(config, run.progress) or preemption.is_agreed
                if is_last or run.progress.round % config.checkpoint.every == 0:
                    with parts.clock.phase("save"):
                        parts.store.save(run.progress.round, setup.everything(run), config)
            parts.store.wait()
    except ValueError as error:
        # Whatever the user could have got wrong was refused above: this is ours, and its traceback is wanted.
        raise RuntimeError(f"the run in {run_dir} failed after its start; the last checkpoint stands") from error
    finally:
        parts.grader.close()
        parts.store.close()
        parts.sinks.close()
    is_preempted = preemption.is_agreed and not is_done(config, run.progress)
    return Outcome(run_dir, run.progress.round, is_preempted, metrics.read(parts.run.metrics))


def play_round(parts: Parts, run: Run, preemption: distributed.Preemption) -> Run:
    """One iteration of Algorithm 1, its rollouts and its metrics line on disk.

    Raises:
      sampler.Interrupted: a process was asked to stop while responses were sampled.
    """
    config, round = parts.config, run.progress.round

    # Line 3: sample trajectories from pi_theta for a batch of questions, and grade them.
    sampling_params = hand_over(parts, run.state, "generate")
    sampled = rollout_lib.sample_round(parts, sampling_params, run, preemption)
    del sampling_params  # the learner's memory is worth more than a second copy of the policy
    check_verdicts(parts, sampled, round)

    # Line 4: insert them; the oldest leave.
    buffer = replay.add(run.buffer, sampled.kept)

    # Lines 5 and 6, K times: draw a batch, update theta on it.
    state, buffer, learned = learn(parts, run, buffer, round)
    fresh = replay.gather(buffer.trajectories, replay.newest(buffer, config.fresh_size))
    check_processes_agree(buffer, sampled.cursor, int(state.num_updates))

    # §5.5.2: now and then, pi_ref <- pi_theta.
    state, frozen = reset_reference(parts, state, run.reference, round)

    scored = float(sampled.every.raw_reward.mean())
    is_good = config.run.stop_score is not None and scored >= config.run.stop_score
    progress = checkpoint.Progress(
        round=round + 1,
        cursor=sampled.cursor,
        reference_version=frozen.version if frozen else 0,
        rounds_at_stop_score=run.progress.rounds_at_stop_score + 1 if is_good else 0,
    )
    line = {
        "training/round": round + 1,
        **rollout_lib.describe(config, sampled),
        **learned,
        **describe_replay(buffer, round),
    }
    line |= describe_distance(parts, fresh)
    line |= {"training/trajectories": (round + 1) * config.fresh_size, "training/updates": int(state.num_updates)}
    run = Run(state, frozen, buffer, progress)
    if parts.benchmarks and config.eval.every and (round + 1) % config.eval.every == 0:
        line |= evaluate_policy(parts, run)
    if jax.process_index() == 0:
        write_rollouts(parts, sampled, round + 1)
    write_line(parts, line)
    return run._replace(progress=dataclasses.replace(progress, metrics_bytes=parts.writer.num_bytes))


def check_verdicts(parts: Parts, sampled: rollout_lib.Sampled, round: int) -> None:
    """Refuses a round whose grading failed too often; its rollouts are written, since somebody has to look at them.

    Raises:
      verifier.UnreliableError: on every process alike.
    """
    try:
        verifier.check_failures(sampled.every.verdict, most=parts.config.verifier.max_failed_share)
    except verifier.UnreliableError:
        if jax.process_index() == 0:
            write_rollouts(parts, sampled, round + 1)
        raise


def learn(
    parts: Parts, run: Run, buffer: replay.Buffer, round: int
) -> tuple[update.TrainState, replay.Buffer, dict[str, float]]:
    """K updates: the state after them, the buffer with its scores and use counts, and the updates' mean metrics.

    Raises:
      FloatingPointError: too many updates in a row were not finite.
    """
    config, state = parts.config, run.state
    limits = batch.limits(config, step_size=parts.algorithm.step_size)
    seen: list[dict[str, float]] = []
    with parts.console.working(f"round {round + 1}: updating") as report:
        may_train = parts.algorithm.may_train(buffer.trajectories)
        batches = [rows[may_train[rows]] for rows in parts.algorithm.draw(buffer, round)]
        # Only before the first update is the learner the policy that sampled, so only there is a difference an error.
        begins_fresh = config.update.fresh_first and batches[0].size > 0
        batches = [rows for rows in batches if rows.size]
        for index, rows in enumerate(batches):
            buffer = score_stale(parts, run.reference, buffer, rows, limits=limits)
            with parts.clock.phase("update"):
                packed = batch.pack(replay.gather(buffer.trajectories, rows), parts.mesh, limits=limits)
                num_programs = parts.step._cache_size()
                state, result = parts.step(state, packed)
                seen.append({name: float(value) for name, value in distributed.fetch(result).items()})
            if parts.step._cache_size() > num_programs:
                parts.console.say(f"the update's program for rows of {packed.tokens.shape[2]} tokens is ready")
            buffer = replay.with_uses(buffer, rows)
            report(index + 1, len(batches))
            if int(state.skipped_in_a_row) >= config.update.max_skipped:
                raise FloatingPointError(
                    f"{config.update.max_skipped} updates in a row had a loss or gradient that is not finite "
                    f"(update.max_skipped={config.update.max_skipped}, round {round + 1}); parameters are those before them. "
                    "Lower optimizer.learning_rate, raise update.beta, or look at the last rollouts."
                )
    if not seen:  # rollout.truncated=mask, and every response was cut
        return state, buffer, {"training/skipped": int(state.num_skipped), "training/update_tokens": 0}
    learned = {name: float(np.mean([metric[name] for metric in seen])) for name in seen[0]}
    del learned["training/sampler_learner_logprob_diff"]
    if begins_fresh:
        learned["training/sampler_learner_logprob_diff"] = seen[0]["training/sampler_learner_logprob_diff"]
    learned["training/skipped"] = int(state.num_skipped)
    trained = np.concatenate(batches)
    learned["replay/fresh_fraction"] = float((buffer.trajectories.round[trained] == round).mean())
    learned["training/update_tokens"] = int(buffer.trajectories.length[trained].sum())
    return state, buffer, learned


def score_stale(
    parts: Parts, current: reference.Reference | None, buffer: replay.Buffer, rows: np.ndarray, *, limits: batch.Limits
) -> replay.Buffer:
    """The buffer with the current reference's scores at those of `rows` that lack them: no batch mixes versions.

    Without a reference the buffer is returned as it is.
    """
    if parts.score is None or current is None:
        return buffer
    stale = replay.stale(buffer.trajectories, rows, current.version)
    if not stale.size:
        return buffer
    # The reference's parameters are on the devices only meanwhile, unless update.reference_memory keeps them there.
    with parts.clock.phase("reference_load"):
        params = reference.load(current)
    with parts.clock.phase("reference"):
        trajectories = replay.gather(buffer.trajectories, stale)
        log_prob, value = reference.score(parts.score, params, trajectories, parts.mesh, limits=limits)
    return replay.with_reference_scores(buffer, stale, log_prob, value, current.version)


def reset_reference(
    parts: Parts, state: update.TrainState, frozen: reference.Reference | None, round: int
) -> tuple[update.TrainState, reference.Reference | None]:
    """State and reference after the reset that is due at the end of this round, if one is."""
    settings = parts.config.update
    if frozen is None or not settings.reference_reset_every or (round + 1) % settings.reference_reset_every:
        return state, frozen
    if settings.reset_optimizer:
        state = state._replace(opt_state=update.init_optimizer(state.params, parts.optimizer, parts.mesh))
    with parts.clock.phase("reference_store"):
        return state, reference.reset(frozen, state.params, config=parts.config)


def hand_over(parts: Parts, state: update.TrainState, phase: str) -> Any:
    """The sampler's copy of the policy; its time is part of the phase it is made for."""
    with parts.clock.phase(phase):
        return sampler.hand_over(state.params, parts.mesh, parts.engine)


def write_baseline(parts: Parts, run: Run) -> Run:
    """The untrained policy's evaluation, as the line of round 0."""
    if not parts.config.eval.every or not parts.benchmarks:
        return run
    write_line(parts, {"training/round": 0, **evaluate_policy(parts, run)})
    return run._replace(progress=dataclasses.replace(run.progress, metrics_bytes=parts.writer.num_bytes))


def evaluate_policy(parts: Parts, run: Run) -> dict[str, float]:
    """Metrics of every benchmark under the policy as it is now."""
    measured: dict[str, float] = {}
    params = hand_over(parts, run.state, "eval")
    for benchmark in parts.benchmarks:
        with parts.clock.phase("eval"), parts.console.working(f"evaluating {benchmark.name}") as report:
            result = evaluate.run(
                parts.engine,
                params,
                parts.tokenizer,
                benchmark,
                config=parts.config,
                stop_ids=parts.sampling.stop_ids,
                round=run.progress.round,
                grader=parts.grader,
                on_progress=report,
            )
        parts.console.say(f"  {evaluate.sentence(result)}")
        measured |= evaluate.as_metrics(result)
    return measured


def check_processes_agree(buffer: replay.Buffer, cursor: int, num_updates: int) -> None:
    """Compare what every process must have computed alike: a collective call.

    Raises:
      ValueError: two processes hold different buffers or counters; going on would train on a mixture.
    """
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256()
    for name, values in buffer.trajectories._asdict().items():
        digest.update(name.encode() + values.tobytes())
    distributed.check_agreement(
        f"{cursor} {num_updates} {digest.hexdigest()}", "prompt cursor, updates and replay buffer"
    )


def describe_distance(parts: Parts, fresh: types.Trajectories) -> dict[str, float]:
    """How far the policy that sampled is from the reference, over what was scored."""
    is_scored = fresh.reference_version != types.NOT_SCORED
    if parts.score is None or not is_scored.any():
        return {}
    ends = np.cumsum(fresh.response_length)
    totals = np.add.reduceat(fresh.log_prob, ends - fresh.response_length, dtype=np.float32)
    return {"actor/kl_ref": float((totals - fresh.reference_log_prob)[is_scored].mean())}


def describe_replay(buffer: replay.Buffer, round: int) -> dict[str, float]:
    """What the buffer holds after the round."""
    age = round - buffer.trajectories.round
    return {
        "replay/size": buffer.trajectories.size,
        "replay/age_mean": float(age.mean()),
        "replay/age_max": int(age.max()),
        "replay/reuse_mean": float(buffer.trajectories.use_count.mean()),
    }


def write_line(parts: Parts, line: dict[str, Any]) -> None:
    """The round's line, with the seconds its phases took; the save that follows it is in the next line."""
    seconds = parts.clock.read()
    if "critic/score/mean" in line:
        sampled = line["response_length/mean"] * line["training/sampled"]
        seconds["perf/rollout_tokens_per_s"] = sampled / seconds["timing_s/generate"]
        if line["training/update_tokens"]:
            seconds["perf/update_tokens_per_s"] = line["training/update_tokens"] / seconds["timing_s/update"]
            seconds["perf/mfu"] = seconds["perf/update_tokens_per_s"] / parts.peak_tokens_per_s
        parts.console.round_line(parts.config.run.rounds, line | seconds)
    line = {**line, **seconds}
    parts.writer.write(line)
    parts.sinks.write(line)


def write_rollouts(parts: Parts, sampled: rollout_lib.Sampled, round: int) -> None:
    """The round's prompts, responses and verdicts, one JSON line each; also of those that were not kept."""
    asked, fresh = sampled.asked, sampled.every
    starts = np.cumsum(fresh.length) - fresh.length + fresh.prompt_length
    responses = [
        fresh.tokens[start:][:length].tolist() for start, length in zip(starts, fresh.response_length, strict=True)
    ]
    texts = parts.tokenizer.batch_decode(responses, skip_special_tokens=False)
    first = int(asked.cursor[0])
    with parts.run.rollout(round).open("w", encoding="utf-8") as file:
        for index, text in enumerate(texts):
            prompt = int(fresh.cursor[index]) - first
            row = {
                "prompt": asked.texts[prompt],
                "response": text,
                "answer": asked.answers[prompt],
                "verdict": types.VERDICTS[fresh.verdict[index]],
                "reward": float(fresh.raw_reward[index]),
                "is_truncated": bool(fresh.is_truncated[index]),
                "num_tokens": int(fresh.response_length[index]),
                "log_prob": float(fresh.log_prob[starts_of(fresh.response_length, index)].sum()),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def starts_of(lengths: np.ndarray, index: int) -> slice:
    """The part of an end-to-end array that belongs to row `index`."""
    start = int(lengths[:index].sum())
    return slice(start, start + int(lengths[index]))


def is_done(config: config_lib.Config, progress: checkpoint.Progress) -> bool:
    """Whether no round is left to play."""
    has_stopped = config.run.stop_score is not None and progress.rounds_at_stop_score >= config.run.stop_rounds
    return has_stopped or progress.round >= config.run.rounds
