"""The metrics of a round: every name once, beside its definition. docs/metrics.md explains them.

Elsewhere: `reval/` in `algorithms`; `actor/loss`, `actor/grad_norm`, `actor/lr` and SAMPLER_MISMATCH in `update`; `timing_s/` in
`metrics.Clock`; `val-core/` in `evaluate`; the round and the run's counts in `train.play_round`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from reval_jax import adaptation, algorithms, model, ragged, timing, trajectories, types, update, work
from reval_jax import config as config_lib
from reval_jax.evaluate import intervals


def rollout(config: config_lib.Config, sampled: types.Trajectories, trained_on: types.Trajectories) -> dict[str, float]:
    """Of the trajectories sampled this round, and of those that entered the buffer."""
    counts = np.bincount(sampled.verdict, minlength=len(types.VERDICTS))
    score = intervals.of_groups(sampled.raw_reward, sampled.group)
    described = {
        "critic/score/mean": float(sampled.raw_reward.mean()),
        "critic/score/mean/low": score.low,
        "critic/score/mean/high": score.high,
        "response_length/mean": float(sampled.response_length.mean()),
        "response_length/max": int(sampled.response_length.max()),
        "response_length/clip_ratio": float(sampled.is_truncated.mean()),
        # The sampled tokens' mean surprise estimates the entropy per token without a pass over the vocabulary.
        "actor/entropy": -float(sampled.log_prob.mean()),
        "training/sampled": sampled.size,
        **{f"verifier/{kind}": int(count) for kind, count in zip(types.VERDICTS, counts, strict=True)},
    }
    if config.rollout.filter_groups:
        mixed = trajectories.is_mixed(sampled)
        described |= {
            "filter_groups/waves": sampled.size / config.fresh_size,
            "filter_groups/mixed": float(mixed.mean()),
            "filter_groups/all_right": float((~mixed & (sampled.raw_reward > 0)).mean()),
            "filter_groups/all_wrong": float((~mixed & (sampled.raw_reward == 0)).mean()),
            "filter_groups/filled": float((~trajectories.is_mixed(trained_on)).mean()),
        }
    if config.rollout.truncated == "mask":
        described["overlong/masked"] = float(trained_on.is_truncated.mean())
    if config.rollout.truncated == "penalty":
        penalty = trajectories.length_penalty(sampled.response_length, config.rollout)
        described["overlong/penalty"] = float(penalty.mean())
    return described


class Updates(NamedTuple):
    """What a round's updates did, for their metrics."""

    metrics: Sequence[Mapping[str, float]]  # of each update, from the device
    batches: Sequence[np.ndarray]  # rows of each update
    begins_fresh: bool  # the first update trained on the fresh batch
    is_on_policy: bool  # and before it, the learner was the policy that sampled
    num_skipped: int  # updates skipped since the run began
    # Of each update f32[n], of its rows: what the algorithm computes of each, nats, if anything; and their rewards.
    numbers: Sequence[algorithms.PerTrajectory] = ()
    rewards: Sequence[np.ndarray] = ()
    groups: Sequence[np.ndarray] = ()  # i64[n] of each update: the prompts' cursors


def updates(done: Updates, buffer: types.Trajectories, round: int) -> dict[str, float]:
    """The updates' mean metrics, and what they trained on.

    Args:
      buffer: the trajectories that the batches' rows refer to.
    """
    skipped = {"training/skipped": done.num_skipped}
    if not done.metrics:  # rollout.truncated=mask, and every response was truncated
        return {**skipped, "training/update_tokens": 0, "training/update_response_tokens": 0}
    rows = np.concatenate(done.batches)
    means = {
        name: float(np.mean([each[name] for each in done.metrics]))
        for name in done.metrics[0]
        if name != update.SAMPLER_MISMATCH
    }
    # Only where the learner is the policy that sampled is a difference an error.
    mismatch = {update.SAMPLER_MISMATCH: done.metrics[0][update.SAMPLER_MISMATCH]} if done.is_on_policy else {}
    # Before a round's first update the fresh batch is new to the policy; the means include what it has trained on.
    fresh = {
        f"reval/fresh/{name.removeprefix('reval/')}": value
        for name, value in (done.metrics[0].items() if done.begins_fresh else ())
        if name.startswith("reval/")
    }
    return {
        **means,
        **fresh,
        **mismatch,
        **skipped,
        "replay/fresh_fraction": float((buffer.round[rows] == round).mean()),
        "training/update_tokens": int(buffer.length[rows].sum()),
        "training/update_response_tokens": int(buffer.response_length[rows].sum()),
    }


AGES = (0, 1, 2, 4, 8, 16)
"""The smallest age of each class of `by_age`, rounds."""


def by_age(done: Updates, buffer: types.Trajectories, round: int) -> dict[str, float]:
    """Means of the updates' numbers over the trajectories of each age that were trained on; each use counts.

    Args:
      buffer: the trajectories that the batches' rows refer to.
    """
    if not done.numbers:
        return {}
    age = round - buffer.round[np.concatenate(done.batches)]
    kind = np.searchsorted(AGES, age, side="right") - 1
    residual = np.concatenate([each.residual for each in done.numbers])
    numbers = {"residual_mean": residual, "residual_abs": np.abs(residual)}
    if done.numbers[0].value_gap is not None:
        numbers["value_gap"] = np.concatenate([types.present(each.value_gap) for each in done.numbers])
    return {
        f"reval/age/{AGES[each]}/{name}": float(values[kind == each].mean())
        for each in np.unique(kind)
        for name, values in numbers.items()
    }


def unexplained(done: Updates, beta: float) -> tuple[float, float]:
    """`adaptation.unexplained` of the fresh batch before the round's updates, and of its replay draws."""
    if not done.numbers:
        return float("nan"), float("nan")
    residuals = [np.asarray(each.residual) for each in done.numbers]
    parts = [(residual, rewards / beta) for residual, rewards in zip(residuals, done.rewards, strict=True)]
    fresh, replayed = (parts[:1], parts[1:]) if done.begins_fresh else ([], parts)
    shares = [
        adaptation.unexplained(*(np.concatenate(values) for values in zip(*rows, strict=True))) if rows else np.nan
        for rows in (fresh, replayed)
    ]
    return shares[0], shares[1]


def pull_ratio(done: Updates, beta: float) -> float:
    """`adaptation.pull_ratio` of the fresh batch before the round's updates; NaN if no update began with it."""
    if not (done.begins_fresh and done.numbers):
        return float("nan")
    return adaptation.pull_ratio(np.asarray(done.numbers[0].residual), done.rewards[0] / beta, done.groups[0])


def buffer(kept: types.Trajectories, round: int) -> dict[str, float]:
    """Of the buffer after the round."""
    age = round - kept.round
    return {
        "replay/size": kept.size,
        "replay/age_mean": float(age.mean()),
        "replay/age_max": int(age.max()),
        "replay/reuse_mean": float(kept.use_count.mean()),
    }


def evicted(before: types.Trajectories, after: types.Trajectories, round: int) -> dict[str, float]:
    """Of the trajectories that left the buffer, which was `before` and is `after`, to make room for this round's."""
    num_left = before.size - int((after.round != round).sum())
    return {"replay/reuse_at_eviction": float(before.use_count[:num_left].mean())} if num_left else {}


def pool(config: config_lib.Config, joined: types.Trajectories) -> dict[str, float]:
    """Of the stored responses among a round's trajectories `joined`, with `rollout.pool`."""
    if not config.rollout.pool:
        return {}
    is_stored = joined.sample >= config.rollout.samples_per_prompt
    return {
        "pool/responses": int(is_stored.sum()),
        "pool/prompts": np.unique(joined.cursor[is_stored]).size / np.unique(joined.cursor).size,
    }


def distance(config: config_lib.Config, joined: types.Trajectories) -> dict[str, float]:
    """How far the policy that sampled is from the reference, in nats a trajectory, over the fresh ones it has scored.

    Stored responses are left out: this policy did not sample them.
    """
    is_scored = joined.reference_version != types.NOT_SCORED
    is_scored &= joined.sample < config.rollout.samples_per_prompt
    if not is_scored.any():
        return {}
    totals = ragged.sums(joined.log_prob, joined.response_length)
    return {"actor/kl_ref": float((totals - joined.reference_log_prob)[is_scored].mean())}


def speed(
    line: Mapping[str, float], seconds: Mapping[str, float], architecture: model.Architecture, peak_flops: float
) -> dict[str, float]:
    """Tokens a second, and MFU, of a round with these metrics and seconds by phase.

    MFU is NaN where it would be above 1, as `timing.share`.

    Args:
      peak_flops: of all devices of the learner.
    """
    if "critic/score/mean" not in line:  # the evaluation before the first round
        return {}
    num_sampled = line["response_length/mean"] * line["training/sampled"]
    measured = {"perf/rollout_tokens_per_s": num_sampled / seconds["timing_s/generate"]}
    if tokens := line["training/update_tokens"]:
        update_seconds = seconds["timing_s/update"]
        flops = work.weights(architecture, tokens=tokens, scored=line["training/update_response_tokens"])
        measured["perf/update_tokens_per_s"] = tokens / update_seconds
        measured["perf/mfu"] = timing.share(flops, update_seconds, peak_flops)
    return measured
