"""An experiment: tasks × variants × seeds, a search for learning rates, and comparisons that are decided before the runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

Outcome = Literal["log_t95", "area", "final", "held_out"]
"""The logarithm of the first round whose three-round mean score is 0.95 or more (censored at the last round); the mean score over
all rounds; the mean score of the last five rounds; the last held-out accuracy."""

LEARNING_RATES = (3e-5, 6e-5, 1.2e-4, 2.4e-4, 4.8e-4)
"""Searched for every method alike; extended where the best is at an edge."""

TUNING_SEEDS = (100, 101)
"""Of the search, on the task `tuning`; neither is reported."""


class Variant(NamedTuple):
    """One curve of a figure."""

    name: str  # in the legend and the record
    settings: Mapping[str, Any]  # "section.field" → value: differences from the test bed's settings
    method: str  # variants of one method share its searched learning rate; searched with the settings of the first such variant
    rate_factor: float = 1.0  # of the searched learning rate


class Contrast(NamedTuple):
    """A comparison that was decided before the runs: the paired difference of an outcome, first minus second."""

    first: str  # variants' names
    second: str
    outcome: Outcome
    tasks: tuple[str, ...]  # pooled, paired by task and seed
    confirms: str  # what would confirm the claim, and what would refute it, in words
    refutes: str


class Figure(NamedTuple):
    """One experiment."""

    name: str  # "fig03": of its files
    title: str
    question: str
    tasks: tuple[str, ...]  # names of `testbed.TASKS`
    variants: tuple[Variant, ...]
    rounds: int
    contrasts: tuple[Contrast, ...]
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    metrics: tuple[str, ...] = ()  # of metrics.jsonl, kept for every round beside the score
    stops_at_95: bool = True  # a run ends five rounds after its T95, since nothing later is read
    searches: bool = True  # False: the variants' settings give the learning rate
