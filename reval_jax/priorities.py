"""Prioritized replay: exact draws without replacement in proportion to priority^α, and the weights that undo their bias.

Schaul et al., arXiv 1511.05952, with two differences. Rows are drawn without replacement, by exponential clocks: row i rings
after E_i / p_i^α, E_i exponential, and the n that ring first are drawn (Efraimidis and Spirakis, 2006; the same as Gumbel
top-n). And the weights divide by the probability with which a row rings before the first row that was not drawn: given that
time, rows ring independently of each other, so that sums with weights 1 / probability are unbiased for every n, which (N
P(i))^-1 is for n = 1 alone. Weights are not divided by their maximum, which would bias them again; the global-norm clip and Adam
do not see their scale.

The weights of one row alone have no finite variance; those of batches do.

Every host draws the same rows: the clocks come from the Philox words of `keys.host_words`, and α = 0 draws what `replay.sample`
draws.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from reval_jax import config as config_lib
from reval_jax import keys, replay, types

FLOOR = 1e-3
"""Added to the size of a residual, in units of the largest in the buffer, so that no row is never drawn."""


SMALLEST = -600.0
"""Natural logarithm of the smallest rate, where the largest is 1."""


class Drawn(NamedTuple):
    """n rows of a buffer of N."""

    rows: np.ndarray  # i64[n], all different, in the order in which they were drawn
    probability: np.ndarray  # f64[n] of being drawn, given the first row that was not
    size: int  # N


def of(trajectories: types.Trajectories, settings: config_lib.Replay) -> np.ndarray:
    """f64[B] >= 0: the priorities that `replay.priority` names, before the exponent."""
    if settings.priority == "success":
        return np.where(trajectories.raw_reward > 0, float(settings.success_priority), 1.0)
    if settings.priority == "recency":
        newest = trajectories.round.max(initial=0)
        return np.exp((trajectories.round - newest) / settings.recency_rounds)
    stored = trajectories.priority.astype(np.float64)
    largest = float(stored.max(initial=0.0)) or 1.0  # all are new, or have no residual: all alike
    return np.where(stored < 0, largest, stored) + FLOOR * largest


def sample(
    buffer: replay.Buffer,
    key: jax.Array,
    n: int,
    *,
    settings: config_lib.Replay,
    may_train: np.ndarray | None = None,
) -> Drawn:
    """N different rows, drawn one after the other in proportion to priority ^ `replay.priority_exponent`.

    Args:
      key: typed threefry2x32 key; consumed.
      may_train: bool[B], the rows to draw from, all of them if there are fewer than n; None for every row.

    Raises:
      ValueError: n is negative or larger than the buffer.
    """
    replay.check_draw(buffer, n)
    eligible = np.arange(buffer.trajectories.size) if may_train is None else np.flatnonzero(may_train)
    priority = of(buffer.trajectories, settings)[eligible]
    drawn = draw(key, rates(priority, settings.priority_exponent), min(n, eligible.size))
    return drawn._replace(rows=eligible[drawn.rows])


def rates(priority: np.ndarray, exponent: float) -> np.ndarray:
    """f64[N] > 0: priority ^ exponent up to a common factor, so that neither large nor small ones leave float64."""
    with np.errstate(divide="ignore"):
        logarithm = exponent * np.log(priority)
    return np.exp(np.maximum(logarithm - logarithm.max(initial=-np.inf), SMALLEST))


def draw(key: jax.Array, rate: np.ndarray, n: int) -> Drawn:
    """The n first of clocks with these rates, f64[N] > 0."""
    words = keys.host_words(key, rate.size)
    # Uniform in (0, 1) with 53 bits; the exponential grows with the word, and equal ones are ordered by it.
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    time = -np.log1p(-uniform) / rate
    order = np.lexsort((words, time))
    rows = order[:n]
    if n == rate.size:
        return Drawn(rows, np.ones(n), rate.size)
    return Drawn(rows, -np.expm1(-rate[rows] * time[order[n]]), rate.size)


def weights(drawn: Drawn, exponent: float) -> np.ndarray:
    """f32[n]: (n / (N probability)) ^ exponent. At 1 the drawn rows' weighted mean is an unbiased mean over the buffer."""
    return ((len(drawn.rows) / (drawn.size * drawn.probability)) ** exponent).astype(np.float32)


def weight_exponent(settings: config_lib.Replay, round: int) -> float:
    """`replay.weight_exponent` of this round: it rises linearly to 1 over `replay.weight_rounds`."""
    if not settings.weight_rounds:
        return settings.weight_exponent
    return settings.weight_exponent + (1.0 - settings.weight_exponent) * min(1.0, round / settings.weight_rounds)


def renewed(
    buffer: replay.Buffer, rows: np.ndarray, residual: np.ndarray, settings: config_lib.Replay
) -> replay.Buffer:
    """The buffer with the sizes of an update's residuals f32[n] at its `rows`, where `replay.priority` reads them."""
    if settings.priority == "centred_residual":
        _, group, size = np.unique(buffer.trajectories.cursor[rows], return_inverse=True, return_counts=True)
        residual = residual - (np.bincount(group, residual) / size)[group].astype(np.float32)
        # A row without another of its group in this update has nothing to be compared with.
        residual = np.where(size[group] > 1, residual, np.nan)
    elif settings.priority != "residual":
        return buffer
    # A row whose residual is unknown, like that of an update that was skipped, keeps its priority.
    priority = np.where(np.isfinite(residual), np.abs(residual), buffer.trajectories.priority[rows])
    return replay.with_values(buffer, rows, priority=priority.astype(np.float32))


def forgotten(buffer: replay.Buffer) -> replay.Buffer:
    """The buffer with every priority new, after a reset of the reference made all residuals stale."""
    new = np.full(buffer.trajectories.size, types.NEW, np.float32)
    return buffer._replace(trajectories=buffer.trajectories._replace(priority=new))
