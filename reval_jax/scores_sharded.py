"""`scores.token_scores` in other forms: for whole arrays spread over a mesh, and with entropy and mean logit.

For trainers whose program is partitioned by the compiler; `reval_jax` itself calls `scores` inside a `shard_map`.
Importable without flax.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, PartitionSpec

from reval_jax import scores


class TokenStatistics(NamedTuple):
    """Statistics of each token, in nats."""

    log_prob: jax.Array  # f32[N], as token_scores gives it, differentiable
    logsumexp: jax.Array  # f32[N], as token_scores gives it, differentiable
    entropy: jax.Array  # f32[N] of softmax(Q), a constant to differentiation
    mean_logit: jax.Array  # f32[N], Q averaged evenly over the vocabulary, a constant to differentiation


def token_statistics(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    chunk_tokens: int | None = None,
    vocab_axis: str | None = None,
    gather_axis: str | None = None,
) -> TokenStatistics:
    """`token_scores`, and from the same logits each token's entropy and mean logit; arguments and errors as there."""
    operands = scores.prepare(hidden, head, targets, temperature)
    plan = scores.make_plan(operands, chunk_tokens, vocab_axis, gather_axis)._replace(has_moments=True)
    return TokenStatistics(*scores.planned_scores(plan, *operands))


def sharded_token_scores(
    mesh: Mesh,
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    chunk_tokens: int | None = None,
    row_axes: tuple[str, ...] = ("data", "fsdp"),
    vocab_axis: str = "tensor",
    gather_axis: str = "fsdp",
) -> tuple[jax.Array, jax.Array]:
    """`token_scores` of whole arrays spread over a mesh: each device scores its own rows against its own columns.

    No logits cross the wire. Results are spread as the rows are, gradients as their arrays. For a program under `jax.jit`
    that lets the compiler partition it; inside `jax.shard_map`, call `token_scores`.

    Args:
      mesh: has the axes row_axes, vocab_axis and gather_axis; over others everything is replicated.
      hidden, targets: as in token_scores; their rows are split over row_axes.
      head: as in token_scores; its rows are split over gather_axis, its columns over vocab_axis.
      temperature: as in token_scores.
      chunk_tokens: as in token_scores, of each device's rows.
      row_axes: includes gather_axis, not vocab_axis.
      vocab_axis: may be of size 1, as any axis may.
      gather_axis: the head is gathered over it once, and its gradient summed and split again.

    Raises:
      ValueError: as token_scores; and if N, D or V does not divide over its axes, or row_axes leaves out gather_axis.
    """
    operands = scores.prepare(hidden, head, targets, temperature)
    hidden, head = operands[:2]
    scores.check_operands(hidden, head, operands[2], 1)
    if gather_axis not in row_axes:
        raise ValueError(
            f"gather_axis={gather_axis!r} is not one of row_axes={row_axes}. The head's gradient is summed over that axis, so "
            "its devices need rows of their own: add it to row_axes."
        )
    sizes = (("tokens", hidden.shape[0], row_axes), ("width", head.shape[0], (gather_axis,)))
    for name, size, axes in (*sizes, ("vocabulary", head.shape[1], (vocab_axis,))):
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if size % parts:
            raise ValueError(
                f"{name} {size} does not divide over the {parts} devices of mesh axes {axes}, and every device needs an equal "
                f"part. Pad it to a multiple of {parts} before this call (a padded column would count in the logsumexp), or "
                "choose another mesh."
            )
    rows, columns = hidden.shape[0] // math.prod(mesh.shape[axis] for axis in row_axes), head.shape[1]
    chunk = scores.chunk_size(rows, columns // mesh.shape[vocab_axis], chunk_tokens)
    plan = scores.Plan(chunk, head.dtype, vocab_axis, gather_axis, row_axes)
    log_prob, logsumexp = _sharded_scores(mesh, plan, *operands)
    return log_prob, logsumexp


# The gradient is defined outside both shard_maps, because shard_map's own transposition would divide the cotangents by the
# size of vocab_axis, and nothing would correct the head's gradient for it.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sharded_scores(mesh: Mesh, plan: scores.Plan, *operands: jax.Array) -> tuple[jax.Array, ...]:
    return _sharded_forward(mesh, plan, *operands)[0]


def _sharded_specs(plan: scores.Plan) -> tuple[tuple[PartitionSpec, ...], tuple[PartitionSpec, ...], scores.Residuals]:
    """PartitionSpecs of the operands, the results and the residuals of `scores.forward`."""
    rows, nowhere = PartitionSpec(plan.row_axes), PartitionSpec()
    residuals: list[Any] = [rows, PartitionSpec(None, plan.vocab_axis), rows, nowhere, rows, rows]
    operands = (rows, PartitionSpec(plan.gather_axis, plan.vocab_axis), rows, nowhere)
    return operands, (rows, rows), scores.Residuals(*residuals)


def _sharded_forward(
    mesh: Mesh, plan: scores.Plan, *operands: jax.Array
) -> tuple[tuple[jax.Array, ...], scores.Residuals]:
    in_specs, out_specs, residual_specs = _sharded_specs(plan)
    forward = functools.partial(scores.forward, plan)
    specs = (out_specs, residual_specs)
    return jax.shard_map(forward, mesh=mesh, in_specs=in_specs, out_specs=specs, check_vma=False)(*operands)


def _sharded_backward(
    mesh: Mesh, plan: scores.Plan, residuals: scores.Residuals, cotangents: tuple[jax.Array, ...]
) -> tuple[jax.Array | None, ...]:
    gradient_specs, cotangent_specs, residual_specs = _sharded_specs(plan)
    backward = functools.partial(scores.backward, plan)
    specs = (residual_specs, cotangent_specs)
    return jax.shard_map(backward, mesh=mesh, in_specs=specs, out_specs=gradient_specs, check_vma=False)(
        residuals, cotangents
    )


_sharded_scores.defvjp(_sharded_forward, _sharded_backward)
