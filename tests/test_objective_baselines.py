"""Rewards compared with a baseline, against loops over groups in float64, and their limits."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reval_jax import objective

GROUPS = {
    "leave_one_out": objective.leave_one_out_reward,
    "optimal_value": functools.partial(objective.optimal_value_reward, beta=0.5),
}


def rewards_of_groups(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Shuffled groups of 1, 2, 5 and 16 rewards, with repeated and equal ones."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat([7, -3, 0, 2**31 - 1, 5], [1, 2, 5, 16, 4])).astype(np.int32)
    reward = rng.choice([-1.0, 0.0, 0.25, 0.3, 1.0, 2.5], group.size).astype(np.float32)
    reward[group == 5] = 0.3
    return reward, group


def members(reward: np.ndarray, group: np.ndarray, row: int) -> list[float]:
    return [float(value) for value, label in zip(reward, group, strict=True) if label == group[row]]


# --- leave one out


def loop_leave_one_out(reward: np.ndarray, group: np.ndarray) -> list[float]:
    result = []
    for row, value in enumerate(reward):
        others = [float(reward[i]) for i in range(len(reward)) if group[i] == group[row] and i != row]
        result.append(float(value) - (sum(others) / len(others) if others else 0.0))
    return result


@pytest.mark.parametrize("seed", range(3))
def test_leave_one_out_is_the_reward_less_the_mean_of_the_others(seed: int):
    reward, group = rewards_of_groups(seed)
    result = jax.jit(objective.leave_one_out_reward)(reward, group)
    np.testing.assert_allclose(result, loop_leave_one_out(reward, group), rtol=2e-6, atol=1e-6)


def test_leave_one_out_is_n_over_n_less_one_times_the_reward_less_its_groups_mean():
    reward, group = rewards_of_groups(4)
    size = np.array([len(members(reward, group, row)) for row in range(len(reward))])
    expected = size / np.maximum(size - 1, 1) * np.asarray(objective.group_normalized_reward(reward, group))
    result = np.asarray(objective.leave_one_out_reward(reward, group))
    np.testing.assert_allclose(result[size > 1], expected[size > 1], rtol=1e-6)
    np.testing.assert_array_equal(result[size == 1], reward[size == 1])


# --- optimal value


@pytest.mark.parametrize("beta", [1e-3, 0.05, 0.5, 1.0, 30.0, 1e4, 1e7])
def test_optimal_value_is_the_reward_less_a_log_mean_exp(beta: float):
    reward, group = rewards_of_groups(1)
    expected = []
    for row, value in enumerate(reward):
        scaled = np.array(members(reward, group, row)) / beta
        expected.append(float(value) - beta * (np.logaddexp.reduce(scaled) - np.log(scaled.size)))
    result = jax.jit(functools.partial(objective.optimal_value_reward, beta=beta))(reward, group)
    # In float64 the plain formula loses beta times 1e-16.
    np.testing.assert_allclose(result, expected, rtol=2e-6, atol=max(1e-6, 1e-15 * beta))


def test_optimal_value_of_an_infinite_beta_is_the_groups_mean():
    reward, group = rewards_of_groups(2)
    result = objective.optimal_value_reward(reward, group, beta=1e8)
    np.testing.assert_allclose(result, objective.group_normalized_reward(reward, group), rtol=1e-6, atol=1e-6)


def test_optimal_value_of_a_vanishing_beta_is_the_groups_largest_reward():
    reward, group = rewards_of_groups(2)
    largest = [max(members(reward, group, row)) for row in range(len(reward))]
    result = objective.optimal_value_reward(reward, group, beta=1e-8)
    np.testing.assert_allclose(result, reward - np.float32(largest), atol=1e-6)


@pytest.mark.parametrize("value", [0.1, 0.3, 1.0, -7.7, 3e7])
@pytest.mark.parametrize("size", [2, 7])
def test_equal_rewards_give_exactly_zero(value: float, size: int):
    reward, group = jnp.full(2 * size, value), jnp.arange(2 * size) % 2
    for function in GROUPS.values():
        np.testing.assert_array_equal(function(reward, group), np.zeros(2 * size, np.float32))


# --- all functions of groups


@pytest.mark.parametrize("name", GROUPS)
def test_groups_follow_a_permutation_and_do_not_see_each_other(name: str):
    reward, group = rewards_of_groups(5)
    function = GROUPS[name]
    expected = np.asarray(function(reward, group))
    order = np.random.default_rng(0).permutation(len(reward))
    np.testing.assert_allclose(function(reward[order], group[order]), expected[order], rtol=1e-6, atol=1e-7)
    poisoned = np.asarray(function(np.where(group == 0, np.float32(np.nan), reward), group))
    np.testing.assert_array_equal(poisoned[group != 0], expected[group != 0])


@pytest.mark.parametrize("name", GROUPS)
def test_baselines_are_constants_and_refuse_other_shapes(name: str):
    function = GROUPS[name]
    gradient = jax.grad(lambda reward: jnp.sum(function(reward, jnp.zeros(4, jnp.int32)) ** 2))(jnp.arange(4.0))
    np.testing.assert_array_equal(gradient, np.zeros(4, np.float32))
    with pytest.raises(ValueError, match=r"group \[3\].*same shape"):
        function(jnp.zeros(2), jnp.zeros(3, jnp.int32))
    with pytest.raises(ValueError, match=r"int\[B\], but got float32\[2\]"):
        function(jnp.zeros(2), jnp.zeros(2))


# --- one-sided and greedy


def test_one_sided_rewards_weigh_right_and_wrong_answers_apart():
    reward = jnp.array([1.0, 0.0, 0.25])
    positive_only = objective.one_sided_reward(reward, positive_weight=1.0, negative_weight=0.0)
    np.testing.assert_array_equal(positive_only, [1.0, 0.0, 0.25])
    negative_only = objective.one_sided_reward(reward, positive_weight=0.0, negative_weight=1.0)
    np.testing.assert_array_equal(negative_only, [0.0, -1.0, -0.75])
    weighted = objective.one_sided_reward(reward, positive_weight=0.1, negative_weight=1.0)
    np.testing.assert_allclose(weighted, [0.1, -1.0, 0.1 * 0.25 - 0.75], rtol=1e-6)


def test_equal_weights_are_the_signed_reward():
    reward = jnp.array([1.0, 0.0, 1.0, 0.0])
    both = objective.one_sided_reward(reward, positive_weight=1.0, negative_weight=1.0)
    np.testing.assert_array_equal(both, 2.0 * reward - 1.0)


def test_the_greedy_gap_is_a_difference_of_constants():
    reward, greedy = np.float32([1.0, 0.0, 0.5]), np.float32([0.0, 0.0, 1.0])
    np.testing.assert_array_equal(objective.greedy_reward_gap(reward, greedy), [1.0, 0.0, -0.5])
    gradients = jax.grad(lambda r, g: jnp.sum(objective.greedy_reward_gap(r, g)), argnums=(0, 1))(reward, greedy)
    np.testing.assert_array_equal(gradients, np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"greedy_reward \[2\].*same shape"):
        objective.greedy_reward_gap(reward, greedy[:2])


def test_one_sided_rewards_are_constants():
    def total(reward: jax.Array) -> jax.Array:
        return jnp.sum(objective.one_sided_reward(reward, positive_weight=0.1, negative_weight=1.0))

    np.testing.assert_array_equal(jax.grad(total)(jnp.ones(3)), np.zeros(3))
