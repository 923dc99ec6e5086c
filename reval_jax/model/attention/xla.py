"""Attention in plain XLA: the reference implementation, for any platform and number type."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import ad_checkpoint

from reval_jax.model import linear

# Rows up to this many columns are attended to at once, longer ones by blocks of queries: at 512 columns on a CPU half
# the time of the whole square, at 128 as much.
_WHOLE = 256
_BLOCK = 128  # queries
# Groups of blocks, each of which multiplies only the keys up to its own end: 4 groups do 5/8 of the square's products,
# where exactly the causal half would need a copy of the program for every block.
_GROUPS = 4


def attend(query: jax.Array, keys: jax.Array, values: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Grouped-query attention, causal and inside segments: query [B,T,N,H], keys and values [B,T,K,H] -> [B,T,N,H].

    Keys and values are never repeated in memory. A row longer than 256 columns is never held as [T,T] scores: those
    of 128 queries at a time are, in the forward pass and, recomputed, in the backward pass.
    """
    length = query.shape[1]
    if length <= _WHOLE:
        attended = _attend_block(query, segment_ids, 0, keys, values, segment_ids)
    else:
        attended = _by_blocks(query, keys, values, segment_ids)
    return ad_checkpoint.checkpoint_name(attended, linear.SAVED_ATTENTION)


def _attend_block(
    query: jax.Array,
    query_segments: jax.Array,
    start: jax.Array | int,
    keys: jax.Array,
    values: jax.Array,
    key_segments: jax.Array,
) -> jax.Array:
    """Attention of the queries [B,Q,N,H] at columns start..start+Q-1 to the keys and values [B,S,K,H] at 0..S-1."""
    dtype, (rows, length, num_heads, size) = query.dtype, query.shape
    num_kv_heads = keys.shape[2]
    grouped = query.reshape(rows, length, num_kv_heads, num_heads // num_kv_heads, size)
    scores = linear.product("btkgh,bskh->bkgts", dtype, grouped, keys) * size**-0.5
    is_before = (start + jnp.arange(length))[:, None] >= jnp.arange(keys.shape[1])[None, :]
    mask = is_before[None] & (query_segments[:, :, None] == key_segments[:, None, :])
    weights = linear.masked_softmax(scores, jnp.broadcast_to(mask[:, None, None], scores.shape))
    attended = linear.product("bkgts,bskh->btkgh", dtype, weights, values)
    return attended.astype(dtype).reshape(query.shape)


def _by_blocks(query: jax.Array, keys: jax.Array, values: jax.Array, segment_ids: jax.Array) -> jax.Array:
    rows, length = segment_ids.shape
    num_blocks = -(-length // _BLOCK)
    padding = num_blocks * _BLOCK - length
    # Padding columns come last, so that no column of the row sees them.
    query, keys, values = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (query, keys, values))
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, padding)))
    blocks = jnp.moveaxis(query.reshape(rows, num_blocks, _BLOCK, *query.shape[2:]), 1, 0)
    block_segments = jnp.moveaxis(segment_ids.reshape(rows, num_blocks, _BLOCK), 1, 0)
    starts = jnp.arange(num_blocks, dtype=jnp.int32) * _BLOCK
    groups = min(_GROUPS, num_blocks)
    attended = []
    for group in range(groups):
        first, last = group * num_blocks // groups, (group + 1) * num_blocks // groups
        seen = last * _BLOCK
        body = functools.partial(
            _attend_block, keys=keys[:, :seen], values=values[:, :seen], key_segments=segment_ids[:, :seen]
        )
        # Without the checkpoint the backward pass would keep every block's scores, which together are [T,T].
        checkpointed = jax.checkpoint(lambda block, body=body: body(*block), prevent_cse=False)
        attended.append(jax.lax.map(checkpointed, (blocks[first:last], block_segments[first:last], starts[first:last])))
    whole = jnp.moveaxis(jnp.concatenate(attended), 0, 1)
    return whole.reshape(query.shape)[:, :length]
