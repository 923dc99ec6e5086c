"""Phase timer and the metrics.jsonl writer; the file is the record of truth."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class Clock:
    """Wall-clock seconds by phase since the last `read`."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the duration of the block to `timing_s/{name}`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """Seconds by `timing_s/{phase}` and `timing_s/round`; then restart from zero."""
        now = time.perf_counter()
        seconds = {f"timing_s/{name}": value for name, value in self._seconds.items()}
        seconds["timing_s/round"] = now - self._start
        self._seconds, self._start = {}, now
        return seconds


class Writer:
    """Appends lines to a metrics file; only one process writes."""

    def __init__(self, path: Path, *, keep_bytes: int, is_active: bool) -> None:
        """Open the file and drop everything after `keep_bytes`: rounds after the last checkpoint are played again.

        Raises:
          ValueError: as `check`.
        """
        self._path, self._is_active, self.num_bytes = path, is_active, keep_bytes
        if is_active:
            check(path, keep_bytes=keep_bytes)
            path.touch()
            os.truncate(path, keep_bytes)

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one JSON line; it is on disk when this returns. Numbers that are not finite become null."""
        if not self._is_active:
            return
        line = json.dumps({name: _plain(value) for name, value in values.items()}) + "\n"
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.num_bytes += len(line.encode())


def check(path: Path, *, keep_bytes: int) -> None:
    """Refuse a metrics file that has lost lines of saved rounds; writes nothing.

    Raises:
      ValueError: the file is shorter than `keep_bytes`, its length at the last save.
    """
    size = path.stat().st_size if path.exists() else 0
    if size < keep_bytes:
        raise ValueError(
            f"{path} has {size} bytes, but had {keep_bytes} when the last checkpoint was saved, so lines are lost. "
            "Restore the file, or start a new run with another --run-dir."
        )


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file.

    Raises:
      ValueError: a line is incomplete. A run killed while it writes leaves such a line, and drops it when it resumes.
    """
    lines = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}:{number} is an incomplete line. Resume the run, which drops it, or delete that line."
            ) from error
    return lines


def _plain(value: Any) -> Any:
    if isinstance(value, str | bool | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None
