"""Attention of one new token a row over its cache, for decoding."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from reval_jax.model import arithmetic


def attend(
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
    weights = arithmetic.masked_softmax(scores, jnp.broadcast_to(mask[:, None, None], scores.shape))
    attended = arithmetic.product("bkgs,bskh->bkgh", dtype, weights[..., :-1], past_values)
    attended += weights[..., -1:] * value.astype(jnp.float32)[:, :, None]
    return attended.astype(dtype).reshape(query.shape)
