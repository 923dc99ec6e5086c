"""Responses of the round under way, kept on disk as they finish, so that an interruption loses none of them.

A cache: what is missing is sampled again, bit for bit, and what belongs to another round or policy is never used.
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
"""Fields of a response with a number for each of its tokens."""


class Journal:
    """One process's finished responses of one round: a file for each window in which some finished."""

    def __init__(self, directory: Path, identity: str) -> None:
        """Opens the journal, and deletes what other rounds or policies left there.

        Args:
          directory: this process's own; made when first written to.
          identity: everything that the responses depend on, as text without a path's separators: settings, round, policy.
        """
        self._path = directory / identity
        for other in directory.glob("*"):
            if other.is_dir() and other != self._path:
                shutil.rmtree(other)

    def read(self, first: int, num_prompts: int) -> dict[tuple[int, int], types.Response]:
        """The responses to `num_prompts` of the round's prompts by (prompt, sample), prompts counted from `first`.

        A file that a crash left unreadable is skipped.
        """
        found: dict[tuple[int, int], types.Response] = {}
        for file in sorted(self._path.glob("*.npz")):
            try:
                with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as stored:
                    responses = _split({name: stored[name] for name in stored.files})
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                continue
            mine = [response for response in responses if first <= response.prompt < first + num_prompts]
            mine = [response._replace(prompt=response.prompt - first) for response in mine]
            found |= {(response.prompt, response.sample): response for response in mine}
        return found

    def add(self, responses: list[types.Response], first: int) -> None:
        """Writes finished responses, whole or not at all; their prompts are counted from prompt `first` of the round."""
        self._path.mkdir(parents=True, exist_ok=True)
        index = sum(1 for _ in self._path.glob("*.npz"))
        temporary = self._path / "writing.tmp"
        counted_on = [response._replace(prompt=response.prompt + first) for response in responses]
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **_joined(counted_on))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path / f"{index:06d}.npz")


def _joined(responses: list[types.Response]) -> dict[str, np.ndarray]:
    """One array a field; ragged parts end to end."""
    return {
        "prompt": np.array([response.prompt for response in responses], np.int32),
        "sample": np.array([response.sample for response in responses], np.int32),
        "length": np.array([len(response.tokens) for response in responses], np.int32),
        "is_truncated": np.array([response.is_truncated for response in responses], bool),
        **{name: np.concatenate([getattr(response, name) for response in responses]) for name in RAGGED},
    }


def _split(stored: dict[str, np.ndarray]) -> list[types.Response]:
    """The responses that `_joined` joined."""
    parts = zip(*(ragged.split(stored[name], stored["length"]) for name in RAGGED), strict=True)
    rows = zip(
        stored["prompt"].tolist(), stored["sample"].tolist(), parts, stored["is_truncated"].tolist(), strict=True
    )
    return [
        types.Response(prompt, sample, tokens, log_prob, truncated_log_prob, is_truncated)
        for prompt, sample, (tokens, log_prob, truncated_log_prob), is_truncated in rows
    ]
