"""Packed rows of response tokens with garbage in their padding, and sums over the trajectories in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LENGTHS = ((3, 1, 4), (11,), (5, 5), ())  # tokens of the trajectories of each row; the last row is empty
COLUMNS, SLOTS = 11, 3
NUM_TRAJECTORIES = sum(map(len, LENGTHS))


class PackedTokens(NamedTuple):
    """f32[R, C] each, except mask bool[R, C] and slot i32[R, C], SLOTS past the last token of a row."""

    log_prob: np.ndarray
    behaviour_log_prob: np.ndarray
    advantage: np.ndarray
    mask: np.ndarray
    slot: np.ndarray
    length: np.ndarray  # tokens of the trajectory of each token; 0 past the last

    def trajectories(self) -> Iterator[tuple[int, slice]]:
        """(row, columns) of each trajectory."""
        for row, lengths in enumerate(LENGTHS):
            start = 0
            for length in lengths:
                yield row, slice(start, start + length)
                start += length

    def log_ratio(self) -> np.ndarray:
        """f64[R, C], 0 past the last token."""
        kept = (
            np.where(self.mask, array, 0.0).astype(np.float64) for array in (self.log_prob, self.behaviour_log_prob)
        )
        return np.subtract(*kept)

    def over_trajectories(self, values: np.ndarray, reduce=np.mean) -> np.ndarray:
        """f64[R, C], each token's reduction over its own trajectory."""
        result = np.zeros(self.mask.shape)
        for row, columns in self.trajectories():
            result[row, columns] = reduce(values[row, columns])
        return result

    def trajectory_sum(self, values: jax.Array) -> jax.Array:
        """The sum over each token's trajectory, as a caller of `objective` supplies it."""
        is_same = (self.slot[:, :, None] == self.slot[:, None, :]) & self.mask[:, :, None] & self.mask[:, None, :]
        return jnp.sum(jnp.where(is_same, values[:, None, :], 0.0), axis=2)

    def trajectory_mean(self, values: jax.Array) -> jax.Array:
        """The mean over each token's trajectory, as a caller of `objective` supplies it."""
        return self.trajectory_sum(values) / np.maximum(self.length, 1).astype(np.float32)


def packed_tokens(seed: int, *, spread: float = 0.8) -> PackedTokens:
    """Random tokens whose log-ratios have the standard deviation `spread`, in nats."""
    rng = np.random.default_rng(seed)
    shape = (len(LENGTHS), COLUMNS)
    slot, length = np.full(shape, SLOTS, np.int32), np.zeros(shape, np.int32)
    advantage = np.full(shape, np.nan, np.float32)
    for row, lengths in enumerate(LENGTHS):
        ends = np.cumsum((0, *lengths))
        for index, size in enumerate(lengths):
            columns = slice(ends[index], ends[index + 1])
            slot[row, columns], length[row, columns] = index, size
            advantage[row, columns] = rng.normal()
    mask = slot < SLOTS
    behaviour = rng.uniform(-5, -0.1, shape).astype(np.float32)
    log_prob = behaviour + rng.normal(0, spread, shape).astype(np.float32)
    log_prob[~mask] = np.resize([np.nan, np.inf, -np.inf, 1e30], (~mask).sum())
    behaviour[~mask] = np.resize([-np.inf, 0.0, np.nan], (~mask).sum())
    return PackedTokens(log_prob, behaviour, advantage, mask, slot, length)
