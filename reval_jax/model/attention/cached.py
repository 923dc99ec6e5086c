"""The cache of keys and values, and attention of one new token a row over it, for decoding."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from reval_jax.model import arithmetic, bits

BLOCK = 128  # cache positions read at a time; a cache is a multiple of it long


class Cache(NamedTuple):
    """Keys (after RoPE) and values, of one layer or with a leading axis of layers.

    Which positions are valid is known from the caller's cursors. bfloat16 numbers lie as their bits, uint16. int8 numbers
    are multiples of a float32 scale, one for each token and head; other dtypes have none. Positions are the keys' last axis, and
    the values' last but one: both products with the new token then run over memory in its order.
    """

    keys: jax.Array  # [..., B, K, H, S]
    values: jax.Array  # [..., B, K, S, H]
    key_scale: jax.Array | None = None  # f32[..., B, K, S]
    value_scale: jax.Array | None = None  # f32[..., B, K, S]


Attend = Callable[[jax.Array, Cache, jax.Array, jax.Array | None], jax.Array]  # `attend`, or one that stands for it


def empty(rows: int, length: int, kv_heads: int, head_size: int, dtype: str) -> Cache:
    """One layer's cache of zeros."""
    heads, kept_in = (rows, kv_heads), jnp.uint16 if dtype == "bfloat16" else dtype
    scale = jnp.zeros((*heads, length), jnp.float32) if dtype == "int8" else None
    return Cache(
        jnp.zeros((*heads, head_size, length), kept_in), jnp.zeros((*heads, length, head_size), kept_in), scale, scale
    )


def of_rows(keys: jax.Array, values: jax.Array, dtype: str) -> Cache:
    """Keys and values [..., S, K, H] of whole rows as a cache holds them."""
    (keys, key_scale), (values, value_scale) = _kept(keys, dtype), _kept(values, dtype)

    def positions_last(scale: jax.Array | None) -> jax.Array | None:
        return None if scale is None else jnp.swapaxes(scale, -1, -2)

    return Cache(
        jnp.moveaxis(keys, -3, -1),
        jnp.moveaxis(values, -3, -2),
        positions_last(key_scale),
        positions_last(value_scale),
    )


def _kept(heads: jax.Array, dtype: str) -> tuple[jax.Array, jax.Array | None]:
    """[..., H] in the cache's dtype; for int8 with the scale of each head, whose largest number is 127."""
    if dtype != "int8":
        return bits.as_bits(heads.astype(dtype)), None
    wide = heads.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(wide).max(axis=-1), jnp.finfo(jnp.float32).tiny) / 127
    return jnp.round(wide / scale[..., None]).astype(jnp.int8), scale


def write(
    cache: Cache, keys: jax.Array, values: jax.Array, positions: jax.Array, layer: jax.Array | None = None
) -> Cache:
    """`cache` with one token a row, keys and values [B, K, H], at index positions[b] of each row.

    Args:
      layer: i32[] index into the cache's leading axis of layers, if it has one.
    """
    dtype = jax.eval_shape(bits.as_numbers, cache.keys).dtype.name
    (keys, key_scale), (values, value_scale) = _kept(keys, dtype), _kept(values, dtype)
    leading = () if layer is None else (layer,)

    def put(old: jax.Array, new: jax.Array, num_between: int) -> jax.Array:
        """Writes where the axis of positions stands `num_between` axes behind that of rows."""

        def of_row(row: jax.Array, token: jax.Array, position: jax.Array) -> jax.Array:
            token = jnp.expand_dims(token, num_between - 1)
            start = (*leading, *(0,) * (num_between - 1), position, *(0,) * (token.ndim - num_between))
            return jax.lax.dynamic_update_slice(row, token.reshape((1,) * len(leading) + token.shape), start)

        # By row, so that rows on several devices stay where they are.
        return jax.vmap(of_row, (len(leading), 0, 0), len(leading))(old, new, positions)

    return Cache(
        put(cache.keys, keys, 3),
        put(cache.values, values, 2),
        None if cache.key_scale is None or key_scale is None else put(cache.key_scale, key_scale, 2),
        None if cache.value_scale is None or value_scale is None else put(cache.value_scale, value_scale, 2),
    )


def attend(query: jax.Array, cache: Cache, lengths: jax.Array, layer: jax.Array | None = None) -> jax.Array:
    """Attention of one new token a row, query [B,N,H], to one layer's cache, in which its own key and value are written.

    The cache is read a block at a time for all rows, as far as the longest needs, with a running softmax. A block behind a
    row's last position leaves that row's result as it is, bit for bit, so that no row's result depends on how long the
    others, or the cache, are.

    Args:
      lengths: i32[B]; row b attends to cache positions 0..lengths[b]-1. What a row of length 0 gets is finite and meaningless.
      layer: i32[] index into the cache's leading axis of layers, if it has one.
    """
    return _attend_rows(query, cache, lengths, layer, jnp.int32(0))


def attend_by_row(query: jax.Array, cache: Cache, lengths: jax.Array, layer: jax.Array | None = None) -> jax.Array:
    """`attend`, one row after the other, each over as many blocks as it needs itself.

    Faster where a block has to be copied out of the cache before it is multiplied: less is copied, and what is copied stays
    in a core's own cache.
    """

    def of_row(row: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        query, length, index = row
        return _attend_rows(query[None], cache, length[None], layer, index)[0]

    return jax.lax.map(of_row, (query, lengths, jnp.arange(query.shape[0], dtype=jnp.int32)))


def _attend_rows(
    query: jax.Array, cache: Cache, lengths: jax.Array, layer: jax.Array | None, first: jax.Array
) -> jax.Array:
    """`attend` of the rows `first` … of the cache, as many as `query` has, all at once."""
    dtype, (rows, num_heads, size) = query.dtype, query.shape
    num_kv_heads = cache.keys.shape[-3]
    grouped = query.reshape(rows, num_kv_heads, num_heads // num_kv_heads, size)

    def over_block(index: jax.Array, running: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        def block(part: jax.Array, positions_axis: int) -> jax.Array:
            return _block(part, layer, (first, rows), index, positions_axis)

        peak, mass, total = running
        scores = arithmetic.product("bkgh,bkhs->bkgs", dtype, grouped, block(cache.keys, 3)) * size**-0.5
        if cache.key_scale is not None:
            scores *= block(cache.key_scale, 2)[:, :, None]
        is_past = index * BLOCK + jnp.arange(BLOCK)[None] < lengths[:, None]
        scores = jnp.where(is_past[:, None, None], scores, arithmetic.MASKED_SCORE)
        new_peak = jnp.maximum(peak, scores.max(axis=-1))
        shrink, weights = jnp.exp(peak - new_peak), jnp.exp(scores - new_peak[..., None])
        mass = mass * shrink + weights.sum(axis=-1)
        if cache.value_scale is not None:
            weights *= block(cache.value_scale, 2)[:, :, None]
        total = total * shrink[..., None] + arithmetic.product(
            "bkgs,bksh->bkgh", dtype, weights, block(cache.values, 2)
        )
        return new_peak, mass, total

    nothing = jnp.zeros(grouped.shape, jnp.float32)
    running = (jnp.full(grouped.shape[:-1], arithmetic.MASKED_SCORE), nothing[..., 0], nothing)
    num_blocks = (jnp.max(lengths) + BLOCK - 1) // BLOCK
    _, mass, total = jax.lax.fori_loop(0, num_blocks, over_block, running)
    # The largest score of a row has weight 1, so that only a row of length 0 has less mass.
    return (total / jnp.maximum(mass, 1)[..., None]).astype(dtype).reshape(query.shape)


def _block(
    part: jax.Array, layer: jax.Array | None, rows: tuple[jax.Array, int], index: jax.Array, positions_axis: int
) -> jax.Array:
    """Of `rows`, (first, number), positions index·BLOCK … of one layer; `positions_axis` counts from that of rows."""
    of_layer = () if layer is None else (layer,)
    start = [*of_layer, *[jnp.int32(0)] * (part.ndim - len(of_layer))]
    sizes = [*(1 for _ in of_layer), *part.shape[len(of_layer) :]]
    row_axis = len(of_layer)
    start[row_axis], sizes[row_axis] = rows
    start[row_axis + positions_axis], sizes[row_axis + positions_axis] = index * BLOCK, BLOCK
    found = jax.lax.dynamic_slice(part, start, sizes)
    return bits.as_numbers(found if layer is None else found[0])
