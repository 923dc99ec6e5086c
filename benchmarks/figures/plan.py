"""An experiment: tasks × variants × seeds, a search for learning rates, and comparisons that are decided before the runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

Outcome = Literal[
    "log_t95", "log_updates", "area", "early", "final", "slope", "collapsed", "held_out", "kl_ref", "catch_up"
]
"""What `outcomes.outcome` computes of a run: its docstring defines each."""

Expected = Literal["greater", "less", "equal"]

LEARNING_RATES = (3e-5, 6e-5, 1.2e-4, 2.4e-4, 4.8e-4)
"""Searched for every method alike; extended where the best is at an edge."""

TUNING_SEEDS = (100, 101)
"""Of the search, on the figure's `tuning` task; neither is reported."""

SEARCH_ROUNDS = 40
"""Of every run of the search, whatever the figure's own number is, so that figures share the search of a common method."""

START_SECONDS = {"tuning": 1.5, "smollm2_hard": 20.0}
"""Of a run that finds its programs compiled: two cores. Tasks that are not named are as `tuning`, here and below."""
ROUND_SECONDS = {
    "tuning": 0.05,
    "many": 0.06,
    "many_groups": 0.06,
    "long_8": 0.12,
    "smollm2_hard": 3.0,
}
UPDATE_SECONDS = {"tuning": 0.025, "long_8": 0.05, "smollm2_hard": 4.0}
"""Of a round's sampling and verdicts, and of an update, by task. Estimates, for `cost`."""


class Variant(NamedTuple):
    """One curve of a figure."""

    name: str  # in the legend and the record
    settings: Mapping[str, Any]  # "section.field" → value: differences from the test bed's settings
    method: str  # variants of one method share its searched learning rate; searched with the settings of the first such variant
    rate_factor: float = 1.0  # of the searched learning rate


class Plateau(NamedTuple):
    """The success rate that β fixes: p*(β) of the task's rate at the start (docs/objectives.md, "What beta means")."""

    beta: float


class Contrast(NamedTuple):
    """A comparison that was decided before the runs: the paired difference of an outcome, first minus second.

    The claim is that the difference is greater than `margin`, or less than −`margin`, or between the two ("equal").
    `outcomes.verdict` decides it.
    """

    first: str  # variant's name
    second: str | float | Plateau  # variant's name, or a number
    outcome: Outcome
    tasks: tuple[str, ...]  # pooled, paired by task and seed
    confirms: str  # what would confirm the claim, and what would refute it, in words
    refutes: str
    expects: Expected = "greater"
    margin: float = 0.0  # units of the outcome; not negative
    other_tasks: tuple[str, ...] = ()  # of `second`, where it is compared on other tasks, in the order of `tasks`
    for_reval: bool = False  # whether ReVal wins if it is confirmed, and loses if it is refuted


class Panel(NamedTuple):
    """A row of a picture: the same curves for every task of the figure, at most six."""

    title: str
    variants: tuple[str, ...]
    y: str = "score"  # or "held_out", or a name of `Figure.metrics`
    x: Literal["generated_tokens", "rounds", "updates"] = "generated_tokens"


class Figure(NamedTuple):
    """One experiment."""

    name: str  # "fig03": of its files
    title: str
    question: str
    tasks: tuple[str, ...]  # names of `testbed.TASKS`
    variants: tuple[Variant, ...]
    rounds: int
    contrasts: tuple[Contrast, ...]
    panels: tuple[Panel, ...] = ()
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    metrics: tuple[str, ...] = ()  # of metrics.jsonl, kept for every round beside the score
    stops_at_95: bool = True  # a run ends after five rounds in a row at 0.95, since nothing later is read
    searches: bool = True  # False: the variants' settings give the learning rate
    tuning: str = "tuning"  # task of the search
    learning_rates: tuple[float, ...] = LEARNING_RATES  # of the search
    is_exploratory: bool = False  # added after runs had been seen: it confirms nothing


def above(
    first: Variant,
    second: Variant,
    outcome: Outcome,
    tasks: tuple[str, ...],
    confirms: str,
    *,
    refutes: str = "It is below.",
    for_reval: bool = False,
) -> Contrast:
    """The claim that one variant is above another, without a margin."""
    return Contrast(first.name, second.name, outcome, tasks, confirms, refutes, for_reval=for_reval)


def at_rate(variants: Iterable[Variant], rate: float) -> tuple[Variant, ...]:
    """The variants at one learning rate times the factor of each, for a figure that does not search."""
    return tuple(
        each._replace(settings={**each.settings, "optimizer.learning_rate": rate * each.rate_factor})
        for each in variants
    )


def quick(figure: Figure, rates: Mapping[str, float]) -> Figure:
    """The first panel's curves with four seeds, at learning rates that were searched before."""
    variants = tuple(
        variant._replace(
            settings={**variant.settings, "optimizer.learning_rate": rates[variant.method] * variant.rate_factor}
        )
        for variant in figure.variants
        if variant.name in figure.panels[0].variants
    )
    names = [variant.name for variant in variants]
    return figure._replace(
        variants=variants,
        contrasts=tuple(
            each
            for each in figure.contrasts
            if each.first in names and (not isinstance(each.second, str) or each.second in names)
        ),
        panels=figure.panels[:1],
        seeds=figure.seeds[:4],
        searches=False,
    )


def one_cell(figure: Figure, rounds: int) -> Figure:
    """One short run of the figure's last variant, which says nothing and shows that the figure can be made."""
    last = figure.variants[-1]
    panel = next(panel for panel in figure.panels if last.name in panel.variants)
    return figure._replace(
        tasks=figure.tasks[:1],
        variants=(last,),
        contrasts=(),
        panels=(panel._replace(variants=(last.name,)),),
        seeds=figure.seeds[:1],
        rounds=rounds,
        searches=False,
    )


class Cost(NamedTuple):
    """Of a figure by itself, without what other figures have already run: an upper bound, as if no run ended early."""

    runs: int
    search_runs: int
    seconds: float  # of one process on two cores


def searched(figure: Figure) -> dict[str, Variant]:
    """The first variant of each method, whose settings its search has; empty if the figure does not search."""
    first: dict[str, Variant] = {}
    for variant in figure.variants if figure.searches else ():
        first.setdefault(variant.method, variant)
    return first


def cost(figure: Figure) -> Cost:
    """Runs and seconds of a figure's own cells and of its search."""
    per_task = [(task, variant) for task in figure.tasks for variant in figure.variants]
    searches = [(figure.tuning, variant) for variant in searched(figure).values()]
    seconds = sum(len(figure.seeds) * seconds_of(task, variant, figure.rounds) for task, variant in per_task)
    tries = len(figure.learning_rates) * len(TUNING_SEEDS)
    seconds += sum(tries * seconds_of(task, variant, SEARCH_ROUNDS) for task, variant in searches)
    return Cost(len(per_task) * len(figure.seeds), len(searches) * tries, seconds)


def total(figures: Iterable[Figure]) -> Cost:
    """The cost of several figures, where the cells and searches that they share run once."""
    cells: dict[tuple, float] = {}
    tries: dict[tuple, float] = {}
    for figure in figures:
        for variant in figure.variants:
            settings = tuple(sorted((name, str(value)) for name, value in variant.settings.items()))
            rate = (variant.method, figure.tuning, variant.rate_factor) if figure.searches else ()
            for task in figure.tasks:
                for seed in figure.seeds:
                    cell = (task, settings, rate, seed, figure.rounds, figure.stops_at_95)
                    cells[cell] = seconds_of(task, variant, figure.rounds)
        for method, variant in searched(figure).items():
            for index in range(len(figure.learning_rates) * len(TUNING_SEEDS)):
                tries[(method, figure.tuning, index)] = seconds_of(figure.tuning, variant, SEARCH_ROUNDS)
    return Cost(len(cells), len(tries), sum(cells.values()) + sum(tries.values()))


def seconds_of(task: str, variant: Variant, rounds: int) -> float:
    """An estimate of a run's time on two cores, as if it did not end early."""
    settings = variant.settings
    # The defaults of configs/algorithms: two updates, and one pass.
    updates = settings.get("update.max_updates_per_round") or settings.get("update.updates_per_round", 2)
    updates *= settings.get("update.passes", 1)
    begin, of_round, of_update = (
        seconds.get(task, seconds["tuning"]) for seconds in (START_SECONDS, ROUND_SECONDS, UPDATE_SECONDS)
    )
    return begin + rounds * (of_round + updates * of_update)
