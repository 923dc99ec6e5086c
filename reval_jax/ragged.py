"""Ragged arrays: parts of unequal lengths, end to end in one flat array, beside an array of their lengths."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def starts(lengths: np.ndarray) -> np.ndarray:
    """i64[n]: the index of each part's first element."""
    return np.cumsum(lengths, dtype=np.int64) - lengths


def split(values: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """The n parts, as views of `values`."""
    return np.split(values, np.cumsum(lengths)[:-1]) if len(lengths) else []


def offsets(lengths: np.ndarray) -> np.ndarray:
    """i64[sum of lengths]: 0, 1, … within each part."""
    return np.arange(np.sum(lengths, dtype=np.int64)) - np.repeat(starts(lengths), lengths)


def indices(lengths: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """i64[sum of lengths[parts]]: the indices of the elements of `parts` i[m], part after part; a part may occur twice."""
    taken = lengths[parts]
    return offsets(taken) + np.repeat(starts(lengths)[parts], taken)


def sums(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """f32[n]: the sum of each part; every part has an element at least."""
    return np.add.reduceat(values, starts(lengths), dtype=np.float32)


def row_slots(num_tokens: int) -> int:
    """The number of parts that a packed row of so many tokens has room for: one per 8 tokens, and 64 at most."""
    return min(64, max(1, num_tokens // 8))


def interleave(left: Iterable[np.ndarray], right: Iterable[np.ndarray]) -> np.ndarray:
    """One flat array: the first part of `left`, the first of `right`, the second of `left`, and so on."""
    return np.concatenate([part for pair in zip(left, right, strict=True) for part in pair])
