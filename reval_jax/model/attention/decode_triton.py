"""Attention of one new token per row over the KV cache, as one kernel: for NVIDIA GPUs, by Pallas with its Triton backend.

jax deprecates that backend since 0.11 and names two successors: Pallas' Mosaic GPU backend, and the same kernel in Triton's own
language through jax-triton. Nothing else here depends on it.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from reval_jax.model import cache as cache_lib
from reval_jax.model import linear

try:
    from jax.experimental.pallas import triton
except ImportError:  # a jax that has removed it
    triton = None  # type: ignore[assignment]

# jax warns at each lowering. Who uses this package cannot act on it; the docstring above is for who can.
warnings.filterwarnings("ignore", message="The Pallas Triton backend is deprecated")

_LEAST_ROWS = 16  # of a tensor core's product: the query heads of a key/value head are padded to it
_BLOCK_BYTES = 16 * 2**10  # of keys or values that a program multiplies at once: 64 positions of 128 bfloat16 numbers


def is_available() -> bool:
    """Whether this jax still has Pallas' Triton backend."""
    return triton is not None


def attend(
    query: jax.Array,
    cache: cache_lib.Cache,
    lengths: jax.Array,
    layer: jax.Array | None = None,
    storage: cache_lib.Storage = cache_lib.ROWS,
    *,
    interpret: bool = False,
) -> jax.Array:
    """`cache.batched` for one layer's cache that `cache.ROWS` holds; equal to rounding.

    One program for each row and key/value head reads that row's valid positions, a block at a time, with a running softmax.
    Blocks and their number depend on nothing but the row's own length, so a row's bits depend on no other row. Scores,
    softmax and sums are float32; the weights are rounded to the query's type before they multiply the values. int8 entries
    are multiplied as numbers of that type, and their scales applied to the scores and the weights.

    Args:
      query: [B,N,H], of any head size.
      lengths: i32[B] valid positions; the result of a row of length 0 is zeros.
      interpret: run the kernel's steps as plain JAX, on any platform; slow, for tests.

    Raises:
      ValueError: the cache has a leading axis of layers, or another storage.
    """
    if layer is not None or storage is not cache_lib.ROWS:
        raise ValueError("decode_triton.attend reads one layer's cache, held as cache.ROWS.")
    rows, num_heads, size = query.shape
    num_kv_heads, length = cache.values.shape[1:3]
    group = num_heads // num_kv_heads
    padded_size = pl.next_power_of_2(size)
    block = max(16, min(cache_lib.BLOCK, _BLOCK_BYTES // (padded_size * query.dtype.itemsize)))
    per_head = pl.BlockSpec((None, None, group, size), lambda row, head: (row, head, 0, 0))
    positions = pl.BlockSpec((None, None, length, size), lambda row, head: (row, head, 0, 0))
    scale = pl.BlockSpec((None, None, length), lambda row, head: (row, head, 0))
    scales = () if cache.key_scale is None else (cache.key_scale, cache.value_scale)
    query_rows = max(_LEAST_ROWS, pl.next_power_of_2(group))
    kernel = functools.partial(
        _attend_row, group=group, query_rows=query_rows, size=size, padded_size=padded_size, block=block
    )
    attended = pl.pallas_call(
        kernel,
        grid=(rows, num_kv_heads),
        in_specs=[
            pl.BlockSpec((None,), lambda row, head: (row,)),
            per_head,
            positions,
            positions,
            *[scale] * len(scales),
        ],
        out_specs=per_head,
        out_shape=jax.ShapeDtypeStruct((rows, num_kv_heads, group, size), query.dtype),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name="decode_attention",
    )(lengths, query.reshape(rows, num_kv_heads, group, size), cache.keys, cache.values, *scales)
    return attended.reshape(query.shape)


def _attend_row(
    length_ref: Any,
    query_ref: Any,
    keys_ref: Any,
    values_ref: Any,
    *rest: Any,
    group: int,
    query_rows: int,
    size: int,
    padded_size: int,
    block: int,
) -> None:
    """The kernel of one row and key/value head: refs i32[], [G,H], [S,H], [S,H], and for int8 the scales f32[S] twice."""
    *scale_refs, out_ref = rest
    dtype, length = query_ref.dtype, length_ref[...]
    heads, columns = jnp.arange(query_rows)[:, None], jnp.arange(padded_size)[None]
    is_query = (heads < group) & (columns < size)
    query = triton.load(query_ref.at[heads, columns], mask=is_query, other=0.0)

    def positions(ref: Any, start: jax.Array) -> jax.Array:
        """[block, padded_size] of keys or values, in the query's type; zeros beyond H."""
        tile = (start + jnp.arange(block))[:, None], columns
        if padded_size == size:
            return triton.load(ref.at[tile]).astype(dtype)
        return triton.load(ref.at[tile], mask=columns < size, other=0).astype(dtype)

    def over_block(index: jax.Array, running: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        running_max, running_sum, running_out = running
        start = index * block
        scores = _product(query, positions(keys_ref, start), trans_b=True) * size**-0.5
        if scale_refs:
            scores *= scale_refs[0][pl.ds(start, block)][None]
        is_valid = start + jnp.arange(block) < length
        scores = jnp.where(is_valid[None], scores, linear.MASKED_SCORE)
        new_max = jnp.maximum(running_max, scores.max(axis=1))
        shrink, weights = jnp.exp(running_max - new_max), jnp.exp(scores - new_max[:, None])
        running_sum = running_sum * shrink + weights.sum(axis=1)
        if scale_refs:
            weights *= scale_refs[1][pl.ds(start, block)][None]
        out = _product(weights.astype(dtype), positions(values_ref, start))
        return new_max, running_sum, running_out * shrink[:, None] + out

    running = (
        jnp.full((query_rows,), linear.MASKED_SCORE, jnp.float32),
        jnp.zeros((query_rows,), jnp.float32),
        jnp.zeros((query_rows, padded_size), jnp.float32),
    )
    _, running_sum, running_out = jax.lax.fori_loop(0, pl.cdiv(length, block), over_block, running)
    # A row's largest score has weight 1, so only a row of length 0 has a smaller sum.
    attended = (running_out / jnp.maximum(running_sum, 1)[:, None]).astype(dtype)
    triton.store(out_ref.at[heads, columns], attended, mask=is_query)


def _product(left: jax.Array, right: jax.Array, *, trans_b: bool = False) -> jax.Array:
    """The product of two tiles, accumulated in float32; of float32 numbers without rounding them to TF32."""
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    product: jax.Array = triton.dot(left, right, trans_b=trans_b, precision=precision)
    return product
