"""The parameters of a decoder: their shapes, their initial values, and the names of their axes.

The flax modules declare them, all layers stacked on axis 0; they are built abstractly once per architecture. The
equations are functions of the plain dict (`layer`, `forward`), so flax is imported here and nowhere else.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from reval_jax.model.architecture import Architecture

# nested: {"embedding", "layers": {...}, "final_norm", "head" unless tied, "value_head": {"weight", "bias"} if it has one}
Params = dict[str, Any]


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


class ValueHead(nnx.Module):
    """The weights of V(s) = hidden · weight + bias; whole on every device, because they are few."""

    def __init__(self, width: int):
        # Zeros: V = 0 at the start on every machine, no random number in the first advantages, and no gradient through
        # the head into the layers below before it has learned anything itself.
        self.weight = _constant(0.0, (width,), (None,))
        self.bias = _constant(0.0, (), ())


class Decoder(nnx.Module):
    """The whole model's weights: embedding, stacked layers, final norm, the head unless tied, and the learner's value head."""

    def __init__(self, architecture: Architecture, rngs: nnx.Rngs):
        self.embedding = _normal(rngs, (architecture.vocab_size, architecture.width), ("vocab", "width"))
        self.layers = Layer(architecture, rngs)
        self.final_norm = _constant(1.0, (architecture.width,), (None,))
        if not architecture.tied_head:
            self.head = _normal(rngs, (architecture.width, architecture.vocab_size), ("width", "vocab"))
        if architecture.has_value_head:
            self.value_head = ValueHead(architecture.width)


@functools.cache
def _abstract_decoder(architecture: Architecture) -> Decoder:
    return nnx.eval_shape(lambda: Decoder(architecture, nnx.Rngs(params=jax.random.key(0, impl="threefry2x32"))))


def init_params(architecture: Architecture, key: jax.Array) -> Params:
    """Random float32 parameters: matrices normal with deviation 0.02, norms one, biases and value head zero. Consumes `key`."""
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


def with_value_head(architecture: Architecture, params: Params) -> Params:
    """Host parameters of the architecture: published ones get the initial value head, which is zeros, if it has one."""
    if not architecture.has_value_head or "value_head" in params:
        return params
    shapes = abstract_params(architecture)["value_head"]
    return params | {"value_head": jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)}


def without_value_head(params: Params) -> Params:
    """The policy's parameters alone."""
    return {name: leaf for name, leaf in params.items() if name != "value_head"}


def value(params: Params, hidden: jax.Array) -> jax.Array:
    """f32[...]: V(s) in units of reward of hidden states [..., D], by the value head and in float32."""
    weight, bias = params["value_head"]["weight"], params["value_head"]["bias"]
    # A sum and not a product of matrices, which accelerators would round.
    return jnp.sum(hidden.astype(jnp.float32) * jnp.broadcast_to(weight, hidden.shape), axis=-1) + bias


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
