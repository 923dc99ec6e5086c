"""Progress of a run for a person: a live view on a terminal, one line per round everywhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import rich.console
import rich.progress

from reval_jax import progress, terminal

Report = Callable[[int, int], None]
"""(steps done, steps in total) → None."""


class Console:
    """Prints to standard error; standard output is for results."""

    def __init__(self, *, is_quiet: bool = False) -> None:
        self._console = rich.console.Console(stderr=True, quiet=is_quiet, highlight=False, soft_wrap=True)
        self._logged: set[str] = set()
        self._view: progress.View | None = None

    @contextlib.contextmanager
    def live(self, rounds: int, past: Sequence[Mapping[str, Any]], *, phase: Callable[[], str]) -> Iterator[None]:
        """Show a view of the run during the block, on a terminal that can; `working` and `round_line` tell it what happens.

        Args:
          rounds, past, phase: of `progress.View`.
        """
        can_move = self._console.file.isatty() and not self._console.is_dumb_terminal
        if self._console.quiet or not can_move or not self._console.encoding.startswith("utf"):
            yield
            return
        self._view = progress.View(rounds, past, phase)
        try:
            with progress.Live(self._console, self._view):
                yield
        finally:
            self._view = None

    def log(self, text: str) -> None:
        """Print one line."""
        self._console.print(terminal.visible(text), markup=False)

    def log_once(self, kind: str, text: str) -> None:
        """Print one line, unless one of its kind was printed before: of what may come back every round."""
        if kind not in self._logged:
            self._logged.add(kind)
            self.log(text)

    @contextlib.contextmanager
    def working(self, description: str) -> Iterator[Report]:
        """Show a progress bar during the block, on a terminal only; yields `report(done, total)`."""
        if (view := self._view) is not None:
            shown = terminal.visible(description)
            view.work(shown, 0, 0)
            try:
                yield lambda done, total: view.work(shown, done, total)
            finally:
                view.rest()
            return
        if not self._console.is_terminal or self._console.is_dumb_terminal:
            yield lambda done, total: None
            return
        columns = (
            rich.progress.TextColumn("{task.description}", markup=False),  # a name may hold brackets
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
        )
        with rich.progress.Progress(*columns, console=self._console, transient=True) as bars:
            task = bars.add_task(terminal.visible(description), total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)

    def round_line(self, rounds: int, line: Mapping[str, Any]) -> None:
        """Print one round: score, loss, gradient norm, distance to the reference, seconds."""
        if self._view is not None:
            self._view.add(line)
        seconds = " ".join(
            f"{phase} {line[f'timing_s/{phase}']:.1f}s"
            for phase in ("generate", "verify", "reference", "update", "eval", "round")
            if f"timing_s/{phase}" in line
        )
        update = "no update  "
        if "actor/loss" in line:
            update = f"loss {line['actor/loss']:10.4g}  grad {line['actor/grad_norm']:9.3g}"
        kl = f"  kl_ref {line['actor/kl_ref']:7.3f}" if "actor/kl_ref" in line else ""
        self.log(
            f"round {line['training/round']:>4}/{rounds}  score {line['critic/score/mean']:.3f} "
            f"{_bar(line['critic/score/mean'])}  {update}{kl}  "
            f"length {line['response_length/mean']:.1f}  {seconds}"
        )


def _bar(fraction: float, width: int = 20) -> str:
    filled = round(fraction * width)
    return "█" * filled + "·" * (width - filled)
