"""The record that an algorithm is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from reval_jax import batch, policy, replay, types
from reval_jax import config as config_lib

Metrics = dict[str, jax.Array]

Loss = Callable[..., tuple[jax.Array, Metrics]]
"""(scores, one micro-batch) → (loss f32[], metrics f32[]). Both are divided by the whole batch's counts
(`num_trajectories`, `num_response_tokens`), so that the micro-batches' sum is the batch's loss and the batch's mean. With
`Algorithm.prepare` it takes the sum of what that returned as a third argument."""

Residual = Callable[[policy.PolicyScores, batch.Batch, float], jax.Array]
"""(scores, one micro-batch, beta) → residual f32[R, S] in nats, one a trajectory; any number in an empty slot."""


class PerTrajectory(NamedTuple):
    """Numbers of each trajectory of an update, before it: f32[R, S] of a micro-batch, nats; any number in an empty slot."""

    residual: jax.Array | np.ndarray
    value_gap: jax.Array | np.ndarray | None = (
        None  # V(s1) less that of the reference; None where the reference's is not there
    )


ShapeReward = Callable[[types.Trajectories], np.ndarray]
"""A round's trajectories, of whole groups → f32[B]. Their `reward` is the verifier's by `update.reward_design` less the penalty
for length; with `rollout.filter_groups` the groups that are left out are not among them."""

Reading = Literal["reference_log_prob", "reference_value", "greedy_reward", "mean_log_prob", "value_head"]


class Draw(NamedTuple):
    """The rows of one update."""

    rows: np.ndarray  # i64[n] of the buffer
    weight: np.ndarray | None = None  # f32[n] of each row in the loss; None for 1


class Algorithm(NamedTuple):
    """Everything that is particular to one algorithm."""

    loss: Loss
    draw: Callable[[replay.Buffer, int, int], Draw]  # (buffer, round, index of the update in the round)
    num_updates: int  # of a round, unless `update.max_updates_per_round` adapts them
    step_size: int  # trajectories of one update, at most: bounds the compiled batch
    may_train: Callable[[types.Trajectories], np.ndarray]  # bool[B], False for trajectories left out of the loss
    shape_reward: (
        ShapeReward  # called once for each trajectory, when its round is collected: a replayed group is incomplete
    )
    reads: frozenset[Reading] = frozenset()  # what the loss or `shape_reward` reads that has to be computed for it
    # (scores, one micro-batch) → what the update also returns of each trajectory; None for nothing.
    per_trajectory: Callable[[policy.PolicyScores, batch.Batch], PerTrajectory] | None = None
    # (scores, one micro-batch) → a tree of sums over the micro-batch. Their sum over the whole step, by one more forward pass, is
    # the loss's third argument; None for no such pass.
    prepare: Callable[[policy.PolicyScores, batch.Batch], Any] | None = None
    token_values: tuple[str, ...] = ()  # names of the K columns of `Trajectories.token_values`
    # (fresh trajectories, the value head's f32[sum of response_length]) → their token_values f32[sum of response_length, K]; None
    # where the sampler recorded them, or K is 0.
    fill: Callable[[types.Trajectories, np.ndarray], np.ndarray] | None = None

    @property
    def has_reference(self) -> bool:
        """Whether pi_ref is kept and scores rows before they are trained on."""
        return bool(self.reads & {"reference_log_prob", "reference_value"})


def limits(config: config_lib.Config, algorithm: Algorithm) -> batch.Limits:
    """The bounds of the algorithm's batches."""
    return batch.limits(config, step_size=algorithm.step_size, token_values=len(algorithm.token_values))
