"""The frozen policy pi_ref: scores trajectories once, is reset to the learner now and then."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from reval_jax import batch, model, policy, replay, types
from reval_jax import config as config_lib
from reval_jax import mesh as mesh_lib


class Reference(NamedTuple):
    """Parameters of pi_ref and which one it is."""

    params: Any  # as `model.compute_dtypes` says, sharded by mesh.LEARNER_AXES; on the devices or in pinned host memory
    version: int  # 0 at the start, one more with every reset


Phase = Callable[[str], contextlib.AbstractContextManager[Any]]
"""Name of a phase → a context that takes its time, such as `metrics.Clock.phase`."""


def _untimed(_: str) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def init(params: Any, *, config: config_lib.Config) -> Reference:
    """pi_ref at the learner's initial parameters: a copy, since the learner's are donated to its first update."""
    return Reference(_copy(params, config), 0)


def reset(reference: Reference, params: Any, *, config: config_lib.Config) -> Reference:
    """pi_ref ← pi_theta (§5.5.2); what was scored with the old one is stale from now on."""
    return Reference(_copy(params, config), reference.version + 1)


def _copy(params: Any, config: config_lib.Config) -> Any:
    def copy(leaf: jax.Array, dtype: Any) -> jax.Array:
        # copy=True: where the dtype is the parameters' own, a view would be donated with them.
        return place(jnp.array(leaf, dtype=dtype, copy=True), config.update.reference_memory)

    # A leaf at a time, so that the devices never hold a whole second copy on its way to the host.
    copied = jax.tree.map(copy, params, model.compute_dtypes(params, config.model.compute_dtype))
    return jax.block_until_ready(copied)


def place(params: Any, memory: str) -> Any:
    """The same arrays, sharded as they are, in the memory where `update.reference_memory` keeps them."""
    kind = "pinned_host" if memory == "host" else "device"
    return jax.tree.map(lambda leaf: jax.device_put(leaf, leaf.sharding.with_memory_kind(kind)), params)


def make_score(architecture: model.Architecture, mesh: Mesh, *, config: config_lib.Config) -> Any:
    """The jitted forward pass: (params, batch) → (log pi(tau) f32[M, R, S], V(s1) f32[M, R, S])."""
    axes, shapes = model.logical_axes(architecture), model.abstract_params(architecture)
    placement = mesh_lib.specs(mesh_lib.shardings(mesh, axes, shapes, mesh_lib.LEARNER_AXES))
    attend = model.attention.choose(
        config.model.attention, mesh, compute_dtype=config.model.compute_dtype, architecture=architecture
    )

    def of_device(params: Any, rows: batch.Batch) -> tuple[jax.Array, jax.Array]:
        def of_micro_batch(index: jax.Array, out: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            scores = policy.score(
                architecture,
                params,
                batch.micro_batch(rows, index),
                temperature=config.rollout.temperature,
                compute_dtype=config.model.compute_dtype,
                attend=attend,
            )
            return out[0].at[index].set(scores.trajectory_log_prob), out[1].at[index].set(scores.soft_value)

        start = (jnp.zeros_like(rows.reward), jnp.zeros_like(rows.reward))
        return jax.lax.fori_loop(0, rows.num_micro_batches, of_micro_batch, start)

    split = batch.specs()
    return jax.jit(
        jax.shard_map(
            of_device, mesh=mesh, in_specs=(placement, split), out_specs=(split.reward, split.reward), check_vma=False
        )
    )


def score_stale(
    score: Any,
    reference: Reference,
    buffer: replay.Buffer,
    rows: np.ndarray,
    mesh: Mesh,
    *,
    config: config_lib.Config,
    phase: Phase = _untimed,
) -> replay.Buffer:
    """The buffer with this reference's log pi_ref(tau) and V_ref(s1) for those of `rows` that do not have them yet.

    The reference's parameters are on the devices only meanwhile, unless `update.reference_memory` keeps them there.

    Args:
      score: from `make_score`.
      rows: i64[n] rows about to be trained on; after it, none of them is stale, so no batch mixes versions.
      phase: times "reference_load", the way to the devices, and "reference".
    """
    chosen = replay.gather(buffer.trajectories, rows)
    stale = rows[replay.stale(chosen, reference.version)]
    if not stale.size:
        return buffer
    with phase("reference_load"):
        params = jax.block_until_ready(place(reference.params, "device"))
    with phase("reference"):
        log_prob, value = score_trajectories(
            score, params, replay.gather(buffer.trajectories, stale), mesh, config=config
        )
    return replay.with_reference_scores(buffer, stale, log_prob, value, reference.version)


def score_trajectories(
    score: Any, params: Any, trajectories: types.Trajectories, mesh: Mesh, *, config: config_lib.Config
) -> tuple[np.ndarray, np.ndarray]:
    """The trajectories' log pi(tau), f32[B], and V(s1), f32[B], on the host, in their order."""
    where = batch.arrange(trajectories, mesh, config=config)
    packed = batch.pack(trajectories, mesh, config=config, arrangement=where)
    log_prob, value = mesh_lib.fetch(score(params, packed))
    return batch.per_trajectory(log_prob, where), batch.per_trajectory(value, where)
