"""Token embeddings, of a whole table or of one device's part of it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from reval_jax import parallel
from reval_jax.model.architecture import Architecture


def embed(architecture: Architecture, table: jax.Array, tokens: jax.Array, *, compute_dtype: Any) -> jax.Array:
    """The embeddings [B,T,D] of `tokens` i32[B,T], in `compute_dtype`.

    A table [V,D] with fewer rows or columns than the architecture's is one device's part: rows over the tensor axis, columns
    over fsdp. Then tokens travel rather than the table: each device looks up its columns of every fsdp device's tokens, and
    one all-to-all brings each device its own tokens whole.

    Args:
      tokens: in [0, V); of this device's rows where the table is a part.
    """
    is_split_by_width = table.shape[1] < architecture.width
    wanted = jax.lax.all_gather(tokens, parallel.FSDP) if is_split_by_width else tokens[None]
    if table.shape[0] < architecture.vocab_size:
        local = wanted - jax.lax.axis_index(parallel.TENSOR) * table.shape[0]
        is_mine = (local >= 0) & (local < table.shape[0])
        found = table[jnp.where(is_mine, local, 0)].astype(compute_dtype)
        found = jnp.where(is_mine[..., None], found, jnp.zeros_like(found))
    else:
        found = table[wanted].astype(compute_dtype)
    if is_split_by_width:
        found = jax.lax.all_to_all(found, parallel.FSDP, split_axis=0, concat_axis=3, tiled=True)
    embedded = found[0]
    if table.shape[0] < architecture.vocab_size:
        embedded = parallel.total(embedded, parallel.TENSOR)
    return embedded
