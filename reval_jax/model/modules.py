"""The flax modules: one decoder layer (all layers stacked on axis 0) and the decoder that holds them.

They are built abstractly once per architecture, for their graph definition and the names of their axes; while tracing,
`layer` merges that definition with the caller's arrays. Nothing else in the package imports flax.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from reval_jax.model import arithmetic, rope
from reval_jax.model.architecture import Architecture

Params = dict[str, Any]  # nested: {"embedding", "layers": {...}, "final_norm", "head" unless tied}
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param:
    return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, jnp.float32), logical_axes=axes)


def _constant(value: float, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param:
    return nnx.Param(jnp.full(shape, value, jnp.float32), logical_axes=axes)


class Layer(nnx.Module):
    """One decoder layer. Constructed with all layers stacked on axis 0; called on one layer's slice of every weight."""

    def __init__(self, architecture: Architecture, rngs: nnx.Rngs):
        self.architecture = architecture
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

    def __call__(
        self, inputs: jax.Array, rope_tables: tuple[jax.Array, jax.Array], attend: Attend
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """`inputs` [..., D] through attention and feed-forward, as [..., D], with these tokens' keys and values.

        Args:
          rope_tables: cosine and sine, f32[..., H/2]. attend: (query [..., N, H], key, value [..., K, H]) -> [..., N,
          H].
        """
        dtype, eps, axes = inputs.dtype, self.architecture.norm_eps, _axes(inputs)
        query, key, value = self._heads(arithmetic.rms_norm(inputs, self.attention_norm[...], eps))
        query, key = rope.rotate(query, *rope_tables), rope.rotate(key, *rope_tables)
        attended = attend(query, key, value)
        hidden = inputs + arithmetic.project(f"{axes}nh,nhd->{axes}d", dtype, attended, self.output[...])
        normed = arithmetic.rms_norm(hidden, self.mlp_norm[...], eps)
        gate = arithmetic.project(f"{axes}d,df->{axes}f", dtype, normed, self.gate[...])
        up = arithmetic.project(f"{axes}d,df->{axes}f", dtype, normed, self.up[...])
        down = arithmetic.project(f"{axes}f,fd->{axes}d", dtype, jax.nn.silu(gate) * up, self.down[...])
        return hidden + down, key, value

    def _heads(self, normed: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Query [..., N, H], key and value [..., K, H] before RoPE."""
        dtype, eps = normed.dtype, self.architecture.norm_eps
        spec = f"{_axes(normed)}d,dnh->{_axes(normed)}nh"
        query, key, value = (
            arithmetic.project(spec, dtype, normed, weight[...]) for weight in (self.query, self.key, self.value)
        )
        if self.architecture.qkv_bias:
            query += arithmetic.trailing(self.query_bias[...].astype(dtype), query.ndim)
            key += arithmetic.trailing(self.key_bias[...].astype(dtype), key.ndim)
            value += arithmetic.trailing(self.value_bias[...].astype(dtype), value.ndim)
        if self.architecture.qk_norm:
            query = arithmetic.rms_norm(query, self.query_norm[...], eps)
            key = arithmetic.rms_norm(key, self.key_norm[...], eps)
        return query, key, value


def _axes(hidden: jax.Array) -> str:
    """Einsum letters of the leading axes of [B,T,D] (a forward pass) or [B,D] (decoding)."""
    return "bt"[: hidden.ndim - 1]


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


@functools.cache
def _layer_graph(architecture: Architecture) -> Any:
    return nnx.graphdef(_abstract_decoder(architecture).layers)


def layer(architecture: Architecture, params: Params) -> Layer:
    """The layer module over one layer's slice of `params["layers"]`."""
    return nnx.merge(_layer_graph(architecture), params)


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
