"""The frozen policy pi_ref: it scores each trajectory once per version, and can be reset to the learner."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from reval_jax import batch, distributed, model, policy, types
from reval_jax import config as config_lib

Tree = TypeVar("Tree")  # parameters, or one of them


class Reference(NamedTuple):
    """Parameters and version of pi_ref."""

    # In `model.compute_dtypes`, sharded by mesh.LEARNER_AXES, on the devices or in pinned host memory.
    params: model.Params
    version: int  # 0 at the start, one more with every reset


Scorer = Callable[[model.Params, batch.Batch], tuple[jax.Array, jax.Array]]
"""(params, batch) → (log pi(tau) f32[M, R, S], V(s1) f32[M, R, S])."""


def init(params: model.Params, *, config: config_lib.Config) -> Reference:
    """pi_ref at the learner's initial parameters: a copy, because the first update donates the learner's."""
    return Reference(_copy(params, config), 0)


def reset(reference: Reference, params: model.Params, *, config: config_lib.Config) -> Reference:
    """pi_ref ← pi_theta (§5.5.2); scores of the old reference are stale from now on."""
    return Reference(_copy(params, config), reference.version + 1)


def restored(params: model.Params, version: int, *, config: config_lib.Config) -> Reference:
    """pi_ref from a checkpoint's arrays, in the memory where `update.reference_memory` keeps it."""
    return Reference(place(params, config.update.reference_memory), version)


def abstract(params: model.Params, *, config: config_lib.Config) -> model.Params:
    """Shapes, dtypes and shardings of pi_ref's parameters.

    Args:
      params: the learner's, arrays or ShapeDtypeStructs with shardings.
    """
    params = model.without_value_head(params)
    return jax.tree.map(
        lambda leaf, dtype: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding),
        params,
        model.compute_dtypes(params, config.model.compute_dtype),
    )


def _copy(params: model.Params, config: config_lib.Config) -> model.Params:
    def copy(leaf: jax.Array, dtype: jnp.dtype) -> jax.Array:
        # copy=True: where the dtype is the parameters' own, a view would be donated with them.
        return place(jnp.array(leaf, dtype=dtype, copy=True), config.update.reference_memory)

    params = model.without_value_head(params)
    # A leaf at a time, so that the devices never hold a whole second copy on its way to the host.
    copied = jax.tree.map(copy, params, model.compute_dtypes(params, config.model.compute_dtype))
    return jax.block_until_ready(copied)


def place(params: Tree, memory: str) -> Tree:
    """The same arrays under the same sharding, in the memory that `memory` names as `update.reference_memory` does."""
    kind = "pinned_host" if memory == "host" else "device"
    return jax.tree.map(lambda leaf: jax.device_put(leaf, leaf.sharding.with_memory_kind(kind)), params)


def load(reference: Reference) -> model.Params:
    """The reference's parameters on the devices, once they are there."""
    return jax.block_until_ready(place(reference.params, "device"))


def make_scorer(architecture: model.Architecture, mesh: Mesh, *, config: config_lib.Config) -> jax.stages.Wrapped:
    """The jitted forward pass, a `Scorer`."""

    def sums(scores: policy.PolicyScores) -> tuple[jax.Array, jax.Array]:
        return scores.trajectory_log_prob, scores.soft_value

    return policy.make_scorer(architecture.without_value_head(), mesh, sums, config=config)


def score(
    scorer: Scorer, params: model.Params, trajectories: types.Trajectories, mesh: Mesh, *, limits: batch.Limits
) -> tuple[np.ndarray, np.ndarray]:
    """The trajectories' log pi(tau), f32[B], and V(s1), f32[B], on the host, in their order.

    Args:
      scorer: from `make_scorer`.
      params: on the devices, as from `load`.
      limits: of the batch they are packed into.
    """
    # The forward pass reads none of the algorithm's numbers per token, which fresh rows may not have yet.
    limits = limits._replace(token_values=0)
    trajectories = trajectories._replace(token_values=np.zeros((len(trajectories.log_prob), 0), np.float32))
    arrangement = batch.arrange(trajectories, mesh, limits=limits)
    packed = batch.pack(trajectories, mesh, limits=limits, arrangement=arrangement)
    log_prob, value = distributed.fetch(scorer(params, packed))
    return batch.per_trajectory(log_prob, arrangement), batch.per_trajectory(value, arrangement)
