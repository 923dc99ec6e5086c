"""The rows of each update of a round: draws from replay, or mini-batches of the fresh batch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from reval_jax import config as config_lib
from reval_jax import keys, priorities, replay
from reval_jax.algorithms import baselines
from reval_jax.algorithms.record import Draw


class Draws(NamedTuple):
    """The fields of an `Algorithm` that concern rows."""

    draw: Callable[[replay.Buffer, int, int], Draw]
    num_updates: int
    step_size: int


def choose(config: config_lib.Config, *, auto: str) -> Draws:
    """The draws that `update.draws` names.

    Args:
      auto: what `auto` stands for.

    Raises:
      ValueError: these settings leave something of them unread, or the fresh batch does not split.
    """
    kind = auto if config.update.draws == "auto" else config.update.draws
    return _mini_batches(config) if kind == "fresh" else _replayed(config)


def _replayed(config: config_lib.Config) -> Draws:
    update = config.update
    if update.passes > 1:
        raise ValueError(
            f"update.passes={update.passes} with update.objective={update.objective}, which draws from replay: passes are over "
            "the fresh batch. Set update.draws=fresh, or raise update.updates_per_round instead."
        )
    if config.replay.priority != "uniform" and update.fresh_first and update.updates_per_round == 1:
        raise ValueError(
            f"replay.priority={config.replay.priority} with update.updates_per_round=1 and update.fresh_first=true: the only "
            "update of a round trains on the fresh batch, so nothing is drawn. Use more updates, or replay.priority=uniform."
        )
    if config.replay.priority == "centred_residual" and config.rollout.samples_per_prompt == 1:
        raise ValueError(
            "replay.priority=centred_residual with rollout.samples_per_prompt=1: a residual less the mean of a group of one "
            "is always 0. Use at least 2 samples a prompt, or replay.priority=residual."
        )
    return Draws(
        functools.partial(_draw_with_replay, config),
        update.updates_per_round,
        max(update.batch_size, config.largest_round if update.fresh_first else 0),
    )


def _mini_batches(config: config_lib.Config) -> Draws:
    update, name = config.update, f"update.objective={config.update.objective}"
    if not update.fresh_first:
        raise ValueError(
            f"{name} with update.fresh_first=false: this objective trains on fresh trajectories only. Set "
            "update.fresh_first=true, or update.draws=replay."
        )
    if update.batch_size % update.updates_per_round:
        raise ValueError(
            f"update.updates_per_round={update.updates_per_round} does not divide update.batch_size={update.batch_size}: "
            f"{name} splits the fresh batch into that many equal mini-batches. Use a divisor."
        )
    if config.replay.priority != "uniform":
        raise ValueError(
            f"replay.priority={config.replay.priority} with {name}, which trains on the fresh batch and draws nothing from "
            "replay. Set replay.priority=uniform, or update.draws=replay."
        )
    if update.reference_reset_pull and update.updates_per_round > 1:
        raise ValueError(
            f"update.reference_reset_pull={update.reference_reset_pull} with update.updates_per_round={update.updates_per_round} "
            f"mini-batches of {name}: the pull ratio compares whole groups of the fresh batch before its first update. Set "
            "update.updates_per_round=1, or update.draws=replay."
        )
    if update.max_updates_per_round:
        raise ValueError(
            f"update.max_updates_per_round={update.max_updates_per_round} with {name}, which trains on the fresh batch: only "
            "draws from replay adapt. Set it to 0, or update.draws=replay."
        )
    return Draws(
        functools.partial(_draw_mini_batch, config),
        update.updates_per_round * update.passes,
        -(-config.largest_round // update.updates_per_round),
    )


def _draw_with_replay(config: config_lib.Config, buffer: replay.Buffer, round: int, index: int) -> Draw:
    update, settings = config.update, config.replay
    if index == 0 and update.fresh_first:
        return Draw(replay.of_round(buffer, round))
    key = keys.named_key(config.run.seed, "replay", round, index)
    if settings.priority == "uniform" or not settings.priority_exponent:
        return Draw(replay.sample(buffer, key, update.batch_size))
    # Rows that may not train never get a residual, so they would keep the largest priority.
    may_train = baselines.may_train(config, buffer.trajectories)
    drawn = priorities.sample(buffer, key, update.batch_size, settings=settings, may_train=may_train)
    return Draw(drawn.rows, priorities.weights(drawn, priorities.weight_exponent(settings, round)))


def _draw_mini_batch(config: config_lib.Config, buffer: replay.Buffer, round: int, index: int) -> Draw:
    fresh, count = replay.of_round(buffer, round), config.update.updates_per_round
    pass_, part = divmod(index, count)
    key = keys.named_key(config.run.seed, "mini_batches", round, *([pass_] if pass_ else []))
    # Equal parts, unless some prompts have responses from `rollout.pool`.
    return Draw(np.array_split(fresh[keys.host_permutation(key, fresh.size)], count)[part])
