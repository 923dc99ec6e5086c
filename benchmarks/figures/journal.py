"""The finished runs of all figures, on disk, so that an interrupted grid goes on and figures share equal runs."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.figures import plan
from benchmarks.testbed import runs
from reval_jax import config as config_lib
from reval_jax import durable

WORK = Path("runs/figures")
"""The journal."""
MEMORY = Path("/dev/shm")  # noqa: S108
"""A file system in memory, where there is one."""
RECORDS = Path("docs/evidence")

Run = dict[str, Any]


class Cell(NamedTuple):
    """One run of a figure."""

    task: str
    variant: plan.Variant
    seed: int
    rate: float | None  # None: the variant's settings have it, or the test bed's
    rounds: int
    stops: bool  # may end once it has learned

    def config(self) -> config_lib.Config:
        """Its settings."""
        rate = {} if self.rate is None else {"optimizer.learning_rate": self.rate}
        overrides = {**self.variant.settings, **rate}
        return runs.settings(self.task, overrides, seed=self.seed, rounds=self.rounds, stops=self.stops)

    @property
    def key(self) -> str:
        """A hash of all that decides its numbers, the test bed's model among them, but not of how many rounds are played."""
        return _key(self._replace(variant=self.variant._replace(settings=tuple(self.variant.settings.items()))))  # type: ignore[arg-type]

    @property
    def is_long(self) -> bool:
        """Whether the run takes minutes, so that compiling its program once more costs little."""
        return runs.TASKS[self.task].bed == runs.SMOLLM2

    @property
    def chunk(self) -> str:
        """A hash of the cells that one process plays together: all with one compiled program, but each long run alone."""
        seed = self.seed if self.is_long else None
        about = (sorted(map(str, self.variant.settings.items())), self.rate, runs.TASKS[self.task], seed)
        return hashlib.sha256(repr(about).encode()).hexdigest()[:16]


@functools.cache
def _key(cell: Cell) -> str:
    whole = cell._replace(variant=cell.variant._replace(settings=dict(cell.variant.settings)))
    content = config_lib.results_hash(whole.config()) + runs.weights_hash(cell.task)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


class Journal:
    """Finished runs by key, from the files of this work directory and from the committed records."""

    def __init__(self, work: Path = WORK, records: Path | None = RECORDS) -> None:
        """Read what is there.

        Args:
          work: directory of the journal's files, one for each process that has written.
          records: directory of the committed records; None to play everything anew.
        """
        self.work = work
        self._file = work / f"journal_{os.uname().nodename}_{os.getpid()}.jsonl"
        self._known: dict[str, list[Run]] = {}
        self._num_read: dict[Path, int] = {}
        for path in sorted(records.glob("*.json")) if records else ():
            record = json.loads(path.read_text(encoding="utf-8"))
            for run in [*record["runs"], *record["search"]]:
                self._known.setdefault(run["key"], []).append({**run, "about": record["abouts"][run["about"]]})
        self.refresh()

    def refresh(self) -> None:
        """Reads what other processes have added, also files copied from another machine."""
        for path in sorted(self.work.glob("journal_*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._num_read.get(path, 0))
                content = file.read()
            content = content[: content.rfind(b"\n") + 1]  # the last line may be half written
            self._num_read[path] = self._num_read.get(path, 0) + len(content)
            for line in content.splitlines():
                run = json.loads(line)
                self._known.setdefault(run["key"], []).append(run)

    @property
    def unfinished(self) -> Path:
        """Where runs are until they are finished: in memory if possible, since every round waits for storage."""
        if os.access(MEMORY, os.W_OK | os.X_OK):
            return MEMORY / f"reval_figures_{os.getuid()}" / str(self.work.resolve()).replace("/", "_")
        return self.work / "unfinished"

    def find(self, cell: Cell, metrics: Collection[str]) -> Run | None:
        """The cell's run with these metrics, or None if none was played to its end."""
        for run in self._known.get(cell.key, ()):
            is_whole = len(run["score"]) >= cell.rounds or run["stopped"].startswith("failed")
            if set(metrics) <= set(run["metrics"]) and (is_whole or (cell.stops and run["stopped"] == "t95")):
                return run
        return None

    def add(self, run: Run) -> None:
        """Keeps a run, also after a power loss."""
        self.work.mkdir(parents=True, exist_ok=True)
        durable.append(self._file, (json.dumps(run, allow_nan=False) + "\n").encode())
