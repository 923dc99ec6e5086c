"""How the sampler holds a model on GPUs: few arrays a layer, so that a token takes few kernels.

A decoded token is hundreds of kernels, each of which costs microseconds beside the microseconds that it computes. So products of
the same input are one product, and each layer has arrays of its own: a kernel that reads a slice of a stacked array would first
get a copy of it.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from reval_jax.model import layout
from reval_jax.model.architecture import Architecture
from reval_jax.model.parameters import Params

QUERY_KEY_VALUE = "query_key_value"  # [D, K, G+2, H]: of each key/value head its query heads, its key, its value
QUERY_KEY_VALUE_BIAS = "query_key_value_bias"  # [K, G+2, H]
GATE_UP = "gate_up"  # [D, 2, F]


def fuse(layer: Params, *, fuses_heads: bool) -> Params:
    """One layer's parameters with gate and up as one array, and query, key and value too if `fuses_heads`."""
    fused = dict(layer)
    fused[GATE_UP] = jnp.stack([fused.pop("gate"), fused.pop("up")], axis=1)
    if fuses_heads:
        fused[QUERY_KEY_VALUE] = _by_kv_head(*(fused.pop(name) for name in ("query", "key", "value")))
        if "query_bias" in fused:
            biases = (fused.pop(f"{name}_bias") for name in ("query", "key", "value"))
            fused[QUERY_KEY_VALUE_BIAS] = _by_kv_head(*biases)
    return fused


def _by_kv_head(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """[..., K, G+2, H] of query [..., N, H], key and value [..., K, H]."""
    grouped = query.reshape(*key.shape[:-1], -1, key.shape[-1])
    return jnp.concatenate([grouped, key[..., None, :], value[..., None, :]], axis=-2)


def split_heads(fused: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Query [..., N, H], key and value [..., K, H] of [..., K, G+2, H]."""
    query = fused[..., :-2, :]
    return query.reshape(*fused.shape[:-3], -1, fused.shape[-1]), fused[..., -2, :], fused[..., -1, :]


def _place(architecture: Architecture, placement: Params, *, fuses_heads: bool) -> Params:
    stacked = placement["layers"]
    layer = {name: _sharding(sharding, *sharding.spec[1:]) for name, sharding in stacked.items()}
    layer[GATE_UP] = _sharding(layer.pop("gate"), None, None, layer.pop("up").spec[1])
    if fuses_heads:
        of_heads = layer["key"].spec[1]
        for name in ("query", "key", "value"):
            layer[QUERY_KEY_VALUE] = _sharding(layer.pop(name), None, of_heads)
            if f"{name}_bias" in layer:
                layer[QUERY_KEY_VALUE_BIAS] = _sharding(layer.pop(f"{name}_bias"), of_heads)
    return placement | {"layers": (layer,) * architecture.num_layers}


def _sharding(like: NamedSharding, *axes: str | None) -> NamedSharding:
    return NamedSharding(like.mesh, PartitionSpec(*axes))


@functools.cache
def fused(*, fuses_heads: bool) -> layout.Layout:
    """A tuple of layers as `fuse` makes them.

    Args:
      fuses_heads: False where the key/value heads do not divide over the tensor axis, which splits the query heads alone.
    """

    def cast_layer(layers: Params, index: jax.Array, dtype: DTypeLike) -> Params:
        return fuse(layout.cast(layout.layer_of(layers, index), dtype), fuses_heads=fuses_heads)

    return layout.unrolled(
        cast=lambda architecture, params, dtype: layout.cast(params, dtype),
        cast_layer=cast_layer,
        place=functools.partial(_place, fuses_heads=fuses_heads),
    )
