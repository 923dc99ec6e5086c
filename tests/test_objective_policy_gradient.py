"""Surrogates, corrections and means against scalar code in float64 with its slopes, and the reductions of one to another."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import packed_tokens as packed

from reval_jax import objective

TOKENS = packed.packed_tokens(2)
CLIPS = {"clip_low": 0.2, "clip_high": 0.28}
SEQUENCE_CLIPS = {"clip_low": 0.02, "clip_high": 0.03}

# --- The oracle: one token's loss and its slope, branch by branch ---


def bounded(log_ratio: float) -> float:
    return float(np.exp(min(max(log_ratio, -20.0), 20.0)))


def two_sided(ratio: float, advantage: float, low: float, high: float, dual: float = np.inf) -> tuple[float, float]:
    if advantage >= 0.0:  # above `high` a gain no longer counts
        return (-advantage * high, 0.0) if ratio > high else (-advantage * ratio, -advantage * ratio)
    if ratio < low:
        return -advantage * low, 0.0
    return (-advantage * dual, 0.0) if ratio > dual else (-advantage * ratio, -advantage * ratio)


def scalar_reweighted(p: float, d: float, a: float, low: float, high: float) -> tuple[float, float]:
    weight = min(max(bounded(d), low), high)
    return -weight * a * p, -weight * a


ScalarLoss = Callable[[float, float, float, float], tuple[float, float]]
"""(log_prob, log_ratio, advantage, mean log_ratio of the trajectory) → (loss, its derivative by the token's log_prob)."""

SURROGATES: dict[str, tuple[Callable, ScalarLoss]] = {
    "clipped": (
        functools.partial(objective.clipped, **CLIPS, clip_dual=3.0),
        lambda p, d, a, m: two_sided(bounded(d), a, 0.8, 1.28, 3.0),
    ),
    "clipped without a dual clip": (
        functools.partial(objective.clipped, **CLIPS, clip_dual=np.inf),
        lambda p, d, a, m: two_sided(bounded(d), a, 0.8, 1.28),
    ),
    "sequence_clipped": (
        functools.partial(objective.sequence_clipped, trajectory_mean=TOKENS.trajectory_mean, **SEQUENCE_CLIPS),
        lambda p, d, a, m: two_sided(bounded(m), a, 0.98, 1.03),
    ),
    "reweighted": (
        functools.partial(objective.reweighted, **CLIPS),
        lambda p, d, a, m: scalar_reweighted(p, d, a, 0.8, 1.28),
    ),
    "reweighted without a lower bound": (
        functools.partial(objective.reweighted, clip_low=1.0, clip_high=0.5),
        lambda p, d, a, m: scalar_reweighted(p, d, a, 0.0, 1.5),
    ),
    "reinforce": (objective.reinforce, lambda p, d, a, m: (-a * p, -a)),
    "quadratic": (
        functools.partial(objective.quadratic, strength=0.7),
        lambda p, d, a, m: (-a * p + 0.35 * d * d, -a + 0.7 * d),
    ),
    "second_moment_clipped": (
        functools.partial(objective.second_moment_clipped, threshold=0.45),
        lambda p, d, a, m: two_sided(bounded(d), a, np.exp(-0.45), np.exp(0.45)),
    ),
}

CORRECTIONS: dict[str, tuple[Callable | None, Callable[[float, float, float], float]]] = {
    "none": (None, lambda d, total, mean: 1.0),
    "token_weight": (
        functools.partial(objective.token_weight, high=1.3),
        lambda d, total, mean: min(bounded(d), 1.3),
    ),
    "sequence_weight": (
        functools.partial(objective.sequence_weight, trajectory_sum=TOKENS.trajectory_sum, high=1.3),
        lambda d, total, mean: min(bounded(total), 1.3),
    ),
    "token_mask": (
        functools.partial(objective.token_mask, low=0.7, high=1.4),
        lambda d, total, mean: 1.0 if 0.7 <= bounded(d) <= 1.4 else 0.0,
    ),
    "sequence_mask": (
        functools.partial(objective.sequence_mask, trajectory_mean=TOKENS.trajectory_mean, low=0.9, high=1.1),
        lambda d, total, mean: 1.0 if 0.9 <= bounded(mean) <= 1.1 else 0.0,
    ),
}

MEANS: dict[str, tuple[Callable, Callable[[int], float]]] = {
    "token": (objective.token_mean, lambda length: 1 / TOKENS.mask.sum()),
    "token of a larger batch": (functools.partial(objective.token_mean, num_tokens=100), lambda length: 1 / 100),
    "trajectory": (
        functools.partial(objective.trajectory_mean, length=TOKENS.length, num_trajectories=packed.NUM_TRAJECTORIES),
        lambda length: 1 / (packed.NUM_TRAJECTORIES * length),
    ),
    "constant": (
        functools.partial(objective.constant_mean, constant=16, num_trajectories=packed.NUM_TRAJECTORIES),
        lambda length: 1 / (packed.NUM_TRAJECTORIES * 16),
    ),
}

CASES = [
    *((name, "none", "token") for name in SURROGATES),
    *(("reinforce", name, "token") for name in CORRECTIONS),
    ("clipped", "token_mask", "trajectory"),
    *(("reinforce", "token_weight", name) for name in MEANS),
    ("sequence_clipped", "none", "trajectory"),
]


def loss_and_gradient(
    tokens: packed.PackedTokens, surrogate: Callable, mean: Callable = objective.token_mean, correction=None
) -> tuple[float, np.ndarray]:
    def loss_of(log_prob: jax.Array) -> jax.Array:
        return objective.policy_gradient_loss(
            log_prob,
            tokens.behaviour_log_prob,
            tokens.advantage,
            tokens.mask,
            surrogate=surrogate,
            mean=mean,
            correction=correction,
        )

    loss, gradient = jax.jit(jax.value_and_grad(loss_of))(tokens.log_prob)
    return float(loss), np.asarray(gradient)


@pytest.mark.parametrize(("surrogate", "correction", "mean"), dict.fromkeys(CASES))
def test_a_loss_and_its_gradient_equal_the_scalar_loop_on_packed_rows(surrogate: str, correction: str, mean: str):
    scalar_loss, scalar_weight, scalar_factor = SURROGATES[surrogate][1], CORRECTIONS[correction][1], MEANS[mean][1]
    log_ratio = TOKENS.log_ratio()
    totals, averages = (TOKENS.over_trajectories(log_ratio, reduce) for reduce in (np.sum, np.mean))
    terms, expected_gradient = [], np.zeros(TOKENS.mask.shape)
    for r, c in np.argwhere(TOKENS.mask):
        p, d, a = (float(array[r, c]) for array in (TOKENS.log_prob, log_ratio, TOKENS.advantage))
        loss, slope = scalar_loss(p, d, a, averages[r, c])
        factor = scalar_weight(d, totals[r, c], averages[r, c]) * scalar_factor(int(TOKENS.length[r, c]))
        terms.append(loss * factor)
        expected_gradient[r, c] = slope * factor

    loss, gradient = loss_and_gradient(TOKENS, SURROGATES[surrogate][0], MEANS[mean][0], CORRECTIONS[correction][0])
    assert abs(loss - sum(terms)) <= 2e-6 * sum(map(abs, terms))
    np.testing.assert_allclose(gradient, expected_gradient, rtol=3e-6, atol=1e-9)
    np.testing.assert_array_equal(gradient[~TOKENS.mask], 0.0)


def test_the_cases_reach_both_sides_of_every_bound():
    advantage, log_ratio = TOKENS.advantage[TOKENS.mask], TOKENS.log_ratio()
    token = np.exp(log_ratio[TOKENS.mask])
    average = np.exp(TOKENS.over_trajectories(log_ratio)[TOKENS.mask])
    for ratio, low, high in ((token, 0.8, 1.28), (token, np.exp(-0.45), np.exp(0.45)), (average, 0.98, 1.03)):
        assert set(ratio[advantage > 0] > high) == set(ratio[advantage < 0] < low) == {True, False}
    assert (token[advantage < 0] > 3.0).any()
    assert {True, False} == set((token > 0.7) & (token < 1.4)) == set((average > 0.9) & (average < 1.1))
    assert {True, False} == set(np.exp(TOKENS.over_trajectories(log_ratio, np.sum)[TOKENS.mask]) > 1.3)


@pytest.mark.parametrize("name", ["clipped", "sequence_clipped", "second_moment_clipped"])
@pytest.mark.parametrize("log_ratio", [-1000.0, -25.0, 25.0, 1000.0])
@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_a_runaway_ratio_stays_finite_and_has_no_gradient(name: str, log_ratio: float, advantage: float):
    surrogate = {
        "clipped": functools.partial(objective.clipped, **CLIPS, clip_dual=np.inf),
        "sequence_clipped": functools.partial(
            objective.sequence_clipped, trajectory_mean=lambda values: values, **CLIPS
        ),
        "second_moment_clipped": functools.partial(objective.second_moment_clipped, threshold=np.inf),
    }[name]
    ones = jnp.ones((1, 1))
    loss, gradient = jax.value_and_grad(lambda d: surrogate(d, d, advantage * ones)[0, 0])(log_ratio * ones)
    assert np.isfinite(loss)
    assert float(gradient[0, 0]) == 0.0


@pytest.mark.parametrize("name", [name for name in CORRECTIONS if name != "none"])
def test_corrections_are_constants_and_of_one_for_a_policy_that_sampled(name: str):
    correction = CORRECTIONS[name][0]
    np.testing.assert_array_equal(correction(jnp.zeros(TOKENS.mask.shape)), 1.0)
    gradient = jax.grad(lambda log_ratio: jnp.sum(correction(log_ratio)))(jnp.full(TOKENS.mask.shape, 0.01))
    np.testing.assert_array_equal(gradient, 0.0)


def test_a_mask_leaves_the_denominator_so_the_loss_shrinks_by_what_it_rejects():
    tokens = TOKENS._replace(advantage=np.ones_like(TOKENS.advantage))
    correction, scalar_weight = CORRECTIONS["token_mask"]
    kept = [scalar_weight(d, 0.0, 0.0) for d in TOKENS.log_ratio()[TOKENS.mask]]
    assert 0 < sum(kept) < len(kept)
    _, gradient = loss_and_gradient(tokens, objective.reinforce, correction=correction)
    np.testing.assert_allclose(-gradient.sum(), sum(kept) / len(kept), rtol=1e-6)


def test_a_correction_of_your_own_is_a_constant_too():
    own = loss_and_gradient(TOKENS, objective.reinforce, correction=jnp.exp)
    unbounded = functools.partial(objective.token_weight, high=np.inf)
    assert_same(own, loss_and_gradient(TOKENS, objective.reinforce, correction=unbounded))


# --- Reductions ---


def assert_same(left: tuple[float, np.ndarray], right: tuple[float, np.ndarray], rtol: float = 1e-6) -> None:
    np.testing.assert_allclose(left[0], right[0], rtol=rtol)
    np.testing.assert_allclose(left[1], right[1], rtol=rtol, atol=1e-9)


def one_token_responses() -> packed.PackedTokens:
    tokens = packed.packed_tokens(3)
    slot = np.where(tokens.mask, np.arange(packed.COLUMNS, dtype=np.int32), 99).astype(np.int32)
    return tokens._replace(slot=slot, length=tokens.mask.astype(np.int32))


def test_gspo_of_responses_of_one_token_is_clipped_without_its_dual_clip():
    tokens = one_token_responses()
    left = loss_and_gradient(
        tokens, functools.partial(objective.sequence_clipped, trajectory_mean=tokens.trajectory_mean, **CLIPS)
    )
    right = loss_and_gradient(tokens, functools.partial(objective.clipped, **CLIPS, clip_dual=np.inf))
    assert_same(left, right)


def test_sequence_corrections_of_responses_of_one_token_are_those_of_tokens():
    tokens = one_token_responses()
    log_ratio = tokens.log_ratio().astype(np.float32)
    np.testing.assert_array_equal(
        objective.sequence_weight(log_ratio, trajectory_sum=tokens.trajectory_sum, high=2.0),
        objective.token_weight(log_ratio, high=2.0),
    )
    np.testing.assert_array_equal(
        objective.sequence_mask(log_ratio, trajectory_mean=tokens.trajectory_mean, low=0.5, high=1.2),
        objective.token_mask(log_ratio, low=0.5, high=1.2),
    )


def test_reweighted_without_bounds_at_ratio_one_is_reinforce():
    tokens = TOKENS._replace(behaviour_log_prob=TOKENS.log_prob)
    unbounded = functools.partial(objective.reweighted, clip_low=1.0, clip_high=np.inf)
    assert_same(loss_and_gradient(tokens, unbounded), loss_and_gradient(tokens, objective.reinforce))


@pytest.mark.parametrize("high", [0.7, 2.0, 5.0])
def test_reinforce_with_truncated_weights_is_reweighted_without_a_lower_bound(high: float):
    weighted = loss_and_gradient(
        TOKENS, objective.reinforce, correction=functools.partial(objective.token_weight, high=high)
    )
    truncated = functools.partial(objective.reweighted, clip_low=1.0, clip_high=high - 1.0)
    assert_same(weighted, loss_and_gradient(TOKENS, truncated))


def test_the_quadratic_without_strength_is_reinforce():
    weak = functools.partial(objective.quadratic, strength=0.0)
    assert_same(loss_and_gradient(TOKENS, weak), loss_and_gradient(TOKENS, objective.reinforce))


def test_the_quadratic_of_one_token_has_the_gradient_of_dros_regression():
    strength = 0.3
    p, q, a = (array[TOKENS.mask] for array in (TOKENS.log_prob, TOKENS.behaviour_log_prob, TOKENS.advantage))

    def regression(p: jax.Array) -> jax.Array:
        return 0.5 * strength * jnp.sum(objective.regression_residual(p, q, a, beta=strength) ** 2)

    def quadratic(p: jax.Array) -> jax.Array:
        return jnp.sum(objective.quadratic(p, p - q, a, strength=strength))

    np.testing.assert_allclose(jax.grad(quadratic)(p), jax.grad(regression)(p), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_m2pos_bounds_are_never_tighter_than_its_mini_clip(threshold: float):
    tight = functools.partial(objective.second_moment_clipped, threshold=threshold)
    mini = functools.partial(objective.clipped, clip_low=0.3, clip_high=0.5, clip_dual=np.inf)
    assert_same(loss_and_gradient(TOKENS, tight), loss_and_gradient(TOKENS, mini))


def test_m2po_with_an_infinite_threshold_is_unclipped():
    unclipped = functools.partial(objective.second_moment_clipped, threshold=jnp.inf)
    wide = functools.partial(objective.clipped, clip_low=1.0, clip_high=np.inf, clip_dual=np.inf)
    left = loss_and_gradient(TOKENS, unclipped)
    assert_same(left, loss_and_gradient(TOKENS, wide))
    ratio = np.exp(TOKENS.log_ratio()[TOKENS.mask])
    np.testing.assert_allclose(left[0], -np.mean(TOKENS.advantage[TOKENS.mask] * ratio), rtol=3e-6)


def test_the_means_agree_where_all_responses_have_the_constant_length():
    loss, mask = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32), np.ones((6, 5), bool)
    mean = objective.token_mean(loss, mask)
    constant = objective.constant_mean(loss, mask, constant=5, num_trajectories=6)
    trajectory = objective.trajectory_mean(loss, mask, length=np.full((6, 5), 5.0), num_trajectories=6)
    np.testing.assert_allclose([constant, trajectory], [mean, mean], rtol=1e-6)


# --- Masks, parts and refusals ---


@pytest.mark.parametrize("name", MEANS)
@pytest.mark.parametrize("garbage", [np.nan, np.inf])
def test_masked_losses_reach_neither_a_mean_nor_its_gradient(name: str, garbage: float):
    loss = np.random.default_rng(0).normal(size=TOKENS.mask.shape).astype(np.float32)
    poisoned = np.where(TOKENS.mask, loss, np.float32(garbage))
    clean = jax.value_and_grad(MEANS[name][0])(np.where(TOKENS.mask, loss, np.float32(0)), TOKENS.mask)
    value, gradient = jax.value_and_grad(MEANS[name][0])(poisoned, TOKENS.mask)
    assert float(value) == float(clean[0])
    np.testing.assert_array_equal(gradient, clean[1])
    np.testing.assert_array_equal(gradient[~TOKENS.mask], 0.0)


@pytest.mark.parametrize("name", ["token of a larger batch", "trajectory", "constant"])
def test_the_means_of_parts_add_up_to_that_of_the_batch(name: str):
    mean = MEANS[name][0]
    loss = np.random.default_rng(0).normal(size=TOKENS.mask.shape).astype(np.float32)
    parts = [np.where(np.arange(len(loss))[:, None] == row, TOKENS.mask, False) for row in range(len(loss))]
    np.testing.assert_allclose(sum(float(mean(loss, part)) for part in parts), mean(loss, TOKENS.mask), rtol=2e-6)


@pytest.mark.parametrize("name", MEANS)
def test_a_batch_without_tokens_costs_nothing(name: str):
    value, gradient = jax.value_and_grad(MEANS[name][0])(
        jnp.full(TOKENS.mask.shape, jnp.nan), jnp.zeros_like(TOKENS.mask)
    )
    assert float(value) == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("name", SURROGATES)
def test_a_surrogate_refuses_to_broadcast_and_takes_its_advantage_as_a_constant(name: str):
    surrogate = SURROGATES[name][0]
    tokens = jnp.full(TOKENS.mask.shape, -0.1)
    for wrong in ((tokens, tokens[:, :1], tokens), (tokens, tokens, tokens[:, :1]), (tokens[0], tokens, tokens)):
        with pytest.raises(ValueError, match="same shape"):
            surrogate(*wrong)
    gradient = jax.grad(lambda advantage: jnp.sum(surrogate(tokens, tokens, advantage)))(tokens)
    np.testing.assert_array_equal(gradient, 0.0)


def test_shapes_of_means_weights_and_trajectory_functions_are_checked():
    loss, mask = jnp.zeros((2, 3)), jnp.ones((2, 3), bool)
    with pytest.raises(ValueError, match=r"mask \[2\].*same shape"):
        objective.token_mean(loss, mask[:, 0])
    with pytest.raises(ValueError, match=r"length \[2\].*same shape"):
        objective.trajectory_mean(loss, mask, length=jnp.ones(2), num_trajectories=2)
    with pytest.raises(ValueError, match=r"mask \[3\].*same shape"):
        objective.constant_mean(loss, mask[0], constant=3, num_trajectories=2)
    with pytest.raises(ValueError, match=r"\[2, 1\].*same shape"):
        objective.sequence_weight(loss, trajectory_sum=lambda values: values[:, :1], high=2.0)
    with pytest.raises(ValueError, match=r"\[2, 1\].*same shape"):
        objective.sequence_clipped(loss, loss, loss, trajectory_mean=lambda values: values[:, :1], **CLIPS)
    loss_of = functools.partial(
        objective.policy_gradient_loss, surrogate=objective.reinforce, mean=objective.token_mean
    )
    with pytest.raises(ValueError, match=r"weight \[2, 1\].*same shape"):
        loss_of(loss, loss, loss, mask, correction=lambda log_ratio: log_ratio[:, :1])
    with pytest.raises(ValueError, match=r"got \[3\] with log_prob \[2, 3\]"):
        loss_of(loss, loss, jnp.zeros(3), mask)
    with pytest.raises(ValueError, match=r"behaviour_log_prob \[2\].*same shape"):
        loss_of(loss, loss[:, 0], loss, mask)
