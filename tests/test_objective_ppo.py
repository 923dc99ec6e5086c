"""Generalized advantages, whitening and the value loss of PPO, against the usual recursion and scalar code in float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reval_jax import objective

LENGTHS = np.array([1, 7, 4, 0, 9, 2])
SHAPE = (len(LENGTHS), 9)
MASK = np.arange(SHAPE[1]) < LENGTHS[:, None]


def padded(values: np.ndarray) -> np.ndarray:
    return np.where(MASK, values, np.resize(np.float32([np.nan, np.inf, -np.inf]), SHAPE)).astype(np.float32)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# --- advantages


def loop_advantages(
    reward: np.ndarray, value: np.ndarray, discount: float, decay: float
) -> tuple[np.ndarray, np.ndarray]:
    """The recursion over temporal differences, row by row and backwards."""
    advantage, returns = np.zeros(SHAPE), np.zeros(SHAPE)
    for row, length in enumerate(LENGTHS):
        later = 0.0
        for t in reversed(range(length)):
            is_last = t == length - 1
            paid = float(reward[row]) if is_last else 0.0
            next_value = 0.0 if is_last else float(value[row, t + 1])
            later = paid + discount * next_value - float(value[row, t]) + discount * decay * later
            advantage[row, t], returns[row, t] = later, later + float(value[row, t])
    return advantage, returns


@pytest.mark.parametrize(("discount", "decay"), [(1.0, 1.0), (1.0, 0.95), (0.9, 0.5), (0.99, 0.0), (0.0, 1.0)])
def test_advantages_and_returns_equal_the_recursion(discount: float, decay: float, rng: np.random.Generator):
    reward, value = rng.normal(size=SHAPE[0]).astype(np.float32), padded(rng.normal(size=SHAPE))
    compute = functools.partial(objective.generalized_advantage, discount=discount, decay=decay)
    for got, expected in zip(
        jax.jit(compute)(reward, value, MASK), loop_advantages(reward, value, discount, decay), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-6)
        np.testing.assert_array_equal(got[~MASK], 0.0)


def test_without_discount_and_decay_they_are_exactly_the_reward_less_the_value_and_the_reward(
    rng: np.random.Generator,
):
    reward, value = rng.normal(size=SHAPE[0]).astype(np.float32), padded(rng.normal(0, 100, SHAPE))
    advantage, returns = objective.generalized_advantage(reward, value, MASK, discount=1.0, decay=1.0)
    expected = np.repeat(reward[:, None], SHAPE[1], axis=1)
    np.testing.assert_array_equal(returns[MASK], expected[MASK])
    np.testing.assert_array_equal(advantage[MASK], (expected - value)[MASK])


def test_without_decay_the_advantage_is_the_temporal_difference(rng: np.random.Generator):
    reward, value = rng.normal(size=SHAPE[0]).astype(np.float32), padded(rng.normal(size=SHAPE))
    advantage, _ = objective.generalized_advantage(reward, value, MASK, discount=0.9, decay=0.0)
    for row, length in enumerate(LENGTHS):
        if length:
            values = np.append(value[row, :length].astype(np.float64), 0.0)
            difference = 0.9 * values[1:] - values[:-1]
            difference[-1] += reward[row]
            np.testing.assert_allclose(advantage[row, :length], difference, rtol=2e-6, atol=1e-6)


def test_advantages_and_returns_are_constants(rng: np.random.Generator):
    def total(reward: jax.Array, value: jax.Array) -> jax.Array:
        advantage, returns = objective.generalized_advantage(reward, value, MASK, discount=0.9, decay=0.9)
        return jnp.sum(advantage) + jnp.sum(objective.whitened(returns, MASK))

    for gradient in jax.grad(total, argnums=(0, 1))(jnp.ones(SHAPE[0]), jnp.ones(SHAPE)):
        np.testing.assert_array_equal(gradient, 0.0)


def test_shapes_of_advantages_are_checked():
    value, mask = jnp.zeros((2, 3)), jnp.ones((2, 3), bool)
    compute = functools.partial(objective.generalized_advantage, discount=1.0, decay=1.0)
    with pytest.raises(ValueError, match=r"mask \[2\].*same shape"):
        compute(jnp.zeros(2), value, mask[:, 0])
    with pytest.raises(ValueError, match=r"got reward \[2, 3\] and value \[2, 3\]"):
        compute(jnp.zeros((2, 3)), value, mask)
    with pytest.raises(ValueError, match=r"got reward \[3\] and value \[2, 3\]"):
        compute(jnp.zeros(3), value, mask)


# --- whitening


def test_whitening_equals_numpys_standardization_of_the_masked_in_tokens(rng: np.random.Generator):
    advantage = padded(rng.normal(3, 2, SHAPE))
    kept = advantage[MASK].astype(np.float64)
    result = jax.jit(objective.whitened)(advantage, MASK)
    np.testing.assert_allclose(
        result[MASK], (kept - kept.mean()) / np.sqrt(kept.var(ddof=1) + 1e-8), rtol=3e-6, atol=1e-6
    )
    np.testing.assert_array_equal(result[~MASK], 0.0)


@pytest.mark.parity
def test_whitening_equals_torchs_unbiased_variance(rng: np.random.Generator):
    import torch

    advantage = padded(rng.normal(3, 2, SHAPE))
    kept = torch.tensor(advantage[MASK], dtype=torch.float64)
    expected = (kept - kept.mean()) * torch.rsqrt(torch.var(kept) + 1e-8)
    np.testing.assert_allclose(objective.whitened(advantage, MASK)[MASK], expected.numpy(), rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize("num_tokens", [0, 1])
def test_too_few_tokens_to_have_a_variance_are_whitened_to_zero(num_tokens: int):
    mask = np.arange(6).reshape(2, 3) < num_tokens
    np.testing.assert_array_equal(objective.whitened(jnp.full((2, 3), 5.0), mask), np.zeros((2, 3)))


def test_equal_advantages_are_whitened_to_zero():
    np.testing.assert_array_equal(objective.whitened(jnp.full((2, 4), 0.25), jnp.ones((2, 4), bool)), np.zeros((2, 4)))


def test_whitening_refuses_to_broadcast():
    with pytest.raises(ValueError, match=r"mask \[2, 1\].*same shape"):
        objective.whitened(jnp.zeros((2, 3)), jnp.ones((2, 1), bool))


# --- the value loss


def scalar_value_loss(value: float, old: float, target: float, clip: float) -> tuple[float, float]:
    """(loss, slope), by cases: a value beyond the clip on the side of its return, or anywhere else."""
    moved = value - old
    if abs(moved) > clip:
        edge = old + clip if moved > 0 else old - clip
        if abs(edge - target) > abs(value - target):
            return 0.5 * (edge - target) ** 2, 0.0
    return 0.5 * (value - target) ** 2, value - target


@pytest.mark.parametrize("clip", [0.5, 0.1, np.inf])
def test_the_value_loss_and_its_gradient_equal_the_scalar_loop(clip: float, rng: np.random.Generator):
    value, old, returns = (padded(rng.normal(size=SHAPE)) for _ in range(3))
    terms, slopes = np.zeros(SHAPE), np.zeros(SHAPE)
    for b, t in np.argwhere(MASK):
        terms[b, t], slopes[b, t] = scalar_value_loss(*(float(array[b, t]) for array in (value, old, returns)), clip)
    if np.isfinite(clip):
        assert set(slopes[MASK] == 0.0) == {True, False}

    def loss_of(value: jax.Array, old: jax.Array, returns: jax.Array) -> jax.Array:
        return objective.value_loss(value, old, returns, MASK, clip=clip, mean=objective.token_mean)

    loss, gradients = jax.jit(jax.value_and_grad(loss_of, argnums=(0, 1, 2)))(value, old, returns)
    np.testing.assert_allclose(loss, terms.sum() / MASK.sum(), rtol=2e-6)
    np.testing.assert_allclose(gradients[0], slopes / MASK.sum(), rtol=3e-6, atol=1e-8)
    np.testing.assert_array_equal(gradients[1:], np.zeros((2, *SHAPE)))


def test_the_value_loss_takes_any_mean(rng: np.random.Generator):
    value, old, returns = (padded(rng.normal(size=SHAPE)) for _ in range(3))
    length = np.repeat(LENGTHS[:, None], SHAPE[1], axis=1)
    mean = functools.partial(objective.trajectory_mean, length=length, num_trajectories=5)
    expected = sum(
        scalar_value_loss(*(float(array[b, t]) for array in (value, old, returns)), 0.5)[0] / LENGTHS[b] / 5
        for b, t in np.argwhere(MASK)
    )
    np.testing.assert_allclose(
        objective.value_loss(value, old, returns, MASK, clip=0.5, mean=mean), expected, rtol=2e-6
    )


def test_the_value_loss_refuses_to_broadcast():
    tokens = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match=r"returns \[2, 1\].*same shape"):
        objective.value_loss(tokens, tokens, tokens[:, :1], jnp.ones((2, 3), bool), clip=0.5, mean=objective.token_mean)
