"""What a language model's head says about given tokens: per token, its log-probability and the logsumexp of all logits.

One place holds the head, the temperature and the softmax, so that log pi(tau) and V(s1), of the policy and of the
reference, are read from the same logits. The logits exist a chunk of tokens at a time, in the forward and again in the
backward pass, never whole. Importable without flax, for use in other trainers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

# Bytes of float32 logits that a chunk may take where chunk_tokens is not given: 544 tokens against 151,936 columns. Every
# chunk reads the head and adds to the head's whole gradient, which only a long chunk keeps from taking the products' time.
CHUNK_BYTES = 320 * 2**20


class TokenStatistics(NamedTuple):
    """What `token_statistics` says of each token, in nats."""

    log_prob: jax.Array  # f32[N], as token_scores gives it, differentiable
    logsumexp: jax.Array  # f32[N], as token_scores gives it, differentiable
    entropy: jax.Array  # f32[N] of softmax(Q), a constant to differentiation
    mean_logit: jax.Array  # f32[N], Q averaged evenly over the vocabulary, a constant to differentiation


def token_scores(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    chunk_tokens: int | None = None,
    vocab_axis: str | None = None,
    gather_axis: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each target token, and logsumexp of the logits it was drawn from, in nats.

    Q(s, a) = (hidden @ head) / temperature,  logsumexp = V(s) = log sum_a exp Q(s, a),  log_prob = Q(s, target) - V(s)
                                                                                 (ReVal, arXiv 2603.23355, section 4.1)

    Products take operands of hidden's dtype and accumulate in float32; everything else is float32, but for d loss / d Q,
    which is rounded to hidden's dtype before it is multiplied. log_prob is formed around the row's maximum, never as a
    difference of two large numbers, so that rounding costs a token about 1e-7 nat however large its logits are: thousands
    of tokens add up. Both results are differentiable in hidden, head and temperature, once and in reverse mode; the
    temperature's gradient is made from hidden's, so in bfloat16 it is rough. A row whose two cotangents are zero adds
    exactly nothing to any gradient, whatever it holds.

    Memory: a chunk's logits, and in the backward pass a float32 array of the head's (local) size.

    With `vocab_axis` or `gather_axis` this is a part of a program under `jax.shard_map(…, check_vma=False)`, and its
    gradient has to be taken inside that region, of a loss that is equal on all devices of `vocab_axis`: gradients of hidden
    and temperature then come out equal on these devices, and complete. Nothing is summed over an axis that is not named
    here. `sharded_token_scores` is the same for whole arrays.

    Args:
      hidden: [N, D], the decoder's last hidden states, one per scored token.
      head: [D, V], of hidden's dtype or float32; it is multiplied in hidden's dtype. A float32 head's gradient is the sum
        over all rows, never rounded. Every column takes part in the logsumexp: cut off columns that were added for sharding.
      targets: int[N] in [0, V), ids in the whole vocabulary; elsewhere log_prob is NaN. A masked position needs a valid id too.
      temperature: scalar > 0, possibly traced; the logits are divided by it, in float32. 1.0 in the paper.
      chunk_tokens: tokens whose logits exist at once, static. 0 takes all at once; None as many as CHUNK_BYTES allow.
      vocab_axis: mesh axis over which the columns of head are split: head is this device's equal part, in the axis's order.
      gather_axis: mesh axis over which the rows of head, its D, are split, while each device has its own rows of hidden. The
        head is gathered once, in hidden's dtype, and its gradient is summed over this axis and split again, in float32.

    Returns:
      (log_prob f32[N], never above 0; logsumexp f32[N]).

    Raises:
      ValueError: the head's dtype is neither hidden's nor float32, the shapes do not fit together, or chunk_tokens < 0.
    """
    operands = _prepare(hidden, head, targets, temperature)
    log_prob, logsumexp = _scores(_plan(operands, chunk_tokens, vocab_axis, gather_axis), *operands)
    return log_prob, logsumexp


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
    operands = _prepare(hidden, head, targets, temperature)
    plan = _plan(operands, chunk_tokens, vocab_axis, gather_axis)._replace(has_moments=True)
    return TokenStatistics(*_scores(plan, *operands))


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
      mesh: it names row_axes, vocab_axis and gather_axis; over other axes everything is repeated.
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
    operands = _prepare(hidden, head, targets, temperature)
    hidden, head = operands[:2]
    _check_operands(hidden, head, operands[2], 1)
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
    chunk = _chunk_size(rows, columns // mesh.shape[vocab_axis], chunk_tokens)
    plan = _Plan(chunk, head.dtype, vocab_axis, gather_axis, row_axes)
    log_prob, logsumexp = _sharded_scores(mesh, plan, *operands)
    return log_prob, logsumexp


def head_product(hidden: jax.Array, head: jax.Array) -> jax.Array:
    """The logits before the temperature, f32[N, V], of hidden [N, D] and head [D, V]: the sampler's and the learner's.

    The product is taken in the operands' dtype and accumulated in float32; on accelerators a float32 product is rounded to
    bfloat16 or TF32 unless it is asked for in full, as it is here.
    """
    return _product(hidden, head, 1, 0)


class _Plan(NamedTuple):
    """What is static of a call."""

    chunk_tokens: int
    head_dtype: Any
    vocab_axis: str | None
    gather_axis: str | None
    row_axes: tuple[str, ...] = ()  # mesh axes over which what all rows share has its gradient summed
    has_moments: bool = False


class _Residuals(NamedTuple):
    """What the backward pass needs: the logsumexp is kept as the two numbers that it was formed from."""

    hidden: jax.Array  # [N, D]
    head: jax.Array  # [D, V], gathered, in hidden's dtype
    targets: jax.Array  # i32[N]
    scale: jax.Array  # f32[], 1 / temperature
    row_max: jax.Array  # f32[N], the largest logit before the temperature
    normalizer: jax.Array  # f32[N], sum_a exp(scale (logit_a - row_max))


def _prepare(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, temperature: float | jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    temperature = jnp.asarray(temperature, jnp.float32)
    return jnp.asarray(hidden), jnp.asarray(head), jnp.asarray(targets, jnp.int32), 1.0 / temperature


def _plan(
    operands: tuple[jax.Array, ...], chunk_tokens: int | None, vocab_axis: str | None, gather_axis: str | None
) -> _Plan:
    hidden, head, targets, _ = operands
    _check_operands(hidden, head, targets, _axis_size(gather_axis))
    return _Plan(_chunk_size(hidden.shape[0], head.shape[1], chunk_tokens), head.dtype, vocab_axis, gather_axis)


def _chunk_size(num_tokens: int, vocabulary: int, chunk_tokens: int | None) -> int:
    """Tokens in a chunk; all of them where no loop is needed."""
    if chunk_tokens is None:
        largest = max(16, CHUNK_BYTES // (4 * vocabulary) // 16 * 16)  # a bfloat16 tile has 16 rows
        # Chunks of about equal size, since the last one is padded and padding is work.
        num_chunks = max(1, math.ceil(num_tokens / largest))
        chunk_tokens = math.ceil(num_tokens / num_chunks / 16) * 16
    if chunk_tokens < 0:
        raise ValueError(
            f"chunk_tokens={chunk_tokens} cannot be a number of tokens. Use None for as many as {CHUNK_BYTES} bytes of "
            "logits allow, 0 for all tokens at once, or a positive number."
        )
    return min(chunk_tokens or num_tokens, num_tokens)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scores(
    plan: _Plan, hidden: jax.Array, head: jax.Array, targets: jax.Array, scale: jax.Array
) -> tuple[jax.Array, ...]:
    return _forward(plan, hidden, head, targets, scale)[0]


def _forward(
    plan: _Plan, hidden: jax.Array, head: jax.Array, targets: jax.Array, scale: jax.Array
) -> tuple[tuple[jax.Array, ...], _Residuals]:
    head = head.astype(hidden.dtype)
    if plan.gather_axis is not None:
        head = jax.lax.all_gather(head, plan.gather_axis, axis=0, tiled=True)
    num_columns = head.shape[1]
    columns, is_token = _local_columns(plan, targets, num_columns)

    def scan_chunk(_: None, rows: tuple[jax.Array, jax.Array], __: None) -> tuple[None, tuple[jax.Array, ...]]:
        return None, _row_sums(plan, head_product(rows[0], head), rows[1], scale)

    _, sums = _over_chunks(plan.chunk_tokens, scan_chunk, None, (hidden, columns))
    row_max, target_logit, normalizer, *moments = _over_vocabulary(plan, sums, scale)
    log_normalizer = jnp.log(normalizer)
    log_prob = jnp.where(is_token, scale * (target_logit - row_max) - log_normalizer, jnp.nan)
    outputs: tuple[jax.Array, ...] = (log_prob, scale * row_max + log_normalizer)
    if plan.has_moments:
        weighted, logit_sum = moments
        mean = scale * logit_sum / (num_columns * _axis_size(plan.vocab_axis))
        outputs += (log_normalizer - weighted / normalizer, mean)
    return outputs, _Residuals(hidden, head, targets, scale, row_max, normalizer)


def _local_columns(plan: _Plan, targets: jax.Array, num_columns: int) -> tuple[jax.Array, jax.Array]:
    """Each target's column of this device's head, num_columns where another device has it; and whether any has it."""
    first = 0 if plan.vocab_axis is None else jax.lax.axis_index(plan.vocab_axis) * num_columns
    is_token = (targets >= 0) & (targets < num_columns * _axis_size(plan.vocab_axis))
    is_local = (targets >= first) & (targets < first + num_columns)
    return jnp.where(is_local, targets - first, num_columns), is_token


def _row_sums(plan: _Plan, logits: jax.Array, columns: jax.Array, scale: jax.Array) -> tuple[jax.Array, ...]:
    """Of each row of the local logits: its maximum, the target's logit (-inf elsewhere), and sums around the maximum."""
    row_max = jnp.max(logits, axis=1)
    target_logit = jnp.take_along_axis(logits, columns[:, None], axis=1, mode="fill", fill_value=-jnp.inf)[:, 0]
    shifted = scale * (logits - row_max[:, None])
    weight = jnp.exp(shifted)
    moments = (jnp.sum(weight * shifted, axis=1), jnp.sum(logits, axis=1)) if plan.has_moments else ()
    return row_max, target_logit, jnp.sum(weight, axis=1), *moments


def _over_vocabulary(plan: _Plan, sums: tuple[jax.Array, ...], scale: jax.Array) -> tuple[jax.Array, ...]:
    """`_row_sums` of the whole vocabulary from those of its parts: two collectives of a few numbers a token."""
    if plan.vocab_axis is None:
        return sums
    local_max, local_target, normalizer, *moments = sums
    row_max, target_logit = jax.lax.pmax(jnp.stack([local_max, local_target]), plan.vocab_axis)
    shift = scale * (local_max - row_max)
    moved = [jnp.exp(shift) * normalizer]
    if moments:
        moved += [jnp.exp(shift) * (moments[0] + shift * normalizer), moments[1]]
    return row_max, target_logit, *jax.lax.psum(jnp.stack(moved), plan.vocab_axis)


def _backward(
    plan: _Plan, residuals: _Residuals, cotangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array, None, jax.Array]:
    """Gradients of hidden, head, targets (none) and scale.

    d loss / d logit_a = scale (g_log_prob (1[a = target] - p_a) + g_logsumexp p_a),
    d loss / d scale = sum over rows and a of (d loss / d logit_a) logit_a / scale = sum of hidden · d hidden / scale.
    """
    g_log_prob, g_logsumexp = cotangents[:2]
    hidden, head, targets, scale, row_max, normalizer = residuals
    columns, _ = _local_columns(plan, targets, head.shape[1])
    is_read = (g_log_prob != 0) | (g_logsumexp != 0)  # Zero times a NaN or an infinity of an unread row would be NaN.
    p_factor = scale * (g_logsumexp - g_log_prob) / jnp.where(is_read, normalizer, 1.0)
    row_max = jnp.where(is_read, row_max, 0.0)
    hidden = jnp.where(is_read[:, None], hidden, jnp.zeros((), hidden.dtype))

    def scan_chunk(
        head_gradient: jax.Array, rows: tuple[jax.Array, ...], hidden_transposed: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        hidden, columns, row_max, p_factor, target_term = rows
        logits = head_product(hidden, head)
        p_term = p_factor[:, None] * jnp.exp(scale * (logits - row_max[:, None]))
        is_target = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) == columns[:, None]
        d_logits = (p_term + jnp.where(is_target, target_term[:, None], 0.0)).astype(hidden.dtype)
        d_hidden = _product(d_logits, head, 1, 1)
        if plan.vocab_axis is not None:
            d_hidden = jax.lax.psum(d_hidden, plan.vocab_axis)
        along = jnp.sum(d_hidden * hidden.astype(jnp.float32), axis=1)
        return head_gradient + _product(hidden_transposed, d_logits, 1, 0), (d_hidden.astype(hidden.dtype), along)

    zero = jnp.zeros(head.shape, jnp.float32)
    rows = (hidden, columns, row_max, p_factor, scale * g_log_prob)
    # Transposed outside the loop, because XLA's CPU backend has no bfloat16 product over the first axes of both operands:
    # it would convert them to float32, d_logits too, in each chunk.
    head_gradient, (d_hidden, along) = _over_chunks(plan.chunk_tokens, scan_chunk, zero, rows, hidden.T)
    if plan.gather_axis is not None:
        head_gradient = jax.lax.psum_scatter(head_gradient, plan.gather_axis, scatter_dimension=0, tiled=True)
    other_axes = tuple(axis for axis in plan.row_axes if axis != plan.gather_axis)
    d_scale = jax.lax.psum(jnp.sum(along), plan.row_axes) / scale
    d_head = jax.lax.psum(head_gradient, other_axes).astype(plan.head_dtype)
    return d_hidden, d_head, None, d_scale


_scores.defvjp(_forward, _backward)


# The gradient's rule stands outside of both shard_maps, since shard_map's own transposition would divide the cotangents by
# the size of vocab_axis, which the head's gradient would never make good.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sharded_scores(mesh: Mesh, plan: _Plan, *operands: jax.Array) -> tuple[jax.Array, ...]:
    return _sharded_forward(mesh, plan, *operands)[0]


def _sharded_specs(plan: _Plan) -> tuple[Any, Any, Any]:
    """PartitionSpecs of the operands, the results and the residuals of `_forward`."""
    rows, nowhere = PartitionSpec(plan.row_axes), PartitionSpec()
    residuals: list[Any] = [rows, PartitionSpec(None, plan.vocab_axis), rows, nowhere, rows, rows]
    operands = (rows, PartitionSpec(plan.gather_axis, plan.vocab_axis), rows, nowhere)
    return operands, (rows, rows), _Residuals(*residuals)


def _sharded_forward(mesh: Mesh, plan: _Plan, *operands: jax.Array) -> tuple[tuple[jax.Array, ...], _Residuals]:
    in_specs, out_specs, residual_specs = _sharded_specs(plan)
    forward = functools.partial(_forward, plan)
    specs = (out_specs, residual_specs)
    return jax.shard_map(forward, mesh=mesh, in_specs=in_specs, out_specs=specs, check_vma=False)(*operands)


def _sharded_backward(
    mesh: Mesh, plan: _Plan, residuals: _Residuals, cotangents: tuple[jax.Array, ...]
) -> tuple[jax.Array | None, ...]:
    gradient_specs, cotangent_specs, residual_specs = _sharded_specs(plan)
    backward = functools.partial(_backward, plan)
    specs = (residual_specs, cotangent_specs)
    return jax.shard_map(backward, mesh=mesh, in_specs=specs, out_specs=gradient_specs, check_vma=False)(
        residuals, cotangents
    )


_sharded_scores.defvjp(_sharded_forward, _sharded_backward)


def _over_chunks(
    chunk_tokens: int, body: Callable[..., Any], carry: Any, rows: tuple[jax.Array, ...], transposed: Any = None
) -> tuple[Any, Any]:
    """`jax.lax.scan` of body over chunks of rows [N, …] and transposed [D, N] or None, the last one filled up with zeros.

    One chunk is one call. The outputs are cut to N rows again.
    """
    num_rows = rows[0].shape[0]
    if chunk_tokens >= num_rows:
        return body(carry, rows, transposed)
    num_chunks = math.ceil(num_rows / chunk_tokens)

    def split(array: jax.Array, axis: int) -> jax.Array:
        padding = [(0, 0)] * array.ndim
        padding[axis] = (0, num_chunks * chunk_tokens - num_rows)
        shape = (*array.shape[:axis], num_chunks, chunk_tokens, *array.shape[axis + 1 :])
        return jnp.moveaxis(jnp.pad(array, padding).reshape(shape), axis, 0)

    chunks = (tuple(split(array, 0) for array in rows), None if transposed is None else split(transposed, 1))
    carry, outputs = jax.lax.scan(lambda state, chunk: body(state, *chunk), carry, chunks)
    return carry, jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:])[:num_rows], outputs)


def _product(left: jax.Array, right: jax.Array, left_axis: int, right_axis: int) -> jax.Array:
    """The matrix product over the given axes, accumulated in float32."""
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    contracted = (((left_axis,), (right_axis,)), ((), ()))
    return jax.lax.dot_general(left, right, contracted, precision=precision, preferred_element_type=jnp.float32)


def _axis_size(axis: str | None) -> int:
    return 1 if axis is None else jax.lax.axis_size(axis)


def _check_operands(hidden: jax.Array, head: jax.Array, targets: jax.Array, parts: int) -> None:
    if (
        hidden.ndim != 2
        or head.ndim != 2
        or hidden.shape[1] != head.shape[0] * parts
        or targets.shape != hidden.shape[:1]
    ):
        raise ValueError(
            f"token_scores takes hidden [N, D], head [D, V] and targets [N], but got hidden {list(hidden.shape)}, head "
            f"{list(head.shape)}{f' times {parts}' if parts > 1 else ''} and targets {list(targets.shape)}, which do not fit "
            "together. Flatten batch and time into N; a tied embedding [V, D] has to be transposed."
        )
    if head.dtype not in (hidden.dtype, jnp.float32):
        raise ValueError(
            f"token_scores multiplies in hidden's dtype, {hidden.dtype}, but found a head of {head.dtype}, so the product's "
            f"precision would be a guess. Pass the head in {hidden.dtype} or as float32 master weights."
        )
