"""Copies of each round's metrics for dashboards; metrics.jsonl stays the record of truth.

`run.sinks` lists sinks by name: a key of `SINKS`, or MODULE:FUNCTION of your own, imported from the working directory or from
where Python finds modules. The function takes the config and the run directory, and returns the sink, a function of a round and
its metrics:

    def scores(config, run_dir):
        def write(round, values):
            print(round, values.get("critic/score/mean"))
        return write

Each sink opens and writes in a thread of its own, in the process that writes metrics.jsonl. One that hangs delays nothing; one
that raises is named once and gets no more lines. A resumed run plays the rounds after its last checkpoint again, so a sink may
receive a round a second time, with the same metrics except times.
"""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from reval_jax import config as config_lib
from reval_jax import plugins, tensorboard

Sink = Callable[[int, Mapping[str, float | str]], None]
"""(round, metrics by name) → None; names as in metrics.jsonl. Numbers may be NaN or infinite, which the file has as null."""

Open = Callable[[config_lib.Config, Path], Sink]
"""(config, run directory) → the sink."""

SINKS: dict[str, Open] = {"tensorboard": tensorboard.sink}

MAX_WAITING = 1000  # lines that wait for a slow sink before it is dropped
CLOSE_SECONDS = 10.0  # that the end of a run waits for all sinks together


def choose(names: Sequence[str]) -> dict[str, Open]:
    """The functions that `run.sinks` names, by name.

    Raises:
      ValueError: a name is neither a key of SINKS nor a function that can be imported.
    """
    for name in names:
        if name not in SINKS and ":" not in name:
            raise ValueError(
                f"run.sinks: no sink has the name '{name}'. Use {', '.join(SINKS)}, or MODULE:FUNCTION of your own."
            )
    return {name: SINKS[name] if name in SINKS else plugins.load("run.sinks", name) for name in names}


class Sinks:
    """The sinks of a run, each in its thread."""

    def __init__(
        self, opens: Mapping[str, Open], config: config_lib.Config, run_dir: Path, *, log: Callable[[str], None]
    ) -> None:
        """Starts a thread for each sink, which opens it.

        Args:
          log: prints one line; called by the thread that calls `write` or `close`.
        """
        self._log = log
        self._workers = [_Worker(name, functools.partial(make, config, run_dir)) for name, make in opens.items()]

    def write(self, line: Mapping[str, float | str]) -> None:
        """Hand a line of metrics to every sink; returns at once and never raises for a sink."""
        values = {name: value if isinstance(value, str | int) else float(value) for name, value in line.items()}
        for worker in self._workers:
            worker.put((int(line["training/round"]), values))
        self._drop_failed()

    def close(self) -> None:
        """Wait until every sink has written its lines, or CLOSE_SECONDS have passed."""
        deadline = time.monotonic() + CLOSE_SECONDS
        for worker in self._workers:
            worker.put(None)
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        self._drop_failed()
        self._workers = []

    def _drop_failed(self) -> None:
        for worker in self._workers:
            if worker.problem:
                self._log(
                    f"warning: run.sinks={worker.name} {worker.problem}. It gets no more metrics; metrics.jsonl has all of them."
                )
        self._workers = [worker for worker in self._workers if not worker.problem]


class _Worker:
    """One sink and the thread that opens it and calls it."""

    def __init__(self, name: str, make: Callable[[], Sink]) -> None:
        self.name, self.problem = name, ""
        self._make = make
        self._lines: queue.Queue[tuple[int, Mapping[str, float | str]] | None] = queue.Queue(MAX_WAITING)
        # A daemon, so that a sink that hangs does not keep the process from its end.
        self._thread = threading.Thread(target=self._run, name=f"sink {name}", daemon=True)
        self._thread.start()

    def put(self, line: tuple[int, Mapping[str, float | str]] | None) -> None:
        """Queue a line, or with None the end."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.problem = self.problem or f"is {MAX_WAITING} rounds behind"

    def join(self, seconds: float) -> None:
        """Wait for the last line."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            self.problem = self.problem or f"did not finish within {CLOSE_SECONDS:g} s of the run's end"

    def _run(self) -> None:
        try:
            sink = self._make()
            while (line := self._lines.get()) is not None:
                sink(*line)
        except Exception as error:  # whatever a dashboard's library raises must not end the run
            self.problem = f"failed: {type(error).__name__}: {error}"
