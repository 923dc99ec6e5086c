"""Numbers of every response token under a policy: its log-probability, and the soft value of the state it was chosen in.

`reference` returns the two sums over a trajectory that training needs; this is the same forward pass with nothing summed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from reval_jax import batch, distributed, model, policy, types
from reval_jax import config as config_lib


class TokenScores(NamedTuple):
    """One number a response token in each field, nats: [M, R, C] of a batch, or on the host the responses' end to end."""

    log_prob: jax.Array | np.ndarray  # f32, log pi(a_h | s_h)
    soft_value: jax.Array | np.ndarray  # f32, V(s_h): logsumexp of Q at the position that predicts the token
    value: jax.Array | np.ndarray | None = None  # f32, of a value head, where the policy has one


def make_scorer(architecture: model.Architecture, mesh: Mesh, *, config: config_lib.Config) -> jax.stages.Wrapped:
    """The jitted forward pass: (params, `batch.Batch`) → `TokenScores` of [M, R, C]; 0 past a row's last response token."""

    def tokens(scores: policy.PolicyScores) -> TokenScores:
        return TokenScores(scores.log_prob, scores.soft_values, scores.value)  # type: ignore[arg-type]  # `policy.score` computes both

    return policy.make_scorer(architecture, mesh, tokens, config=config)


def score(
    scorer: jax.stages.Wrapped,
    params: model.Params,
    trajectories: types.Trajectories,
    mesh: Mesh,
    *,
    limits: batch.Limits,
) -> TokenScores:
    """The trajectories' token scores, each f32[sum of response_length], on the host, in their order.

    Args:
      scorer: from `make_scorer`.
      params: on the devices, in any dtype that `policy.score` takes.
      limits: of the batch they are packed into.

    Raises:
      ValueError: more trajectories than `limits.trajectories`.
    """
    arrangement = batch.arrange(trajectories, mesh, limits=limits)
    packed = batch.pack(trajectories, mesh, limits=limits, arrangement=arrangement)
    scores = distributed.fetch(scorer(params, packed))
    return jax.tree.map(lambda part: batch.response_tokens(part, arrangement, trajectories.response_length), scores)
