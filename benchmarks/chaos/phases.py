"""Runs `reval` and makes a file when a phase of its loop begins, for a harness that then sends a signal.

    python -m benchmarks.chaos.phases PHASE COUNT MARK SLOW train ...

MARK is made when the phase begins for the COUNT-th time; with another SLOW than `-` that file too, beside which rewards wait.
"""

from __future__ import annotations

import contextlib
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

from reval_jax import metrics


def arrange(phase: str, count: int, mark: Path, slow: Path | None) -> None:
    """Makes the phases of every clock report."""
    begin, begun = metrics.Clock.phase, [0]

    @contextlib.contextmanager
    def reported(clock: metrics.Clock, name: str) -> Iterator[None]:
        if name == phase:
            begun[0] += 1
            if begun[0] == count:
                if slow:
                    slow.touch()
                mark.touch()
        with begin(clock, name):
            yield

    metrics.Clock.phase = reported  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    chosen, number, file, waits, *words = sys.argv[1:]
    arrange(chosen, int(number), Path(file), None if waits == "-" else Path(waits))
    sys.argv = ["reval", *words]
    runpy.run_module("reval_jax", run_name="__main__", alter_sys=True)
