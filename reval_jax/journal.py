"""Finished responses of an unfinished round, on disk, so that an interruption loses none of them.

The journal is a cache: a missing response is sampled again, bit for bit, and one of another round or policy is never used.
"""

from __future__ import annotations

import io
import json
import shutil
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from reval_jax import durable, ragged, types

RAGGED = ("tokens", "log_prob", "truncated_log_prob")
"""Fields that every response has, of one number per token."""

OPTIONAL = "mean_log_prob"
"""A field of one number per token that the responses of a file have all, or none."""


VERDICTS = "verdicts.jsonl"
"""The file of a journal's verdicts."""

FLUSH_S = 1.0

Outcome = tuple[str, bool | float | str | None, str]
"""Kind, value and message of what a worker found, as `verifier.Memory` has them."""


Log = Callable[[str, str], object]
"""Receives the kind of a trouble, and one line on it."""


class Journal:
    """One process's finished responses of one round, one file per decode window that finished any."""

    def __init__(self, directory: Path, identity: str, *, log: Log = lambda kind, text: None) -> None:
        """Open the journal and delete those of other rounds or policies.

        Args:
          directory: of this process alone; created by the first `add`.
          identity: names everything that the responses depend on (settings, round, policy); a valid file name.
          log: receives what cannot be used. Nothing here stops a run: what is missing is sampled again.
        """
        self._path, self._log = directory / identity, log
        try:
            for other in directory.iterdir() if directory.exists() else ():
                if other.is_dir() and other != self._path:
                    shutil.rmtree(other)
        except OSError as error:
            log("clear", f"the journal {directory} cannot be cleared ({error}); the run goes on")

    def verdicts(self) -> Verdicts:
        """The verdicts on the journal's responses."""
        return Verdicts(self._path / VERDICTS, log=self._log)

    def read(
        self, first: int, num_prompts: int, *, needs_mean_log_prob: bool = False
    ) -> dict[tuple[int, int], types.Response]:
        """Responses by (prompt, sample) to prompts first … first + num_prompts − 1 of the round, renumbered from 0.

        Damaged files are skipped.

        Args:
          needs_mean_log_prob: leave out responses without it, so that they are sampled again.
        """
        finished: dict[tuple[int, int], types.Response] = {}
        files, damaged = _files(self._path), []
        for file in files:
            try:
                responses = _load(file)
            except ValueError:
                damaged.append(file.name)
                continue
            renumbered = [
                response._replace(prompt=response.prompt - first)
                for response in responses
                if first <= response.prompt < first + num_prompts
                and not (needs_mean_log_prob and response.mean_log_prob is None)
            ]
            finished |= {(response.prompt, response.sample): response for response in renumbered}
        if damaged:
            self._log(
                "damage",
                f"{len(damaged)} of {len(files)} files of the journal {self._path} are damaged ({damaged[0]} first): their "
                "responses are sampled again",
            )
        return finished

    def add(self, responses: list[types.Response], first: int) -> None:
        """Write finished responses in one file, atomically; their prompt 0 is prompt `first` of the round.

        Raises:
          OSError: the file cannot be written.
        """
        self._path.mkdir(parents=True, exist_ok=True)
        # After the last one, whatever was deleted before it.
        index = max((int(file.stem) for file in _files(self._path) if file.stem.isdecimal()), default=-1) + 1
        renumbered = [response._replace(prompt=response.prompt + first) for response in responses]
        with durable.replacing(self._path / f"{index:06d}.npz") as file:
            np.savez(file, allow_pickle=False, **_joined(renumbered))


class Verdicts:
    """What workers have found of a round's answers, in lines of a file beside the responses, written about once a second."""

    def __init__(self, path: Path, *, log: Log) -> None:
        """Reads the file; a damaged line is left out, and its answer is graded again.

        Args:
          log: receives what cannot be read or written.
        """
        self.known, num_damaged = _read_verdicts(path)
        self._path, self._log, self._since = path, log, time.monotonic()
        self._waiting: list[bytes] = []
        if num_damaged:
            text = f"{num_damaged} lines of the journal {path} are damaged: these answers are graded again"
            log("damaged verdicts", text)

    def keep(self, key: str, outcome: Outcome) -> None:
        """Adds an outcome."""
        body = json.dumps([key, *outcome]).encode()
        self._waiting.append(b"%08x %b\n" % (zlib.crc32(body), body))
        if time.monotonic() - self._since > FLUSH_S:
            self.close()

    def close(self) -> None:
        """Brings what was kept to storage; more may be kept afterwards."""
        waiting, self._waiting, self._since = self._waiting, [], time.monotonic()
        if not waiting:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            durable.append(self._path, b"\n" + b"".join(waiting))  # a killed process may have left half a line
        except OSError as error:
            text = f"the journal {self._path} cannot be written ({error}); a resume may grade answers again"
            self._log("write verdicts", text)


def _read_verdicts(path: Path) -> tuple[dict[str, Outcome], int]:
    """Outcomes by key, and the number of damaged lines; the last one of a killed process is none."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError:
        return {}, 0
    known: dict[str, Outcome] = {}
    num_damaged = 0
    for line in filter(None, lines):
        checksum, _, body = line.partition(b" ")
        if checksum == b"%08x" % zlib.crc32(body):
            key, kind, value, message = json.loads(body)
            known[key] = (kind, value, message)
        else:
            num_damaged += 1
    return known, num_damaged


def damaged_files(journals: Path) -> list[Path]:
    """The files of all journals of a run that cannot be read; `journals` itself if it is no directory."""
    if journals.exists() and not journals.is_dir():
        return [journals]
    damaged = []
    for file in sorted(journals.glob("*/*/*.npz")):
        try:
            _load(file)
        except ValueError:
            damaged.append(file)
    return damaged + [file for file in sorted(journals.glob(f"*/*/{VERDICTS}")) if _read_verdicts(file)[1]]


def _files(directory: Path) -> list[Path]:
    """The journal's files in the order they were written; none where there is no directory, or it cannot be read."""
    try:
        return sorted(file for file in directory.iterdir() if file.suffix == ".npz")
    except OSError:
        return []


def _load(file: Path) -> list[types.Response]:
    """The responses in a file.

    Raises:
      ValueError: it is damaged, or cannot be read.
    """
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as stored:
            return _split({name: stored[name] for name in stored.files})
    except Exception as error:  # zipfile and NumPy raise a dozen kinds, by the bit that has changed
        raise ValueError(f"{file} is damaged: {error}") from error


def _joined(responses: list[types.Response]) -> dict[str, np.ndarray]:
    """One array per field; ragged parts end to end."""
    has_optional = all(getattr(response, OPTIONAL) is not None for response in responses)
    ragged_names = (*RAGGED, OPTIONAL) if has_optional else RAGGED
    return {
        "prompt": np.array([response.prompt for response in responses], np.int32),
        "sample": np.array([response.sample for response in responses], np.int32),
        "length": np.array([len(response.tokens) for response in responses], np.int32),
        "is_truncated": np.array([response.is_truncated for response in responses], bool),
        **{name: np.concatenate([getattr(response, name) for response in responses]) for name in ragged_names},
    }


def _split(stored: dict[str, np.ndarray]) -> list[types.Response]:
    """The inverse of `_joined`."""
    names = [name for name in (*RAGGED, OPTIONAL) if name in stored or name in RAGGED]
    parts = zip(*(ragged.split(stored[name], stored["length"]) for name in names), strict=True)
    rows = zip(
        stored["prompt"].tolist(), stored["sample"].tolist(), stored["is_truncated"].tolist(), parts, strict=True
    )
    return [
        types.Response(prompt=prompt, sample=sample, is_truncated=is_truncated, **dict(zip(names, arrays, strict=True)))
        for prompt, sample, is_truncated, arrays in rows
    ]
