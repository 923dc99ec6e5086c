"""Workarounds for XLA:CPU: everything in the model that exists for that backend alone. `kernels` injects it.

A comment above each says when to remove it. `reval_jax/xla_guard.py` works around a miscompile of the same backend, and must run
before jax starts; the order of a weight gradient's factors (`linear._weight_cotangent`) and a transposition in `scores`
are chosen for it too, but change neither results nor memory elsewhere. All seen with jaxlib 0.10.2.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from reval_jax.model import cache as cache_lib
from reval_jax.model import layout, linear
from reval_jax.model.architecture import Architecture
from reval_jax.model.parameters import Params, head_weight

# --- bfloat16 in memory ----------------------------------------------------------------------------------------------
# XLA:CPU upcasts bfloat16 to float32 for every operation, even a copy: to write one layer's residuals into their stack, or
# one token into the cache, it would convert the whole of it there and back. It moves integers as they are.
# Remove when XLA:CPU copies and updates bfloat16 arrays without converting them.


def to_uint16(leaf: jax.Array) -> jax.Array:
    """bfloat16 as the uint16 of the same bits; other dtypes unchanged."""
    return jax.lax.bitcast_convert_type(leaf, jnp.uint16) if leaf.dtype == jnp.bfloat16 else leaf


def to_bfloat16(leaf: jax.Array) -> jax.Array:
    """uint16 as the bfloat16 of the same bits; other dtypes unchanged."""
    return jax.lax.bitcast_convert_type(leaf, jnp.bfloat16) if leaf.dtype == jnp.uint16 else leaf


UINT16 = cache_lib.Storage(to_uint16, to_bfloat16)


def uint16_residuals(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with its bfloat16 residuals held as uint16 between the forward and the backward pass; no bit changes.

    The first argument gets no gradient. `function` must not close over tracers or have uint16 residuals.
    """

    @jax.custom_vjp
    def wrapped(constants: Any, *arguments: Any) -> Any:
        return function(constants, *arguments)

    def forward(constants: Any, *arguments: Any) -> tuple[Any, Any]:
        outputs, pullback = jax.vjp(functools.partial(function, constants), *arguments)
        return outputs, jax.tree.map(to_uint16, pullback)

    def backward(pullback: Any, cotangent: Any) -> Any:
        return None, *jax.tree.map(to_bfloat16, pullback)(cotangent)

    wrapped.defvjp(forward, backward)
    return wrapped


# --- products of few tokens ------------------------------------------------------------------------------------------
# XLA:CPU repacks the right operand of a product on every call, so the weight goes left, stored [out, in], and the few
# tokens right. Under `jax.lax.scan` it would also copy each layer's weights out of their stack before using them, so each
# layer has arrays of its own, and the program is one long chain of layers.
# Remove when decoding with `layout.STACKED` and `linear.linear` is as fast on CPU (`reval bench sampler`).

MLP_AXES = "f{tokens}"  # as `decode_linear` computes them: tokens last

CONTRACTED_AXES = {"query": 1, "key": 1, "value": 1, "output": 2, "gate": 1, "up": 1, "down": 1}
"""How many leading axes of a layer's weight [in, out] its product sums over."""


def out_in_axes(name: str, rank: int) -> tuple[int, ...]:
    """The order of a layer's array [in, out] as [out, in]; arrays that are no weight stay as they are."""
    contracted = CONTRACTED_AXES.get(name, 0)
    return (*range(contracted, rank), *range(contracted))


def decode_linear(spec: str, inputs: jax.Array, weight: jax.Array, *, row_parallel: bool = False) -> jax.Array:
    """`linear.linear` for few tokens, with a weight stored [out, in]. No gradient.

    Inputs and result whose tokens come last are not transposed at all. The barriers keep XLA from moving the
    transpositions into the product.
    """
    if row_parallel:
        raise ValueError(
            "cpu.decode_linear multiplies by whole weights. Use `linear.linear` for a device's part of one."
        )
    left, right, result = linear.axes_of(spec)
    contracted = [axis for axis in right if axis in left]
    out = [axis for axis in right if axis not in contracted]
    rows = [axis for axis in left if axis not in contracted]
    few = jax.lax.optimization_barrier(jnp.transpose(inputs, [left.index(axis) for axis in contracted + rows]))
    # The weight gets three axes, because XLA:CPU turns a bfloat16 product of two matrices, one of them transposed, into a
    # float32 one.
    num_contracted = math.prod(few.shape[: len(contracted)])
    halves = weight.reshape(math.gcd(2, weight.size // num_contracted), -1, num_contracted)
    outputs = linear.product("xym,mr->xyr", inputs.dtype, halves, few.reshape(num_contracted, -1))
    outputs = outputs.reshape(*weight.shape[: len(out)], *few.shape[len(contracted) :])
    outputs = jax.lax.optimization_barrier(outputs.astype(inputs.dtype))
    return jnp.transpose(outputs, [(out + rows).index(axis) for axis in result])


def _cast(architecture: Architecture, params: Params, dtype: DTypeLike) -> Params:
    """The sampler's parameters without the layers: the head as the product reads it, the embedding as uint16."""
    cast = layout.cast(params, dtype)
    return cast | {"head": head_weight(architecture, cast), "embedding": to_uint16(cast["embedding"])}


def _cast_layer(layers: Params, index: jax.Array, dtype: DTypeLike) -> Params:
    return to_out_in(layout.cast(layout.layer_of(layers, index), dtype))


def to_out_in(layer: Params) -> Params:
    """One layer's parameters with its weights stored [out, in]."""
    return {name: jnp.transpose(leaf, out_in_axes(name, leaf.ndim)) for name, leaf in layer.items()}


def _place(architecture: Architecture, placement: Params) -> Params:
    def place(name: str, stacked: NamedSharding) -> NamedSharding:
        spec = stacked.spec[1:]
        return NamedSharding(stacked.mesh, PartitionSpec(*(spec[axis] for axis in out_in_axes(name, len(spec)))))

    layer = {name: place(name, stacked) for name, stacked in placement["layers"].items()}
    embedding = placement["embedding"]
    head = NamedSharding(embedding.mesh, PartitionSpec(None, embedding.spec[0]))
    return placement | {"layers": (layer,) * architecture.num_layers, "head": head}


UNROLLED = layout.unrolled(_cast, _cast_layer, _place)
"""A tuple of layers, each with arrays of its own, its weights stored [out, in] for `decode_linear`."""

# --- attention over the cache ----------------------------------------------------------------------------------------
# XLA:CPU copies a block out of the cache before it multiplies it. Row by row less is copied, and what is copied stays in a
# core's own cache. Remove when `cache.batched` is as fast on CPU (`reval bench sampler --attention batched per_row`).


def per_row(
    query: jax.Array,
    cache: cache_lib.Cache,
    lengths: jax.Array,
    layer: jax.Array | None = None,
    storage: cache_lib.Storage = cache_lib.PLAIN,
) -> jax.Array:
    """`cache.batched`, one row after the other, each over as many blocks as it needs itself; equal to rounding."""

    def attend_row(row: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        query, length, index = row
        return cache_lib.attend_rows(query[None], cache, length[None], layer, storage, index)[0]

    return jax.lax.map(attend_row, (query, lengths, jnp.arange(query.shape[0], dtype=jnp.int32)))
