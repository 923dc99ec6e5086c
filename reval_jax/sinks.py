"""Copies of each round's metrics for dashboards; metrics.jsonl stays the record of truth.

`run.sinks` lists sinks by name: a key of `SINKS`, or MODULE:FUNCTION of your own, imported from the working directory or from
where Python finds modules. The function takes the config and the run directory, and returns the sink, a function of a round and
its metrics:

    def scores(config, run_dir):
        def write(round, values):
            print(round, values.get("critic/score/mean"))
        return write

A sink that has a method `close` is told how the run ended: after the last line it is called with "finished", "preempted" or
"failed". Each sink opens, writes and closes in a thread of its own, in the process that writes metrics.jsonl. One that hangs
delays nothing; one that raises is named once and gets no more lines. A resumed run plays the rounds after its last checkpoint
again, so a sink may receive a round a second time, with the same metrics except times.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from reval_jax import config as config_lib
from reval_jax import plugins, signals, tensorboard, trackers

Sink = Callable[[int, Mapping[str, float | str]], None]
"""(round, metrics by name) → None; names as in metrics.jsonl. Numbers may be NaN or infinite, which the file has as null.

It may have two methods: `close(outcome)` as above, and `kill()`, called once it is given up, possibly while it hangs in a call.
"""

Outcome = Literal["finished", "preempted", "failed"]
"""How a run ended: all rounds played · stopped by a signal or Ctrl-C, to be resumed · by an error."""

Open = Callable[[config_lib.Config, Path], Sink]
"""(config, run directory) → the sink."""

SINKS: dict[str, Open] = {"tensorboard": tensorboard.sink, **trackers.SINKS}

MAX_WAITING = 1000  # lines that wait for a slow sink before it is dropped
CLOSE_SECONDS = 10.0  # that the end of a run waits for all sinks together


def choose(names: Sequence[str]) -> dict[str, Open]:
    """The functions that `run.sinks` names, by name.

    Raises:
      ValueError: a name is neither a key of SINKS nor a function that can be imported, or its library is not installed.
    """
    for name in names:
        if name not in SINKS and ":" not in name:
            raise ValueError(
                f"run.sinks: no sink has the name '{name}'. Use {', '.join(SINKS)}, or MODULE:FUNCTION of your own."
            )
        if name in trackers.SINKS:
            trackers.check_installed(name)
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

    def close(self, outcome: Outcome = "finished") -> None:
        """Wait until every sink has written its lines and is closed, or CLOSE_SECONDS have passed.

        A process that a signal ends soon waits for less.
        """
        seconds = max(0.0, min(CLOSE_SECONDS, signals.watch.seconds_left() - 1.0))
        deadline = time.monotonic() + seconds
        for worker in self._workers:
            worker.put(outcome)
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))
            if worker.is_busy:
                worker.problem = worker.problem or f"did not finish within {seconds:g} s of the run's end"
        self._drop_failed()
        self._workers = []

    def _drop_failed(self) -> None:
        for worker in self._workers:
            if worker.problem:
                self._log(
                    f"warning: run.sinks={worker.name} {worker.problem}. It gets no more metrics; metrics.jsonl has all of them."
                )
                worker.kill()
        self._workers = [worker for worker in self._workers if not worker.problem]


class _Worker:
    """One sink and the thread that opens it and calls it."""

    def __init__(self, name: str, make: Callable[[], Sink]) -> None:
        self.name, self.problem = name, ""
        self._make = make
        self._sink: Sink | None = None
        self._lines: queue.Queue[tuple[int, Mapping[str, float | str]] | Outcome] = queue.Queue(MAX_WAITING)
        # A daemon, so that a sink that hangs does not keep the process from its end.
        self._thread = threading.Thread(target=self._run, name=f"sink {name}", daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether lines are waiting, or the sink is not closed."""
        return self._thread.is_alive()

    def put(self, line: tuple[int, Mapping[str, float | str]] | Outcome) -> None:
        """Queue a line, or the end."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.problem = self.problem or f"is {MAX_WAITING} rounds behind"

    def join(self, seconds: float) -> None:
        """Wait for the end."""
        self._thread.join(seconds)

    def kill(self) -> None:
        """End what the sink has started, if it can."""
        with contextlib.suppress(Exception):
            getattr(self._sink, "kill", lambda: None)()

    def _run(self) -> None:
        try:
            self._sink = sink = self._make()
            while not isinstance(line := self._lines.get(), str):
                sink(*line)
            if close := getattr(sink, "close", None):
                close(line)
        except Exception as error:  # whatever a dashboard's library raises must not end the run
            self.problem = f"failed: {type(error).__name__}: {error}"
