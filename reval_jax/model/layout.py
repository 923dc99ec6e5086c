"""How the sampler holds the layers of its copy of the parameters: weights, caches, and the loop over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from reval_jax.model.architecture import Architecture
from reval_jax.model.cache import Cache
from reval_jax.model.parameters import Params, compute_dtypes

Caches = Cache | tuple[Cache, ...]  # all layers' caches, as a layout holds them
PrefillLayer = Callable[[jax.Array, Params], tuple[jax.Array, Cache]]
"""(hidden, a layer's weights) → (hidden, its cache)."""
DecodeLayer = Callable[[jax.Array, Params, Cache, jax.Array | None], tuple[jax.Array, Cache]]
"""(hidden, a layer's weights, cache, index) → (hidden, the cache, written); the index is of a leading axis of layers."""


class Layout(NamedTuple):
    """How the sampler holds layers. `STACKED` is the learner's way; see `unrolled` for the other."""

    cast: Callable[[Architecture, Params, DTypeLike], Params]  # the learner's parameters → the sampler's
    # (stacked layers, index, dtype) → one layer. If given, layers are cast one at a time, and `cast` gets all but the layers.
    cast_layer: Callable[[Params, jax.Array, DTypeLike], Params] | None
    place: Callable[[Architecture, Params], Params]  # shardings of stacked parameters → of the sampler's
    # (function of leading axes → a Cache, number of layers) → the caches of all layers
    caches: Callable[[Callable[..., Any], int], Any]
    row_axis: int  # of a cache's arrays
    # All layers in order: (the layer's function, hidden, the layers' weights[, their caches]) → (hidden, their caches).
    prefill: Callable[[PrefillLayer, jax.Array, Any], tuple[jax.Array, Caches]]
    decode: Callable[[DecodeLayer, jax.Array, Any, Any], tuple[jax.Array, Caches]]


def cast(params: Params, dtype: DTypeLike) -> Params:
    """The parameters in the dtypes that a forward pass uses them in."""
    return jax.tree.map(lambda leaf, to: leaf.astype(to), params, compute_dtypes(params, dtype))


def _prefill(prefill_layer: PrefillLayer, hidden: jax.Array, layers: Params) -> tuple[jax.Array, Caches]:
    return jax.lax.scan(prefill_layer, hidden, layers)


def _decode(decode_layer: DecodeLayer, hidden: jax.Array, layers: Params, cache: Cache) -> tuple[jax.Array, Caches]:
    def body(carried: tuple[jax.Array, Cache], layer: tuple[Params, jax.Array]) -> tuple[Any, None]:
        (hidden, cache), (weights, index) = carried, layer
        return decode_layer(hidden, weights, cache, index), None

    indices = jnp.arange(jax.tree.leaves(layers)[0].shape[0], dtype=jnp.int32)
    return jax.lax.scan(body, (hidden, cache), (layers, indices))[0]


STACKED = Layout(
    cast=lambda architecture, params, dtype: cast(params, dtype),
    cast_layer=None,
    place=lambda architecture, placement: placement,
    caches=lambda make, num_layers: make(num_layers),
    row_axis=1,
    prefill=_prefill,
    decode=_decode,
)
"""Arrays with a leading axis of layers, under `jax.lax.scan`: one layer is compiled, whatever the depth."""


def _prefill_unrolled(
    prefill_layer: PrefillLayer, hidden: jax.Array, layers: tuple[Params, ...]
) -> tuple[jax.Array, Caches]:
    caches = []
    for weights in layers:
        hidden, cache = prefill_layer(hidden, weights)
        caches.append(cache)
    return hidden, tuple(caches)


def _decode_unrolled(
    decode_layer: DecodeLayer, hidden: jax.Array, layers: tuple[Params, ...], caches: tuple[Cache, ...]
) -> tuple[jax.Array, Caches]:
    written = []
    for weights, cache in zip(layers, caches, strict=True):
        hidden, cache = decode_layer(hidden, weights, cache, None)
        written.append(cache)
    return hidden, tuple(written)


def unrolled(
    cast: Callable[[Architecture, Params, DTypeLike], Params],
    cast_layer: Callable[[Params, jax.Array, DTypeLike], Params],
    place: Callable[[Architecture, Params], Params],
) -> Layout:
    """A tuple of layers, each with arrays and a cache of its own: the program is one long chain of layers."""
    return Layout(
        cast=cast,
        cast_layer=cast_layer,
        place=place,
        caches=lambda make, num_layers: tuple(make() for _ in range(num_layers)),
        row_axis=0,
        prefill=_prefill_unrolled,
        decode=_decode_unrolled,
    )


def layer_of(layers: Params, index: jax.Array) -> Params:
    """One layer of stacked arrays."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), layers)
