"""Rewards compared with a baseline: what a trajectory's reward is worth beside the other responses to its prompt.

All are constants: shaped once, when a group is complete, and never differentiated. In units of reward unless stated.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from reval_jax.objective import arrays

ADVANTAGE_EPSILON = 1e-6  # units of reward; keeps a group of equal rewards from dividing 0 by 0. verl's value.


def group_normalized_reward(reward: jax.Array, group: jax.Array) -> jax.Array:
    """Reward minus the mean reward of its group, in units of reward.

    r~_i = r_i - mean of r over the group of i          (ReVal, arXiv 2603.23355, Fig. 9)

    Exactly 0 where all rewards of a group are equal, hence always 0 for a group of one: such a batch teaches nothing.
    It compares every pair, so it needs memory of order B^2; the order of the rows does not matter.

    Args:
      reward: [B]; a constant.
      group: int[B], any labels; equal labels mean the same prompt. Give empty slots a label of their own, so that they
        affect no other row.

    Returns:
      f32[B], no gradient.

    Raises:
      ValueError: shapes differ, or group is not an integer array.
    """
    is_same = _is_same_group(reward, group)
    return _centred(arrays.constant(reward), is_same)


def group_advantage(reward: jax.Array, group: jax.Array) -> jax.Array:
    """GRPO's advantage: the reward in standard deviations from the mean of its group.

    A_i = (r_i - mean) / (std + 1e-6), std with n - 1 in the denominator          (GRPO, arXiv 2402.03300)

    A group of one has mean 0 and std 1, as in GRPO's usual code: A = r, so only positives teach. Exactly 0 where all
    rewards of a larger group are equal. Arguments, memory and errors as in `group_normalized_reward`.

    Returns:
      f32[B], dimensionless, no gradient.
    """
    is_same = _is_same_group(reward, group)
    reward = arrays.constant(reward)
    centred = _centred(reward, is_same)
    group_size = jnp.sum(is_same, axis=1, dtype=jnp.float32)
    sum_of_squares = jnp.sum(jnp.where(is_same, jnp.square(centred)[None, :], 0.0), axis=1)
    std = jnp.sqrt(sum_of_squares / jnp.maximum(group_size - 1.0, 1.0))
    return jnp.where(group_size == 1.0, reward, centred / (std + ADVANTAGE_EPSILON))


def leave_one_out_reward(reward: jax.Array, group: jax.Array) -> jax.Array:
    """Reward minus the mean reward of the other responses to its prompt, in units of reward.

    A_i = r_i - mean of r over the others of the group = n / (n - 1) * (r_i - mean of r)          (RLOO, arXiv 2402.14740)

    A group of one has no others, and A = r. Exactly 0 where all rewards of a larger group are equal. Arguments, memory and
    errors as in `group_normalized_reward`.

    Returns:
      f32[B], no gradient.
    """
    is_same = _is_same_group(reward, group)
    reward = arrays.constant(reward)
    num_others = jnp.sum(is_same, axis=1, dtype=jnp.float32) - 1.0
    factor = (num_others + 1.0) / jnp.maximum(num_others, 1.0)
    return jnp.where(num_others == 0.0, reward, factor * _centred(reward, is_same))


def optimal_value_reward(reward: jax.Array, group: jax.Array, *, beta: float | jax.Array) -> jax.Array:
    """Reward minus the optimal value of its prompt, as its group estimates it, in units of reward.

    A_i = r_i - V*,  V* = beta * (logsumexp of r / beta over the group of i - log n)          (OAPL, arXiv 2602.19362)

    V* lies between the group's mean reward (beta to infinity) and its largest one (beta to 0). The residual of OAPL is
    `regression_residual` with this reward and a beta of its own, which is smaller (the paper: 1 here, 1e-3 there). Exactly 0
    where all rewards of a group are equal, so always in a group of one. The responses must be the reference's.
    Other arguments, memory and errors as in `group_normalized_reward`.

    Args:
      reward: [B]; a constant.
      group: int[B].
      beta: scalar > 0, units of reward per nat.

    Returns:
      f32[B], no gradient.
    """
    is_same = _is_same_group(reward, group)
    reward, beta = arrays.constant(reward), arrays.constant(beta)
    largest = jnp.max(jnp.where(is_same, reward[None, :], -jnp.inf), axis=1)
    exponent = jnp.where(is_same, reward[None, :] - largest[:, None], 0.0) / beta
    size = jnp.sum(is_same, axis=1, dtype=jnp.float32)
    mean_exp = jnp.sum(jnp.where(is_same, jnp.exp(exponent), 0.0), axis=1) / size
    mean_expm1 = jnp.sum(jnp.where(is_same, jnp.expm1(exponent), 0.0), axis=1) / size
    # At large beta the exponentials differ in their last bits only; expm1 keeps what beta then multiplies.
    log_mean_exp = jnp.where(mean_exp > 0.5, jnp.log1p(mean_expm1), jnp.log(mean_exp))
    return (reward - largest) - beta * log_mean_exp


def one_sided_reward(
    reward: jax.Array, *, positive_weight: float | jax.Array, negative_weight: float | jax.Array
) -> jax.Array:
    """Right and wrong responses weighted apart, without a baseline, in units of reward.

    A = positive_weight * r - negative_weight * (1 - r)          (PSR, NSR and W-REINFORCE, arXiv 2506.01347)

    With r in {0, 1}: +positive_weight on a right response, -negative_weight on a wrong one. PSR is (1, 0), NSR (0, 1), the
    paper's W-REINFORCE (0.1, 1). PSR and NSR drop the other class from the batch; a weight of 0 does not, so in a token mean
    the dropped tokens still count, and the loss is smaller by their share.

    Args:
      reward: [B] in [0, 1], such as reward_design `binary`; `signed` rewards (-1) would count double. A constant.
      positive_weight: scalar >= 0.
      negative_weight: scalar >= 0.

    Returns:
      f32[B], no gradient.
    """
    reward = arrays.constant(reward)
    return arrays.constant(positive_weight) * reward - arrays.constant(negative_weight) * (1.0 - reward)


def greedy_reward_gap(reward: jax.Array, greedy_reward: jax.Array) -> jax.Array:
    """Reward minus that of the greedy response to the same prompt, in units of reward.

    A = r - r_greedy          (ReMax, arXiv 2310.10505)

    Both rewards must go through the same penalty for length. The paper's discount and KL term are not here.

    Args:
      reward: [B]; a constant.
      greedy_reward: [B], of the greedy response to each row's prompt; a constant.

    Returns:
      f32[B], no gradient.

    Raises:
      ValueError: shapes differ.
    """
    arrays.check_same_shape(reward=reward, greedy_reward=greedy_reward)
    return arrays.constant(reward) - arrays.constant(greedy_reward)


def _is_same_group(reward: jax.Array, group: jax.Array) -> jax.Array:
    """bool[B, B], True where two rows carry the same label."""
    arrays.check_same_shape(reward=reward, group=group)
    group = jnp.asarray(group)
    if group.ndim != 1 or not jnp.issubdtype(group.dtype, jnp.integer):
        raise ValueError(
            f"group takes one integer label per trajectory, int[B], but got {group.dtype}{list(group.shape)}, which "
            "does not name the group of each row exactly. Pass the prompts' integer ids."
        )
    return group[:, None] == group[None, :]


def _centred(reward: jax.Array, is_same: jax.Array) -> jax.Array:
    """f32[B], reward minus its group's mean, computed from distances to the group's largest reward.

    Equal rewards then have distance 0 exactly, whereas a float32 mean of them might be rounded.
    """
    largest = jnp.max(jnp.where(is_same, reward[None, :], -jnp.inf), axis=1)
    distance = jnp.where(is_same, reward[None, :] - largest[:, None], 0.0)
    mean_distance = jnp.sum(distance, axis=1) / jnp.sum(is_same, axis=1, dtype=jnp.float32)
    return (reward - largest) - mean_distance
