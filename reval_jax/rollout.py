"""A round's experience: prompts → sampled responses → verdicts → trajectories, the same on every process."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import jax
import numpy as np

from reval_jax import config as config_lib
from reval_jax import distributed, evaluate, journal, keys, prompts, replay, sampler, types
from reval_jax import trajectories as trajectories_lib
from reval_jax.setup import Parts, Run


class Sampled(NamedTuple):
    """What a round sampled, the same on every process."""

    asked: types.Prompts  # in the order of their cursors, which follow one another
    every: types.Trajectories  # of all of them, in (prompt, sample) order
    kept: types.Trajectories  # what is trained on: `every` but for what rollout.filter_groups left out
    cursor: int  # behind the prompts that were asked


def sample_round(parts: Parts, params: Any, run: Run, preemption: distributed.Preemption) -> Sampled:
    """The round's graded trajectories; with `rollout.filter_groups` in as many waves as it takes, or may take.

    Raises:
      sampler.Interrupted: as `sample_trajectories`.
    """
    settings, cursor = parts.config.rollout, run.progress.cursor
    asked, made = [], []
    for wave in range(settings.max_waves if settings.filter_groups else 1):
        some, cursor = prompts.take(parts.data, cursor, settings.prompts_per_round, seed=parts.config.run.seed)
        asked.append(some)
        made.append(sample_trajectories(parts, params, some, run, preemption, wave=wave))
        num_mixed = sum(int(trajectories_lib.is_mixed(each).sum()) for each in made) // settings.samples_per_prompt
        if num_mixed >= settings.prompts_per_round:
            break
    every = replay.concatenate(made)
    rows = (
        trajectories_lib.choose_groups(every, settings.prompts_per_round)
        if settings.filter_groups
        else np.arange(every.size)
    )
    return Sampled(trajectories_lib.join_prompts(asked), every, replay.gather(every, rows), cursor)


def sample_trajectories(
    parts: Parts, params: Any, asked: types.Prompts, run: Run, preemption: distributed.Preemption, *, wave: int
) -> types.Trajectories:
    """The graded trajectories of these prompts, the same on every process; each process samples and grades its own.

    Raises:
      sampler.Interrupted: a process was asked to stop, on every process alike; what was finished is in their journals.
    """
    round, policy_version = run.progress.round, int(run.state.num_updates)
    config, index, count = parts.config, jax.process_index(), jax.process_count()
    mine = trajectories_lib.share_of(asked, index, count)
    identity = f"{config_lib.results_hash(config)}_round_{round:06d}_policy_{policy_version}"
    # One journal for all of the round's waves: a wave's prompts are counted on from those of the waves before.
    finished, first = (
        journal.Journal(parts.run.journal / f"process_{index}_of_{count}", identity),
        wave * len(mine.texts),
    )
    rollout = None
    with (
        parts.clock.phase("generate"),
        parts.console.working(f"round {round + 1}: sampling") as report,
        contextlib.suppress(sampler.Interrupted),
    ):
        rollout = sampler.generate(
            parts.engine,
            params,
            mine,
            keys.named_key(config.run.seed, "rollout", round),
            samples_per_prompt=config.rollout.samples_per_prompt,
            sampling=parts.sampling,
            finished=finished.read(first, len(mine.texts)),
            on_finished=lambda responses: finished.add(responses, first),
            on_progress=report,
            should_stop=lambda: preemption.is_requested,
        )
    # A process that was asked to stop comes here early; the others learn of it here, so that none waits for its trajectories.
    preemption.agree()
    if rollout is None or preemption.is_agreed:
        raise sampler.Interrupted
    with parts.clock.phase("verify"):
        texts = evaluate.decode(parts.tokenizer, rollout.tokens, rollout.length)
        answers = [mine.answers[index] for index in rollout.prompt]
        verdicts = parts.grader.score(texts, answers, thinks=parts.data.thinks)
    graded = trajectories_lib.trajectories(
        mine,
        rollout,
        verdicts,
        round=round,
        policy_version=policy_version,
        config=config,
        shape_reward=parts.algorithm.shape_reward,
    )
    return trajectories_lib.gather(graded)


def describe(config: config_lib.Config, sampled: Sampled) -> dict[str, float]:
    """What was sampled this round, whether it was kept or not."""
    every = sampled.every
    counts = np.bincount(every.verdict, minlength=len(types.VERDICTS))
    described = {
        "critic/score/mean": float(every.raw_reward.mean()),
        "response_length/mean": float(every.response_length.mean()),
        "response_length/max": int(every.response_length.max()),
        "response_length/clip_ratio": float(every.is_truncated.mean()),
        # Sampled tokens' mean surprise: an unbiased estimate of the entropy a token, without a pass over the vocabulary.
        "actor/entropy": -float(every.log_prob.mean()),
        "training/sampled": every.size,
        **{f"verifier/{kind}": int(count) for kind, count in zip(types.VERDICTS, counts, strict=True)},
    }
    if config.rollout.filter_groups:
        mixed = trajectories_lib.is_mixed(every)
        described |= {
            "filter_groups/waves": every.size / config.fresh_size,
            "filter_groups/mixed": float(mixed.mean()),
            "filter_groups/all_right": float((~mixed & (every.raw_reward > 0)).mean()),
            "filter_groups/all_wrong": float((~mixed & (every.raw_reward == 0)).mean()),
            "filter_groups/filled": float((~trajectories_lib.is_mixed(sampled.kept)).mean()),
        }
    if config.rollout.truncated == "mask":
        described["overlong/masked"] = float(sampled.kept.is_truncated.mean())
    if config.rollout.truncated == "penalty":
        described["overlong/penalty"] = float(
            trajectories_lib.overlong_penalty(every.response_length, config.rollout).mean()
        )
    return described
