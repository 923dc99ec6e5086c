"""What adapts to a run: the number of updates of a round, and when the reference is reset; pure functions of logged numbers.

Both read the residuals δ = D - y that updates compute, in nats: D is the policy's distance from the reference as the residual
has it, y = r / β the reward's part.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from reval_jax import config as config_lib

REUSE_STEP = 1.3
"""Factor by which the number of updates changes in a round (DUTD, arXiv 2303.10144)."""
PULL_DECAY = 0.8
"""Weight of the past in the moving average of the pull ratio."""


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """Its state between two rounds; plain numbers, all zero at the start."""

    updates: float = 0.0  # of the next round before rounding; 0 for update.updates_per_round
    pull: float = 0.0  # moving average of the pull ratio since the last reset
    last_reset: int = 0  # rounds finished when the reference was last reset


def num_updates(state: Adaptation, settings: config_lib.Update) -> int:
    """Updates of the next round, between `updates_per_round` and `max_updates_per_round`."""
    return round(state.updates or settings.updates_per_round)


def unexplained(residual: np.ndarray, target: np.ndarray) -> float:
    """Σδ² / Σy²: the share of the reward that the policy has not absorbed; NaN without any reward.

    Args:
      residual: f32[n], δ in nats.
      target: f32[n], y in nats.
    """
    total = float(np.sum(np.square(target, dtype=np.float64)))
    return float(np.sum(np.square(residual, dtype=np.float64))) / total if total else float("nan")


def with_reuse(state: Adaptation, fresh: float, replayed: float, settings: config_lib.Update) -> Adaptation:
    """The state with the number of updates of the next round.

    Rows that were trained on before and leave a clearly smaller share unexplained than fresh rows are being memorized: fewer
    updates. If they do not, more updates extract more from them. A round that has one of the two shares alone changes nothing.

    Args:
      fresh: `unexplained` of the round's first update, on the fresh batch.
      replayed: `unexplained` of its replay draws.
    """
    if not (np.isfinite(fresh) and np.isfinite(replayed)):
        return state
    is_memorized = replayed < settings.reuse_threshold * fresh
    updates = (state.updates or settings.updates_per_round) * (1 / REUSE_STEP if is_memorized else REUSE_STEP)
    bounded = min(max(updates, float(settings.updates_per_round)), float(settings.max_updates_per_round))
    return dataclasses.replace(state, updates=bounded)


def pull_ratio(residual: np.ndarray, target: np.ndarray, group: np.ndarray) -> float:
    """sd(D) / sd(y) within groups: the share of the reward's differences that the policy's distance has absorbed.

    Groups whose rewards are equal are left out; NaN if all are. Groups of one are compared with all others.

    Args:
      residual, target: f32[n], δ and y in nats, of the fresh batch before any update of the round.
      group: i32[n].
    """
    _, group, size = np.unique(group, return_inverse=True, return_counts=True)
    if size.max() == 1:
        group, size = np.zeros_like(group), np.array([group.size])

    def centred(values: np.ndarray) -> np.ndarray:
        values = values.astype(np.float64)
        return values - (np.bincount(group, values) / size)[group]

    reward = centred(target)
    is_mixed = (np.bincount(group, np.abs(reward)) > 1e-6 * np.abs(target).max(initial=0.0) * size)[group]
    if not is_mixed.any():
        return float("nan")
    distance = centred(residual.astype(np.float64) + target)
    return float(np.sqrt(np.sum(distance[is_mixed] ** 2) / np.sum(reward[is_mixed] ** 2)))


def with_pull(state: Adaptation, ratio: float) -> Adaptation:
    """The state with a round's pull ratio in its moving average; NaN leaves it as it is."""
    if not np.isfinite(ratio):
        return state
    return dataclasses.replace(state, pull=PULL_DECAY * state.pull + (1 - PULL_DECAY) * ratio)


def is_reset_due(state: Adaptation, round: int, settings: config_lib.Update) -> bool:
    """Whether the reference is reset at the end of this round, counted from 0.

    Periodically, every `reference_reset_every` rounds. With `reference_reset_pull`: once the moving average has reached it and
    `reference_reset_wait` rounds have passed since the last reset, or `reference_reset_every` rounds have. The average begins
    again at 0 after a reset, so that it has to climb to the threshold anew.
    """
    every, finished = settings.reference_reset_every, round + 1
    if not settings.reference_reset_pull:
        return bool(every) and finished % every == 0
    since = finished - state.last_reset
    is_pulled = state.pull >= settings.reference_reset_pull and since >= settings.reference_reset_wait
    return is_pulled or bool(every and since >= every)


def after_reset(state: Adaptation, round: int) -> Adaptation:
    """The state after the reference was reset at the end of this round."""
    return dataclasses.replace(state, pull=0.0, last_reset=round + 1)
