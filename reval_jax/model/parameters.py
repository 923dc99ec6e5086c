"""The parameters of a decoder: their shapes, their initial values, and the names of their axes.

The flax modules declare them, all layers stacked on axis 0; they are built abstractly once per architecture. The
equations are functions of the plain dict (`layer`, `forward`), so flax is imported here and nowhere else.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from reval_jax.model.architecture import Architecture

Params = dict[str, Any]  # nested: {"embedding", "layers": {...}, "final_norm", "head" unless tied}


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param:
    return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, jnp.float32), logical_axes=axes)


def _constant(value: float, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param:
    return nnx.Param(jnp.full(shape, value, jnp.float32), logical_axes=axes)


class Layer(nnx.Module):
    """The weights of the decoder layers, stacked on axis 0."""

    def __init__(self, architecture: Architecture, rngs: nnx.Rngs):
        depth, width, size = architecture.num_layers, architecture.width, architecture.head_size
        heads, kv_heads, mlp = architecture.num_heads, architecture.num_kv_heads, architecture.mlp_width
        self.attention_norm = _constant(1.0, (depth, width), ("layers", None))
        self.query = _normal(rngs, (depth, width, heads, size), ("layers", "width", "heads", "head_size"))
        self.key = _normal(rngs, (depth, width, kv_heads, size), ("layers", "width", "kv_heads", "head_size"))
        self.value = _normal(rngs, (depth, width, kv_heads, size), ("layers", "width", "kv_heads", "head_size"))
        self.output = _normal(rngs, (depth, heads, size, width), ("layers", "heads", "head_size", "width"))
        if architecture.qkv_bias:
            self.query_bias = _constant(0.0, (depth, heads, size), ("layers", "heads", "head_size"))
            self.key_bias = _constant(0.0, (depth, kv_heads, size), ("layers", "kv_heads", "head_size"))
            self.value_bias = _constant(0.0, (depth, kv_heads, size), ("layers", "kv_heads", "head_size"))
        if architecture.qk_norm:
            self.query_norm = _constant(1.0, (depth, size), ("layers", None))
            self.key_norm = _constant(1.0, (depth, size), ("layers", None))
        self.mlp_norm = _constant(1.0, (depth, width), ("layers", None))
        self.gate = _normal(rngs, (depth, width, mlp), ("layers", "width", "mlp"))
        self.up = _normal(rngs, (depth, width, mlp), ("layers", "width", "mlp"))
        self.down = _normal(rngs, (depth, mlp, width), ("layers", "mlp", "width"))


class Decoder(nnx.Module):
    """The whole model's weights: embedding, stacked layers, final norm and, unless tied, the head."""

    def __init__(self, architecture: Architecture, rngs: nnx.Rngs):
        self.embedding = _normal(rngs, (architecture.vocab_size, architecture.width), ("vocab", "width"))
        self.layers = Layer(architecture, rngs)
        self.final_norm = _constant(1.0, (architecture.width,), (None,))
        if not architecture.tied_head:
            self.head = _normal(rngs, (architecture.width, architecture.vocab_size), ("width", "vocab"))


@functools.cache
def _abstract_decoder(architecture: Architecture) -> Decoder:
    return nnx.eval_shape(lambda: Decoder(architecture, nnx.Rngs(params=jax.random.key(0, impl="threefry2x32"))))


def init_params(architecture: Architecture, key: jax.Array) -> Params:
    """Random float32 parameters: matrices normal with deviation 0.02, norms one, biases zero. Consumes `key`."""
    return nnx.to_pure_dict(nnx.state(Decoder(architecture, nnx.Rngs(params=key))))


def abstract_params(architecture: Architecture) -> Params:
    """The tree of `init_params` with `jax.ShapeDtypeStruct` leaves; allocates nothing."""
    return nnx.to_pure_dict(nnx.state(_abstract_decoder(architecture)))


def logical_axes(architecture: Architecture) -> dict[str, Any]:
    """The tree of `init_params` with, for every array, a tuple of one logical axis name (or None) per dimension.

    Names: "layers", "vocab", "width", "heads", "kv_heads", "head_size", "mlp"; None is a dimension never worth
    sharding.
    """
    variables = nnx.state(_abstract_decoder(architecture))
    return nnx.to_pure_dict(
        jax.tree.map(
            lambda variable: variable.get_metadata()["logical_axes"],
            variables,
            is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
        )
    )


def head_weight(architecture: Architecture, params: Params) -> jax.Array:
    """The output head [D, V] as it is held, or one device's part of it; for a tied model the transposed embedding.

    The sampler's copy of a tied model may hold a "head" of its own, the same numbers laid out for the product.
    """
    has_own = "head" in params or not architecture.tied_head
    return params["head"] if has_own else params["embedding"].T


def head(architecture: Architecture, params: Params, *, compute_dtype: DTypeLike) -> jax.Array:
    """The output head [D, V] in `compute_dtype`."""
    return head_weight(architecture, params).astype(compute_dtype)


def compute_dtypes(params: Params, compute_dtype: DTypeLike) -> Params:
    """The dtype of each array in a copy of the parameters that computes exactly what they do themselves.

    What a forward pass casts before use is `compute_dtype`; the norms' scales, which it uses in float32, stay float32.
    """

    def dtype_of(path: Any, _: Any) -> Any:
        return jnp.dtype(jnp.float32 if path[-1].key.endswith("norm") else compute_dtype)

    return jax.tree_util.tree_map_with_path(dtype_of, params)
