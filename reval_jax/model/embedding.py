"""Token embeddings, of a whole table or of one device's part of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from reval_jax import parallel
from reval_jax.model.kernels import Kernels


def embed(table: jax.Array, tokens: jax.Array, kernels: Kernels, *, compute_dtype: DTypeLike) -> jax.Array:
    """The embeddings [..., D] of `tokens` i32[...], in `compute_dtype`.

    Of a table [V,D] that is split, each device holds rows (tensor axis) and columns (fsdp axis). Tokens travel then,
    rather than the table: each device looks up its columns of every fsdp device's tokens, and one all-to-all brings each
    device its own tokens whole.

    Args:
      tokens: in [0, V), [B,T] where the table is split.
    """
    split = kernels.split
    gathered = jax.lax.all_gather(tokens, parallel.FSDP) if split.width else tokens[None]
    if split.vocab:
        row = gathered - jax.lax.axis_index(parallel.TENSOR) * table.shape[0]
        is_local = (row >= 0) & (row < table.shape[0])
        embedded = kernels.lookup.rows(table, jnp.where(is_local, row, 0)).astype(compute_dtype)
        embedded = jnp.where(is_local[..., None], embedded, jnp.zeros_like(embedded))
    else:
        embedded = kernels.storage.unpack(kernels.lookup.rows(table, gathered)).astype(compute_dtype)
    if split.width:
        embedded = jax.lax.all_to_all(embedded, parallel.FSDP, split_axis=0, concat_axis=3, tiled=True)
    return parallel.reduce_from_tensor(embedded[0]) if split.vocab else embedded[0]
