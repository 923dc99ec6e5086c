"""The learner's parameters to the sampler: one function copies them, between any two sets of devices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from reval_jax import mesh as mesh_lib
from reval_jax import model, types
from reval_jax.sampler.engine import Engine


def sync_weights(params: model.Params, engine: Engine) -> model.Params:
    """The sampler's copy of the learner's parameters: in the engine's dtypes and layout, on the engine's devices.

    A jitted cast makes the copy on the learner's devices, sharded over the tensor axis only; layers that are separate arrays are
    cast one by one. Where the engine's devices are this process's part of the learner's, each process wraps the shards that it
    holds, without a copy. Otherwise the copy is sent to the engine's devices.

    Args:
      params: device arrays, with NamedShardings on the learner's mesh. A value head is left out.

    Raises:
      ValueError: the engine has devices of its own, and there are several processes.
    """
    params = model.without_value_head(params)
    learner = _mesh_of(params)
    if _shares_devices(learner, engine):
        return _rewrapped(_copy(engine, params, *_casts(engine, _learner_by_host(learner, engine))), engine.mesh)
    if jax.process_count() > 1:
        raise ValueError(
            f"the sampler's {engine.mesh.devices.size} devices are not this process's part of the learner's "
            f"{learner.devices.size}, and parameters are sent to other devices within one process only. Make both meshes with "
            "mesh.make_meshes, or run one process."
        )
    return jax.device_put(_copy(engine, params, *_casts(engine, learner)), _placement(engine, engine.mesh))


def _mesh_of(params: model.Params) -> Mesh:
    sharding = jax.tree.leaves(params)[0].sharding
    mesh: Mesh = sharding.mesh
    return mesh


def _shares_devices(learner: Mesh, engine: Engine) -> bool:
    """Whether the engine has exactly this process's part of the learner's devices, in its order."""
    process = engine.mesh.devices.flat[0].process_index
    return np.array_equal(mesh_lib.local(learner, process).devices, engine.mesh.devices)


def _rewrapped(copies: model.Params, mesh: Mesh) -> model.Params:
    """This process's shards as arrays on its own mesh, without a copy."""
    order = {device: index for index, device in enumerate(mesh.devices.flat)}

    def rewrap(leaf: jax.Array) -> jax.Array:
        shards = sorted(leaf.addressable_shards, key=lambda shard: order[shard.device])
        local = NamedSharding(mesh, leaf.sharding.spec)  # type: ignore[attr-defined]
        return jax.make_array_from_single_device_arrays(leaf.shape, local, [shard.data for shard in shards])

    return jax.tree.map(rewrap, copies)


def lower_sync_weights(params: model.Params, engine: Engine) -> jax.stages.Lowered:
    """The program of `sync_weights`, for parameters that are ShapeDtypeStructs: to compile without running.

    Where layers are copied one by one, this is one layer's program, which has the largest temporaries.
    """
    params = model.without_value_head(params)
    cast, cast_layer = _casts(engine, _learner_by_host(_mesh_of(params), engine))
    if cast_layer is None:
        return cast.lower(params)
    return cast_layer.lower(params["layers"], jax.ShapeDtypeStruct((), np.int32))


def abstract_copy(engine: Engine) -> model.Params:
    """Shapes and placement of `sync_weights`'s result."""
    cast, cast_layer = _cast_functions(engine)
    shapes = jax.eval_shape(
        lambda params: _copy(engine, params, cast, cast_layer), model.abstract_params(engine.architecture)
    )
    return with_shardings(shapes, _placement(engine, engine.mesh))


def with_shardings(shapes: types.PyTree, placement: types.PyTree) -> Any:
    """A tree of ShapeDtypeStructs with a sharding each."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, placement
    )


def _learner_by_host(mesh: Mesh, engine: Engine) -> Mesh:
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
    """The function that makes the copy, and the one for a single layer if layers are cast one by one."""
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
