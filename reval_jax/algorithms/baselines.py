"""What a reward is compared with before it trains: `update.baseline`, computed once, when a round is collected."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from reval_jax import config as config_lib
from reval_jax import objective, types
from reval_jax.algorithms.record import Reading, ShapeReward

OF_GROUPS = {
    "group_mean": objective.group_normalized_reward,
    "group_standardized": objective.group_advantage,
    "leave_one_out": objective.leave_one_out_reward,
}
"""Baselines that are functions of the rewards of a prompt's responses alone."""


def shape_reward(config: config_lib.Config, *, auto: str) -> ShapeReward:
    """The function that `update.baseline` names, on the reward with its endogenous part.

    Args:
      auto: the baseline that `auto` stands for; if that is none, `update.reward_design: group_normalized` is the group's mean.

    Raises:
      ValueError: it cannot be computed from these settings, or would be zero for every response.
    """
    update = config.update
    name = auto if update.baseline == "auto" else update.baseline
    if name == "none" and update.reward_design == "group_normalized":
        name = "group_mean"
    _check(config, name)
    compare = _compare(update, name)
    if not update.endogenous_weight:
        return compare
    return functools.partial(_with_endogenous_reward, update.endogenous_weight, compare)


def reads(config: config_lib.Config) -> frozenset[Reading]:
    """What `shape_reward`'s function reads of a trajectory, besides its reward and its group."""
    of_baseline: frozenset[Reading] = frozenset({"greedy_reward"} if config.update.baseline == "greedy" else ())
    of_reference: frozenset[Reading] = frozenset({"reference_log_prob", "reference_value"})
    return of_baseline | (of_reference if config.update.endogenous_weight else frozenset())


def may_train(config: config_lib.Config, trajectories: types.Trajectories) -> np.ndarray:
    """bool[B]: which trajectories enter the loss and its denominators.

    With `rollout.truncated=mask` responses that were cut do not. With `update.baseline=one_sided` a class of weight 0 does
    not: it would count in the mean's denominator if its loss were merely 0.
    """
    update, kept = config.update, np.ones(trajectories.size, np.bool_)
    if config.rollout.truncated == "mask":
        kept &= ~trajectories.is_truncated
    if update.baseline == "one_sided" and not update.positive_weight:
        kept &= trajectories.raw_reward < 1
    if update.baseline == "one_sided" and not update.negative_weight:
        kept &= trajectories.raw_reward > 0
    return kept


def _check(config: config_lib.Config, name: str) -> None:
    update, num_samples = config.update, config.rollout.samples_per_prompt
    if update.reward_design == "group_normalized" and update.baseline not in ("auto", "group_mean"):
        raise ValueError(
            f"update.reward_design=group_normalized with update.baseline={update.baseline}: both compare a reward with "
            "others, and one would undo the other. Set update.reward_design=binary or signed, or leave update.baseline=auto."
        )
    if name == "group_mean" and num_samples == 1:
        raise ValueError(
            "update.baseline=group_mean with rollout.samples_per_prompt=1: the reward minus the mean of a group of one is "
            "always 0, so nothing would be learned. Use at least 2 samples a prompt, or update.baseline=none."
        )
    if name == "optimal_value" and num_samples == 1:
        raise ValueError(
            "update.baseline=optimal_value with rollout.samples_per_prompt=1: the optimal value of a group of one is its "
            "reward, so nothing would be learned. Use at least 2 samples a prompt."
        )
    if name == "one_sided" and not (update.positive_weight or update.negative_weight):
        raise ValueError(
            "update.baseline=one_sided with update.positive_weight=0 and update.negative_weight=0 leaves every response out "
            "of the loss. Give one of them a weight above 0."
        )
    if name == "one_sided" and (config.rollout.truncated == "penalty" or update.endogenous_weight):
        raise ValueError(
            f"update.baseline=one_sided with rollout.truncated={config.rollout.truncated} and "
            f"update.endogenous_weight={update.endogenous_weight}: it weighs right and wrong responses by rewards from 0 to "
            "1, which a penalty or an endogenous reward leaves. Set rollout.truncated=keep or mask, and "
            "update.endogenous_weight=0."
        )
    if name == "one_sided" and update.reward_design != "binary":
        raise ValueError(
            f"update.baseline=one_sided with update.reward_design={update.reward_design}: it weighs right and wrong responses by "
            "rewards from 0 to 1. Set update.reward_design=binary."
        )


def _compare(update: config_lib.Update, name: str) -> ShapeReward:
    if name in OF_GROUPS:
        return functools.partial(_by_group, OF_GROUPS[name])
    if name == "optimal_value":
        return functools.partial(
            _by_group, functools.partial(objective.optimal_value_reward, beta=update.optimal_value_beta)
        )
    if name == "greedy":
        return lambda all_: np.asarray(
            objective.greedy_reward_gap(jnp.asarray(all_.reward), jnp.asarray(all_.greedy_reward))
        )
    if name == "one_sided":
        return lambda all_: np.asarray(
            objective.one_sided_reward(
                jnp.asarray(all_.reward), positive_weight=update.positive_weight, negative_weight=update.negative_weight
            )
        )
    return lambda all_: all_.reward


def _by_group(function: Callable[[jax.Array, jax.Array], jax.Array], trajectories: types.Trajectories) -> np.ndarray:
    return np.asarray(function(jnp.asarray(trajectories.reward), jnp.asarray(trajectories.group)))


def _with_endogenous_reward(weight: float, compare: ShapeReward, trajectories: types.Trajectories) -> np.ndarray:
    """`compare` of reward + weight * (R - mean of R over the group), R the endogenous return of the reference."""
    endogenous = objective.endogenous_return(
        jnp.asarray(trajectories.reference_log_prob), jnp.asarray(trajectories.reference_value)
    )
    centred = _by_group(objective.group_normalized_reward, trajectories._replace(reward=np.asarray(endogenous)))
    return compare(trajectories._replace(reward=trajectories.reward + np.float32(weight) * centred))
