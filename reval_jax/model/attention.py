"""Grouped-query attention: over whole rows, and of one new token over its cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from reval_jax.model import arithmetic

# A finite stand-in for minus infinity: a row with every score masked then has a softmax (uniform), not NaN.
_MASKED_SCORE = -1e30


def _softmax_over(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax over the last axis of f32 `scores` where `mask`, which has the same shape; never NaN."""
    return jax.nn.softmax(jnp.where(mask, scores, _MASKED_SCORE), axis=-1)


def attend(query: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array) -> jax.Array:
    """Grouped-query attention: query [B,T,N,H], keys and values [B,S,K,H], mask bool[B,T,S] -> [B,T,N,H].

    Query heads are grouped by the key/value head they share, so keys and values are never repeated in memory.
    """
    dtype, (rows, length, num_heads, size) = query.dtype, query.shape
    num_groups = num_heads // keys.shape[2]
    grouped = query.reshape(rows, length, keys.shape[2], num_groups, size)
    scores = arithmetic.product("btkgh,bskh->bkgts", dtype, grouped, keys) * size**-0.5
    weights = _softmax_over(scores, jnp.broadcast_to(mask[:, None, None], scores.shape))
    attended = arithmetic.product("bkgts,bskh->btkgh", dtype, weights, values)
    return attended.astype(dtype).reshape(query.shape)


def attend_cached(
    query: jax.Array, key: jax.Array, value: jax.Array, past: tuple[jax.Array, jax.Array], positions: jax.Array
) -> jax.Array:
    """Attention of one new token a row: query [B,N,H], its own key and value [B,K,H], past keys and values [B,S,K,H].

    Row b attends to cache positions below positions[b] and to itself. The cache is only read here: the new keys and
    values of all layers are written once, after the scan, so that no layer copies its part of the cache.
    """
    dtype, (rows, num_heads, size) = query.dtype, query.shape
    past_keys, past_values = past
    num_positions, num_kv_heads = past_keys.shape[1], past_keys.shape[2]
    grouped = query.reshape(rows, num_kv_heads, num_heads // num_kv_heads, size)
    past_scores = arithmetic.product("bkgh,bskh->bkgs", dtype, grouped, past_keys)
    own_scores = arithmetic.product("bkgh,bkh->bkg", dtype, grouped, key)
    scores = jnp.concatenate([past_scores, own_scores[..., None]], axis=-1) * size**-0.5
    is_past = jnp.arange(num_positions)[None, :] < positions[:, None]
    mask = jnp.concatenate([is_past, jnp.ones_like(is_past[:, :1])], axis=-1)
    weights = _softmax_over(scores, jnp.broadcast_to(mask[:, None, None], scores.shape))
    attended = arithmetic.product("bkgs,bskh->bkgh", dtype, weights[..., :-1], past_values)
    attended += weights[..., -1:] * value.astype(jnp.float32)[:, :, None]
    return attended.astype(dtype).reshape(query.shape)
