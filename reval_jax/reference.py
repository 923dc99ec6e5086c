"""The frozen policy pi_ref: scores trajectories once, is reset to the learner now and then."""

from __future__ import annotations

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

    params: Any  # as `model.compute_dtypes` says, sharded by mesh.LEARNER_AXES
    version: int  # 0 at the start, one more with every reset


def init(params: Any, *, compute_dtype: str) -> Reference:
    """pi_ref at the learner's initial parameters: a copy, since the learner's are donated to its first update."""
    return Reference(_copy(params, compute_dtype), 0)


def reset(reference: Reference, params: Any, *, compute_dtype: str) -> Reference:
    """pi_ref ← pi_theta (§5.5.2); what was scored with the old one is stale from now on."""
    return Reference(_copy(params, compute_dtype), reference.version + 1)


def _copy(params: Any, dtype: str) -> Any:
    # copy=True: where the dtype is the parameters' own, a view would be donated with them.
    return jax.tree.map(
        lambda leaf, kept: jnp.array(leaf, dtype=kept, copy=True), params, model.compute_dtypes(params, dtype)
    )


def make_score(architecture: model.Architecture, *, config: config_lib.Config) -> Any:
    """The jitted forward pass: (params, batch) → (log pi(tau) f32[M, R], V(s1) f32[M, R])."""

    def score(params: Any, rows: batch.Batch) -> tuple[jax.Array, jax.Array]:
        def of_micro_batch(index: jax.Array, out: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            scores = policy.score(
                architecture,
                params,
                rows.tokens[index],
                rows.prompt_length[index],
                rows.response_length[index],
                capacity=rows.behaviour_log_prob.shape[-1],
                temperature=config.rollout.temperature,
                compute_dtype=config.model.compute_dtype,
            )
            return out[0].at[index].set(scores.trajectory_log_prob), out[1].at[index].set(scores.soft_value)

        start = (jnp.zeros_like(rows.reward), jnp.zeros_like(rows.reward))
        return jax.lax.fori_loop(0, rows.num_micro_batches, of_micro_batch, start)

    return jax.jit(score)


def score_stale(
    score: Any, reference: Reference, buffer: replay.Buffer, rows: np.ndarray, mesh: Mesh, *, config: config_lib.Config
) -> replay.Buffer:
    """The buffer with this reference's log pi_ref(tau) and V_ref(s1) for those of `rows` that do not have them yet.

    Args:
      score: from `make_score`.
      rows: i64[n] rows about to be trained on; after it, none of them is stale, so no batch mixes versions.
    """
    chosen = replay.gather(buffer.trajectories, rows)
    stale = rows[replay.stale(chosen, reference.version)]
    if not stale.size:
        return buffer
    log_prob, value = score_trajectories(
        score, reference.params, replay.gather(buffer.trajectories, stale), mesh, config=config
    )
    return replay.with_reference_scores(buffer, stale, log_prob, value, reference.version)


def score_trajectories(
    score: Any, params: Any, trajectories: types.Trajectories, mesh: Mesh, *, config: config_lib.Config
) -> tuple[np.ndarray, np.ndarray]:
    """The trajectories' log pi(tau), f32[B], and V(s1), f32[B], on the host, in their order."""
    packed = batch.pack(trajectories, mesh, config=config)
    log_prob, value = mesh_lib.fetch(score(params, packed))
    return log_prob.reshape(-1)[: trajectories.size], value.reshape(-1)[: trajectories.size]
