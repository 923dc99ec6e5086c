"""RUN/token_scores.jsonl.gz: numbers of sampled tokens under the run's last checkpoint and its initial model, for the browser.

The first line says by which policies; each other line is a response, named by its round and its line in the rollouts file. A run
that played a round again has other responses there, so a digest of both texts tells whether they are the same.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from reval_jax import durable, rollout_files, types
from reval_jax.tools.report import reading

FORMAT = 2
"""Increased when a key is removed or changes its meaning."""

SCORES = ("log_ratio", "endogenous_reward", "reference_endogenous_reward")
"""Numbers of a token, nats."""


class TokenScores(NamedTuple):
    """The content of the file."""

    about: types.Json  # policy, its round, reference, temperature
    rows: dict[tuple[int, int], types.Json]  # by (round, line of the rollouts file, from 0)


def digest(prompt: str, response: str) -> str:
    """16 hex digits of a prompt's and its response's text."""
    return hashlib.sha256(f"{prompt}\0{response}".encode(errors="surrogatepass")).hexdigest()[:16]


def write(file: Path, about: types.Json, rows: Iterable[types.Json]) -> None:
    """Writes the file, whole or not at all.

    Args:
      about: `policy`, its `round`, `reference` and `temperature`.
      rows: each with `round`, `line`, `digest`, `tokens` (texts) and SCORES.

    Raises:
      ValueError: it cannot be written.
    """
    lines = [{"format": FORMAT, **about}, *rows]
    content = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode()
    try:
        durable.write(file, gzip.compress(content, mtime=0))
    except OSError as error:
        raise ValueError(
            f"{file} cannot be written: {error.strerror}. Free its disk, or use --report_tokens 0."
        ) from error


def read(file: Path) -> TokenScores | None:
    """The content; None without the file, or where an earlier version wrote it, whose digests are of less.

    Raises:
      ValueError: the file is damaged.
    """
    if not file.is_file():
        return None
    try:
        about, *rows = (json.loads(line) for line in rollout_files.read(file).splitlines())
        if about["format"] == 1:
            return None
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']}, not {FORMAT}")
        for row in rows:
            lengths = {len(row["tokens"]), *(len(row[name]) for name in SCORES)}
            if len(lengths) != 1 or not isinstance(row["digest"], str):
                raise ValueError("a line has scores of some tokens only")
            if not all(isinstance(token, str) for token in row["tokens"]):
                raise ValueError("a token is no text")
            if not all(reading.is_number(value) for name in SCORES for value in row[name]):
                raise ValueError("a score is no finite number")
        return TokenScores(about, {(row["round"], row["line"]): row for row in rows})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{file} is not a file of reval inspect ({type(error).__name__}: {error}). Run reval inspect again, or delete it."
        ) from error
