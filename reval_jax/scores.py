"""Fused LM head: log-probability and logsumexp per token, without [tokens, vocabulary] logits.

Head, temperature and softmax are in one place, so that log pi(tau) and V(s1), of the policy and of the reference, come
from the same logits. Logits exist for one chunk of tokens at a time, in the forward and again in the backward pass.
Importable without flax, for use in other trainers; `scores_sharded` holds other forms of `token_scores`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

# Bytes of float32 logits per chunk unless chunk_tokens is set: 544 tokens against 151,936 columns. Every chunk reads the
# head and adds to the head's whole gradient; in short chunks that would take as long as the products.
CHUNK_BYTES = 320 * 2**20


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
    which is rounded to hidden's dtype before it is multiplied. log_prob is computed around the row's maximum, never as a
    difference of two large numbers: rounding then costs a token about 1e-7 nat however large its logits are, which matters
    for sums over thousands of tokens. Both results are differentiable in hidden, head and temperature, once and in reverse
    mode; the temperature's gradient is computed from hidden's, so in bfloat16 it is rough. A row whose two cotangents are
    zero adds exactly zero to every gradient, whatever it holds.

    Memory: a chunk's logits, and in the backward pass a float32 array of the head's (local) size.

    With `vocab_axis` or `gather_axis`, call it under `jax.shard_map(…, check_vma=False)` and take its gradient inside that
    region, of a loss that is equal on all devices of `vocab_axis`: the gradients of hidden and temperature are then equal on
    these devices, and complete. Nothing is summed over an axis that is not named here.
    `scores_sharded.sharded_token_scores` is the same for whole arrays.

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
    operands = prepare(hidden, head, targets, temperature)
    log_prob, logsumexp = planned_scores(make_plan(operands, chunk_tokens, vocab_axis, gather_axis), *operands)
    return log_prob, logsumexp


def head_product(hidden: jax.Array, head: jax.Array) -> jax.Array:
    """The logits before the temperature, f32[N, V], of hidden [N, D] and head [D, V]: the sampler's and the learner's.

    The product is taken in the operands' dtype and accumulated in float32; on accelerators a float32 product is rounded to
    bfloat16 or TF32 unless full precision is requested, as it is here.
    """
    return _product(hidden, head, 1, 0)


class Plan(NamedTuple):
    """The static settings of a call."""

    chunk_tokens: int
    head_dtype: DTypeLike
    vocab_axis: str | None
    gather_axis: str | None
    row_axes: tuple[str, ...] = ()  # mesh axes over which the gradients of head and temperature are summed
    has_moments: bool = False


class Residuals(NamedTuple):
    """Inputs of the backward pass; the logsumexp is kept as the two numbers that it was computed from."""

    hidden: jax.Array  # [N, D]
    head: jax.Array  # [D, V], gathered, in hidden's dtype
    targets: jax.Array  # i32[N]
    scale: jax.Array  # f32[], 1 / temperature
    row_max: jax.Array  # f32[N], the largest logit before the temperature
    normalizer: jax.Array  # f32[N], sum_a exp(scale (logit_a - row_max))


def prepare(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, temperature: float | jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The operands of `planned_scores`: hidden, head, targets i32[N] and 1 / temperature."""
    temperature = jnp.asarray(temperature, jnp.float32)
    return jnp.asarray(hidden), jnp.asarray(head), jnp.asarray(targets, jnp.int32), 1.0 / temperature


def make_plan(
    operands: tuple[jax.Array, ...], chunk_tokens: int | None, vocab_axis: str | None, gather_axis: str | None
) -> Plan:
    """The plan of a call, whose operands are checked. Raises ValueError as `token_scores`."""
    hidden, head, targets, _ = operands
    check_operands(hidden, head, targets, _axis_size(gather_axis))
    return Plan(chunk_size(hidden.shape[0], head.shape[1], chunk_tokens), head.dtype, vocab_axis, gather_axis)


def chunk_size(num_tokens: int, vocabulary: int, chunk_tokens: int | None, *, chunk_bytes: int = CHUNK_BYTES) -> int:
    """Tokens in a chunk, all of them where no loop is needed; with None as many as `chunk_bytes` of logits allow."""
    if chunk_tokens is None:
        largest = max(16, chunk_bytes // (4 * vocabulary) // 16 * 16)  # a bfloat16 tile has 16 rows
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
def planned_scores(
    plan: Plan, hidden: jax.Array, head: jax.Array, targets: jax.Array, scale: jax.Array
) -> tuple[jax.Array, ...]:
    """log_prob and logsumexp f32[N]; with `plan.has_moments` also entropy and mean logit, which have no gradient."""
    return forward(plan, hidden, head, targets, scale)[0]


def forward(
    plan: Plan, hidden: jax.Array, head: jax.Array, targets: jax.Array, scale: jax.Array
) -> tuple[tuple[jax.Array, ...], Residuals]:
    """The outputs of `planned_scores`, and what its backward pass needs."""
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
    return outputs, Residuals(hidden, head, targets, scale, row_max, normalizer)


def _local_columns(plan: Plan, targets: jax.Array, num_columns: int) -> tuple[jax.Array, jax.Array]:
    """Each target's column of this device's head, num_columns where another device has it; and whether any has it."""
    first = 0 if plan.vocab_axis is None else jax.lax.axis_index(plan.vocab_axis) * num_columns
    is_token = (targets >= 0) & (targets < num_columns * _axis_size(plan.vocab_axis))
    is_local = (targets >= first) & (targets < first + num_columns)
    return jnp.where(is_local, targets - first, num_columns), is_token


def _row_sums(plan: Plan, logits: jax.Array, columns: jax.Array, scale: jax.Array) -> tuple[jax.Array, ...]:
    """Of each row of the local logits: its maximum, the target's logit (-inf elsewhere), and sums around the maximum."""
    row_max = jnp.max(logits, axis=1)
    target_logit = jnp.take_along_axis(logits, columns[:, None], axis=1, mode="fill", fill_value=-jnp.inf)[:, 0]
    shifted = scale * (logits - row_max[:, None])
    weight = jnp.exp(shifted)
    moments = (jnp.sum(weight * shifted, axis=1), jnp.sum(logits, axis=1)) if plan.has_moments else ()
    return row_max, target_logit, jnp.sum(weight, axis=1), *moments


def _over_vocabulary(plan: Plan, sums: tuple[jax.Array, ...], scale: jax.Array) -> tuple[jax.Array, ...]:
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


def backward(
    plan: Plan, residuals: Residuals, cotangents: tuple[jax.Array, ...]
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
    # Transposed outside the loop, because XLA:CPU has no bfloat16 product over the first axes of both operands: it would
    # convert them to float32, d_logits too, in each chunk (see model/cpu.py; free elsewhere).
    head_gradient, (d_hidden, along) = _over_chunks(plan.chunk_tokens, scan_chunk, zero, rows, hidden.T)
    if plan.gather_axis is not None:
        head_gradient = jax.lax.psum_scatter(head_gradient, plan.gather_axis, scatter_dimension=0, tiled=True)
    other_axes = tuple(axis for axis in plan.row_axes if axis != plan.gather_axis)
    d_scale = jax.lax.psum(jnp.sum(along), plan.row_axes) / scale
    d_head = jax.lax.psum(head_gradient, other_axes).astype(plan.head_dtype)
    return d_hidden, d_head, None, d_scale


planned_scores.defvjp(forward, backward)


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


def check_operands(hidden: jax.Array, head: jax.Array, targets: jax.Array, parts: int) -> None:
    """Raises ValueError if shapes or dtypes do not fit; `head` is one of `parts` equal parts of its rows."""
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
            f"token_scores multiplies in hidden's dtype, {hidden.dtype}, but the head is {head.dtype}, so the product's "
            f"precision would be a guess. Pass the head in {hidden.dtype} or as float32 master weights."
        )
