"""Parameters and a micro-batch → per trajectory log pi(tau) and V(s1), per token log pi: what update and reference share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from reval_jax import batch, model, parallel, scores, scores_sharded, types
from reval_jax import config as config_lib
from reval_jax import mesh as mesh_lib


class PolicyScores(NamedTuple):
    """What the loss needs of R rows of up to S trajectories, float32."""

    log_prob: jax.Array  # f32[R, C] nats a response token; 0 past the row's last
    trajectory_log_prob: jax.Array  # f32[R, S] nats, log pi(tau): the sum over the response, its end token included
    soft_value: jax.Array  # f32[R, S] nats, V(s1): logsumexp of Q at the last prompt token; 0 in an empty slot
    response_mask: jax.Array  # bool[R, C] True on response tokens
    # f32[R, C] nats, V(s_h): logsumexp of Q at the position that predicts each response token; 0 past the row's last
    soft_values: jax.Array | None = None
    # f32[R, C] nats, mean of log pi over the vocabulary in the state of each response token, a constant to differentiation;
    # 0 past the row's last. None unless `has_moments`
    mean_log_prob: jax.Array | None = None
    # f32[R, C] in units of reward, V(s_h) by the value head at the position that predicts each response token; 0 past the
    # row's last. None unless the architecture has a value head
    value: jax.Array | None = None


def kernels(architecture: model.Architecture, mesh: Mesh, config: config_lib.Config) -> model.Kernels:
    """The kernels of a run's learner.

    Raises:
      ValueError: as `model.kernels.for_learner`.
    """
    return model.kernels.for_learner(
        config.model.attention, mesh, architecture, config.model.compute_dtype, repeats_at=_repeats_at(config)
    )


def attention_note(architecture: model.Architecture, mesh: Mesh, config: config_lib.Config) -> str | None:
    """Why the learner does not attend by the best kernel of its platform, or None."""
    attend, why = model.kernels.learner_attention(
        config.model.attention, mesh, architecture, config.model.compute_dtype, _repeats_at(config)
    )
    return (
        None
        if why is None
        else f"the learner attends by {attend.__module__.rpartition('.')[2]}.{attend.__name__}, {why}"
    )


def _repeats_at(config: config_lib.Config) -> tuple[int, int] | None:
    """Rows and columns of a device's largest micro-batch, if gradients have to repeat."""
    columns = batch.row_length(config.max_tokens)
    return (max(1, config.update.micro_batch_tokens // columns), columns) if config.model.deterministic else None


def score(
    architecture: model.Architecture,
    params: model.Params,
    rows: batch.Batch,
    *,
    temperature: float,
    compute_dtype: DTypeLike,
    remat: str = "none",
    kernels: model.Kernels = model.kernels.PLAIN,
    has_moments: bool = False,
) -> PolicyScores:
    """Scores of a micro-batch's trajectories under Q = logit / temperature.

    The H positions P−1 … P+H−2 of each trajectory, whose logits predict its H response tokens, are gathered before the head,
    so that no logit of a prompt or of padding is computed; V(s1) is the logsumexp at the first of them.

    A value head reads the same hidden states as the output head, and its gradient flows into the layers below, which it shares
    with the policy (as TRL's value head does, whose loss has the coefficient 0.1): the loss decides by a coefficient how much
    the value may move them.

    Args:
      params: whole, or one device's part of each as `kernels.split` says, inside a `shard_map` over the mesh.
      rows: one micro-batch: a `batch.Batch` without the axis M, or this device's rows of it.
      has_moments: whether to compute `mean_log_prob`, one more sum over each chunk of logits.
    """
    hidden = model.hidden_states(
        architecture,
        params,
        rows.tokens,
        rows.positions,
        rows.segment_ids,
        compute_dtype=compute_dtype,
        remat=remat,
        kernels=kernels,
    )
    response_mask = rows.slot < rows.first.shape[1]
    targets = jnp.take_along_axis(rows.tokens, rows.target_index, axis=1)
    predicting = kernels.lookup.columns(hidden, rows.target_index - 1, response_mask)
    head = model.head_weight(architecture, params)
    chunk_tokens = scores.chunk_size(targets.size, head.shape[1], None, chunk_bytes=kernels.chunk_bytes)
    score_tokens = scores_sharded.token_statistics if has_moments else scores.token_scores
    log_prob, logsumexp, *moments = score_tokens(
        predicting.reshape(targets.size, -1),
        head,
        targets.reshape(-1),
        temperature=temperature,
        chunk_tokens=chunk_tokens,
        gather_axis=parallel.FSDP if kernels.split.width else None,
        vocab_axis=parallel.TENSOR if kernels.split.vocab else None,
    )
    log_prob = jnp.where(response_mask, log_prob.reshape(targets.shape), 0.0)
    logsumexp = logsumexp.reshape(targets.shape)
    mean_log_prob = None
    if has_moments:
        _, mean_logit = moments
        mean = mean_logit.reshape(targets.shape) - jax.lax.stop_gradient(logsumexp)
        mean_log_prob = jnp.where(response_mask, mean, 0.0)
    value = None
    if architecture.has_value_head:
        value = jnp.where(response_mask, model.value(params, predicting), 0.0)
    has_response = rows.response_length > 0
    first_value = kernels.lookup.columns(logsumexp, rows.first, has_response)
    return PolicyScores(
        log_prob,
        sum_by_slot(log_prob, rows.slot, rows.first.shape[1]),
        jnp.where(has_response, first_value, 0.0),
        response_mask,
        soft_values=jnp.where(response_mask, logsumexp, 0.0),
        mean_log_prob=mean_log_prob,
        value=value,
    )


def make_scorer(
    architecture: model.Architecture,
    mesh: Mesh,
    select: Callable[[PolicyScores], types.PyTree],
    *,
    config: config_lib.Config,
) -> jax.stages.Wrapped:
    """The jitted forward pass over a whole batch: (params, `batch.Batch`) → what `select` takes of each micro-batch's scores.

    Each of its arrays [R, …] becomes one array [M, R, …], 0 in micro-batches that do not run.
    """
    axes, shapes = model.logical_axes(architecture), model.abstract_params(architecture)
    placement = mesh_lib.specs(mesh_lib.shardings(mesh, axes, shapes, mesh_lib.LEARNER_AXES))
    micro_batch_kernels = kernels(architecture, mesh, config)

    def local_scores(params: model.Params, rows: batch.Batch) -> types.PyTree:
        def selected(index: jax.Array | int) -> types.PyTree:
            scored = score(
                architecture,
                params,
                batch.micro_batch(rows, index),
                temperature=config.rollout.temperature,
                compute_dtype=config.model.compute_dtype,
                kernels=micro_batch_kernels,
            )
            return select(scored)

        def add_micro_batch(index: jax.Array, out: types.PyTree) -> types.PyTree:
            return jax.tree.map(lambda whole, part: whole.at[index].set(part), out, selected(index))

        num_micro_batches = rows.tokens.shape[0]
        start = jax.tree.map(
            lambda part: jnp.zeros((num_micro_batches, *part.shape), part.dtype), jax.eval_shape(selected, 0)
        )
        return jax.lax.fori_loop(0, rows.num_micro_batches, add_micro_batch, start)

    split = batch.specs()
    return jax.jit(
        jax.shard_map(local_scores, mesh=mesh, in_specs=(placement, split), out_specs=split.tokens, check_vma=False),
        compiler_options=model.kernels.compiler_options(
            mesh, config.model.compute_dtype, deterministic=config.model.deterministic, has_gradient=False
        ),
    )


def sum_by_slot(values: jax.Array, slot: jax.Array, num_slots: int) -> jax.Array:
    """f32[R, S]: the sum of each slot's values.

    Pairs are added, then pairs of pairs: the rounding of a sum of n terms grows with log n and not with n, so that log pi of
    8K tokens is good to 1e-3 nat on every platform.

    Args:
      values: f32[R, C].
      slot: i32[R, C]; what is not in [0, S) is left out.
    """
    is_of_slot = slot[:, None] == jnp.arange(num_slots, dtype=slot.dtype)[None, :, None]
    terms = jnp.where(is_of_slot, values[:, None], 0.0)
    while terms.shape[-1] > 1:
        if terms.shape[-1] % 2:
            terms = jnp.pad(terms, ((0, 0), (0, 0), (0, 1)))
        half = terms.shape[-1] // 2
        terms = terms[..., :half] + terms[..., half:]
    return terms[..., 0]
