"""What is read of a run, what two variants differ by, and whether that confirms what a figure expects.

A cluster is one task with one seed. All intervals are 95% percentile bootstraps over clusters (`evaluate.intervals`: 2,000
resamples of a fixed seed); all p-values are of exact sign-flip tests over the same clusters. docs/evidence_protocol.md has the
reasons. NumPy only, and no file is read here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from benchmarks.figures import plan
from reval_jax.evaluate import intervals

Run = Mapping[str, Any]
Record = Mapping[str, Any]
Verdict = Literal["confirmed", "refuted", "not told apart", "exploratory", "unfinished"]

WINDOW = 3
"""Rounds whose mean score has to reach LEVEL: 192 responses of the test bed's 64 a round."""
LEVEL = 0.95
LAST = 5
"""Rounds of a final mean."""
COLLAPSE = 0.8
"""A run whose final mean is below this share of its best mean of as many rounds has collapsed."""
ALPHA = 0.05
MAX_CENSORED = 1 / 8
"""Largest share of pairs with a censored run in which a small difference of log T95 may still be called small."""
MAX_EXACT = 32
"""Clusters up to which all sign flips are counted; beyond it, 65,535 random ones are."""


class T95(NamedTuple):
    """When a run had learned."""

    round: int  # the middle of the first three consecutive rounds whose mean score is 0.95 or more; else the number of rounds
    is_censored: bool


class Comparison(NamedTuple):
    """A contrast with its numbers."""

    contrast: plan.Contrast
    pairs: int
    expected_pairs: int
    missing: tuple[str, ...]  # "variant, task, seed" of runs that are not there, or whose outcome is no number
    failed: tuple[int, int]  # runs of the first and of the second variant that failed; they count, see `filled`
    censored: tuple[float, float]  # shares; of outcomes of T95 and of `catch_up` alone, else 0
    censored_pairs: float  # share of pairs in which either is
    effect: intervals.Estimate  # mean paired difference with its interval
    p: float  # against the nearest bound of what is expected
    p_holm: float  # among the contrasts of the figure
    verdict: Verdict

    @property
    def ratio(self) -> intervals.Estimate:
        """The effect and its interval of a logarithmic outcome as ratios."""
        return intervals.Estimate(*(math.exp(bound) for bound in self.effect))


# --- Outcomes of one run ---


def t95(run: Run, rounds: int) -> T95:
    """The first round whose three-round mean score is 0.95 or more.

    It is counted as the middle of the three, where their mean belongs: as the last, it would be a round later for every method,
    which brings ratios nearer to 1. A run that did not reach it in `rounds`, or that failed before, is censored at `rounds`.
    """
    mean = _running_mean(np.asarray(run["score"][:rounds], np.float64), WINDOW)
    reached = np.flatnonzero(mean >= LEVEL - 1e-9)
    return T95(int(reached[0]) + 2, False) if reached.size else T95(rounds, True)


def filled(run: Run, rounds: int) -> np.ndarray:
    """f64[rounds]: the scores, with those of rounds that were not run.

    A run that was stopped since it had learned goes on at the mean of its last three rounds. One that failed (`stopped` begins
    with "failed") goes on at 0: what collapsed has no policy that could be used.

    Raises:
      ValueError: it has fewer rounds and neither is the reason.
    """
    score = np.asarray(run["score"][:rounds], np.float64)
    missing = rounds - score.size
    if not missing:
        return score
    if run["stopped"] == "t95":
        return np.concatenate([score, np.full(missing, score[-WINDOW:].mean())])
    if is_failed(run):
        return np.concatenate([score, np.zeros(missing)])
    raise ValueError(
        f"the run of {run['variant']}, {run['task']}, seed {run['seed']} has {score.size} scores of {rounds} rounds, but stopped "
        f"with {run['stopped']!r}. Run the figure again, which completes it."
    )


def is_failed(run: Run) -> bool:
    """Whether the run ended by itself before its last round, for example since updates were not finite."""
    return str(run["stopped"]).startswith("failed")


def outcome(run: Run, name: plan.Outcome, rounds: int) -> float:
    """One number of a run; NaN if it has none.

    log_t95: the natural logarithm of `t95`. log_updates: the same of the updates made before that round. area: mean score
    of all rounds. early: mean score of rounds 2 to 4, after the updates of one to three rounds. final: mean score of the
    last five rounds. slope: least-squares rise of the score in the last third of the rounds, per 10 rounds. collapsed: 1 if
    the final mean is below 0.8 of the best mean of five rounds, or the run failed, else 0. held_out: the last held-out
    accuracy; 0 if the run failed. kl_ref: mean of `actor/kl_ref` over the last five rounds that have it, nats.
    """
    if name == "catch_up":
        raise ValueError("catch_up is an outcome of two runs: use catch_up.")
    if name == "log_t95":
        return math.log(t95(run, rounds).round)
    if name == "log_updates":
        return math.log(_updates_before(run, t95(run, rounds).round))
    if name == "held_out":
        return (
            0.0 if is_failed(run) else ([math.nan] + [share for round, share in run["held_out"] if round <= rounds])[-1]
        )
    if name == "kl_ref":
        values = run.get("metrics", {}).get("actor/kl_ref", [])
        finite = [value for value in values[:rounds] if value is not None]
        return float(np.mean(finite[-LAST:])) if finite else math.nan
    score = filled(run, rounds)
    match name:
        case "area":
            return float(score.mean())
        case "early":
            return float(score[1:4].mean())
        case "final":
            return float(score[-LAST:].mean())
        case "slope":
            last = score[-(rounds // 3) :]
            return float(np.polyfit(np.arange(last.size), last, 1)[0]) * 10
        case "collapsed":
            return float(is_failed(run) or _has_collapsed(score))
    raise ValueError(f"no outcome has the name {name!r}.")


def catch_up(first: Run, second: Run, rounds: int) -> tuple[float, bool]:
    """How much sooner `first` is where `second` ends: log(round / rounds), and whether it never is (then 0).

    The round is the first whose five-round mean score reaches that of the last five rounds of `second`.
    """
    mean = _running_mean(filled(first, rounds), LAST)
    reached = np.flatnonzero(mean >= filled(second, rounds)[-LAST:].mean() - 1e-9)
    return (math.log((int(reached[0]) + LAST) / rounds), False) if reached.size else (0.0, True)


def best_rate(runs: Iterable[Run], rounds: int = plan.SEARCH_ROUNDS) -> float:
    """The learning rate of the search: the largest mean area among those without a collapsed run; the smaller of equals.

    If every rate has one, the largest mean area of all.
    """
    by_rate: dict[float, list[Run]] = {}
    for run in runs:
        by_rate.setdefault(float(run["learning_rate"]), []).append(run)
    if not by_rate:
        raise ValueError("a search without runs has no best learning rate.")

    def rank(rate: float) -> tuple[bool, float, float]:
        has_collapsed = any(outcome(run, "collapsed", rounds) for run in by_rate[rate])
        return not has_collapsed, float(np.mean([outcome(run, "area", rounds) for run in by_rate[rate]])), -rate

    return max(by_rate, key=rank)


def plateau(start: float, beta: float) -> float:
    """p*(β): the success rate of the solution, of a question that the reference answers rightly with probability `start`."""
    return 1 / (1 + (1 / start - 1) * math.exp(-1 / beta))


def _running_mean(values: np.ndarray, size: int) -> np.ndarray:
    """f64[n - size + 1]; empty if there are fewer than `size`."""
    return np.convolve(values, np.full(size, 1 / size), mode="valid") if values.size >= size else np.zeros(0)


def _has_collapsed(score: np.ndarray) -> bool:
    return bool(score[-LAST:].mean() < COLLAPSE * _running_mean(score, LAST).max())


def _updates_before(run: Run, round: int) -> float:
    """Updates before a round, from the second on; after the end of a run, at its mean number a round; NaN without any."""
    updates, before = run["updates"], round - 1
    if not updates:
        return math.nan
    return float(updates[before - 1]) if before <= len(updates) else updates[-1] / len(updates) * before


# --- Differences of two variants ---


def interval(differences: np.ndarray) -> intervals.Estimate:
    """The mean of f64[clusters] with its bootstrap interval; NaN bounds for one cluster, NaN throughout for none."""
    if not differences.size:
        return intervals.Estimate(math.nan, math.nan, math.nan)
    return intervals.of_means({"difference": differences})["difference"]


def sign_flip(differences: np.ndarray) -> float:
    """Two-sided p of the hypothesis that each of f64[clusters] is as likely with either sign.

    The share of the 2^n assignments of signs whose mean is as far from 0 as that seen. Up to 32 clusters all are counted: the
    sums of the two halves of the clusters are sorted, and pairs of them counted by bisection.
    """
    seen = abs(differences.sum())
    # Sums of the same numbers in another order differ in the last bits.
    least = seen - 1e-9 * max(1.0, float(np.abs(differences).sum()))
    if differences.size > MAX_EXACT:
        signs = np.random.default_rng(0).integers(0, 2, (2**16 - 1, differences.size), np.int8) * 2 - 1
        return float((1 + np.sum(np.abs(signs @ differences) >= least)) / 2**16)
    half = differences.size // 2
    one, other = _signed_sums(differences[:half]), np.sort(_signed_sums(differences[half:]))
    above = other.size - np.searchsorted(other, least - one, side="left")
    below = np.searchsorted(other, -least - one, side="right")
    # Where the bound is 0 or less, every assignment is counted from both ends.
    return min(1.0, float((above + below).sum()) / (one.size * other.size))


def _signed_sums(values: np.ndarray) -> np.ndarray:
    """f64[2^n]: the sums of all assignments of signs."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums - value, sums + value])
    return sums


def p_of(differences: np.ndarray, contrast: plan.Contrast) -> float:
    """The sign-flip p against the bound between what confirms and what does not; for "equal" the larger of both bounds'."""
    if contrast.expects == "equal":
        return max(sign_flip(differences - contrast.margin), sign_flip(differences + contrast.margin))
    return sign_flip(differences - contrast.margin * (1 if contrast.expects == "greater" else -1))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given."""
    order = sorted(range(len(p)), key=lambda index: p[index])
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted


def verdict(contrast: plan.Contrast, effect: intervals.Estimate, p_holm: float, censored_pairs: float) -> Verdict:
    """What the interval and the adjusted p say; both have to.

    "greater": confirmed if the whole interval is above the margin, refuted if it is below. "less": the same below and above
    −margin. "equal": confirmed if it is inside ±margin, refuted if outside. In each case p_holm ≤ 0.05; else "not told apart".
    Censoring at the last round makes a difference of log T95 smaller and never changes its sign. So where more than one pair in
    eight has a censored run, a verdict that rests on a small difference is "not told apart"; so is every verdict on log_updates
    and catch_up, whose signs censoring can change.
    """
    _, low, high = effect
    margin = contrast.margin
    match contrast.expects:
        case "greater":
            confirms, refutes, rests_on_small = low > margin, high < margin, low <= margin and high >= 0
        case "less":
            confirms, refutes, rests_on_small = high < -margin, low > -margin, high >= -margin and low <= 0
        case _:
            confirms, refutes = -margin < low and high < margin, low > margin or high < -margin
            rests_on_small = confirms
    needs_seen = rests_on_small or contrast.outcome in ("log_updates", "catch_up")
    if p_holm > ALPHA or not (confirms or refutes) or (needs_seen and censored_pairs > MAX_CENSORED):
        return "not told apart"
    return "confirmed" if confirms else "refuted"


def between_share(record: Record, variant: str, groups: Sequence[Sequence[str]], rounds: int) -> float:
    """The share of the variance of tasks' mean log T95 that lies between groups of tasks; NaN if a task has no run.

    By chance it is (g − 1)/(n − 1) of g groups and n tasks.
    """
    cells = by_cell(record, variant)
    of_task = [
        [outcome(run, "log_t95", rounds) for cell, run in cells.items() if cell[0] == task]
        for g in groups
        for task in g
    ]
    if not all(of_task):
        return math.nan
    means = np.array([np.mean(values) for values in of_task])
    group = np.repeat(np.arange(len(groups)), [len(tasks) for tasks in groups])
    of_group = np.bincount(group, means) / np.bincount(group)
    total = float(np.square(means - means.mean()).sum())
    return 1 - float(np.square(means - of_group[group]).sum()) / total if total else 0.0


# --- A figure's contrasts ---


def comparisons(figure: plan.Figure, record: Record) -> list[Comparison]:
    """All contrasts of a figure, with Holm's adjustment among them; one that lacks runs is "unfinished" and counts as p = 1.

    Those of a figure that was added after runs had been seen are "exploratory".
    """
    found = [_compare(figure, record, contrast) for contrast in figure.contrasts]
    adjusted = holm([1.0 if each.missing else each.p for each in found])

    def judged(each: Comparison, p_holm: float) -> Verdict:
        if each.missing or figure.is_exploratory:
            return "unfinished" if each.missing else "exploratory"
        return verdict(each.contrast, each.effect, p_holm, each.censored_pairs)

    return [
        each._replace(p_holm=p_holm, verdict=judged(each, p_holm)) for each, p_holm in zip(found, adjusted, strict=True)
    ]


def by_cell(record: Record, variant: str) -> dict[tuple[str, int], Run]:
    """(task, seed) → run of a variant.

    Raises:
      ValueError: a record has two runs of one cell.
    """
    cells: dict[tuple[str, int], Run] = {}
    for run in record["runs"]:
        if run["variant"] == variant:
            cell = (run["task"], run["seed"])
            if cell in cells:
                raise ValueError(
                    f"{record['figure']} has two runs of {variant}, {cell[0]}, seed {cell[1]}. Remove one."
                )
            cells[cell] = run
    return cells


def _compare(figure: plan.Figure, record: Record, contrast: plan.Contrast) -> Comparison:
    """A contrast before Holm's adjustment."""
    firsts = by_cell(record, contrast.first)
    seconds = by_cell(record, contrast.second) if isinstance(contrast.second, str) else {}
    differences, missing, failed, censored = [], [], np.zeros(2, int), []
    for task, other_task in zip(contrast.tasks, contrast.other_tasks or contrast.tasks, strict=True):
        for seed in figure.seeds:
            first, second = firsts.get((task, seed)), seconds.get((other_task, seed))
            absent = [f"{contrast.first}, {task}, {seed}"] if first is None else []
            if isinstance(contrast.second, str) and second is None:
                absent.append(f"{contrast.second}, {other_task}, {seed}")
            if first is None or absent:
                missing += absent
                continue
            difference, is_censored = _difference(contrast, record, figure.rounds, first, second)
            if math.isnan(difference):
                missing.append(f"{contrast.first} or {contrast.second}, {task}, {seed}: no {contrast.outcome}")
                continue
            differences.append(difference)
            failed += [is_failed(first), second is not None and is_failed(second)]
            censored.append(is_censored)
    values, flags = np.array(differences), np.array(censored, bool).reshape(-1, 2)
    return Comparison(
        contrast=contrast,
        pairs=len(differences),
        expected_pairs=len(contrast.tasks) * len(figure.seeds),
        missing=tuple(missing),
        failed=(int(failed[0]), int(failed[1])),
        censored=(float(flags[:, 0].mean()), float(flags[:, 1].mean())) if len(flags) else (0.0, 0.0),
        censored_pairs=float(flags.any(axis=1).mean()) if len(flags) else 0.0,
        effect=interval(values),
        p=p_of(values, contrast) if values.size else 1.0,
        p_holm=math.nan,
        verdict="unfinished",
    )


def _difference(
    contrast: plan.Contrast, record: Record, rounds: int, first: Run, second: Run | None
) -> tuple[float, tuple[bool, bool]]:
    """First minus second, and which of the two is censored."""
    name = contrast.outcome
    is_timed = name in ("log_t95", "log_updates")
    if name == "catch_up":
        if second is None:
            raise ValueError("catch_up compares two variants, not one with a number.")
        value, never = catch_up(first, second, rounds)
        return value, (never, False)
    value, censored = outcome(first, name, rounds), is_timed and t95(first, rounds).is_censored
    if second is not None:
        return value - outcome(second, name, rounds), (censored, is_timed and t95(second, rounds).is_censored)
    if isinstance(contrast.second, plan.Plateau):
        return value - plateau(record["starts"][first["task"]], contrast.second.beta), (censored, False)
    return value - float(contrast.second), (censored, False)
