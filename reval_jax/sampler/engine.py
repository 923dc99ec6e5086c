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
PREFILL_TOKENS = 128  # of the prompts prefilled together: several short ones, or one longer


@dataclasses.dataclass(frozen=True)
class Engine:
    """What the sampler's programs are compiled for."""

    architecture: model.Architecture
    mesh: Mesh  # this process's devices, axes (rows, tensor)
    compute_dtype: str
    cache: CacheSetting  # dtype of keys and values: compute_dtype, or int8 with a scale per token and head
    max_prompt_tokens: int  # tokens
    max_response_tokens: int  # tokens, the end-of-sequence token included
    decode_slots: int  # responses decoded at once
    decode_window: int  # decode steps per device call; the host refills slots in between
    kernels: model.Kernels  # of `model.kernels.for_sampler`, or others to try

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
        return _cache_length(self.max_prompt_tokens, self.max_response_tokens)

    def prefill_rows(self, width: int) -> int:
        """Prompts prefilled together at this padded width. It depends on the width alone, and so do a prompt's bits."""
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
    attention: model.kernels.Setting = "auto",
) -> Engine:
    """The engine for this process's part of the learner's mesh, with the kernels of its platform.

    Args:
      attention: over whole rows, when prompts are prefilled.

    Raises:
      ValueError: the slots do not divide over the process's devices, or leave one of them a single slot; or the platform
        cannot run `attention`.
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
    cache_length = _cache_length(max_prompt_tokens, max_response_tokens)
    return Engine(
        architecture,
        local,
        compute_dtype,
        cache,
        max_prompt_tokens,
        max_response_tokens,
        decode_slots,
        decode_window,
        model.kernels.for_sampler(attention, local, architecture, compute_dtype, cache_length=cache_length),
    )


def _cache_length(max_prompt_tokens: int, max_response_tokens: int) -> int:
    """Positions of a slot: the longest prompt and response, and no prompt's padding beyond it."""
    needed = max(max_prompt_tokens + max_response_tokens, batch.row_length(max_prompt_tokens))
    return -(-needed // model.cache.BLOCK) * model.cache.BLOCK


def from_config(
    architecture: model.Architecture, mesh: Mesh, config: config_lib.Config, *, max_prompt_tokens: int
) -> Engine:
    """The engine of a run's settings, for prompts of up to `max_prompt_tokens`.

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
        attention=config.model.attention,
    )


def hand_over(params: Any, mesh: Mesh, engine: Engine) -> Any:
    """The sampler's copy of the learner's parameters: `compute_dtype`, whole on each process but for the tensor axis.

    A jitted cast whose outputs lie on the learner's devices in the learner's order; each process then rewraps the shards
    it holds on its own mesh, without a copy. Unrolled layers are copied one by one, by one program.
    """
    local = engine.mesh
    copies = _copy(engine, params, *_casts(engine, _across(mesh, engine)))
    order = {device: index for index, device in enumerate(local.devices.flat)}

    def rewrap(leaf: jax.Array) -> jax.Array:
        shards = sorted(leaf.addressable_shards, key=lambda shard: order[shard.device])
        mine = NamedSharding(local, leaf.sharding.spec)  # type: ignore[attr-defined]
        return jax.make_array_from_single_device_arrays(leaf.shape, mine, [shard.data for shard in shards])

    return jax.tree.map(rewrap, copies)


def lower_hand_over(params: Any, mesh: Mesh, engine: Engine) -> jax.stages.Lowered:
    """The program of `hand_over`, for parameters that are ShapeDtypeStructs: to compile without running.

    Where layers are copied one by one, the program of one: no other needs more beside its operands and results.
    """
    cast, cast_layer = _casts(engine, _across(mesh, engine))
    if cast_layer is None:
        return cast.lower(params)
    return cast_layer.lower(params["layers"], jax.ShapeDtypeStruct((), np.int32))


def abstract_copy(engine: Engine) -> Any:
    """Shapes and placement of `hand_over`'s result."""
    cast, cast_layer = _cast_functions(engine)
    shapes = jax.eval_shape(
        lambda params: _copy(engine, params, cast, cast_layer), model.abstract_params(engine.architecture)
    )
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


def _placement(engine: Engine, mesh: Mesh) -> model.Params:
    architecture = engine.architecture
    axes, shapes = model.logical_axes(architecture), model.abstract_params(architecture)
    stacked = mesh_lib.shardings(mesh, axes, shapes, mesh_lib.SAMPLER_AXES)
    return engine.kernels.layout.place(architecture, stacked)


_Cast = Callable[..., model.Params]


def _copy(engine: Engine, params: model.Params, cast: _Cast, cast_layer: _Cast | None) -> model.Params:
    if cast_layer is None:
        return cast(params)
    layers = tuple(cast_layer(params["layers"], np.int32(index)) for index in range(engine.architecture.num_layers))
    return cast(params | {"layers": ()}) | {"layers": layers}


def _cast_functions(engine: Engine) -> tuple[_Cast, _Cast | None]:
    """What makes the copy, and one layer of it where each is made by itself."""
    layout = engine.kernels.layout
    cast_layer = layout.cast_layer

    def cast(params: model.Params) -> model.Params:
        return layout.cast(engine.architecture, params, engine.compute_dtype)

    if cast_layer is None:
        return cast, None
    return cast, lambda layers, index: cast_layer(layers, index, engine.compute_dtype)


@functools.lru_cache(maxsize=8)
def _casts(engine: Engine, mesh: Mesh) -> tuple[jax.stages.Wrapped, jax.stages.Wrapped | None]:
    """`_cast_functions`, jitted; compiled once for each engine and mesh."""
    placement = _placement(engine, mesh)
    cast, cast_layer = _cast_functions(engine)
    if cast_layer is None:
        return jax.jit(cast, out_shardings=placement), None
    return (
        jax.jit(cast, out_shardings=placement | {"layers": ()}),
        jax.jit(cast_layer, out_shardings=placement["layers"][0]),
    )
