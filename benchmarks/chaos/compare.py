"""Differences of a run to the run that was never stopped: metrics, rollouts, counters and every array, bit for bit."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import statistics
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from support import tiny_runs

from reval_jax.checkpoint import saving

# It warns of metadata that this project's checkpoints do not have.
logging.getLogger("absl").setLevel(logging.ERROR)
# Nor are the libraries to report every array of a damaged checkpoint.
logging.getLogger("asyncio").setLevel(logging.CRITICAL)
saving.hush()

LOCK = threading.Lock()
"""Orbax is not asked to restore in two threads at once."""

MEASURED = "metrics_"
"""Prefix of the counters that describe the file metrics.jsonl, in which the clock's digits are stored."""


class Reference:
    """What a run that was never stopped left on disk, and how long it took."""

    def __init__(self, run_dir: Path, seconds: float) -> None:
        """Read everything but the arrays, which `differences` reads when it needs those of a round."""
        self.run_dir, self.seconds = run_dir, seconds
        self.lines = tiny_runs.metrics_lines(run_dir)
        self.rollouts = rollouts(run_dir)
        self.rounds = tiny_runs.saved_rounds(run_dir)
        self._saved: dict[int, dict[str, str]] = {}
        timed = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        rounds = [line["timing_s/round"] for line in timed if line["training/round"]]
        self.round_s = statistics.median(rounds)  # without the compilation of programs

    def saved(self, round: int) -> dict[str, str]:
        """The contents of the checkpoint of a round by name; call it while LOCK is held."""
        if round not in self._saved:
            self._saved[round] = contents(self.run_dir, round)
        return self._saved[round]


def rollouts(run_dir: Path) -> dict[str, str]:
    """The text of each rollouts file by its name without `.gz`."""
    texts = {}
    for file in sorted((run_dir / "rollouts").glob("*.jsonl*")):
        try:
            content = file.read_bytes()
            text = (gzip.decompress(content) if file.suffix == ".gz" else content).decode("utf-8")
        except (OSError, EOFError, zlib.error, UnicodeDecodeError):
            text = "unreadable"
        texts[file.name.removesuffix(".gz")] = text
    return texts


def contents(run_dir: Path, round: int) -> dict[str, str]:
    """The counters, and a digest of every array, of a checkpoint."""
    progress: dict[str, Any] = tiny_runs.saved_progress(run_dir, round)
    found = {f"progress {name}": str(value) for name, value in progress.items() if not name.startswith(MEASURED)}
    for name, array in tiny_runs.saved_arrays(run_dir, round).items():
        found[name] = f"{array.dtype}{array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
    return found


def differences(run_dir: Path, reference: Reference) -> list[str]:
    """What differs, each as a short text; the last round's checkpoint must be among those that are kept."""
    try:
        lines, kept, texts = tiny_runs.metrics_lines(run_dir), tiny_runs.saved_rounds(run_dir), rollouts(run_dir)
    except (OSError, ValueError) as error:
        return [f"unreadable: {error!r}"]
    found = []
    if lines != reference.lines:
        shown = [line.get("training/round") for line in lines]
        found.append(
            f"metrics.jsonl differs (rounds {shown})" if len(lines) != len(reference.lines) else "metrics.jsonl"
        )
    names = texts.keys() | reference.rollouts.keys()
    found += [f"rollouts/{name}" for name in sorted(names) if texts.get(name) != reference.rollouts.get(name)]
    if reference.rounds[-1] not in kept:
        found.append(f"no checkpoint of the last round, only of {kept}")
    for round in sorted(set(kept) & set(reference.rounds)):
        with LOCK:
            try:
                saved = contents(run_dir, round)
            except Exception as error:  # whatever Orbax raises for a damaged checkpoint
                found.append(f"checkpoint {round} unreadable: {type(error).__name__}")
                continue
            expected = reference.saved(round)
        found += [
            f"checkpoint {round} {name}"
            for name in sorted(saved.keys() | expected.keys())
            if saved.get(name) != expected.get(name)
        ]
    return found
