"""What a checkpoint holds."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from reval_jax import adaptation, model, types


class CheckpointState(NamedTuple):
    """Everything that a run needs to resume."""

    params: model.Params  # f32, on the learner's mesh
    optimizer: types.PyTree  # optax's state and the update counters; the containers depend on the settings
    reference: model.Params | None  # None where the algorithm has no reference
    replay: types.Trajectories
    progress: Progress


_START = adaptation.Adaptation()


@dataclasses.dataclass(frozen=True)
class Progress:
    """Counters of a run between two rounds; plain numbers."""

    round: int = 0  # rounds finished
    cursor: int = 0  # of the next prompt
    reference_version: int = 0  # resets of the reference so far
    rounds_at_stop_score: int = 0  # in a row, up to the last
    metrics_bytes: int = 0  # length of metrics.jsonl after the last finished round
    adaptation: adaptation.Adaptation = _START  # of the number of updates and of the resets
