"""Phase timer and the metrics.jsonl writer; the file is the record of truth.

Beside the file, `metrics_checksums.jsonl` has one line for each of its lines: the round, the length of the file up to the line's
end, and the SHA-256 of all of it. So a digit that changed is noticed, and readers of metrics.jsonl need not know. A file that was
lost or damaged begins anew with a later round, which the first line of the checksums then says.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from reval_jax import durable

ROUND = "training/round"
"""The metric that names a line's round."""


class Clock:
    """Wall-clock seconds by phase since the last `read`."""

    def __init__(self) -> None:
        self.current = ""  # the phase of the block that runs now
        self._seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the duration of the block to `timing_s/{name}`."""
        start, outer, self.current = time.perf_counter(), self.current, name
        try:
            yield
        finally:
            self.current = outer
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """Seconds by `timing_s/{phase}` and `timing_s/round`; then restart from zero."""
        now = time.perf_counter()
        seconds = {f"timing_s/{name}": value for name, value in self._seconds.items()}
        seconds["timing_s/round"] = now - self._start
        self._seconds, self._start = {}, now
        return seconds


class Checksum(NamedTuple):
    """One line of `metrics_checksums.jsonl`."""

    round: int
    end: int  # bytes of metrics.jsonl up to the end of this round's line
    sha256: str  # of those bytes, in hexadecimal


class Checksums(NamedTuple):
    """The content of `metrics_checksums.jsonl`."""

    first_round: int | None  # of a file that began anew, since the lines before were lost
    lines: list[Checksum]


class Kept(NamedTuple):
    """What a run goes on from: the lines up to its checkpoint."""

    num_bytes: int
    checksums: Checksums
    digest: Any  # hashlib's state over the kept bytes
    foreign: bytes  # whole lines behind them that no run has written


class Writer:
    """Appends lines to a metrics file; only one process writes."""

    def __init__(
        self,
        path: Path,
        *,
        keep_bytes: int,
        round: int = 0,
        is_active: bool,
        log: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Open the file and drop the lines after the last checkpoint: their rounds are played again.

        Args:
          keep_bytes, round: as of `check`.
          log: receives one line if something else than this run has written into the file, or changed it.

        Raises:
          ValueError: as `check`.
        """
        self._path, self._is_active, self._log, self.num_bytes = path, is_active, log, keep_bytes
        if not is_active:
            return
        kept = _kept(path, keep_bytes=keep_bytes, round=round)
        if kept.foreign:
            self._move_foreign(kept.foreign)
        path.touch()
        os.truncate(path, kept.num_bytes)
        if keep_bytes and kept.num_bytes and not sidecar(path).exists():
            log(f"{path} has no checksums, as of an earlier version: its lines are taken as they are")
        if keep_bytes and not kept.num_bytes:
            log(f"{path} begins with round {round + 1}: the lines of earlier rounds are not in it")
        self.num_bytes, self._digest = kept.num_bytes, kept.digest
        self._write_checksums(kept.checksums)

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one JSON line; it is on disk when this returns. Numbers that are not finite become null.

        The file is measured first. What others appended is moved to metrics.foreign.jsonl; a file that others changed or deleted
        is moved to metrics.damaged.jsonl, and a new one begins with this line.
        """
        if not self._is_active:
            return
        if (self._path.stat().st_size if self._path.exists() else -1) != self.num_bytes:
            self._mend(int(values[ROUND]))
        line = (json.dumps({name: _plain(value) for name, value in values.items()}, allow_nan=False) + "\n").encode()
        durable.append(self._path, line)
        self._digest.update(line)
        self.num_bytes += len(line)
        checksum = Checksum(int(values[ROUND]), self.num_bytes, self._digest.hexdigest())
        durable.append(sidecar(self._path), _json_line(checksum._asdict()))

    def _mend(self, round: int) -> None:
        is_there = self._path.exists()
        content = self._path.read_bytes() if is_there else b""
        if is_there and hashlib.sha256(content[: self.num_bytes]).digest() == self._digest.digest():
            self._move_foreign(content[self.num_bytes :])
            os.truncate(self._path, self.num_bytes)
            return
        aside = "was deleted"
        if is_there:
            target = _unused(self._path.with_name("metrics.damaged.jsonl"))
            self._path.replace(target)
            aside = f"was changed, and is {target} now"
        self._log(f"{self._path} {aside}, while the run used it: a new file begins with round {round}")
        self.num_bytes, self._digest = 0, hashlib.sha256()
        self._path.touch()
        self._write_checksums(Checksums(round, []))

    def _move_foreign(self, content: bytes) -> None:
        target = self._path.with_name("metrics.foreign.jsonl")
        durable.append(target, content)
        self._log(
            f"something else than this run has written {len(content)} bytes into {self._path}; they are in {target} now"
        )

    def _write_checksums(self, checksums: Checksums) -> None:
        first = [] if checksums.first_round is None else [{"first_round": checksums.first_round}]
        lines = [*first, *(line._asdict() for line in checksums.lines)]
        durable.write(sidecar(self._path), b"".join(map(_json_line, lines)))


def sidecar(path: Path) -> Path:
    """The file of checksums of a metrics file."""
    return path.with_name("metrics_checksums.jsonl")


def check(path: Path, *, keep_bytes: int, round: int = 0) -> None:
    """Refuse a metrics file whose lines up to the last checkpoint are not as they were written; writes nothing.

    A file that is not there is no reason to refuse: a new one begins.

    Args:
      keep_bytes: length of the file when the checkpoint was saved; 0 for a run that begins.
      round: of the checkpoint.

    Raises:
      ValueError: lines were lost or changed.
    """
    _kept(path, keep_bytes=keep_bytes, round=round)


def _kept(path: Path, *, keep_bytes: int, round: int) -> Kept:
    if not keep_bytes or not path.exists():
        first = round + 1 if keep_bytes else None
        return Kept(0, Checksums(first, []), hashlib.sha256(), b"")
    content = path.read_bytes()
    try:
        stored = _read_checksums(sidecar(path))
        first = stored.first_round if stored else None
        if first is None and len(content) < keep_bytes:
            raise _DamageError(
                f"has {len(content)} bytes, but had {keep_bytes} at the checkpoint of round {round}, so lines are lost"
            )
        first_line = content[: content.find(b"\n") + 1]
        if first is not None and first > round and _round(first_line) in (None, first):
            return Kept(0, Checksums(round + 1, []), hashlib.sha256(), b"")
        lines, tail = _own_lines(content, first, round)
        end = lines[-1].end if lines else 0
        if first is None and end != keep_bytes:
            raise _DamageError(
                f"has {end} bytes up to the line of round {round}, but had {keep_bytes} when its checkpoint was saved, so lines "
                "were changed"
            )
        if stored is not None:
            _compare(lines, stored.lines)
    except _DamageError as error:
        raise ValueError(
            f"{path} {error}. The run's state does not depend on it. Restore the file; or move it aside (mv {path} "
            f"{_unused(path.with_name('metrics.damaged.jsonl'))}) and start again: a new file then begins with round {round + 1}."
        ) from error
    digest = hashlib.sha256(content[:end])
    return Kept(end, Checksums(first, lines), digest, tail)


class _DamageError(Exception):
    """What is wrong with a metrics file, to follow its name."""


def _own_lines(content: bytes, first: int | None, last: int) -> tuple[list[Checksum], bytes]:
    """The lines up to round `last`, and of those behind them the whole ones that are no later round's in order."""
    lines: list[Checksum] = []
    foreign = b""
    digest, end, expected = hashlib.sha256(), 0, first
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        round = _round(line)
        is_next = round in ((0, 1) if expected is None else (expected,))
        if round is not None and is_next:
            expected = round + 1
            if round <= last:
                digest.update(line)
                end += len(line)
                lines.append(Checksum(round, end, digest.hexdigest()))
        elif expected is None or expected <= last:
            named = "no round's" if round is None else f"of round {round}"
            raise _DamageError(
                f"is damaged: line {number} is {named}" + (f", not of round {expected}" if expected else "")
            )
        elif line.endswith(b"\n"):
            foreign += line
    if expected is None or expected <= last:
        raise _DamageError(f"ends before round {last}, so lines are lost")
    return lines, foreign


def _round(line: bytes) -> int | None:
    """The round of a whole line; None if it is not one that a run writes."""
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    round = values.get(ROUND) if isinstance(values, dict) else None
    return round if isinstance(round, int) else None


def _compare(lines: list[Checksum], stored: list[Checksum]) -> None:
    """Compares lines with their checksums, of which later lines have more.

    Raises:
      _DamageError: naming the first line that differs, or has none.
    """
    if len(stored) < len(lines):
        raise _DamageError(f"has no checksum of the line of round {lines[len(stored)].round}")
    for number, (line, expected) in enumerate(zip(lines, stored, strict=False), start=1):
        if line != expected:
            raise _DamageError(f"is damaged: line {number}, of round {line.round}, does not have its checksum")


def _read_checksums(path: Path) -> Checksums | None:
    """The checksums; None without a file, as of earlier versions."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    first, lines = None, []
    for number, line in enumerate(content.splitlines(keepends=True)):
        try:
            fields = json.loads(line)
            if number == 0 and fields.keys() == {"first_round"}:
                (first,) = _typed(fields.values(), [int])
            else:
                lines.append(Checksum(*_typed(Checksum(**fields), [int, int, str])))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            if not line.endswith(b"\n"):
                break  # the end of a killed run
            raise _DamageError(f"cannot be checked: {path} is damaged in line {number + 1}") from error
    return Checksums(first, lines)


def _typed(values: Iterable[Any], kinds: list[type]) -> list[Any]:
    """The values; raises TypeError if they have other types: a changed digit may make a number an infinite one."""
    found = list(values)
    if [type(value) for value in found] != kinds:
        raise TypeError
    return found


def verify(path: Path) -> bool:
    """Compares a metrics file with its checksums; False if there are none, as of an earlier version.

    The last line of a run that was killed may have none yet, or be incomplete.

    Raises:
      ValueError: the file or its checksums are damaged.
    """
    try:
        stored = _read_checksums(sidecar(path))
        if stored is None:
            return False
        end, content, digest = 0, path.read_bytes(), hashlib.sha256()
        for number, expected in enumerate(stored.lines, start=1):
            line = content[end : content.find(b"\n", end) + 1]  # empty if its end is missing
            digest.update(line)
            end += len(line)
            if Checksum(_round(line) or 0, end, digest.hexdigest()) != expected:
                raise _DamageError(f"is damaged: line {number}, of round {expected.round}, does not have its checksum")
        if content.count(b"\n", end) > 1:
            raise _DamageError("has lines at its end that the run has not written")
    except _DamageError as error:
        raise ValueError(
            f"{path} {error}. Restore the file from a copy; to read it as it is, delete {sidecar(path)}."
        ) from error
    return True


def read(path: Path, *, drops_incomplete: bool = False) -> list[dict[str, Any]]:
    """The lines of a metrics file.

    Args:
      drops_incomplete: leave out what follows the last line's end, as the next start of a killed run does.

    Raises:
      ValueError: a line is incomplete. A run killed while it writes leaves such a line, and drops it when it resumes.
    """
    lines = []
    content = path.read_bytes()
    if drops_incomplete:
        content = content[: content.rfind(b"\n") + 1]
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise ValueError(
                f"{path}:{number} is an incomplete line. Resume the run, which drops it, or delete that line."
            ) from error
    return lines


def _json_line(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, allow_nan=False) + "\n").encode()


def _unused(path: Path) -> Path:
    """The path, or the first with a number that does not exist."""
    numbered = (path.with_name(f"{path.stem}_{number}{path.suffix}") for number in range(2, 10**6))
    return path if not path.exists() else next(each for each in numbered if not each.exists())


def _plain(value: Any) -> Any:
    if isinstance(value, str | bool | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None
