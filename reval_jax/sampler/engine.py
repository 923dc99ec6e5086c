"""What the sampler's programs are compiled for, and the copy of the parameters they run on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from reval_jax import batch, model
from reval_jax import config as config_lib
from reval_jax import mesh as mesh_lib

CacheSetting = Literal["compute", "int8"]
LayersSetting = Literal["auto", "loop", "unrolled"]
AttentionSetting = Literal["auto", "at_once", "by_row"]
PREFILL_TOKENS = 128  # of the prompts prefilled at once: short prompts together, a longer one alone


@dataclasses.dataclass(frozen=True)
class Engine:
    """What the sampler's programs are compiled for."""

    architecture: model.Architecture
    mesh: Mesh  # this process's devices, axes (rows, tensor)
    compute_dtype: str
    cache: CacheSetting  # what keys and values are kept in: compute_dtype, or int8 with a scale a token and head
    max_prompt_tokens: int  # tokens
    max_response_tokens: int  # tokens, the end-of-sequence token included
    decode_slots: int  # responses decoded at once
    decode_window: int  # tokens decoded between two looks by the host
    is_unrolled: (
        bool  # the layers' weights and caches are arrays of their own, and programs run through them without a loop
    )
    attends_by_row: bool  # `model.attention.cached.attend_by_row`, else `attend`

    @property
    def row_shards(self) -> int:
        """Groups of devices, each with slots of its own."""
        return self.mesh.shape["rows"]

    @property
    def cache_dtype(self) -> str:
        """The dtype of keys and values at rest."""
        return self.compute_dtype if self.cache == "compute" else self.cache

    @property
    def cache_length(self) -> int:
        """Positions of a slot: the longest prompt and response, and no prompt's padding beyond it."""
        needed = max(self.max_prompt_tokens + self.max_response_tokens, batch.row_length(self.max_prompt_tokens))
        return -(-needed // model.attention.cached.BLOCK) * model.attention.cached.BLOCK

    def prefill_rows(self, width: int) -> int:
        """Prompts prefilled at once at this padded width: a matter of the width alone, so that a prompt's bits are too."""
        return -(-max(1, PREFILL_TOKENS // width) // self.row_shards) * self.row_shards

    def kv_axis(self) -> str | None:
        """The mesh axis that key/value heads are split over."""
        return "tensor" if self.architecture.num_kv_heads % self.mesh.shape["tensor"] == 0 else None

    def vocab_axis(self) -> str | None:
        """The mesh axis that logits are split over."""
        tensor = self.mesh.shape["tensor"]
        return "tensor" if tensor > 1 and self.architecture.vocab_size % tensor == 0 else None

    def sharding(self, *axes: str | None) -> NamedSharding:
        """A placement on the engine's mesh."""
        return NamedSharding(self.mesh, PartitionSpec(*axes))


def make(
    architecture: model.Architecture,
    mesh: Mesh,
    *,
    compute_dtype: str,
    max_prompt_tokens: int,
    max_response_tokens: int,
    decode_slots: int,
    decode_window: int,
    cache: CacheSetting = "compute",
    layers: LayersSetting = "auto",
    attention: AttentionSetting = "auto",
) -> Engine:
    """The engine for this process's part of the learner's mesh.

    Args:
      layers: "loop" compiles one layer and loops over them; "unrolled" compiles all, which takes longer, and saves where a
        loop would copy each layer's weights before it uses them. "auto" is unrolled on CPU, where XLA makes those copies.
      attention: "at_once" reads a block of the cache for all rows, as far as the longest needs; "by_row" for each row by
        itself, as far as it needs. "auto" is by row on CPU, where a block has to be copied out of the cache first, unless
        the cache is a single block. The two agree to rounding.

    Raises:
      ValueError: the slots do not divide over the process's devices, or leave one of them a single slot.
    """
    local = mesh_lib.local(mesh)
    shards = local.shape["rows"]
    # A product with one row is another program, whose results differ in their last bits: two slots are the least.
    if decode_slots % shards or decode_slots < 2 * shards:
        least = max(2, -(-decode_slots // shards)) * shards
        raise ValueError(
            f"rollout.decode_slots={decode_slots} does not divide over the {shards} devices that decode in this process, two or "
            f"more for each. Use a multiple of {shards}, for example {least}."
        )
    is_on_cpu = local.devices.flat[0].platform == "cpu"
    engine = Engine(
        architecture,
        local,
        compute_dtype,
        cache,
        max_prompt_tokens,
        max_response_tokens,
        decode_slots,
        decode_window,
        is_unrolled=layers == "unrolled" or (layers == "auto" and is_on_cpu),
        attends_by_row=attention == "by_row",
    )
    if attention != "auto":
        return engine
    has_several_blocks = engine.cache_length > model.attention.cached.BLOCK
    return dataclasses.replace(engine, attends_by_row=is_on_cpu and has_several_blocks)


def from_config(
    architecture: model.Architecture, mesh: Mesh, config: config_lib.Config, *, max_prompt_tokens: int
) -> Engine:
    """The engine that a run's settings ask for, and prompts of up to `max_prompt_tokens`.

    Raises:
      ValueError: as `make`.
    """
    return make(
        architecture,
        mesh,
        compute_dtype=config.model.compute_dtype,
        max_prompt_tokens=max_prompt_tokens,
        max_response_tokens=config.rollout.max_response_tokens,
        decode_slots=config.rollout.decode_slots,
        decode_window=config.rollout.decode_window,
        cache=config.rollout.kv_cache,
        layers=config.rollout.decode_layers,
    )


def hand_over(params: Any, mesh: Mesh, engine: Engine) -> Any:
    """The sampler's copy of the learner's parameters: `compute_dtype`, whole on each process but for the tensor axis.

    A jitted cast whose outputs lie on the learner's devices in the learner's order; each process then rewraps the shards
    it holds on its own mesh, without a copy. Unrolled layers are copied one by one, by one program.
    """
    local = engine.mesh
    copies = _copied(engine, params, *_casts(engine, _across(mesh, engine)))
    order = {device: index for index, device in enumerate(local.devices.flat)}

    def rewrap(leaf: jax.Array) -> jax.Array:
        shards = sorted(leaf.addressable_shards, key=lambda shard: order[shard.device])
        mine = NamedSharding(local, leaf.sharding.spec)  # type: ignore[attr-defined]
        return jax.make_array_from_single_device_arrays(leaf.shape, mine, [shard.data for shard in shards])

    return jax.tree.map(rewrap, copies)


def lower_hand_over(params: Any, mesh: Mesh, engine: Engine) -> jax.stages.Lowered:
    """The program of `hand_over`, for parameters that are ShapeDtypeStructs: to compile without running.

    For unrolled layers that of one layer, which needs as much beside its operands and results as any.
    """
    whole, layer = _casts(engine, _across(mesh, engine))
    if layer is None:
        return whole.lower(params)
    return layer.lower(params["layers"], jax.ShapeDtypeStruct((), np.int32))


def abstract_copy(engine: Engine) -> Any:
    """Shapes and placement of `hand_over`'s result."""
    copied = functools.partial(
        _copied, engine, whole=functools.partial(_copy, engine), layer=functools.partial(_copy_layer, engine)
    )
    shapes = jax.eval_shape(copied, model.abstract_params(engine.architecture))
    return placed(shapes, _placement(engine, engine.mesh))


def placed(shapes: Any, placement: Any) -> Any:
    """A tree of ShapeDtypeStructs with a sharding each."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, placement
    )


def _across(mesh: Mesh, engine: Engine) -> Mesh:
    """The learner's devices as (host, rows, tensor): where they hold the copies before each process rewraps its own."""
    hosts = mesh.devices.size // engine.mesh.devices.size
    return Mesh(mesh.devices.reshape(hosts, *engine.mesh.devices.shape), ("host", *engine.mesh.axis_names))


def _placement(engine: Engine, mesh: Mesh) -> Any:
    architecture = engine.architecture
    axes, shapes = model.logical_axes(architecture), model.abstract_params(architecture)
    stacked = mesh_lib.shardings(mesh, axes, shapes, mesh_lib.SAMPLER_AXES)
    if not engine.is_unrolled:
        return stacked

    def of_layer(name: str, spec: tuple[str | None, ...]) -> NamedSharding:
        order = model.turned_order(name, len(spec))
        return NamedSharding(mesh, PartitionSpec(*(spec[axis] for axis in order)))

    layer = {name: of_layer(name, tuple(place.spec[1:])) for name, place in stacked["layers"].items()}
    vocabulary = stacked["embedding"].spec[0]
    head = NamedSharding(mesh, PartitionSpec(None, vocabulary))
    return stacked | {"layers": (layer,) * architecture.num_layers, "head": head}


def _copied(engine: Engine, params: Any, whole: Callable[..., Any], layer: Callable[..., Any] | None) -> Any:
    """The copy, by `_copy` for everything but unrolled layers, and for those by `_copy_layer`."""
    if layer is None or not engine.is_unrolled:
        return whole(params)
    layers = tuple(layer(params["layers"], np.int32(index)) for index in range(engine.architecture.num_layers))
    return whole(params | {"layers": ()}) | {"layers": layers}


def _copy(engine: Engine, params: Any) -> Any:
    dtypes = model.compute_dtypes(params, engine.compute_dtype)
    cast = jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), params, dtypes)
    if not engine.is_unrolled:
        return cast
    # Where layers are unrolled to save copies, the head is kept as the product reads it, too, and the embedding as bits.
    head = model.head_weight(engine.architecture, cast)
    return cast | {"head": head, "embedding": model.bits.as_bits(cast["embedding"])}


def _copy_layer(engine: Engine, layers: Any, index: jax.Array) -> Any:
    mine = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), layers)
    dtypes = model.compute_dtypes(mine, engine.compute_dtype)
    return model.turned_layer(jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), mine, dtypes))


@functools.lru_cache(maxsize=8)
def _casts(engine: Engine, mesh: Mesh) -> tuple[Any, Any]:
    """`_copy` and, for unrolled layers, `_copy_layer`, jitted; compiled once for each engine and mesh."""
    placement, copy = _placement(engine, mesh), functools.partial(_copy, engine)
    if not engine.is_unrolled:
        return jax.jit(copy, out_shardings=placement), None
    of_layer = jax.jit(functools.partial(_copy_layer, engine), out_shardings=placement["layers"][0])
    return jax.jit(copy, out_shardings=placement | {"layers": ()}), of_layer
