"""Resets by the pull ratio, and the number of updates of a round, against loops over scripted rounds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reval_jax import adaptation, algorithms, config, round_metrics

START = adaptation.Adaptation()


def pull_ratio_by_loop(residual, target, group) -> float:
    """In float64: sqrt of the summed squares of centred D over those of centred y, over groups with different rewards."""
    members = {}
    for delta, reward, name in zip(residual.tolist(), target.tolist(), group.tolist(), strict=True):
        members.setdefault(name, []).append((delta + reward, reward))
    if all(len(rows) == 1 for rows in members.values()):
        members = {0: [rows[0] for rows in members.values()]}
    top = bottom = 0.0
    for rows in members.values():
        if len({reward for _, reward in rows}) == 1:
            continue
        distance_mean = math.fsum(distance for distance, _ in rows) / len(rows)
        reward_mean = math.fsum(reward for _, reward in rows) / len(rows)
        top += math.fsum((distance - distance_mean) ** 2 for distance, _ in rows)
        bottom += math.fsum((reward - reward_mean) ** 2 for _, reward in rows)
    return math.sqrt(top / bottom) if bottom else math.nan


def scripted_round(rng, absorbed, *, groups=4, samples=3, beta=0.25):
    """δ, y and prompts of a round whose policy has absorbed this share of the reward, with some noise."""
    group = rng.permutation(np.repeat(100 + np.arange(groups), samples))
    target = (rng.integers(0, 2, group.size) / beta).astype(np.float32)
    distance = absorbed * target + rng.normal(0, 0.1, group.size) + 3.0 * group
    return (distance - target).astype(np.float32), target, group


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_the_pull_ratio_equals_a_loop_over_groups(samples):
    rng = np.random.default_rng(samples)
    ratios = []
    for absorbed in (0.0, 0.3, 1.0, 2.0):
        residual, target, group = scripted_round(rng, absorbed, groups=6, samples=samples)
        ratios.append(adaptation.pull_ratio(residual, target, group))
        assert ratios[-1] == pytest.approx(pull_ratio_by_loop(residual, target, group), rel=1e-5)
    if samples > 1:  # with groups of one, the prompts' own levels are differences too
        assert ratios == pytest.approx([0.0, 0.3, 1.0, 2.0], abs=0.1)


def test_groups_with_equal_rewards_are_left_out():
    residual = np.array([1.0, -2.0, 50.0, -90.0, 7.0], np.float32)
    target, group = np.array([0.0, 4.0, 4.0, 4.0, 0.0], np.float32), np.array([1, 1, 2, 2, 3])
    # Of the first group alone: D = (1, 2), y = (0, 4).
    assert adaptation.pull_ratio(residual, target, group) == pytest.approx(0.25)
    assert math.isnan(adaptation.pull_ratio(residual[2:], target[2:], group[2:]))
    assert math.isnan(adaptation.pull_ratio(residual[:2], np.zeros(2, np.float32), group[:2]))


def test_groups_of_one_are_compared_with_all_others():
    residual, target = np.array([1.0, -1.0, 0.0], np.float32), np.array([0.0, 2.0, 2.0], np.float32)
    distance, reward = np.array([1.0, 1.0, 2.0]), np.array([0.0, 2.0, 2.0])
    expected = np.std(distance) / np.std(reward)
    assert adaptation.pull_ratio(residual, target, np.array([7, 8, 9])) == pytest.approx(expected)


def resets(ratios, settings):
    """The rounds that the rule resets after, for these pull ratios of rounds 0, 1, …"""
    state, fired = START, []
    for round, ratio in enumerate(ratios):
        state = adaptation.with_pull(state, ratio)
        if adaptation.is_reset_due(state, round, settings):
            state = adaptation.after_reset(state, round)
            fired.append(round)
    return fired


def resets_by_loop(ratios, *, threshold, wait, every):
    fired, average, last = [], 0.0, -1
    for round, ratio in enumerate(ratios):
        if not math.isnan(ratio):
            average = 0.8 * average + 0.2 * ratio
        since = round - last
        if (average >= threshold and since >= wait) or (every and since >= every):
            fired.append(round)
            average, last = 0.0, round
    return fired


@pytest.mark.parametrize(("threshold", "wait", "every"), [(0.5, 10, 0), (0.5, 3, 20), (0.2, 1, 0), (1.5, 5, 12)])
def test_scripted_rounds_reset_where_a_loop_does(threshold, wait, every):
    rng = np.random.default_rng(0)
    rounds = [scripted_round(rng, absorbed) for absorbed in np.abs(rng.normal(0.6, 0.4, 80))]
    settings = config.Update(reference_reset_pull=threshold, reference_reset_wait=wait, reference_reset_every=every)
    expected = resets_by_loop(
        [pull_ratio_by_loop(*each) for each in rounds], threshold=threshold, wait=wait, every=every
    )
    assert resets([adaptation.pull_ratio(*each) for each in rounds], settings) == expected
    assert 2 <= len(expected) < 80


def test_the_average_has_to_climb_to_the_threshold_anew_after_a_reset():
    # 1 - .8^n reaches .5 in the fourth round.
    settings = config.Update(reference_reset_pull=0.5, reference_reset_wait=1)
    assert resets([1.0] * 12, settings) == [3, 7, 11]
    assert resets([1.0] * 12, config.Update(reference_reset_pull=0.5, reference_reset_wait=6)) == [5, 11]


def test_a_round_without_a_ratio_leaves_the_average():
    settings = config.Update(reference_reset_pull=0.5, reference_reset_wait=1)
    assert resets([1.0, 1.0, math.nan, math.nan, 1.0, 1.0], settings) == [5]
    state = adaptation.Adaptation(updates=3.0, pull=0.25, last_reset=4)
    assert adaptation.with_pull(state, math.nan) == state


def test_a_period_is_the_longest_time_without_a_reset_and_an_infinite_threshold_never_fires():
    ratios = [3.0, math.nan] * 20
    never = {"reference_reset_pull": 1e30, "reference_reset_wait": 1}
    assert resets(ratios, config.Update(**never)) == []
    assert resets(ratios, config.Update(**never, reference_reset_every=9)) == [8, 17, 26, 35]


def test_without_a_threshold_resets_are_periodic_whatever_is_measured():
    assert resets([9.0] * 10, config.Update(reference_reset_every=3)) == [2, 5, 8]
    assert resets([9.0] * 10, config.Update()) == []


def test_unexplained_is_the_share_of_squares():
    assert adaptation.unexplained(np.array([1.0, -2.0], np.float32), np.array([0.0, 5.0], np.float32)) == 0.2
    assert math.isnan(adaptation.unexplained(np.ones(2, np.float32), np.zeros(2, np.float32)))


def test_the_number_of_updates_equals_a_loop_within_its_bounds():
    rng = np.random.default_rng(1)
    settings = config.Update(updates_per_round=2, max_updates_per_round=8, reuse_threshold=0.8)
    state, number, seen = START, 2.0, []
    for fresh, replayed in rng.uniform(0.2, 1.6, (200, 2)).tolist():
        state = adaptation.with_reuse(state, fresh, replayed, settings)
        number = min(8.0, max(2.0, number / 1.3 if replayed < 0.8 * fresh else number * 1.3))
        assert state.updates == pytest.approx(number)
        seen.append(adaptation.num_updates(state, settings))
        assert seen[-1] == round(number)
    assert set(seen) == set(range(2, 9))


def test_the_number_of_updates_begins_at_the_least_and_stays_where_a_share_is_missing():
    settings = config.Update(updates_per_round=3, max_updates_per_round=6)
    assert adaptation.num_updates(START, settings) == 3
    for fresh, replayed in ((math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0)):
        assert adaptation.with_reuse(START, fresh, replayed, settings) == START
    assert adaptation.with_reuse(START, 1.0, 0.1, settings).updates == 3.0


def test_a_round_s_shares_are_of_its_first_update_and_of_its_draws():
    done = round_metrics.Updates(
        metrics=[{}],
        batches=[],
        begins_fresh=True,
        is_on_policy=True,
        num_skipped=0,
        numbers=[algorithms.PerTrajectory(np.array(each, np.float32)) for each in ([1.0, 2.0], [3.0], [1.0])],
        rewards=[np.array([0.0, 0.5], np.float32), np.array([0.5], np.float32), np.array([0.5], np.float32)],
        groups=[np.array([4, 4]), np.array([4]), np.array([4])],
    )
    # beta .25: y is 2 where the reward is .5.
    assert round_metrics.unexplained(done, 0.25) == pytest.approx((5 / 4, 10 / 8))
    # D = (1, 4), y = (0, 2).
    assert round_metrics.pull_ratio(done, 0.25) == pytest.approx(1.5)
    replayed = done._replace(begins_fresh=False)
    assert math.isnan(round_metrics.unexplained(replayed, 0.25)[0])
    assert math.isnan(round_metrics.pull_ratio(replayed, 0.25))
