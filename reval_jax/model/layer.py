"""The equations of one decoder layer: what enters its attention, and what follows it.

forward = `attention_inputs` → attention → `layer_outputs`. Prefill also keeps (key, value); decoding writes them to the
cache in between.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from reval_jax import parallel
from reval_jax.model import gpu, rope
from reval_jax.model.architecture import Architecture
from reval_jax.model.kernels import Kernels
from reval_jax.model.linear import rms_norm, swiglu, trailing
from reval_jax.model.parameters import Params


def attention_inputs(
    architecture: Architecture, weights: Params, hidden: jax.Array, rope_tables: rope.Tables, kernels: Kernels
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Query [..., N, H], key and value [..., K, H] of `hidden` [..., D]: norm, projections, RoPE.

    Args:
      weights: of this layer; one device's part of them, if `kernels` say so.
      hidden: [B,T,D] (whole rows) or [B,D] (one token per row).
    """
    split, eps = kernels.split, architecture.norm_eps
    normed = rms_norm(hidden, weights["attention_norm"], eps)
    query, key, value = _projections(architecture, weights, normed, kernels)
    if architecture.qk_norm:
        query_scale, key_scale = (
            parallel.copy_to_tensor(weights[name]) if is_split else weights[name]
            for name, is_split in (("query_norm", split.heads), ("key_norm", split.kv_heads))
        )
        query, key = rms_norm(query, query_scale, eps), rms_norm(key, key_scale, eps)
    query, key = rope.rotate(query, rope_tables), rope.rotate(key, rope_tables)
    if split.heads and not split.kv_heads:
        key, value = _local_kv_heads(architecture, key, value, query.shape[-2])
    return query, key, value


def _projections(
    architecture: Architecture, weights: Params, normed: jax.Array, kernels: Kernels
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Query [..., N, H], key and value [..., K, H] before norm and RoPE, from one product or three."""
    split, tokens = kernels.split, _tokens(normed)
    if gpu.QUERY_KEY_VALUE in weights:
        heads = kernels.linear(f"{tokens}d,dkjh->{tokens}kjh", normed, weights[gpu.QUERY_KEY_VALUE])
        if architecture.qkv_bias:
            heads += trailing(weights[gpu.QUERY_KEY_VALUE_BIAS].astype(heads.dtype), heads.ndim)
        return gpu.split_heads(heads)
    copied = parallel.copy_to_tensor(normed) if split.heads else normed

    def project(name: str, *, is_split: bool) -> jax.Array:
        heads = kernels.linear(f"{tokens}d,dnh->{tokens}nh", copied if is_split else normed, weights[name])
        if architecture.qkv_bias:
            heads += trailing(weights[f"{name}_bias"].astype(heads.dtype), heads.ndim)
        return heads

    return (
        project("query", is_split=split.heads),
        project("key", is_split=split.kv_heads),
        project("value", is_split=split.kv_heads),
    )


def layer_outputs(
    architecture: Architecture, weights: Params, hidden: jax.Array, attended: jax.Array, kernels: Kernels
) -> jax.Array:
    """The layer's output [..., D]: its input, plus the attention's output, plus SwiGLU of their sum."""
    linear, split, tokens = kernels.linear, kernels.split, _tokens(hidden)
    hidden += linear(f"{tokens}nh,nhd->{tokens}d", attended, weights["output"], row_parallel=split.heads)
    normed = rms_norm(hidden, weights["mlp_norm"], architecture.norm_eps)
    if split.mlp:
        normed = parallel.copy_to_tensor(normed)
    inner = kernels.mlp_axes.format(tokens=tokens)
    if gpu.GATE_UP in weights:
        both = linear(f"{tokens}d,djf->{tokens}jf", normed, weights[gpu.GATE_UP])
        gate, up = both[..., 0, :], both[..., 1, :]
    else:
        gate = linear(f"{tokens}d,df->{inner}", normed, weights["gate"])
        up = linear(f"{tokens}d,df->{inner}", normed, weights["up"])
    return hidden + linear(f"{inner},fd->{tokens}d", swiglu(gate, up), weights["down"], row_parallel=split.mlp)


def _tokens(hidden: jax.Array) -> str:
    """Einsum letters of the leading axes of [B,T,D] (whole rows) or [B,D] (one token per row)."""
    return "bt"[: hidden.ndim - 1]


def _local_kv_heads(
    architecture: Architecture, key: jax.Array, value: jax.Array, num_local: int
) -> tuple[jax.Array, jax.Array]:
    """The key/value heads that this device's query heads read, where only the query heads are split."""
    group = architecture.num_heads // architecture.num_kv_heads
    first = jax.lax.axis_index(parallel.TENSOR) * num_local

    def select(heads: jax.Array) -> jax.Array:
        heads = parallel.copy_to_tensor(heads)
        if group % num_local == 0 or num_local % group == 0:
            return jax.lax.dynamic_slice_in_dim(heads, first // group, max(1, num_local // group), axis=-2)
        return jnp.take(heads, (first + jnp.arange(num_local)) // group, axis=-2)

    return select(key), select(value)
