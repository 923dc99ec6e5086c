"""The first losses against a frozen copy of their code, bit for bit: whatever is added to `objective` may not move them.

The copies are the functions as they were before `objective` became a package, without their docstrings and checks.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reval_jax import objective

SHAPE = (13, 37)


def float32(array: jax.Array) -> jax.Array:
    return jnp.asarray(array).astype(jnp.float32)


def constant(array: jax.Array) -> jax.Array:
    return jax.lax.stop_gradient(float32(array))


def frozen_denominator(count: int | None, mask: jax.Array) -> jax.Array:
    if count is None:
        return jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1.0)
    return jnp.maximum(float32(count), 1.0)


def frozen_grpo(log_prob, behaviour_log_prob, advantage, response_mask, *, clip_low, clip_high, clip_dual, num_tokens):
    mask = jnp.asarray(response_mask, jnp.bool_)
    log_ratio = jnp.where(mask, float32(log_prob) - constant(behaviour_log_prob), 0.0)
    advantage = constant(advantage)
    token_advantage = advantage if advantage.ndim == 2 else jnp.broadcast_to(advantage[:, None], mask.shape)
    ratio = jnp.exp(jnp.clip(log_ratio, -20.0, 20.0))
    clipped_ratio = jnp.clip(ratio, 1.0 - float32(clip_low), 1.0 + float32(clip_high))
    unclipped_loss = -token_advantage * ratio
    clipped_loss = -token_advantage * clipped_ratio
    loss = jnp.where(clipped_loss > unclipped_loss, clipped_loss, unclipped_loss)
    ceiling = -token_advantage * float32(clip_dual)
    loss = jnp.where((token_advantage < 0.0) & (ceiling < loss), ceiling, loss)
    return jnp.sum(loss, where=mask) / frozen_denominator(num_tokens, mask)


def frozen_residual(soft_value, reference_soft_value, log_prob, reference_log_prob, reward, *, beta):
    value_gap = float32(soft_value) - constant(reference_soft_value)
    log_ratio = float32(log_prob) - constant(reference_log_prob)
    return value_gap + log_ratio - constant(reward) / float32(beta)


def frozen_tbrm(soft_value, log_prob, reference_log_prob, reward, *, beta):
    log_ratio = float32(log_prob) - constant(reference_log_prob)
    return float32(soft_value) + log_ratio - constant(reward) / float32(beta)


def frozen_regression(log_prob, reference_log_prob, reward, *, beta):
    return float32(log_prob) - constant(reference_log_prob) - constant(reward) / float32(beta)


def frozen_bellman(residual, *, is_real, num_trajectories):
    kept = jnp.where(jnp.asarray(is_real, jnp.bool_), float32(residual), 0.0)
    return jnp.sum(jnp.square(kept)) / frozen_denominator(num_trajectories, is_real)


def assert_bit_equal(new: Callable, frozen: Callable, *arguments: np.ndarray) -> None:
    """Value and gradients with respect to all float arguments, compiled and op by op."""
    floats = tuple(index for index, array in enumerate(arguments) if array.dtype == np.float32)
    for transform in (jax.jit, lambda function: function):
        results = [transform(jax.value_and_grad(each, argnums=floats))(*arguments) for each in (new, frozen)]
        got, expected = ([np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(result)] for result in results)
        assert got == expected


@pytest.mark.parametrize("num_tokens", [None, 1000])
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_grpo_loss_and_its_gradient_are_bit_for_bit_what_they_were(seed: int, per_token: bool, num_tokens: int | None):
    rng = np.random.default_rng(seed)
    behaviour = rng.uniform(-5, 0, SHAPE).astype(np.float32)
    log_prob = behaviour + rng.normal(0, 1, SHAPE).astype(np.float32)
    log_prob[0, :4] += (-30, 30, 19, -19)
    advantage = rng.normal(0, 1, SHAPE if per_token else SHAPE[:1]).astype(np.float32)
    mask = rng.uniform(size=SHAPE) < 0.8
    settings = {"clip_low": 0.2, "clip_high": 0.28, "clip_dual": 3.0, "num_tokens": num_tokens}

    def loss_of(function: Callable) -> Callable:
        return lambda p, b, a, m: function(p, b, a, m, **settings)

    assert_bit_equal(loss_of(objective.grpo_loss), loss_of(frozen_grpo), log_prob, behaviour, advantage, mask)


@pytest.mark.parametrize("num_trajectories", [None, 100])
@pytest.mark.parametrize(
    ("new", "frozen", "num_arrays"),
    [
        (objective.reval_residual, frozen_residual, 5),
        (objective.tbrm_residual, frozen_tbrm, 4),
        (objective.regression_residual, frozen_regression, 3),
    ],
)
def test_value_losses_and_their_gradients_are_bit_for_bit_what_they_were(
    new: Callable, frozen: Callable, num_arrays: int, num_trajectories: int | None
):
    rng = np.random.default_rng(7)
    numbers = [rng.normal(0, 1000, SHAPE).astype(np.float32) for _ in range(num_arrays)]
    is_real = rng.uniform(size=SHAPE) < 0.7

    def loss_of(residual: Callable, mean: Callable) -> Callable:
        def loss(*arguments: jax.Array) -> jax.Array:
            *arrays, real = arguments
            return mean(residual(*arrays, beta=0.002), is_real=real, num_trajectories=num_trajectories)

        return loss

    assert_bit_equal(loss_of(new, objective.bellman_loss), loss_of(frozen, frozen_bellman), *numbers, is_real)
