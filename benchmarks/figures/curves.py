"""The curves of a figure: means over tasks and seeds with their intervals, as arrays; what `draw` draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.figures import outcomes, plan
from reval_jax.evaluate import intervals


class Curve(NamedTuple):
    """A mean over runs with its 95% bootstrap interval over (task, seed)."""

    x: np.ndarray  # f64[n], rounds, or mean generated tokens or updates
    mean: np.ndarray  # f64[n]
    low: np.ndarray  # f64[n]; NaN if there is one run
    high: np.ndarray
    runs: int
    failed: int


class Try(NamedTuple):
    """One method's search."""

    rates: tuple[float, ...]
    areas: tuple[tuple[float, ...], ...]  # of the seeds, for each rate
    collapsed: tuple[bool, ...]  # whether a run of the rate did
    chosen: float

    @property
    def is_at_edge(self) -> bool:
        """Whether a larger or smaller rate might be better still."""
        return self.chosen in (self.rates[0], self.rates[-1])


def groups(tasks: Iterable[str]) -> dict[str, list[str]]:
    """Tasks of one difficulty together: hard_1 and hard_2 are "hard"."""
    found: dict[str, list[str]] = {}
    for task in tasks:
        found.setdefault(task.rstrip("0123456789").rstrip("_"), []).append(task)
    return found


def curve(figure: plan.Figure, runs: Sequence[outcomes.Run], panel: plan.Panel) -> Curve | None:
    """The mean of the panel's number over these runs; None if none has it.

    Scores of rounds that were not run are those of `outcomes.filled`, up to the last round that any of the runs has. Other
    numbers are means over the runs that have them, where at least half do.
    """
    if not runs:
        return None
    last = max(min(len(run["score"]), figure.rounds) for run in runs)
    if panel.y == "score":
        rounds = np.arange(1, last + 1)
        values = np.stack([outcomes.filled(run, figure.rounds)[:last] for run in runs])
    elif panel.y == "held_out":
        evaluated = [dict(each for each in run["held_out"] if each[0] <= figure.rounds) for run in runs]
        rounds = np.array(sorted({round for each in evaluated for round in each}), int)
        values = np.array([[each.get(round, np.nan) for round in rounds] for each in evaluated]).reshape(len(runs), -1)
        for row, run in zip(values, runs, strict=True):
            if outcomes.is_failed(run):
                row[rounds > len(run["score"])] = 0.0
    else:
        rounds = np.arange(1, last + 1)
        values = np.stack([_padded(run["metrics"].get(panel.y, []), last) for run in runs])
    is_seen = np.isfinite(values).mean(axis=0) >= 0.5
    rounds, values = rounds[is_seen], values[:, is_seen]
    if not rounds.size:
        return None
    return Curve(
        _axis(runs, rounds, panel.x),
        _mean(values[None])[0],
        *_band(values),
        runs=len(runs),
        failed=sum(map(outcomes.is_failed, runs)),
    )


def searches(figure: plan.Figure, record: outcomes.Record) -> dict[str, Try]:
    """Method → its search, in the order of the figure's variants; of those whose search is finished.

    A run of the search names its method, or the variant with whose settings it was made, as its `variant`.
    """
    methods = plan.searched(figure)
    of_name = {variant.name: method for method, variant in methods.items()} | {method: method for method in methods}
    of_method: dict[str, dict[float, list[outcomes.Run]]] = {method: {} for method in methods}
    for run in record["search"]:
        of_method[of_name[run["variant"]]].setdefault(float(run["learning_rate"]), []).append(run)
    rates = record["rates"]
    return {method: _try(of_method[method], float(rates[method])) for method in of_method if method in rates}


def reference_values(figure: plan.Figure, record: outcomes.Record) -> dict[str, float]:
    """Task → mean of V_ref(s₁) over its questions, nats; empty unless the figure has TBRM and keeps its residual.

    In a run's first update the policy is the reference, so that TBRM's residual is V_ref(s₁) − r/β.
    """
    if "reval/residual_mean" not in figure.metrics:
        return {}
    tbrm = [each for each in figure.variants if each.settings["update.objective"] == "tbrm"]
    # The largest β, at which r/β takes the fewest digits of the recorded residual.
    variant = max(tbrm, key=lambda each: each.settings["update.beta"])
    of_task: dict[str, list[float]] = {}
    for (task, _), run in outcomes.by_cell(record, variant.name).items():
        for residual, score in zip(run["metrics"]["reval/residual_mean"][:1], run["score"][:1], strict=True):
            of_task.setdefault(task, []).append(residual + score / variant.settings["update.beta"])
    return {task: float(np.mean(values)) for task, values in of_task.items()}


def _try(of_rate: Mapping[float, list[outcomes.Run]], chosen: float) -> Try:
    rates, rounds = tuple(sorted(of_rate)), plan.SEARCH_ROUNDS
    return Try(
        rates,
        tuple(tuple(outcomes.outcome(run, "area", rounds) for run in of_rate[rate]) for rate in rates),
        tuple(any(outcomes.outcome(run, "collapsed", rounds) for run in of_rate[rate]) for rate in rates),
        chosen,
    )


def _axis(runs: Sequence[outcomes.Run], rounds: np.ndarray, x: str) -> np.ndarray:
    """The mean over runs of what a round has cost by its end; a run that ended goes on at its mean cost of a round."""
    if x == "rounds":
        return rounds.astype(float)
    of_runs = []
    for run in runs:
        spent = np.concatenate([[0.0], np.asarray(run[x], float)])
        more = spent[-1] / max(1, spent.size - 1) * np.maximum(0, rounds - (spent.size - 1))
        of_runs.append(spent[np.minimum(rounds, spent.size - 1)] + more)
    return np.mean(of_runs, axis=0)


def _padded(values: Sequence[float | None], size: int) -> np.ndarray:
    row = np.full(size, np.nan)
    row[: len(values)] = [np.nan if value is None else value for value in values[:size]]
    return row


def _mean(drawn: np.ndarray) -> np.ndarray:
    """f64[b, U, n] → f64[b, n]: the mean over units that have a number; NaN where none has."""
    is_finite = np.isfinite(drawn)
    count = is_finite.sum(axis=1)
    total = np.where(is_finite, drawn, 0.0).sum(axis=1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(values) == 1:
        return np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    resampled = intervals.bootstrap(values, _mean, stream=0)
    low, high = np.nanquantile(resampled, [(1 - intervals.LEVEL) / 2, (1 + intervals.LEVEL) / 2], axis=0)
    return low, high
