"""What figures read of runs, against definitions written as loops and against scipy; nothing that failed or lacks may vanish."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from benchmarks.figures import outcomes, plan

ROUNDS = 12


def run_of(score, variant="a", task="t", seed=1, stopped="rounds", **others):
    """A run as a record has it, with two updates a round."""
    updates = [2 * (index + 1) for index in range(len(score))]
    return {
        **{
            "variant": variant,
            "task": task,
            "seed": seed,
            "score": list(score),
            "stopped": stopped,
            "updates": updates,
        },
        **{"metrics": {}, "held_out": [], "learning_rate": 1.0} | others,
    }


def figure_of(*contrasts, rounds=ROUNDS, seeds=(1, 2, 3, 4, 5, 6, 7, 8)):
    variants = (plan.Variant("a", {}, "a"), plan.Variant("b", {}, "b"))
    return plan.Figure("f", "", "", ("t", "u"), variants, rounds, contrasts, (), seeds=seeds)


def contrast_of(outcome="area", second="b", tasks=("t",), **others):
    return plan.Contrast("a", second, outcome, tasks, "", "", **others)


def record_of(*runs, **others):
    return {"figure": "f", "runs": list(runs), **others}


def constant_runs(variant, values, task="t", rounds=ROUNDS):
    return [run_of([value] * rounds, variant, task, seed) for seed, value in enumerate(values, start=1)]


def rising(at, rounds=ROUNDS):
    """Scores of 0, then 1: T95 is `at`."""
    return [0.0] * (at - 2) + [1.0] * (rounds - at + 2)


# --- Outcomes of one run ---


def test_t95_is_a_loop_over_means_of_three():
    rng = np.random.default_rng(0)
    for _ in range(300):
        score = np.round(rng.uniform(0.85, 1.0, int(rng.integers(1, ROUNDS + 1))), 4)
        expected = outcomes.T95(ROUNDS, True)
        for end in range(3, len(score) + 1):
            if sum(score[end - 3 : end]) / 3 >= 0.95 - 1e-9:
                expected = outcomes.T95(end - 1, False)
                break
        assert outcomes.t95(run_of(score), ROUNDS) == expected


def test_one_high_round_is_not_enough_and_exactly_0_95_is():
    assert outcomes.t95(run_of([0.5, 1.0, 0.5] * 4), ROUNDS).is_censored
    assert outcomes.t95(run_of([0.95] * ROUNDS), ROUNDS) == (2, False)


def test_rounds_after_learning_go_on_at_the_last_mean():
    stopped = run_of([0.2, 0.9, 1.0, 1.0, 0.94], stopped="t95")
    assert outcomes.filled(stopped, 7).tolist() == pytest.approx([0.2, 0.9, 1.0, 1.0, 0.94, 0.98, 0.98])
    assert outcomes.outcome(stopped, "area", 7) == pytest.approx((0.2 + 0.9 + 1 + 1 + 0.94 + 0.98 * 2) / 7)
    assert not outcomes.outcome(stopped, "collapsed", ROUNDS)


def test_a_failed_run_counts_as_zero_from_then_on():
    failed = run_of([0.8, 0.8], stopped="failed: not finite", held_out=[[2, 0.7]])
    assert outcomes.outcome(failed, "area", 4) == pytest.approx(0.4)
    assert outcomes.outcome(failed, "final", ROUNDS) == 0
    assert outcomes.outcome(failed, "held_out", ROUNDS) == 0
    assert outcomes.outcome(failed, "collapsed", ROUNDS) == 1
    assert outcomes.t95(failed, ROUNDS) == (ROUNDS, True)


def test_a_run_that_failed_in_its_first_round_counts_too():
    failed = run_of([], stopped="failed: not finite")
    assert [outcomes.outcome(failed, name, ROUNDS) for name in ("area", "early", "final", "collapsed")] == [0, 0, 0, 1]
    assert outcomes.t95(failed, ROUNDS) == (ROUNDS, True)
    assert math.isnan(outcomes.outcome(failed, "log_updates", ROUNDS))


def test_a_run_that_simply_lacks_rounds_is_refused():
    with pytest.raises(ValueError, match="has 2 scores of 12 rounds"):
        outcomes.outcome(run_of([0.5, 0.5]), "area", ROUNDS)


def test_other_outcomes_are_what_their_names_say():
    run = run_of(
        np.linspace(0.1, 0.65, ROUNDS),
        held_out=[[0, 0.1], [10, 0.6]],
        metrics={"actor/kl_ref": [None, *np.arange(ROUNDS - 2.0), None]},
    )
    assert outcomes.outcome(run, "early", ROUNDS) == pytest.approx(0.2)
    assert outcomes.outcome(run, "final", ROUNDS) == pytest.approx(0.55)
    assert outcomes.outcome(run, "slope", ROUNDS) == pytest.approx(0.5)
    assert outcomes.outcome(run, "held_out", ROUNDS) == 0.6
    assert outcomes.outcome(run, "kl_ref", ROUNDS) == pytest.approx(np.mean([5, 6, 7, 8, 9]))
    assert outcomes.outcome(run, "collapsed", ROUNDS) == 0
    assert outcomes.outcome(run_of([*[0.9] * 7, *[0.7] * 5]), "collapsed", ROUNDS) == 1
    assert outcomes.outcome(run_of([*[0.9] * 7, *[0.73] * 5]), "collapsed", ROUNDS) == 0
    assert outcomes.outcome(run_of(rising(6)), "log_updates", ROUNDS) == pytest.approx(math.log(10))
    assert math.isnan(outcomes.outcome(run_of([0.1] * ROUNDS), "held_out", ROUNDS))


def test_rounds_beyond_the_figures_own_are_not_read():
    """Figures share runs, and another may be longer."""
    longer = run_of(
        [0.5] * 20 + [1.0] * 20,
        held_out=[[0, 0.1], [10, 0.4], [20, 0.9]],
        metrics={"actor/kl_ref": [1.0] * 15 + [9.0] * 25},
    )
    assert outcomes.outcome(longer, "final", 15) == 0.5
    assert outcomes.outcome(longer, "held_out", 15) == 0.4
    assert outcomes.outcome(longer, "kl_ref", 15) == 1.0
    assert outcomes.t95(longer, 15) == (15, True)


def test_catch_up_is_the_share_of_the_others_budget():
    slow = run_of([*[0.0] * 7, *[0.5] * 5])
    assert outcomes.catch_up(run_of([0.0, *[0.5] * 11]), slow, ROUNDS) == (pytest.approx(math.log(6 / 12)), False)
    assert outcomes.catch_up(run_of([0.1] * ROUNDS), slow, ROUNDS) == (0.0, True)


def test_the_best_rate_has_the_largest_area_and_no_collapse():
    runs = [
        *(run_of([0.5] * ROUNDS, learning_rate=1e-5, seed=seed) for seed in (100, 101)),
        run_of([0.95] * ROUNDS, learning_rate=2e-5),
        run_of([*[1.0] * 7, *[0.6] * 5], learning_rate=2e-5),
        *(run_of([0.6] * ROUNDS, learning_rate=4e-5, seed=seed) for seed in (100, 101)),
    ]
    assert outcomes.best_rate(runs, ROUNDS) == 4e-5
    assert outcomes.best_rate(runs[2:4], ROUNDS) == 2e-5  # all have collapsed
    assert outcomes.best_rate([*runs[:2], run_of([0.5] * ROUNDS, learning_rate=5e-5)], ROUNDS) == 1e-5


def test_the_plateau_is_that_of_the_tilted_distribution():
    for start, beta in itertools.product((0.1, 0.4), (2.0, 0.5, 0.2, 0.002)):
        tilted = np.array([start, 1 - start]) * np.exp((np.array([1, 0]) - 1) / beta)
        assert outcomes.plateau(start, beta) == pytest.approx(tilted[0] / tilted.sum())


# --- Intervals, p-values and verdicts ---


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_the_sign_flip_p_counts_every_assignment_of_signs(size):
    rng = np.random.default_rng(size)
    for values in (rng.normal(0.5, 1, size), np.round(rng.normal(0, 1, size)), np.zeros(size)):
        flips = [abs(np.dot(signs, values)) for signs in itertools.product((-1, 1), repeat=size)]
        expected = np.mean([flip >= abs(values.sum()) - 1e-9 for flip in flips])
        assert outcomes.sign_flip(values) == pytest.approx(expected)


def test_the_sign_flip_p_is_scipys():
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed, which this compares with")
    values = np.random.default_rng(3).normal(0.4, 1, 11)
    expected = stats.permutation_test((values, np.zeros(11)), lambda x, y: np.mean(x - y), permutation_type="samples")
    assert outcomes.sign_flip(values) == pytest.approx(expected.pvalue)


def test_the_sign_flip_p_of_many_clusters_is_near_the_normal_one():
    values = np.random.default_rng(4).normal(0.25, 1, 60)
    z = values.sum() / math.sqrt(np.square(values).sum())
    assert outcomes.sign_flip(values) == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=0.01)


def test_the_interval_is_a_percentile_bootstrap_over_clusters():
    values = np.random.default_rng(5).normal(0.3, 1, 8)
    drawn = np.random.default_rng(6).choice(values, (20_000, 8)).mean(axis=1)
    found = outcomes.interval(values)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.05)
    assert outcomes.interval(values) == found


def test_holm_is_the_textbooks():
    assert outcomes.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert outcomes.holm([0.6, 0.7]) == [1.0, 1.0]
    assert outcomes.holm([]) == []


@pytest.mark.parametrize(
    ("expects", "margin", "low", "high", "expected"),
    [
        ("greater", 0.0, 0.1, 0.3, "confirmed"),
        ("greater", 0.0, -0.3, -0.1, "refuted"),
        ("greater", 0.0, -0.1, 0.3, "not told apart"),
        ("greater", 0.2, 0.1, 0.3, "not told apart"),
        ("greater", 0.2, 0.1, 0.15, "refuted"),
        ("less", 0.0, -0.3, -0.1, "confirmed"),
        ("less", 0.2, -0.15, 0.1, "refuted"),
        ("less", 0.2, -0.3, -0.25, "confirmed"),
        ("equal", 0.2, -0.1, 0.1, "confirmed"),
        ("equal", 0.2, 0.25, 0.4, "refuted"),
        ("equal", 0.2, -0.4, -0.25, "refuted"),
        ("equal", 0.2, 0.1, 0.3, "not told apart"),
    ],
)
def test_the_verdict_needs_the_whole_interval_and_the_p(expects, margin, low, high, expected):
    contrast = contrast_of(expects=expects, margin=margin)
    effect = outcomes.intervals.Estimate((low + high) / 2, low, high)
    assert outcomes.verdict(contrast, effect, 0.05, 0.0) == expected
    assert outcomes.verdict(contrast, effect, 0.051, 0.0) == "not told apart"


def test_a_verdict_without_a_difference_is_as_rare_as_it_should_be():
    """The level is 12/256; the percentile interval alone would be wrong more than twice as often with eight clusters."""
    contrast, wrong, outside = contrast_of("log_t95"), 0, 0
    rng, trials = np.random.default_rng(1), 1000
    for _ in range(trials):
        differences = rng.normal(0, 0.25, 8)
        effect = outcomes.interval(differences)
        outside += not effect.low <= 0 <= effect.high
        wrong += outcomes.verdict(contrast, effect, outcomes.p_of(differences, contrast), 0.0) != "not told apart"
    # The standard error of the first is 0.007.
    assert wrong / trials < 0.062
    assert outside / trials > 0.09


def test_censoring_leaves_only_what_it_cannot_cause():
    effect = outcomes.intervals.Estimate

    def of(expects, margin, low, high, share, outcome="log_t95"):
        contrast = contrast_of(outcome, expects=expects, margin=margin)
        return outcomes.verdict(contrast, effect((low + high) / 2, low, high), 0.01, share)

    assert of("greater", 0.5, 0.6, 0.9, 1.0) == "confirmed"
    assert of("greater", 0.5, 0.1, 0.4, 0.125) == "refuted"
    assert of("greater", 0.5, 0.1, 0.4, 0.13) == "not told apart"
    assert of("greater", 0.5, -0.4, -0.1, 1.0) == "refuted"
    assert of("less", 0.5, -0.4, 0.1, 0.13) == "not told apart"
    assert of("less", 0.5, 0.1, 0.4, 1.0) == "refuted"
    assert of("equal", 0.5, -0.1, 0.1, 0.13) == "not told apart"
    assert of("greater", 0.0, 0.6, 0.9, 0.13, "log_updates") == "not told apart"


# --- Contrasts ---


def test_pairs_share_task_and_seed():
    values = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    record = record_of(*reversed(constant_runs("a", values + 0.1)), *constant_runs("b", values))
    (found,) = outcomes.comparisons(figure_of(contrast_of()), record)
    assert found.effect == pytest.approx((0.1, 0.1, 0.1))
    assert (found.pairs, found.p, found.verdict) == (8, 2 / 256, "confirmed")


def test_log_t95_is_a_ratio():
    runs = [run_of(rising(at), name, "t", seed) for name, at in (("a", 10), ("b", 5)) for seed in range(1, 9)]
    (found,) = outcomes.comparisons(figure_of(contrast_of("log_t95")), record_of(*runs))
    assert found.ratio == pytest.approx((2.0, 2.0, 2.0))
    assert found.censored == (0.0, 0.0)


def test_when_no_run_learned_nothing_is_told_apart():
    record = record_of(*constant_runs("a", [0.2] * 8), *constant_runs("b", [0.3] * 8))
    contrasts = (contrast_of("log_t95"), contrast_of("log_t95", expects="equal", margin=0.2))
    for found in outcomes.comparisons(figure_of(*contrasts), record):
        assert found.censored == (1.0, 1.0)
        assert found.effect == (0.0, 0.0, 0.0)
        assert found.verdict == "not told apart"


def test_one_cluster_tells_nothing_apart():
    record = record_of(*constant_runs("a", [0.9]), *constant_runs("b", [0.1]))
    (found,) = outcomes.comparisons(figure_of(contrast_of(), seeds=(1,)), record)
    assert found.effect.value == pytest.approx(0.8)
    assert math.isnan(found.effect.low)
    assert (found.p, found.verdict) == (1.0, "not told apart")


def test_ties_are_neither_way():
    record = record_of(*constant_runs("a", [0.5] * 8), *constant_runs("b", [0.5] * 8))
    (greater, equal) = outcomes.comparisons(figure_of(contrast_of(), contrast_of(expects="equal", margin=0.05)), record)
    assert (greater.p, greater.verdict) == (1.0, "not told apart")
    assert equal.verdict == "confirmed"


def test_a_missing_run_is_named_and_leaves_no_verdict():
    record = record_of(*constant_runs("a", [0.9] * 8), *constant_runs("b", [0.1] * 7))
    (found,) = outcomes.comparisons(figure_of(contrast_of()), record)
    assert found.verdict == "unfinished"
    assert (found.pairs, found.expected_pairs) == (7, 8)
    assert found.missing == ("b, t, 8",)
    (empty,) = outcomes.comparisons(figure_of(contrast_of()), record_of())
    assert (empty.pairs, empty.verdict) == (0, "unfinished")


def test_a_failed_run_lowers_the_mean_of_its_variant():
    good = constant_runs("a", [0.9] * 8)
    good[3] = run_of([0.9] * 2, "a", "t", 4, stopped="failed: not finite")
    (found,) = outcomes.comparisons(figure_of(contrast_of()), record_of(*good, *constant_runs("b", [0.8] * 8)))
    assert found.failed == (1, 0)
    assert found.pairs == 8
    assert found.effect.value == pytest.approx((0.1 * 7 + (0.9 * 2 / 12 - 0.8)) / 8)
    assert found.effect.value < 0.1


def test_a_run_without_the_outcome_is_missing_and_not_left_out():
    runs = constant_runs("a", [0.5] * 8)
    runs[0]["held_out"] = [[10, 0.4]]
    (found,) = outcomes.comparisons(figure_of(contrast_of("held_out", 0.0)), record_of(*runs))
    assert (found.pairs, len(found.missing), found.verdict) == (1, 7, "unfinished")


def test_two_runs_of_one_cell_are_refused():
    with pytest.raises(ValueError, match="two runs of a, t, seed 1"):
        outcomes.by_cell(record_of(*constant_runs("a", [0.5]), *constant_runs("a", [0.6])), "a")


def test_a_variant_is_compared_with_a_number_with_a_plateau_and_with_other_tasks():
    record = record_of(*constant_runs("a", [0.45] * 8), *constant_runs("a", [0.25] * 8, task="u"), starts={"t": 0.1})
    number, plateau, other = outcomes.comparisons(
        figure_of(
            contrast_of("final", 0.4),
            contrast_of("final", plan.Plateau(0.5), expects="equal", margin=0.05),
            contrast_of("final", "a", other_tasks=("u",)),
        ),
        record,
    )
    assert number.effect.value == pytest.approx(0.05)
    assert plateau.effect.value == pytest.approx(0.45 - outcomes.plateau(0.1, 0.5))
    assert plateau.verdict == "confirmed"
    assert other.effect.value == pytest.approx(0.2)


def test_holm_counts_unfinished_contrasts():
    record = record_of(*constant_runs("a", [0.9] * 8), *constant_runs("b", [0.1] * 8))
    figure = figure_of(contrast_of(), *(contrast_of(tasks=("u",)) for _ in range(6)))
    found = outcomes.comparisons(figure, record)
    assert found[0].p_holm == pytest.approx(7 * 2 / 256)
    assert found[0].verdict == "not told apart"


def test_the_share_between_groups_is_one_without_and_zero_with_nothing_but_prompts():
    def runs(of_task):
        return record_of(*(run_of(rising(at), "a", task, 1) for task, at in of_task.items()))

    groups = (("p", "q"), ("r", "s"))
    assert outcomes.between_share(runs({"p": 4, "q": 4, "r": 9, "s": 9}), "a", groups, ROUNDS) == pytest.approx(1)
    assert outcomes.between_share(runs({"p": 4, "q": 9, "r": 4, "s": 9}), "a", groups, ROUNDS) == pytest.approx(0)
    assert math.isnan(outcomes.between_share(runs({"p": 4}), "a", groups, ROUNDS))
