"""Bootstrap intervals: against a plain bootstrap, and by simulation of benchmarks whose true values are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support import graded_responses

from reval_jax.evaluate import intervals


def test_a_benchmarks_value_is_the_mean_over_problems():
    graded = graded_responses.of_rewards(
        [[1, 0], [0, 0], [1, 1]], length=[[3, 5], [1, 1], [2, 6]], is_truncated=[[0, 1], [0, 0], [1, 1]]
    )
    values = {name: estimate.value for name, estimate in intervals.estimates(graded).items()}
    expected = {
        "acc/mean@2": 1 / 2,
        "acc/pass@2": 2 / 3,
        "acc/maj@2": 1 / 2,
        "response_length/mean": 3,
        "response_length/clip_ratio": 1 / 2,
        "verifier/no_answer_ratio": 0,
    }
    assert values == pytest.approx(expected, rel=1e-6)


def test_an_interval_equals_that_of_a_plain_bootstrap_over_problems():
    """Against a loop with other random numbers; each quantile has a simulation error of about 0.003."""
    generator = np.random.default_rng(3)
    reward = (generator.random((40, 8)) < generator.random((40, 1))).astype(np.float32)
    estimate = intervals.estimates(graded_responses.of_rewards(reward))["acc/mean@8"]
    by_problem = [sum(map(float, row)) / 8 for row in reward]
    means = sorted(sum(by_problem[i] for i in generator.integers(40, size=40)) / 40 for _ in range(4000))
    assert estimate.low == pytest.approx(means[100], abs=0.012)
    assert estimate.high == pytest.approx(means[3899], abs=0.012)


def test_an_interval_of_means_is_that_of_a_benchmark_with_these_means():
    generator = np.random.default_rng(4)
    reward = (generator.random((30, 4)) < generator.random((30, 1))).astype(np.float32)
    expected = intervals.estimates(graded_responses.of_rewards(reward))["acc/mean@4"]
    by_problem = reward.astype(np.float64).mean(axis=1)
    result = intervals.of_means({"mean": by_problem, "twice": 2 * by_problem})
    assert result["mean"] == pytest.approx(expected, abs=1e-12)
    assert result["twice"] == pytest.approx([2 * bound for bound in expected], abs=1e-12)


def test_the_mean_of_one_unit_has_no_interval():
    estimate = intervals.of_means({"mean": np.array([0.25])})["mean"]
    assert estimate.value == 0.25
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)


@pytest.mark.parametrize(("share", "num"), [(0.1, 64), (0.5, 3), (29 / 64, 64)])
def test_wilsons_bounds_are_the_shares_from_which_the_observed_one_is_just_1_96_deviations_away(share, num):
    _, low, high = intervals.wilson(share, num)
    for bound in (low, high):
        assert abs(share - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / num), rel=1e-6)
    assert low < share < high


def test_wilsons_interval_has_a_width_at_0_and_at_1():
    assert intervals.wilson(0, 10) == pytest.approx((0, 0, 1.959964**2 / (10 + 1.959964**2)))
    assert intervals.wilson(1, 10) == pytest.approx((1, 10 / (10 + 1.959964**2), 1))


def test_the_interval_over_groups_is_that_of_a_benchmark_and_over_one_group_wilsons():
    generator = np.random.default_rng(5)
    reward = (generator.random((30, 4)) < generator.random((30, 1))).astype(np.float32)
    expected = intervals.estimates(graded_responses.of_rewards(reward))["acc/mean@4"]
    assert intervals.of_groups(reward.ravel(), np.repeat(np.arange(30), 4)) == pytest.approx(expected, abs=1e-6)
    one = (generator.random(50) < 0.3).astype(np.float32)
    assert intervals.of_groups(one, np.zeros(50, np.int32)) == pytest.approx(intervals.wilson(one.mean(), 50))
    graded = generator.random(50)
    assert intervals.of_groups(graded, np.zeros(50, np.int32)) == intervals.of_means({"": graded})[""]


def test_the_interval_of_groups_that_are_all_wrong_is_wilsons_over_the_groups():
    assert intervals.of_groups(np.zeros(12, np.float32), np.repeat(np.arange(3), 4)) == intervals.wilson(0.0, 3)


def coverage(num_problems, difficulty, num_sets, seed):
    """The share of simulated benchmarks whose intervals contain the true value, by metric."""
    generator = np.random.default_rng(seed)
    truth = {"acc/mean@4": 0.0, "acc/pass@2": 0.0}
    many = difficulty(generator, 400_000)
    truth["acc/mean@4"], truth["acc/pass@2"] = many.mean(), (1 - (1 - many) ** 2).mean()
    hits = dict.fromkeys(truth, 0)
    for _ in range(num_sets):
        chance = difficulty(generator, num_problems)[:, None]
        estimates = intervals.estimates(
            graded_responses.of_rewards(
                (generator.random((num_problems, 4)) < chance), answer=[[""] * 4] * num_problems
            )
        )
        for name, value in truth.items():
            hits[name] += estimates[name].low <= value <= estimates[name].high
    return {name: count / num_sets for name, count in hits.items()}


@pytest.mark.slow
def test_intervals_over_problems_contain_the_true_value_at_their_nominal_rate():
    """300 simulated benchmarks of 60 problems of unequal difficulty: 0.95 has a standard error of 0.013 here."""
    shares = coverage(60, lambda generator, size: generator.beta(0.6, 0.9, size), num_sets=300, seed=1)
    assert all(0.95 - 0.04 <= share <= 0.95 + 0.04 for share in shares.values()), shares


def test_an_interval_of_one_problem_is_over_its_responses():
    generator = np.random.default_rng(5)
    reward = (generator.random((1, 400)) < 0.3).astype(np.float32)
    estimates = intervals.estimates(graded_responses.of_rewards(reward))
    share = reward.mean()
    error = 1.96 * np.sqrt(share * (1 - share) / 400)
    assert estimates["acc/mean@400"].low == pytest.approx(share - error, abs=0.01)
    assert estimates["acc/mean@400"].high == pytest.approx(share + error, abs=0.01)
    pairs = [1 - (1 - share + sign * error) ** 2 for sign in (1, -1)]
    assert estimates["acc/pass@2"].low == pytest.approx(pairs[0], abs=0.015)
    assert estimates["acc/pass@2"].high == pytest.approx(pairs[1], abs=0.015)
    assert estimates["acc/maj@2"].low < estimates["acc/maj@2"].value < estimates["acc/maj@2"].high
    assert np.isnan(estimates["acc/maj@400"].low), "400 responses have one majority, which cannot be resampled"


def test_one_response_has_no_interval():
    estimate = intervals.estimates(graded_responses.of_rewards([[1]]))["acc/mean@1"]
    assert estimate.value == 1
    assert np.isnan(estimate.low)
    assert np.isnan(estimate.high)


def test_the_same_responses_give_the_same_interval_and_constant_rewards_give_zero_width():
    graded = graded_responses.of_rewards([[1, 0], [0, 0], [1, 1]])
    assert intervals.estimates(graded) == intervals.estimates(graded)
    assert intervals.estimates(graded_responses.of_rewards([[1, 1], [1, 1]]))["acc/mean@2"] == (1, 1, 1)


def test_a_bootstrap_in_blocks_equals_one_in_a_single_block(monkeypatch):
    units = np.random.default_rng(0).random((30, 2))
    whole = intervals.bootstrap(units, lambda drawn: drawn.mean(axis=1), stream=0)
    monkeypatch.setattr(intervals, "BLOCK_BYTES", 7 * units.nbytes)
    np.testing.assert_array_equal(whole, intervals.bootstrap(units, lambda drawn: drawn.mean(axis=1), stream=0))


def test_every_unit_is_drawn_equally_often_and_two_streams_share_nothing():
    drawn = [intervals.bootstrap(np.arange(7), lambda each: each, stream=stream) for stream in (0, 1)]
    assert drawn[0].shape == (intervals.RESAMPLES, 7)
    counts = np.bincount(drawn[0].ravel(), minlength=7)
    expected = intervals.RESAMPLES
    assert ((counts - expected) ** 2 / expected).sum() < 22.5, "chi-squared of 6 degrees of freedom, 0.1%"
    assert (drawn[0] == drawn[1]).mean() == pytest.approx(1 / 7, abs=0.015)


def test_a_paired_interval_is_narrower_than_an_unpaired_one_where_problems_differ():
    """For two policies with the same hard problems, pairing removes the variance between problems."""
    generator = np.random.default_rng(2)
    chance = generator.beta(0.4, 0.4, (50, 1))
    one, other = (
        graded_responses.of_rewards((generator.random((50, 16)) < np.clip(chance + gain, 0, 1)).astype(np.float32))
        for gain in (0.05, 0.0)
    )
    paired = intervals.differences(one, other)["acc/mean@16"]
    apart = [intervals.estimates(each)["acc/mean@16"] for each in (one, other)]
    unpaired = math.hypot(*(each.high - each.low for each in apart))
    assert paired.high - paired.low < unpaired / 2
    assert paired.value == pytest.approx(apart[0].value - apart[1].value, abs=1e-6)
    assert paired.low < paired.value < paired.high


@pytest.mark.slow
def test_paired_intervals_contain_the_true_value_at_their_nominal_rate():
    generator, hits, gain = np.random.default_rng(4), 0, 0.1
    for _ in range(300):
        chance = generator.uniform(0, 0.9, (60, 1))
        one, other = (
            graded_responses.of_rewards(generator.random((60, 4)) < chance + each, answer=[[""] * 4] * 60)
            for each in (gain, 0.0)
        )
        estimate = intervals.differences(one, other)["acc/mean@4"]
        hits += estimate.low <= gain <= estimate.high
    assert 0.91 <= hits / 300 <= 0.99


def test_a_policy_does_not_differ_from_itself_and_swapping_two_policies_flips_the_sign():
    one, other = (
        graded_responses.of_rewards([[1, 0], [0, 0], [1, 1]]),
        graded_responses.of_rewards([[1, 1], [0, 1], [1, 1]]),
    )
    assert set(intervals.differences(one, one).values()) == {(0, 0, 0)}
    there, back = (intervals.differences(*pair)["acc/mean@2"] for pair in ((one, other), (other, one)))
    assert there == pytest.approx((-back.value, -back.high, -back.low))


def test_with_one_problem_the_responses_are_resampled_independently():
    generator = np.random.default_rng(6)
    one, other = (graded_responses.of_rewards(generator.random((1, 400)) < chance) for chance in (0.6, 0.4))
    estimate = intervals.differences(one, other)["acc/mean@400"]
    spread = sum(np.var(each.reward) / 400 for each in (one, other))
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * np.sqrt(spread), rel=0.1)


def test_different_numbers_of_responses_are_not_paired():
    with pytest.raises(ValueError, match="pairs need the same problems"):
        intervals.differences(graded_responses.of_rewards([[1, 0]]), graded_responses.of_rewards([[1], [0]]))
