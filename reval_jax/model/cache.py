"""The cache of keys and values, and the attention of one new token per row over it, for decoding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from reval_jax.model import linear

BLOCK = 128  # cache positions read at a time; a cache's length is a multiple of it


class Storage(NamedTuple):
    """How arrays of the compute dtype are held in memory between uses."""

    pack: Callable[[jax.Array], jax.Array]  # numbers → what is stored
    unpack: Callable[[jax.Array], jax.Array]  # its inverse
    positions_last: bool = (
        True  # positions are the last axis of the cached keys, else the last but one, as of the values
    )


def _identity(leaf: jax.Array) -> jax.Array:
    return leaf


PLAIN = Storage(_identity, _identity)
ROWS = Storage(_identity, _identity, positions_last=False)
"""For a kernel that reads a position's whole key at once."""


class Cache(NamedTuple):
    """Keys (after RoPE) and values, of one layer or with a leading axis of layers.

    The caller's `lengths` say how many positions are valid. int8 entries are multiples of a float32 scale, one per token and
    head; other dtypes have no scale and are held as `Storage` packs them. Positions are the last axis of the keys (of
    `ROWS` the last but one) and the last but one of the values: both products with the new token then read memory in order.
    """

    keys: jax.Array  # [..., B, K, H, S]; of `ROWS` [..., B, K, S, H]
    values: jax.Array  # [..., B, K, S, H]
    key_scale: jax.Array | None = None  # f32[..., B, K, S]
    value_scale: jax.Array | None = None  # f32[..., B, K, S]


Attend = Callable[[jax.Array, Cache, jax.Array, jax.Array | None, Storage], jax.Array]  # `batched`, or like it


def empty(
    shape: tuple[int, ...], length: int, kv_heads: int, head_size: int, dtype: str, storage: Storage = PLAIN
) -> Cache:
    """A cache of zeros.

    Args:
      shape: the leading axes: (rows,) for one layer, (layers, rows) for all.
    """
    heads = (*shape, kv_heads)
    stored = jax.eval_shape(storage.pack, jax.ShapeDtypeStruct((), dtype)).dtype
    scale = jnp.zeros((*heads, length), jnp.float32) if dtype == "int8" else None
    keys_shape = (head_size, length) if storage.positions_last else (length, head_size)
    return Cache(jnp.zeros((*heads, *keys_shape), stored), jnp.zeros((*heads, length, head_size), stored), scale, scale)


def from_prefill(keys: jax.Array, values: jax.Array, dtype: str, storage: Storage = PLAIN) -> Cache:
    """The cache of whole rows, from their keys and values [..., S, K, H]."""
    (keys, key_scale), (values, value_scale) = (_store(heads, dtype, storage) for heads in (keys, values))

    def positions_last(scale: jax.Array | None) -> jax.Array | None:
        return None if scale is None else jnp.swapaxes(scale, -1, -2)

    return Cache(
        jnp.moveaxis(keys, -3, -1 if storage.positions_last else -2),
        jnp.moveaxis(values, -3, -2),
        positions_last(key_scale),
        positions_last(value_scale),
    )


def _store(heads: jax.Array, dtype: str, storage: Storage) -> tuple[jax.Array, jax.Array | None]:
    """[..., H] as the cache stores it; for int8 with each head's scale: its largest absolute entry / 127."""
    if dtype != "int8":
        return storage.pack(heads.astype(dtype)), None
    wide = heads.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(wide).max(axis=-1), jnp.finfo(jnp.float32).tiny) / 127
    return jnp.round(wide / scale[..., None]).astype(jnp.int8), scale


def write(
    cache: Cache,
    keys: jax.Array,
    values: jax.Array,
    positions: jax.Array,
    layer: jax.Array | None = None,
    storage: Storage = PLAIN,
) -> Cache:
    """`cache` with one token per row, keys and values [B, K, H], at index positions[b] of each row.

    Args:
      layer: i32[] index into the cache's leading axis of layers, if it has one.
    """
    dtype = jax.eval_shape(storage.unpack, cache.keys).dtype.name
    (keys, key_scale), (values, value_scale) = (_store(heads, dtype, storage) for heads in (keys, values))
    leading = () if layer is None else (layer,)

    def put(old: jax.Array, new: jax.Array, axis_distance: int) -> jax.Array:
        """`old` with one token per row; the axis of positions comes `axis_distance` axes after that of rows."""

        def put_row(row: jax.Array, token: jax.Array, position: jax.Array) -> jax.Array:
            token = jnp.expand_dims(token, axis_distance - 1)
            start = (*leading, *(0,) * (axis_distance - 1), position, *(0,) * (token.ndim - axis_distance))
            return jax.lax.dynamic_update_slice(row, token.reshape((1,) * len(leading) + token.shape), start)

        # Row by row, so that rows on several devices stay where they are.
        return jax.vmap(put_row, (len(leading), 0, 0), len(leading))(old, new, positions)

    return Cache(
        put(cache.keys, keys, 3 if storage.positions_last else 2),
        put(cache.values, values, 2),
        None if cache.key_scale is None or key_scale is None else put(cache.key_scale, key_scale, 2),
        None if cache.value_scale is None or value_scale is None else put(cache.value_scale, value_scale, 2),
    )


def copy_rows_in_turn(
    caches: Any, source: Any, to_rows: jax.Array, from_rows: jax.Array, count: jax.Array, *, row_axis: int
) -> Any:
    """`caches` with the first positions of `count` rows copied from `source`, one row after the other.

    Args:
      caches, source: trees of arrays with the same axes; those of `source` may be shorter along rows and positions.
      to_rows, from_rows: i32[B], of which the first `count` are valid; valid `to_rows` are distinct.
      count: i32[]; the work is that of so many rows, but a GPU waits for the host at each.
    """

    def copy(index: jax.Array, caches: Any) -> Any:
        def copy_part(old: jax.Array, new: jax.Array) -> jax.Array:
            row = jax.lax.dynamic_slice_in_dim(new, from_rows[index], 1, axis=row_axis)
            start = [jnp.int32(0)] * old.ndim
            start[row_axis] = to_rows[index]
            return jax.lax.dynamic_update_slice(old, row, start)

        return jax.tree.map(copy_part, caches, source)

    return jax.lax.fori_loop(0, count, copy, caches)


def copy_rows_at_once(
    caches: Any, source: Any, to_rows: jax.Array, from_rows: jax.Array, count: jax.Array, *, row_axis: int
) -> Any:
    """`copy_rows_in_turn` without a loop: as much work as for B rows, whatever `count` is."""
    indices = jnp.arange(to_rows.shape[0], dtype=jnp.int32)

    def copy_part(old: jax.Array, new: jax.Array) -> jax.Array:
        # Rows beyond the last are dropped; they are distinct, because a scatter to distinct rows needs no order.
        target = jnp.where(indices < count, to_rows, old.shape[row_axis] + indices)
        rows = jnp.take(new, from_rows, axis=row_axis)
        leading = (slice(None),) * row_axis
        trailing = tuple(slice(0, size) for size in new.shape[row_axis + 1 :])
        return old.at[(*leading, target, *trailing)].set(rows, mode="drop", unique_indices=True)

    return jax.tree.map(copy_part, caches, source)


def batched(
    query: jax.Array, cache: Cache, lengths: jax.Array, layer: jax.Array | None = None, storage: Storage = PLAIN
) -> jax.Array:
    """Attention of one new token per row, query [B,N,H], over one layer's cache, which already holds its key and value.

    The cache is read block by block for all rows together, as far as the longest row needs, with a running softmax. A
    block past a row's last position leaves that row's result unchanged, bit for bit, so no row's result depends on the
    length of the others or of the cache.

    Args:
      lengths: i32[B]; row b attends to cache positions 0..lengths[b]-1. The result of a row of length 0 is finite and
        meaningless.
      layer: i32[] index into the cache's leading axis of layers, if it has one.
    """
    return attend_rows(query, cache, lengths, layer, storage, jnp.int32(0))


def whole(
    query: jax.Array, cache: Cache, lengths: jax.Array, layer: jax.Array | None = None, storage: Storage = ROWS
) -> jax.Array:
    """`batched` of one layer's cache that `ROWS` holds, over all its positions at once, masked; equal to rounding."""
    if layer is not None or storage is not ROWS:
        raise ValueError("cache.whole reads one layer's cache, held as cache.ROWS.")
    dtype, (rows, num_heads, size) = query.dtype, query.shape
    num_kv_heads, length = cache.values.shape[1:3]
    grouped = query.reshape(rows, num_kv_heads, num_heads // num_kv_heads, size)
    scores = linear.product("bkgh,bksh->bkgs", dtype, grouped, cache.keys) * size**-0.5
    if cache.key_scale is not None:
        scores *= cache.key_scale[:, :, None]
    is_valid = jnp.arange(length)[None] < lengths[:, None]
    weights = linear.masked_softmax(scores, jnp.broadcast_to(is_valid[:, None, None], scores.shape))
    if cache.value_scale is not None:
        weights *= cache.value_scale[:, :, None]
    attended = linear.product("bkgs,bksh->bkgh", dtype, weights, cache.values)
    return attended.astype(dtype).reshape(query.shape)


def attend_rows(
    query: jax.Array,
    cache: Cache,
    lengths: jax.Array,
    layer: jax.Array | None,
    storage: Storage,
    first_row: jax.Array,
) -> jax.Array:
    """`batched`, for the rows of the cache that begin at `first_row`, as many as `query` has."""
    dtype, (rows, num_heads, size) = query.dtype, query.shape
    num_kv_heads = cache.keys.shape[-3]
    grouped = query.reshape(rows, num_kv_heads, num_heads // num_kv_heads, size)

    def over_block(index: jax.Array, running: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        def block(part: jax.Array, positions_axis: int) -> jax.Array:
            return storage.unpack(_block(part, layer, (first_row, rows), index, positions_axis))

        running_max, running_sum, running_out = running
        scores = linear.product("bkgh,bkhs->bkgs", dtype, grouped, block(cache.keys, 3)) * size**-0.5
        if cache.key_scale is not None:
            scores *= block(cache.key_scale, 2)[:, :, None]
        is_valid = index * BLOCK + jnp.arange(BLOCK)[None] < lengths[:, None]
        scores = jnp.where(is_valid[:, None, None], scores, linear.MASKED_SCORE)
        new_max = jnp.maximum(running_max, scores.max(axis=-1))
        shrink, weights = jnp.exp(running_max - new_max), jnp.exp(scores - new_max[..., None])
        running_sum = running_sum * shrink + weights.sum(axis=-1)
        if cache.value_scale is not None:
            weights *= block(cache.value_scale, 2)[:, :, None]
        out = linear.product("bkgs,bksh->bkgh", dtype, weights, block(cache.values, 2))
        return new_max, running_sum, running_out * shrink[..., None] + out

    zeros = jnp.zeros(grouped.shape, jnp.float32)
    running = (jnp.full(grouped.shape[:-1], linear.MASKED_SCORE), zeros[..., 0], zeros)
    num_blocks = (jnp.max(lengths) + BLOCK - 1) // BLOCK
    _, running_sum, running_out = jax.lax.fori_loop(0, num_blocks, over_block, running)
    # A row's largest score has weight 1, so only a row of length 0 has a smaller sum.
    return (running_out / jnp.maximum(running_sum, 1)[..., None]).astype(dtype).reshape(query.shape)


def _block(
    part: jax.Array, layer: jax.Array | None, rows: tuple[jax.Array, int], index: jax.Array, positions_axis: int
) -> jax.Array:
    """Positions index·BLOCK … of one layer, for `rows` = (first, number).

    Args:
      positions_axis: counted from the axis of rows.
    """
    leading = () if layer is None else (layer,)
    row_axis = len(leading)
    start = [*leading, *[jnp.int32(0)] * (part.ndim - row_axis)]
    sizes = [*(1 for _ in leading), *part.shape[row_axis:]]
    start[row_axis], sizes[row_axis] = rows
    start[row_axis + positions_axis], sizes[row_axis + positions_axis] = index * BLOCK, BLOCK
    block = jax.lax.dynamic_slice(part, start, sizes)
    return block if layer is None else block[0]
