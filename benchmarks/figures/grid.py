"""Plays the cells of figures, several processes at a time, and makes the figures' records of them."""

from __future__ import annotations

import contextlib
import fcntl
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.figures import outcomes, plan
from benchmarks.figures.experiments import FIGURES
from benchmarks.figures.journal import Cell, Journal, Run
from benchmarks.testbed import runs
from reval_jax import programs

EXTENSIONS = 2
"""Times that a search goes on beyond an edge of its rates."""

METRICS = tuple(sorted({name for figure in FIGURES.values() for name in figure.metrics}))
"""Kept of every run, so that figures may share it."""


class Search(NamedTuple):
    """A method's search for its learning rate, as far as it has come."""

    played: list[Run]
    missing: list[Cell]
    best: float | None  # None while cells are missing


def search(figure: plan.Figure, method: str, journal: Journal) -> Search:
    """The runs of a method at all rates, and beyond the edge where the best rate is at one."""
    variant, rates = plan.searched(figure)[method], list(figure.learning_rates)
    extensions = 0
    while True:
        tries = [
            Cell(figure.tuning, variant, seed, rate, plan.SEARCH_ROUNDS, True)
            for rate in rates
            for seed in plan.TUNING_SEEDS
        ]
        played, missing = list[Run](), list[Cell]()
        for cell in tries:
            run = journal.find(cell, ())
            if run is None:
                missing.append(cell)
            else:
                played.append(_named(run, method, cell))
        if missing:
            return Search(played, missing, None)
        best = outcomes.best_rate(played)
        if extensions == EXTENSIONS or min(rates) < best < max(rates):
            return Search(played, [], best)
        extensions += 1
        rates = [best / 2, *rates] if best == min(rates) else [*rates, best * 2]


def cells(figure: plan.Figure, journal: Journal, seeds: Sequence[int]) -> list[Cell]:
    """The cells whose learning rates are known."""
    best = {method: search(figure, method, journal).best for method in plan.searched(figure)}
    found = []
    for variant in figure.variants:
        rate = best.get(variant.method)
        if figure.searches and rate is None:
            continue
        if rate is not None:
            rate = float(f"{rate * variant.rate_factor:.6g}")
        found += [
            Cell(task, variant, seed, rate, figure.rounds, figure.stops_at_95)
            for task in figure.tasks
            for seed in seeds
        ]
    return found


def pending(
    figures: Iterable[plan.Figure], journal: Journal, seeds: Sequence[int], part: tuple[int, int] = (0, 1)
) -> list[Cell]:
    """What a part of the machines has still to play, cells that figures share once.

    In the order of the figures, a figure's searches first; of long runs all variants with one seed, then with the next, so that
    what is played of an unfinished figure can be compared.
    """
    missing: dict[str, Cell] = {}
    for figure in figures:
        for method in plan.searched(figure):
            missing |= {cell.key: cell for cell in search(figure, method, journal).missing}
        for cell in sorted(cells(figure, journal, seeds), key=lambda cell: cell.seed if cell.is_long else 0):
            if journal.find(cell, figure.metrics) is None:
                longest = max(cell.rounds, missing[cell.key].rounds if cell.key in missing else 0)
                missing[cell.key] = cell._replace(rounds=longest)
    return [cell for cell in missing.values() if int(cell.chunk, 16) % part[1] == part[0]]


def left(figures: Sequence[plan.Figure], journal: Journal, seeds: Sequence[int], part: tuple[int, int] = (0, 1)) -> str:
    """How many runs this part of the machines has still to play, and for how long at most, in words."""
    missing = pending(figures, journal, seeds, part)
    if not missing:
        return "no run left"
    seconds = sum(plan.seconds_of(cell.task, cell.variant, cell.rounds) for cell in missing)
    is_searching = any(
        search(figure, method, journal).missing for figure in figures for method in plan.searched(figure)
    )
    runs_left = "1 run left" if len(missing) == 1 else f"{len(missing)} runs left"
    after = ", then those at the rates that their searches choose" if is_searching else ""
    return f"{runs_left}, at most some {math.ceil(seconds / 60)} min of two cores{after}"


def work(
    figures: Sequence[plan.Figure],
    journal: Journal,
    *,
    seeds: Sequence[int],
    about: Run,
    part: tuple[int, int] = (0, 1),
    log: Callable[[str], Any] = print,
) -> None:
    """Plays what no other process plays until nothing is left.

    Args:
      journal: in whose directory other processes may play.
      about: of the machine, the versions and the command; kept with every run.
      part: (i, n): of n machines without a common file system, this is the i-th, from 0.

    Raises:
      runs.InterruptedRunError: by a signal; the same call goes on.
    """
    compiled = programs.Programs()
    metrics = tuple(sorted({*METRICS, *(name for figure in figures for name in figure.metrics)}))

    def tell(text: str) -> None:
        journal.refresh()
        log(f"{text}; {left(figures, journal, seeds, part)}")

    while True:
        journal.refresh()
        chunks: dict[str, list[Cell]] = {}
        for cell in pending(figures, journal, seeds, part):
            chunks.setdefault(cell.chunk, []).append(cell)
        if not chunks:
            return
        if not any(
            _play(chunk, of_chunk, journal, compiled, metrics, about, tell) for chunk, of_chunk in chunks.items()
        ):
            time.sleep(1.0)  # other processes play all that is left


def _play(
    chunk: str,
    of_chunk: Sequence[Cell],
    journal: Journal,
    compiled: programs.Programs,
    metrics: Sequence[str],
    about: Run,
    log: Callable[[str], Any],
) -> bool:
    """Plays the cells of a chunk unless another process does; whether it did."""
    has_played = False
    with _claim(journal.work, chunk) as is_mine:
        journal.refresh()
        for cell in of_chunk if is_mine else ():
            if journal.find(cell, metrics) is not None:
                continue
            config = cell.config()
            numbers = runs.play(config, journal.unfinished / cell.key, metrics=metrics, compiled=compiled)
            rate = config.optimizer.learning_rate
            journal.add({"key": cell.key, "learning_rate": rate, **numbers, "about": about})
            has_played = True
            log(
                f"{cell.variant.name}, {cell.task}, seed {cell.seed}, rate {rate:g}: {numbers['stopped']} after "
                f"{len(numbers['score'])} rounds, {numbers['seconds']} s"
            )
    return has_played


@contextlib.contextmanager
def _claim(work: Path, chunk: str) -> Iterator[bool]:
    """Whether this process may play a chunk, which no other may during the block; the lock ends with the process."""
    directory = work / "claims"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / chunk).open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def record(figure: plan.Figure, journal: Journal, seeds: Sequence[int]) -> Run:
    """All runs of a figure so far, with its searches, as docs/evidence/NAME.json has them."""
    searches = {method: search(figure, method, journal) for method in plan.searched(figure)}
    tried = [{**run, "metrics": {}} for each in searches.values() for run in each.played]
    found = []
    for cell in cells(figure, journal, seeds):
        run = journal.find(cell, figure.metrics)
        if run is not None:
            kept = {name: run["metrics"][name] for name in figure.metrics}
            found.append({**_named(run, cell.variant.name, cell), "metrics": kept})
    abouts = list[Run]()
    for run in [*tried, *found]:
        if run["about"] not in abouts:
            abouts.append(run["about"])
        run["about"] = abouts.index(run["about"])
    return {
        "figure": figure.name,
        "abouts": abouts,
        "starts": {task: runs.start(task) for task in figure.tasks if _is_start_read(figure, task)},
        "rates": {method: each.best for method, each in searches.items() if each.best is not None},
        "search": tried,
        "runs": found,
    }


def _is_start_read(figure: plan.Figure, task: str) -> bool:
    """Whether a comparison with the end that β fixes needs the task's success rate before training."""
    return any(isinstance(each.second, plan.Plateau) and task in each.tasks for each in figure.contrasts)


def _named(run: Run, variant: str, cell: Cell) -> Run:
    """A run under this figure's names; where it comes from another figure's record, it has that figure's."""
    names = {"task": cell.task, "variant": variant, "seed": cell.seed}
    return names | run | names  # twice, so that they come first
