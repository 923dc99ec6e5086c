"""M2PO's threshold against an exact one found by sorting, and its independence of how the step is cut."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reval_jax import objective

GRID = np.array(objective.THRESHOLDS)
STEP = 2 ** (1 / 8)


def step_of_tokens(seed: int, spread: float = 0.7, shape: tuple[int, int] = (16, 40)) -> tuple[np.ndarray, ...]:
    """(log_prob, behaviour_log_prob, advantage per token, mask), with garbage on masked tokens."""
    rng = np.random.default_rng(seed)
    behaviour = rng.uniform(-5, -0.1, shape).astype(np.float32)
    log_prob = behaviour + rng.laplace(0, spread, shape).astype(np.float32)
    advantage = np.repeat(rng.choice([-1.5, 0.0, 0.5], (shape[0], 1)), shape[1], axis=1).astype(np.float32)
    mask = np.arange(shape[1]) < rng.integers(0, shape[1] + 1, shape[0])[:, None]
    log_prob[~mask] = np.resize([np.nan, np.inf, -np.inf, 1e30], (~mask).sum())
    behaviour[~mask] = np.resize([-np.inf, 0.0, np.nan], (~mask).sum())
    return log_prob, behaviour, advantage, mask


def harmful_squares(log_prob: np.ndarray, behaviour: np.ndarray, advantage: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """delta^2 of the harmful tokens, sorted, in float64, token by token."""
    squares = []
    for r, c in np.argwhere(mask):
        delta = float(log_prob[r, c]) - float(behaviour[r, c])
        if (advantage[r, c] > 0 and delta > 0) or (advantage[r, c] < 0 and delta < 0):
            squares.append(delta**2)
    return np.sort(squares)


def exact_threshold(squares: np.ndarray, budget: float) -> float:
    """The largest tau^2 with sum of min(delta^2, tau^2) <= budget * count; infinity if any has it."""
    allowed, below = budget * squares.size, 0.0
    for index, square in enumerate(squares):
        if below + square * (squares.size - index) > allowed:
            return (allowed - below) / (squares.size - index)
        below += square
    return np.inf


def sums_of(tokens: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(result) for result in jax.jit(objective.second_moment_sums)(*tokens))


def test_the_grid_is_log_spaced_and_spans_ratios_from_six_percent_to_nine_million():
    assert GRID.size >= 64
    np.testing.assert_allclose(GRID[1:] / GRID[:-1], STEP, rtol=1e-12)
    np.testing.assert_allclose(np.exp(np.sqrt(GRID[[0, -1]])), [1.0645, 8.886e6], rtol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_the_sums_equal_the_loop_over_harmful_tokens(seed: int):
    tokens = step_of_tokens(seed)
    squares = harmful_squares(*tokens)
    assert 0 < squares.size < tokens[3].sum()
    sums, count, uncapped = sums_of(tokens)
    np.testing.assert_allclose(sums, np.minimum(squares, GRID[:, None]).sum(axis=1), rtol=2e-6)
    assert float(count) == squares.size
    np.testing.assert_allclose(uncapped, squares.sum(), rtol=2e-6)


@pytest.mark.parametrize("budget", [0.01, 0.04, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("seed", range(4))
def test_the_threshold_is_the_exact_one_rounded_down_to_the_grid(seed: int, budget: float):
    tokens = step_of_tokens(seed)
    exact = exact_threshold(harmful_squares(*tokens), budget)
    threshold = float(objective.second_moment_threshold(*sums_of(tokens), budget=budget))
    if np.isinf(exact):
        assert np.isinf(threshold)
    else:
        assert threshold**2 <= exact * (1 + 1e-5)
        assert exact < threshold**2 * STEP * (1 + 1e-5)


def test_the_second_moment_is_within_the_budget_after_clipping():
    squares = harmful_squares(*step_of_tokens(7))
    threshold = float(objective.second_moment_threshold(*sums_of(step_of_tokens(7)), budget=0.3))
    assert np.minimum(squares, threshold**2).mean() <= 0.3 < squares.mean()


@pytest.mark.parametrize("seed", range(4))
def test_the_threshold_of_a_step_does_not_depend_on_how_it_is_cut_or_ordered(seed: int):
    tokens = step_of_tokens(seed)
    whole = sums_of(tokens)
    rng = np.random.default_rng(seed + 100)
    # Rows in another order, in unequal parts; and columns as rows, which is another packing.
    parts = [tuple(array[rows] for array in tokens) for rows in np.split(rng.permutation(16), [1, 4, 11])]
    packed = [tuple(array.T for array in tokens)]
    for cut in (parts, parts[::-1], packed):
        each = [sums_of(part) for part in cut]
        added = [sum(part[index] for part in each) for index in range(3)]
        for got, expected in zip(added, whole, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-6)
        assert objective.second_moment_threshold(*added, budget=0.3) == objective.second_moment_threshold(
            *whole, budget=0.3
        )


def test_an_advantage_per_row_is_that_of_its_tokens():
    log_prob, behaviour, advantage, mask = step_of_tokens(0)
    for got, expected in zip(
        sums_of((log_prob, behaviour, advantage[:, 0], mask)),
        sums_of((log_prob, behaviour, advantage, mask)),
        strict=True,
    ):
        np.testing.assert_array_equal(got, expected)


def test_an_unlimited_budget_gives_the_unclipped_loss():
    log_prob, behaviour, advantage, mask = step_of_tokens(1)
    threshold = objective.second_moment_threshold(*sums_of((log_prob, behaviour, advantage, mask)), budget=np.inf)
    assert np.isinf(threshold)

    def loss_of(log_prob: jax.Array) -> jax.Array:
        surrogate = functools.partial(objective.second_moment_clipped, threshold=threshold)
        return objective.policy_gradient_loss(
            log_prob, behaviour, advantage, mask, surrogate=surrogate, mean=objective.token_mean
        )

    loss, gradient = jax.value_and_grad(loss_of)(log_prob)
    terms = -advantage[mask] * np.exp(log_prob[mask].astype(np.float64) - behaviour[mask])
    np.testing.assert_allclose(loss, terms.mean(), rtol=3e-6)
    np.testing.assert_allclose(gradient[mask], terms / mask.sum(), rtol=3e-6)


@pytest.mark.parametrize("budget", [0.04, np.inf])
def test_a_step_without_harmful_tokens_clips_nothing(budget: float):
    log_prob, behaviour, advantage, mask = step_of_tokens(1)
    for nothing in ((log_prob, log_prob, advantage, mask), (log_prob, behaviour, advantage, np.zeros_like(mask))):
        sums, count, uncapped = sums_of(nothing)
        assert float(count) == float(uncapped) == 0.0
        assert np.isinf(objective.second_moment_threshold(sums, count, uncapped, budget=budget))


def test_a_budget_below_the_grid_gives_its_smallest_threshold():
    threshold = objective.second_moment_threshold(*sums_of(step_of_tokens(2)), budget=1e-6)
    np.testing.assert_allclose(threshold, np.sqrt(GRID[0]), rtol=1e-6)


def test_a_looser_budget_never_gives_a_smaller_threshold():
    sums = sums_of(step_of_tokens(3))
    thresholds = [
        float(objective.second_moment_threshold(*sums, budget=budget)) for budget in np.geomspace(1e-3, 2, 30)
    ]
    assert thresholds == sorted(thresholds)
    assert len(set(thresholds)) > 10


def test_sums_and_threshold_are_constants():
    def total(log_prob: jax.Array) -> jax.Array:
        sums, count, uncapped = objective.second_moment_sums(
            log_prob, jnp.zeros((2, 3)), jnp.ones(2), jnp.ones((2, 3), bool)
        )
        return jnp.sum(sums) + count + uncapped + objective.second_moment_threshold(sums, count, uncapped, budget=0.1)

    np.testing.assert_array_equal(jax.grad(total)(jnp.ones((2, 3))), np.zeros((2, 3)))


def test_shapes_that_do_not_fit_are_refused():
    tokens, mask = jnp.zeros((2, 3)), jnp.ones((2, 3), bool)
    with pytest.raises(ValueError, match=r"behaviour_log_prob \[2\].*same shape"):
        objective.second_moment_sums(tokens, tokens[:, 0], tokens, mask)
    with pytest.raises(ValueError, match=r"got \[3\] with log_prob \[2, 3\]"):
        objective.second_moment_sums(tokens, tokens, tokens[0], mask)
    with pytest.raises(ValueError, match=r"129 thresholds, but got the shape \[2\]"):
        objective.second_moment_threshold(jnp.zeros(2), jnp.zeros(()), jnp.zeros(()), budget=0.04)
