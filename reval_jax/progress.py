"""The live view of a run, below the lines of its rounds on a terminal: curve of the score, phase, seconds, time left.

    score   0.62 ┃     ⣀⠤⠔⠒⠉⠉
            0.31 ┃ ⣀⠤⠒⠉
            0.00 ┃⠉            rounds 1 … 24
    seconds generate 4.13 · verify 0.21 · reference 0.34 · update 2.40 · round 7.21 (round 24)
    policy  updates 48 · kl_ref 0.012 · learning rate 1e-06
    left    about 1 h 14 min, an estimate: 626 rounds of 7.10 s
    round 25 of 650: sampling ━━━━━━━━━━━───────── 67/128 0:02 min

`View` makes these lines from what it is told; `Live` keeps them at the end of what a rich console prints.
"""

from __future__ import annotations

import math
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import IO, Any, cast

import rich.console
import rich.control
import rich.file_proxy
import rich.segment
import rich.text

MAX_ROUNDS = 120  # of the curve, two a column
RECENT = 10  # rounds whose median duration is the next ones'
REFRESH_SECONDS = 0.5
MAX_WIDTH = 100  # columns: a line need not follow a very wide terminal

PHASES = ("generate", "verify", "reference", "update", "eval", "save", "round")
_DOTS = ((0x40, 0x04, 0x02, 0x01), (0x80, 0x20, 0x10, 0x08))
"""Bits of a braille character by column, then by row from below (Unicode 2800)."""


class View:
    """What the live view shows, told by the loop."""

    def __init__(self, rounds: int, past: Sequence[Mapping[str, Any]], phase: Callable[[], str]) -> None:
        """A view of a run.

        Args:
          rounds: of the run.
          past: the lines of metrics of rounds played so far.
          phase: returns the present phase of the clock; called by another thread.
        """
        self._rounds, self._phase = rounds, phase
        self._lines: list[Mapping[str, Any]] = []
        self._seconds: list[float] = []  # of rounds of this process: an earlier one may have run elsewhere
        self._start = time.monotonic()
        self._work: tuple[str, int, int] | None = None
        for line in past:
            self._keep(line)

    def add(self, line: Mapping[str, Any]) -> None:
        """Show a round that was played."""
        self._keep(line)
        self._seconds = [*self._seconds, line["timing_s/round"]][-RECENT:]
        self._start = time.monotonic()

    def work(self, description: str, done: int, total: int) -> None:
        """Show work of a known length."""
        self._work = (description, done, total)

    def rest(self) -> None:
        """The work is over."""
        self._work = None

    def lines(self, width: int, height: int) -> list[rich.text.Text]:
        """The view, at most `height` lines of at most `width` columns: the most important ones come last and stay."""
        width = min(width, MAX_WIDTH)
        lines = [self._now(width)]
        if self._lines:
            lines = [*self._curve(width), self._timing(), self._policy(), self._left(), *lines]
        for line in lines:
            line.truncate(width, overflow="crop")
        return lines[-max(1, height) :]

    def _keep(self, line: Mapping[str, Any]) -> None:
        if line.get("critic/score/mean") is not None:
            self._lines = [*self._lines, line][-MAX_ROUNDS:]

    def _now(self, width: int) -> rich.text.Text:
        """The round and its phase, with a bar where the work's length is known."""
        round = min(self._rounds, (self._lines[-1]["training/round"] if self._lines else 0) + 1)
        text = rich.text.Text(f"round {round} of {self._rounds}: ", style="bold")
        elapsed = f" {_duration(time.monotonic() - self._start)}"
        work = self._work  # read once: another thread may end it
        if work is None:
            text.append(f"{self._phase() or 'between two phases'}{elapsed}", style="not bold")
            return text
        description, done, total = work
        # The description of a round's work begins with its number, which stands there already.
        text.append(f"{description.removeprefix(f'round {round}: ')} ", style="not bold")
        count = f" {done}/{total}{elapsed}" if total else elapsed
        room = min(30, width - text.cell_len - len(count))
        if total and room >= 5:
            filled = round_half(room * min(1.0, done / total))
            text.append("━" * filled, style="not bold green")
            text.append("─" * (room - filled), style="not bold dim")
        text.append(count, style="not bold")
        return text

    def _left(self) -> rich.text.Text:
        remaining = self._rounds - self._lines[-1]["training/round"]
        if not remaining:
            return _named("left", "no round")
        if len(self._seconds) < 2:  # the first has compiled the programs
            return _named("left", f"{remaining} rounds; the time after two more")
        each = statistics.median(self._seconds)
        return _named(
            "left", f"about {_duration(remaining * each)}, an estimate: {remaining} rounds of {_digits(each)} s"
        )

    def _policy(self) -> rich.text.Text:
        line = self._lines[-1]
        parts = [f"updates {line['training/updates']}"] if "training/updates" in line else []
        for name, key, form in (("kl_ref", "actor/kl_ref", ".3f"), ("learning rate", "actor/lr", ".3g")):
            if line.get(key) is not None:
                parts.append(f"{name} {line[key]:{form}}")
        return _named("policy", " · ".join(parts))

    def _timing(self) -> rich.text.Text:
        line = self._lines[-1]
        parts = [f"{name} {_digits(line[f'timing_s/{name}'])}" for name in PHASES if f"timing_s/{name}" in line]
        return _named("seconds", f"{' · '.join(parts)} (round {line['training/round']})")

    def _curve(self, width: int) -> list[rich.text.Text]:
        columns = max(4, min(MAX_ROUNDS // 2, width - 34))
        shown = self._lines[-2 * columns :]
        rows, low, high = curve([line["critic/score/mean"] for line in shown], rows=3)
        labels = [high, (low + high) / 2, low]
        lines = [
            _named("score" if index == 0 else "", f"{label:.2f} ┃").append(row, style="green")
            for index, (label, row) in enumerate(zip(labels, rows, strict=True))
        ]
        first, last = shown[0]["training/round"], shown[-1]["training/round"]
        lines[-1].append(f"  rounds {first} … {last}", style="dim")
        return lines


def curve(values: Sequence[float], *, rows: int) -> tuple[list[str], float, float]:
    """Lines of braille dots, the highest first, two values a column; and the values of the lowest and the highest dot.

    A range below 0.05 is shown within 0.05, so that noise does not look like a rise.
    """
    low, high = min(values), max(values)
    if high - low < 0.05:
        low = max(0.0, min((low + high) / 2 - 0.025, 0.95))
        high = low + 0.05
    steps = 4 * rows - 1
    heights = [round_half((value - low) / (high - low) * steps) for value in values]
    cells = [[0] * math.ceil(len(values) / 2) for _ in range(rows)]
    for index, height in enumerate(heights):
        # A jump is a vertical line, so that the curve hangs together.
        before = heights[index - 1] if index else height
        for each in range(min(height, before + 1), max(height, before - 1) + 1):
            cells[rows - 1 - each // 4][index // 2] |= _DOTS[index % 2][each % 4]
    return ["".join(chr(0x2800 + bits) for bits in row) for row in cells], low, high


def round_half(value: float) -> int:
    """The nearest integer, halves up."""
    return math.floor(value + 0.5)


def _named(name: str, text: str) -> rich.text.Text:
    return rich.text.Text(f"{name:<8}", style="dim").append(text, style="not dim")


def _digits(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds >= 10 else f"{seconds:.2f}"


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    if hours >= 1:
        return f"{int(hours)} h {int(minutes % 60):02} min"
    return f"{minutes:.0f} min" if minutes >= 10 else f"{int(minutes)}:{int(seconds % 60):02} min"


class Live(rich.console.RenderHook):
    """Keeps a view at the end of what a console prints, in a block: what is printed meanwhile appears above it.

    rich has a class for this, which takes a resized terminal's lines for as many as before it wrapped them.
    """

    def __init__(self, console: rich.console.Console, view: View) -> None:
        self._console, self._view = console, view
        self._shown: list[int] = []  # columns of the lines on the screen
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="progress", daemon=True)

    def __enter__(self) -> None:
        self._stderr = sys.stderr
        # Warnings of libraries are printed above the view too.
        sys.stderr = cast(IO[str], rich.file_proxy.FileProxy(self._console, sys.stderr))  # type: ignore[assignment]
        self._console.push_render_hook(self)
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._console.print(rich.control.Control(), end="")  # erases the view
        self._console.pop_render_hook()
        sys.stderr = self._stderr

    def _refresh(self) -> None:
        while not self._is_over.wait(REFRESH_SECONDS):
            self._console.print(rich.control.Control(), end="")

    def process_renderables(
        self, renderables: list[rich.console.ConsoleRenderable]
    ) -> list[rich.console.ConsoleRenderable]:
        """What is printed, between the erasure of the view and the view anew; the console calls it for every print."""
        width, height = self._console.size
        # A terminal that has become narrower wraps the lines it shows.
        rows = sum(max(1, math.ceil(columns / width)) for columns in self._shown)
        up = [(rich.segment.ControlType.CURSOR_UP, 1), (rich.segment.ControlType.ERASE_IN_LINE, 2)]
        erase: list[Any] = [
            rich.segment.ControlType.CARRIAGE_RETURN,
            (rich.segment.ControlType.ERASE_IN_LINE, 2),
            *up * max(0, rows - 1),
        ]
        # A character in the last column makes some terminals wrap.
        lines = [] if self._is_over.is_set() else self._view.lines(width - 1, height - 1)
        self._shown = [line.cell_len for line in lines]
        text = rich.text.Text("\n", end="").join(lines)
        return [rich.control.Control(*erase), *renderables, text]
