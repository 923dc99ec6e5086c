"""Prioritized replay: its draws have the stated law, its weights undo their bias, and its priorities are renewed."""

from __future__ import annotations

import itertools
import math

import jax
import numpy as np
import pytest
import scipy.stats
from support import tiny_programs

from reval_jax import config, keys, priorities, replay, types

RESIDUALS = np.array([4.0, 0.5, 2.0, 1.0])
NUM_DRAWS = 6000


def buffer_of(**fields: np.ndarray) -> replay.Buffer:
    """A buffer of trajectories with these numbers, in arrays that cannot be written."""
    size = len(next(iter(fields.values())))
    dtypes = tiny_programs.random_trajectories(1)
    rows = tiny_programs.random_trajectories(size)._replace(
        **{name: np.asarray(values, getattr(dtypes, name).dtype) for name, values in fields.items()}
    )
    for array in rows:
        array.flags.writeable = False
    return replay.add(replay.init(size), rows)


def many_keys(purpose: str, count: int = NUM_DRAWS) -> list[jax.Array]:
    return list(jax.random.split(keys.named_key(0, purpose), count))


def probability_of_order(rates: np.ndarray, order: tuple[int, ...]) -> float:
    """Of drawing these rows one after the other, each in proportion to its rate among those that are left."""
    left, probability = float(sum(rates)), 1.0
    for row in order:
        probability *= float(rates[row]) / left
        left -= float(rates[row])
    return probability


@pytest.mark.parametrize(("num", "exponent"), [(1, 0.6), (2, 1.0), (2, 0.6), (3, 2.0), (4, 0.6)])
def test_every_ordered_draw_has_the_probability_of_drawing_one_after_the_other(num, exponent):
    buffer = buffer_of(priority=RESIDUALS)
    settings = config.Replay(priority="residual", priority_exponent=exponent)
    rates = (RESIDUALS + 1e-3 * RESIDUALS.max()) ** exponent
    orders = list(itertools.permutations(range(4), num))
    expected = np.array([probability_of_order(rates, order) for order in orders])
    assert expected.sum() == pytest.approx(1)
    counts = dict.fromkeys(orders, 0)
    for key in many_keys(f"orders {num} {exponent}"):
        counts[tuple(priorities.sample(buffer, key, num, settings=settings).rows.tolist())] += 1
    # An exponent of 2 leaves orders too rare for the test's approximation: they are counted together.
    is_rare = expected * NUM_DRAWS < 5
    observed = np.array([counts[order] for order in orders])
    pairs = [np.append(values[~is_rare], values[is_rare].sum()) for values in (observed, expected * NUM_DRAWS)]
    if not is_rare.any():
        pairs = [values[:-1] for values in pairs]
    assert scipy.stats.chisquare(*pairs).pvalue > 1e-3
    # The same numbers reject rates that are a fifth off in one row.
    wrong = rates * np.array([1.0, 1.0, 1.2, 1.0])
    others = np.array([probability_of_order(wrong, order) for order in orders]) * NUM_DRAWS
    often, others = observed[~is_rare], others[~is_rare]
    assert scipy.stats.chisquare(often, others * often.sum() / others.sum()).pvalue < 1e-3


def test_the_floor_lets_a_row_without_residual_be_drawn():
    buffer = buffer_of(priority=np.array([0.0, 1.0]))
    settings = config.Replay(priority="residual", priority_exponent=1.0)
    np.testing.assert_allclose(priorities.of(buffer.trajectories, settings), [1e-3, 1.001])
    silent = buffer_of(priority=np.zeros(3))
    assert (priorities.of(silent.trajectories, settings) > 0).all()


@pytest.mark.parametrize("num", [0, 1, 5, 9])
@pytest.mark.parametrize("priority", ["residual", "success", "recency"])
def test_an_exponent_of_zero_draws_the_rows_of_uniform_replay_all_with_one_weight(num, priority):
    buffer = buffer_of(priority=np.arange(9) ** 3)
    settings = config.Replay(priority=priority, priority_exponent=0.0)
    for key in many_keys("uniform", 50):
        drawn = priorities.sample(buffer, key, num, settings=settings)
        np.testing.assert_array_equal(drawn.rows, replay.sample(buffer, key, num))
        # All rows share a rate, so that all drawn rows share a weight.
        assert len(set(priorities.weights(drawn, 1.0).tolist())) <= 1


def test_weights_of_exponent_one_make_the_weighted_mean_unbiased_where_the_usual_ones_do_not():
    """(N P(i))^-1, of draws with replacement, is biased for three rows of six that are drawn without."""
    rates, values, num = np.array([8.0, 4.0, 2.0, 1.0, 1.0, 0.5]), np.array([1.0, -2.0, 3.0, 5.0, -4.0, 9.0]), 3
    usual = rates.sum() / (len(rates) * rates)
    estimates, biased = [], []
    for key in many_keys("unbiased", 12000):
        drawn = priorities.draw(key, rates, num)
        estimates.append(np.mean(priorities.weights(drawn, 1.0) * values[drawn.rows]))
        biased.append(np.mean(usual[drawn.rows] * values[drawn.rows]))

    def deviation(means: list[float]) -> float:
        return abs(np.mean(means) - values.mean()) / (np.std(means) / math.sqrt(len(means)))

    assert deviation(estimates) < 3
    assert deviation(biased) > 10


def test_a_row_s_probability_is_that_of_its_clock_against_the_first_clock_not_drawn():
    """Computed again from the key's words in plain Python."""
    rates = [8.0, 1.0, 2.0, 0.25, 4.0]
    for key in many_keys("clocks", 20):
        high, low = np.asarray(jax.random.key_data(key)).tolist()
        words = np.random.Philox(key=high << 32 | low).random_raw(5).tolist()
        uniform = [((word >> 11) + 0.5) / 2**53 for word in words]
        times = [-math.log(1 - u) / rate for u, rate in zip(uniform, rates, strict=True)]
        order = sorted(range(5), key=lambda row: times[row])
        drawn = priorities.draw(key, np.array(rates), 2)
        assert drawn.rows.tolist() == order[:2]
        expected = [1 - math.exp(-rates[row] * times[order[2]]) for row in order[:2]]
        np.testing.assert_allclose(drawn.probability, expected, rtol=1e-12)
        np.testing.assert_allclose(
            priorities.weights(drawn, 0.4), [(2 / (5 * one)) ** 0.4 for one in expected], rtol=1e-6
        )


def test_weights_are_one_for_an_exponent_of_zero_and_for_a_draw_of_everything():
    buffer = buffer_of(priority=RESIDUALS)
    settings = config.Replay(priority="residual")
    for key in many_keys("ones", 10):
        some, everything = (priorities.sample(buffer, key, num, settings=settings) for num in (2, 4))
        np.testing.assert_array_equal(priorities.weights(some, 0.0), np.ones(2, np.float32))
        np.testing.assert_array_equal(priorities.weights(everything, 1.0), np.ones(4, np.float32))
        assert sorted(everything.rows.tolist()) == [0, 1, 2, 3]
        assert priorities.weights(some, 1.0).dtype == np.float32


def test_a_draw_is_a_function_of_its_arguments():
    """As on every host: equal buffers and keys give equal rows and weights, and nothing is changed."""
    settings = config.Replay(priority="residual")
    key = keys.named_key(3, "replay", 7, 1)
    first, second = (
        priorities.sample(buffer_of(priority=np.arange(40.0)), key, 16, settings=settings) for _ in range(2)
    )
    np.testing.assert_array_equal(first.rows, second.rows)
    np.testing.assert_array_equal(first.probability, second.probability)
    assert len(set(first.rows.tolist())) == 16
    other = keys.named_key(3, "replay", 7, 2)
    changed = priorities.sample(buffer_of(priority=np.arange(40.0)), other, 16, settings=settings)
    assert changed.rows.tolist() != first.rows.tolist()


def test_more_rows_than_the_buffer_holds_are_refused():
    with pytest.raises(ValueError, match=r"update\.batch_size=5"):
        priorities.sample(
            buffer_of(priority=RESIDUALS),
            keys.named_key(0, "x"),
            5,
            settings=config.Replay(priority="residual"),
        )


def test_new_rows_count_as_the_largest():
    rows = buffer_of(priority=np.array([types.NEW, 3.0, 0.5, types.NEW])).trajectories
    settings = config.Replay(priority="residual")
    np.testing.assert_allclose(priorities.of(rows, settings), [3.003, 3.003, 0.503, 3.003])
    only_new = buffer_of(priority=np.full(3, types.NEW)).trajectories
    assert len(set(priorities.of(only_new, settings).tolist())) == 1


def test_priorities_by_success_and_by_age():
    rows = buffer_of(raw_reward=np.array([1.0, 0.0, 0.5]), round=np.array([4, 9, 10])).trajectories
    success = config.Replay(priority="success", success_priority=3.0)
    np.testing.assert_array_equal(priorities.of(rows, success), [3.0, 1.0, 3.0])
    recency = config.Replay(priority="recency", recency_rounds=2.0)
    np.testing.assert_allclose(priorities.of(rows, recency), [math.exp(-3.0), math.exp(-0.5), 1.0])


def test_a_priority_is_the_size_of_the_last_residual_and_one_that_is_not_finite_changes_nothing():
    buffer = buffer_of(priority=np.array([types.NEW, 7.0, 7.0, 7.0, types.NEW]))
    rows, residual = np.array([3, 0, 1, 4]), np.array([-2.5, 1.5, np.nan, np.inf], np.float32)
    renewed = priorities.renewed(buffer, rows, residual, config.Replay(priority="residual"))
    np.testing.assert_array_equal(renewed.trajectories.priority, [1.5, 7.0, 7.0, 2.5, types.NEW])
    for unread in ("uniform", "success", "recency"):
        assert priorities.renewed(buffer, rows, residual, config.Replay(priority=unread)) is buffer


def test_a_centred_residual_is_compared_with_the_mean_of_its_prompt_s_rows_in_the_update():
    buffer = buffer_of(priority=np.full(6, types.NEW), cursor=np.array([5, 5, 5, 8, 8, 9]))
    rows, residual = np.array([0, 4, 2, 5, 3]), np.array([1.0, -6.0, 4.0, 3.0, -2.0], np.float32)
    renewed = priorities.renewed(buffer, rows, residual, config.Replay(priority="centred_residual"))
    np.testing.assert_allclose(renewed.trajectories.priority, [1.5, types.NEW, 1.5, 2.0, 2.0, types.NEW])


def test_only_rows_that_may_train_are_drawn_and_fewer_of_them_are_all_drawn():
    buffer = buffer_of(priority=np.full(6, types.NEW))
    may_train = np.array([True, False, True, True, False, True])
    settings = config.Replay(priority="residual")
    for key in many_keys("may_train", 50):
        drawn = priorities.sample(buffer, key, 3, settings=settings, may_train=may_train)
        assert may_train[drawn.rows].all()
        assert len(set(drawn.rows.tolist())) == 3
        assert drawn.size == 4
    every = priorities.sample(buffer, key, 6, settings=settings, may_train=may_train)
    assert sorted(every.rows.tolist()) == [0, 2, 3, 5]
    np.testing.assert_array_equal(priorities.weights(every, 1.0), np.ones(4, np.float32))


@pytest.mark.parametrize(
    "settings",
    [
        config.Replay(priority="recency", recency_rounds=0.01),
        config.Replay(priority="residual", priority_exponent=9.0),
    ],
)
def test_no_priority_is_too_small_or_large_for_finite_weights(settings):
    fields = {
        "round": np.arange(6, dtype=np.int32),
        "priority": np.array([1e-30, 0, 1e30, types.NEW, 5, 1e9], np.float32),
    }
    for buffer in (buffer_of(**fields), priorities.forgotten(buffer_of(**fields))):
        for key in many_keys("extreme", 20):
            drawn = priorities.sample(buffer, key, 4, settings=settings)
            assert np.isfinite(priorities.weights(drawn, 1.0)).all()
            assert len(set(drawn.rows.tolist())) == 4


def test_after_a_reset_every_row_is_new():
    forgotten = priorities.forgotten(buffer_of(priority=RESIDUALS)).trajectories
    np.testing.assert_array_equal(forgotten.priority, np.full(4, types.NEW, np.float32))
    assert forgotten.priority.dtype == np.float32


def test_the_exponent_of_the_weights_rises_linearly_to_one():
    rising = config.Replay(weight_exponent=0.4, weight_rounds=30)
    assert [priorities.weight_exponent(rising, round) for round in (0, 15, 30, 99)] == pytest.approx([0.4, 0.7, 1, 1])
    assert priorities.weight_exponent(config.Replay(weight_exponent=0.4), 99) == 0.4
