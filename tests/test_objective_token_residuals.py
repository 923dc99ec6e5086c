"""ROVER's residual and the endogenous reward on packed rows, and weights in the Bellman loss, against loops in float64."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import packed_tokens as packed

from reval_jax import objective

TOKENS = packed.packed_tokens(2)


def garbage_where_masked(values: np.ndarray) -> np.ndarray:
    return np.where(TOKENS.mask, values, np.resize(np.float32([np.nan, np.inf]), values.shape)).astype(np.float32)


# --- the next token


def test_the_next_value_is_that_of_the_same_trajectory_and_zero_after_its_last_token():
    values = garbage_where_masked(np.random.default_rng(0).normal(30, 5, TOKENS.mask.shape))
    result = np.asarray(jax.jit(objective.next_in_trajectory)(values, TOKENS.slot))
    for row, columns in TOKENS.trajectories():
        np.testing.assert_array_equal(result[row, columns], [*values[row, columns][1:], 0.0])


def test_a_trajectory_that_fills_its_row_ends_at_the_last_column():
    result = objective.next_in_trajectory(jnp.array([[1.0, 2.0, 3.0]]), jnp.zeros((1, 3), jnp.int32))
    np.testing.assert_array_equal(result, [[2.0, 3.0, 0.0]])


def test_the_gradient_of_a_next_value_goes_to_its_token_only():
    def total(values: jax.Array) -> jax.Array:
        return jnp.sum(objective.next_in_trajectory(values, TOKENS.slot)[TOKENS.mask])

    is_first = np.zeros(TOKENS.mask.shape, bool)
    for row, columns in TOKENS.trajectories():
        is_first[row, columns.start] = True
    np.testing.assert_array_equal(jax.grad(total)(jnp.ones(TOKENS.mask.shape)), TOKENS.mask & ~is_first)


def test_a_slot_of_another_shape_or_type_is_refused():
    with pytest.raises(ValueError, match=r"slot \[2\].*same shape"):
        objective.next_in_trajectory(jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32))
    with pytest.raises(ValueError, match=r"int\[R, C\], but got float32\[2, 3\]"):
        objective.next_in_trajectory(jnp.zeros((2, 3)), jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"int\[R, C\], but got int32\[3\]"):
        objective.next_in_trajectory(jnp.zeros(3), jnp.zeros(3, jnp.int32))


# --- ROVER


class Gaps(NamedTuple):
    policy: np.ndarray  # f32[R, C] mean over the vocabulary of log pi
    sampler: np.ndarray


GAPS = Gaps(*(garbage_where_masked(np.random.default_rng(seed).normal(-12, 1, TOKENS.mask.shape)) for seed in (5, 6)))


def rover_loss(log_prob: jax.Array, gaps: Gaps, advantage: jax.Array, behaviour: jax.Array, scale: float) -> jax.Array:
    next_gap = objective.next_in_trajectory(jnp.asarray(gaps.policy) - gaps.sampler, TOKENS.slot)
    residual = objective.rover_residual(log_prob, behaviour, next_gap, advantage, scale=scale)
    return objective.squared_token_mean(residual, TOKENS.mask)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_rovers_loss_and_gradient_equal_the_loop_over_trajectories(scale: float):
    terms, expected_gradient = [], np.zeros(TOKENS.mask.shape)
    num_tokens = TOKENS.mask.sum()
    for row, columns in TOKENS.trajectories():
        gap = GAPS.policy[row, columns].astype(np.float64) - GAPS.sampler[row, columns]
        for step, c in enumerate(range(columns.start, columns.stop)):
            q = scale * (float(TOKENS.log_prob[row, c]) - float(TOKENS.behaviour_log_prob[row, c]))
            target = float(TOKENS.advantage[row, c])
            if c + 1 < columns.stop:
                target += scale * gap[step + 1]
            terms.append((q - target) ** 2)
            expected_gradient[row, c] = 2 * scale * (q - target) / num_tokens
    loss, gradients = jax.jit(jax.value_and_grad(rover_loss, argnums=(0, 1, 2, 3)), static_argnums=4)(
        TOKENS.log_prob, GAPS, TOKENS.advantage, TOKENS.behaviour_log_prob, scale
    )
    np.testing.assert_allclose(loss, np.mean(terms), rtol=2e-6)
    np.testing.assert_allclose(gradients[0], expected_gradient, rtol=2e-5, atol=1e-7)
    for constant in jax.tree.leaves(gradients[1:]):
        np.testing.assert_array_equal(constant, 0.0)


def test_on_the_policy_that_sampled_rover_is_reinforce():
    tokens = TOKENS._replace(behaviour_log_prob=TOKENS.log_prob)
    gaps = Gaps(GAPS.policy, GAPS.policy)
    gradient = jax.grad(rover_loss)(TOKENS.log_prob, gaps, tokens.advantage, tokens.behaviour_log_prob, 1.0)
    expected = jax.grad(objective.policy_gradient_loss)(
        *tokens[:4], surrogate=objective.reinforce, mean=objective.token_mean
    )
    np.testing.assert_allclose(gradient, 2.0 * expected, rtol=1e-6)


def test_the_squares_of_parts_add_up_to_the_mean_of_the_batch():
    residual = garbage_where_masked(np.random.default_rng(1).normal(0, 3, TOKENS.mask.shape))
    num_tokens = int(TOKENS.mask.sum())
    parts = [
        float(objective.squared_token_mean(residual[row : row + 1], TOKENS.mask[row : row + 1], num_tokens=num_tokens))
        for row in range(len(residual))
    ]
    whole = objective.squared_token_mean(residual, TOKENS.mask)
    np.testing.assert_allclose(whole, np.mean(residual[TOKENS.mask].astype(np.float64) ** 2), rtol=2e-6)
    np.testing.assert_allclose(sum(parts), whole, rtol=2e-6)
    assert parts[-1] == 0.0


def test_token_residuals_refuse_to_broadcast():
    tokens = jnp.zeros((2, 3))
    for wrong in range(4):
        arrays = [tokens] * 4
        arrays[wrong] = tokens[:, :1]
        with pytest.raises(ValueError, match="same shape"):
            objective.rover_residual(*arrays, scale=1.0)
    with pytest.raises(ValueError, match="same shape"):
        objective.squared_token_mean(tokens, jnp.ones(2, bool))


# --- weights in the Bellman loss


def test_a_weight_multiplies_each_square_and_not_the_denominator():
    rng = np.random.default_rng(0)
    residual, weight = rng.normal(0, 50, 64).astype(np.float32), rng.uniform(0, 1, 64).astype(np.float32)
    residual[::7], weight[::7] = np.nan, np.inf
    is_real = np.arange(64) % 7 != 0
    exact = [float(w) * float(delta) ** 2 for delta, w, real in zip(residual, weight, is_real, strict=True) if real]
    slopes = np.where(is_real, 2 * np.where(is_real, weight.astype(np.float64) * residual, 0) / 40, 0)
    loss, (gradient, weight_gradient) = jax.jit(
        jax.value_and_grad(
            lambda delta, w: objective.bellman_loss(delta, is_real=is_real, num_trajectories=40, weight=w),
            argnums=(0, 1),
        )
    )(residual, weight)
    np.testing.assert_allclose(loss, sum(exact) / 40, rtol=2e-6)
    np.testing.assert_allclose(gradient, slopes, rtol=2e-6)
    np.testing.assert_array_equal(weight_gradient, 0.0)


def test_weights_of_one_are_no_weights():
    residual = np.random.default_rng(0).normal(0, 50, 64).astype(np.float32)
    assert objective.bellman_loss(residual, weight=jnp.ones(64)) == objective.bellman_loss(residual)


def test_a_weight_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"weight \[3, 1\].*same shape"):
        objective.bellman_loss(jnp.ones(3), weight=jnp.ones((3, 1)))


# --- the endogenous reward


def test_endogenous_rewards_equal_the_definition_and_telescope_to_the_return():
    rng = np.random.default_rng(3)
    value = garbage_where_masked(rng.uniform(20, 40, TOKENS.mask.shape))
    rewards = objective.endogenous_reward(TOKENS.log_prob, value, objective.next_in_trajectory(value, TOKENS.slot))
    for row, columns in TOKENS.trajectories():
        log_prob, values = (array[row, columns].astype(np.float64) for array in (TOKENS.log_prob, value))
        expected = log_prob + values - np.append(values[1:], 0.0)
        got = np.asarray(rewards[row, columns], np.float64)
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-5)
        total = objective.endogenous_return(jnp.float32([log_prob.sum()]), jnp.float32(values[:1]))
        np.testing.assert_allclose(got.sum(), total[0], rtol=1e-5)


def test_the_endogenous_reward_of_logits_is_the_logit_less_the_next_value():
    logits = np.random.default_rng(4).normal(0, 3, (9, 7))
    actions = np.random.default_rng(5).integers(0, 7, 9)
    value = np.logaddexp.reduce(logits, axis=1)
    chosen = logits[np.arange(9), actions]
    next_value = np.append(value[1:], 0.0)
    rewards = objective.endogenous_reward(*(np.float32(array)[None] for array in (chosen - value, value, next_value)))
    np.testing.assert_allclose(rewards[0], chosen - next_value, rtol=1e-6, atol=1e-5)


def test_revals_residual_is_the_difference_of_endogenous_returns_less_the_scaled_reward():
    rng = np.random.default_rng(6)
    value, reference_value = rng.uniform(20, 40, (2, 16)).astype(np.float32)
    log_prob, reference_log_prob = rng.uniform(-60, -10, (2, 16)).astype(np.float32)
    reward = rng.integers(0, 2, 16).astype(np.float32)
    returns = (
        objective.endogenous_return(log_prob, value),
        objective.endogenous_return(reference_log_prob, reference_value),
    )
    residual = objective.reval_residual(value, reference_value, log_prob, reference_log_prob, reward, beta=0.5)
    np.testing.assert_allclose(residual, returns[0] - returns[1] - 2 * reward, rtol=1e-5, atol=1e-5)


def test_the_endogenous_reward_is_a_constant_and_refuses_to_broadcast():
    tokens = jnp.ones((2, 3))
    gradients = jax.grad(lambda *arrays: jnp.sum(objective.endogenous_reward(*arrays)), argnums=(0, 1, 2))(
        *[tokens] * 3
    )
    np.testing.assert_array_equal(gradients, np.zeros((3, 2, 3)))
    gradients = jax.grad(lambda *arrays: jnp.sum(objective.endogenous_return(*arrays)), argnums=(0, 1))(
        *[tokens[0]] * 2
    )
    np.testing.assert_array_equal(gradients, np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"next_value \[2, 1\].*same shape"):
        objective.endogenous_reward(tokens, tokens, tokens[:, :1])
    with pytest.raises(ValueError, match=r"value \[2, 1\].*same shape"):
        objective.endogenous_return(tokens[:, 0], tokens[:, :1])
