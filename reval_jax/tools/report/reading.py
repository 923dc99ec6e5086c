"""What the report reads of a run directory: metrics, settings, and what is remarkable about either."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from reval_jax import config as config_lib
from reval_jax import metrics, owner, run_directory, types

SCORE = "critic/score/mean"

_LARGEST = 1e300  # in size: sums and differences of a few such numbers are finite still


class Run(NamedTuple):
    """A run as its files have it."""

    directory: run_directory.RunDirectory
    lines: list[types.Json]  # of metrics.jsonl: round 0, if the model was evaluated before training, and every round
    settings: dict[str, Any]  # by section.field; empty without a readable config.yaml
    config_text: str  # config.yaml, as it is
    notes: list[str]  # what of the files is cut, damaged or changed
    is_alive: bool  # a process uses the directory

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.directory.path.resolve().name

    @property
    def rounds(self) -> list[types.Json]:
        """The lines of rounds of training."""
        return [line for line in self.lines if line.get(SCORE) is not None]

    def series(self, metric: str) -> list[tuple[float, float]]:
        """(round, value) of every line that has a finite number under this name."""
        return [(line[metrics.ROUND], line[metric]) for line in self.lines if is_number(line.get(metric))]

    def bounds(self, metric: str) -> list[tuple[float, float, float]]:
        """(round, low, high) of every line that has the metric's interval."""
        low, high = f"{metric}/low", f"{metric}/high"
        return [
            (line[metrics.ROUND], line[low], line[high])
            for line in self.lines
            if is_number(line.get(low)) and is_number(line.get(high))
        ]

    def total(self, metric: str) -> float:
        """The sum over rounds of training; what is no number counts 0."""
        return sum(line[metric] for line in self.rounds if is_number(line.get(metric)))

    @property
    def resets(self) -> list[int]:
        """Rounds at whose end the reference became the policy."""
        return [line[metrics.ROUND] for line in self.rounds if "timing_s/reference_store" in line]

    def setting(self, name: str, default: Any = "") -> Any:
        """The setting `section.field`, or the default where the run's config has none."""
        return self.settings.get(name, default)


def read(path: Path) -> Run:
    """The run in the directory.

    Raises:
      ValueError: it has no metrics, or its metrics.jsonl is damaged before its last line's end.
    """
    directory, notes = run_directory.RunDirectory(path), []
    try:
        content = directory.metrics.read_bytes()
        if content:
            metrics.verify(directory.metrics)
        lines = metrics.read(directory.metrics, drops_incomplete=True)
    except FileNotFoundError:
        content, lines = b"", []
    except OSError as error:
        raise ValueError(f"{directory.metrics} cannot be read: {error.strerror}. Name a run's directory.") from error
    for number, line in enumerate(lines, start=1):
        if not (isinstance(line, dict) and type(line.get(metrics.ROUND)) is int):
            raise ValueError(f"{directory.metrics}:{number} is no round's line. Restore the file from a copy.")
    if not lines:
        raise ValueError(
            f"{path} has no metrics yet (metrics.jsonl). Name the directory of a run with at least one finished round."
        )
    if not content.endswith(b"\n"):
        notes.append(
            "The last line of metrics.jsonl is cut, as by a kill while it was written: it is no round, and is left out."
        )
    settings, text = _settings(directory, notes)
    notes += _changes(directory.changes)
    return Run(directory, lines, settings, text, notes, owner.examine(path)[0] == "alive")


def _settings(directory: run_directory.RunDirectory, notes: list[str]) -> tuple[dict[str, Any], str]:
    """The settings by section.field, and config.yaml's text; of a damaged file its copy's. What is wrong joins the notes."""
    for file in (directory.config, directory.config_copy):
        if not file.is_file():
            continue
        try:
            tree = config_lib.read_yaml(file)
        except ValueError as error:
            notes.append(f"The settings cannot be read: {error}")
            continue
        flat = {
            f"{section}.{field}": value
            for section, fields in tree.items()
            if isinstance(fields, dict) and section != "about"
            for field, value in fields.items()
        }
        return flat, file.read_text(encoding="utf-8")
    return {}, ""


def _changes(file: Path) -> list[str]:
    """What config_changes.jsonl says, one note for each resume that changed something."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    notes = []
    for line in lines:
        try:
            change = json.loads(line)
            listed = "; ".join(map(str, change["changes"]))
            notes.append(f"Changed when the run resumed after round {change['round']}: {listed}")
        except (ValueError, TypeError, KeyError):
            continue
    return notes


def is_number(value: Any) -> TypeGuard[float]:
    """Whether the value is a finite number of a size that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def whole(value: Any) -> int | None:
    """The value if it is a whole number; None otherwise."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def last(points: Sequence[tuple[float, float]]) -> float | None:
    """The last value of a series; None without any."""
    return points[-1][1] if points else None
