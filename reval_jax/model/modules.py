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

from reval_jax import parallel
from reval_jax.model import arithmetic, rope
from reval_jax.model.architecture import Architecture

Params = dict[str, Any]  # nested: {"embedding", "layers": {...}, "final_norm", "head" unless tied}
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
Project = Callable[..., jax.Array]  # `arithmetic.project`, or `project_few`, of weights of this width
SUMMED_AXES = {"query": 1, "key": 1, "value": 1, "output": 2, "gate": 1, "up": 1, "down": 1}
"""How many leading axes of a layer's weights a product sums over."""


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
        self,
        inputs: jax.Array,
        rope_tables: tuple[jax.Array, jax.Array],
        attend: Attend,
        *,
        is_few: bool = False,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """`inputs` [..., D] through attention and feed-forward, as [..., D], with these tokens' keys and values.

        Args:
          rope_tables: cosine and sine, f32[..., H/2]. attend: (query [..., N, H], key, value [..., K, H]) -> [..., N,
          H]. is_few: few tokens and weights that lie turned, for `arithmetic.project_few`.
        """
        architecture, dtype, axes = self.architecture, inputs.dtype, _axes(inputs)
        project = functools.partial(arithmetic.project_few if is_few else arithmetic.project, width=architecture.width)
        is_split = self.gate.shape[-1] < architecture.mlp_width
        query, key, value = self._heads(
            arithmetic.rms_norm(inputs, self.attention_norm[...], architecture.norm_eps), project
        )
        query, key = rope.rotate(query, *rope_tables), rope.rotate(key, *rope_tables)
        attended = attend(query, *self._own_kv_heads(key, value))
        hidden = inputs + project(
            f"{axes}nh,nhd->{axes}d", dtype, attended, self.output[...], is_part=self._is_split("query")
        )
        normed = arithmetic.rms_norm(hidden, self.mlp_norm[...], architecture.norm_eps)
        if is_split:
            normed = parallel.share(normed, parallel.TENSOR)
        inner = f"f{axes}" if is_few else f"{axes}f"
        gate = project(f"{axes}d,df->{inner}", dtype, normed, self.gate[...])
        up = project(f"{axes}d,df->{inner}", dtype, normed, self.up[...])
        down = project(f"{inner},fd->{axes}d", dtype, arithmetic.swiglu(gate, up), self.down[...], is_part=is_split)
        return hidden + down, key, value

    def _is_split(self, name: str) -> bool:
        """Whether these are one device's part of the "query" or of the "key" and "value" heads."""
        of_all = self.architecture.num_heads if name == "query" else self.architecture.num_kv_heads
        return getattr(self, name).shape[-2] < of_all

    def _heads(self, normed: jax.Array, project: Project) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Query [..., N, H], key and value [..., K, H] before RoPE; of this device, where the heads are split."""
        dtype, eps = normed.dtype, self.architecture.norm_eps
        spec = f"{_axes(normed)}d,dnh->{_axes(normed)}nh"
        shared = parallel.share(normed, parallel.TENSOR) if self._is_split("query") else normed
        heads = {}
        for name in ("query", "key", "value"):
            is_split = self._is_split(name)
            inputs, rank = shared if is_split else normed, normed.ndim + 1
            head = project(spec, dtype, inputs, getattr(self, name)[...])
            if self.architecture.qkv_bias:
                head += arithmetic.trailing(getattr(self, f"{name}_bias")[...].astype(dtype), rank)
            if self.architecture.qk_norm and name != "value":
                scale = getattr(self, f"{name}_norm")[...]
                head = arithmetic.rms_norm(head, parallel.share(scale, parallel.TENSOR) if is_split else scale, eps)
            heads[name] = head
        return heads["query"], heads["key"], heads["value"]

    def _own_kv_heads(self, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The key/value heads that this device's query heads read, where only the query heads are split."""
        if not self._is_split("query") or self._is_split("key"):
            return key, value
        architecture, mine = self.architecture, self.query.shape[-2]
        group = architecture.num_heads // architecture.num_kv_heads
        first = jax.lax.axis_index(parallel.TENSOR) * mine
        key, value = (parallel.share(heads, parallel.TENSOR) for heads in (key, value))
        if group % mine == 0 or mine % group == 0:
            pick = functools.partial(
                jax.lax.dynamic_slice_in_dim, start_index=first // group, slice_size=max(1, mine // group), axis=-2
            )
        else:
            pick = functools.partial(jnp.take, indices=(first + jnp.arange(mine)) // group, axis=-2)
        return pick(key), pick(value)


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
