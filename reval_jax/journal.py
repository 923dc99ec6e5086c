"""Finished responses of an unfinished round, on disk, so that an interruption loses none of them.

The journal is a cache: a missing response is sampled again, bit for bit, and one of another round or policy is never used.
"""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np

from reval_jax import ragged, types

RAGGED = ("tokens", "log_prob", "truncated_log_prob")
"""Fields of a response that hold one number per token."""


class Journal:
    """One process's finished responses of one round, one file per decode window that finished any."""

    def __init__(self, directory: Path, identity: str) -> None:
        """Open the journal and delete those of other rounds or policies.

        Args:
          directory: of this process alone; created by the first `add`.
          identity: names everything that the responses depend on (settings, round, policy); a valid file name.
        """
        self._path = directory / identity
        for other in directory.glob("*"):
            if other.is_dir() and other != self._path:
                shutil.rmtree(other)

    def read(self, first: int, num_prompts: int) -> dict[tuple[int, int], types.Response]:
        """Responses by (prompt, sample) to prompts first … first + num_prompts − 1 of the round, renumbered from 0.

        Files that a crash left unreadable are skipped.
        """
        finished: dict[tuple[int, int], types.Response] = {}
        for file in sorted(self._path.glob("*.npz")):
            try:
                with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as stored:
                    responses = _split({name: stored[name] for name in stored.files})
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                continue
            renumbered = [
                response._replace(prompt=response.prompt - first)
                for response in responses
                if first <= response.prompt < first + num_prompts
            ]
            finished |= {(response.prompt, response.sample): response for response in renumbered}
        return finished

    def add(self, responses: list[types.Response], first: int) -> None:
        """Write finished responses in one file, atomically; their prompt 0 is prompt `first` of the round."""
        self._path.mkdir(parents=True, exist_ok=True)
        index = sum(1 for _ in self._path.glob("*.npz"))
        temporary = self._path / "writing.tmp"
        renumbered = [response._replace(prompt=response.prompt + first) for response in responses]
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **_joined(renumbered))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path / f"{index:06d}.npz")


def _joined(responses: list[types.Response]) -> dict[str, np.ndarray]:
    """One array per field; ragged parts end to end."""
    return {
        "prompt": np.array([response.prompt for response in responses], np.int32),
        "sample": np.array([response.sample for response in responses], np.int32),
        "length": np.array([len(response.tokens) for response in responses], np.int32),
        "is_truncated": np.array([response.is_truncated for response in responses], bool),
        **{name: np.concatenate([getattr(response, name) for response in responses]) for name in RAGGED},
    }


def _split(stored: dict[str, np.ndarray]) -> list[types.Response]:
    """The inverse of `_joined`."""
    parts = zip(*(ragged.split(stored[name], stored["length"]) for name in RAGGED), strict=True)
    rows = zip(
        stored["prompt"].tolist(), stored["sample"].tolist(), parts, stored["is_truncated"].tolist(), strict=True
    )
    return [
        types.Response(prompt, sample, tokens, log_prob, truncated_log_prob, is_truncated)
        for prompt, sample, (tokens, log_prob, truncated_log_prob), is_truncated in rows
    ]
