"""Device meshes, the table from logical axes to mesh axes, and placement of arrays on devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from reval_jax import config as config_lib
from reval_jax import parallel, types

AXES = (parallel.DATA, parallel.FSDP, parallel.TENSOR)
ROWS = (parallel.DATA, parallel.FSDP)
"""Mesh axes that split the rows of a batch."""

LEARNER_AXES = {"vocab": "tensor", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "width": "fsdp"}
"""Logical axis of a weight to the mesh axis that splits it in the learner; other axes are not split."""

SAMPLER_AXES = {"vocab": "tensor", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor"}
"""The same for the sampler: split over `tensor` only, so that decoding gathers no weights."""


def make(settings: config_lib.Mesh, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The learner's mesh over every device of every process, axes (data, fsdp, tensor).

    Args:
      devices: to compile for, instead of this program's own.

    Raises:
      ValueError: the product of the axes is not the number of devices, or `tensor` would span processes.
    """
    devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    data, fsdp, tensor = settings.data, settings.fsdp, settings.tensor
    if fsdp == -1:
        fsdp = max(1, len(devices) // (data * tensor))
    if data * fsdp * tensor != len(devices):
        raise ValueError(
            f"mesh.data={data} x mesh.fsdp={settings.fsdp} x mesh.tensor={tensor} does not make {len(devices)}, the number of "
            f"{devices[0].device_kind} devices. Use axes whose product is {len(devices)}, for example mesh.fsdp=-1 and "
            "mesh.data=1, mesh.tensor=1."
        )
    num_local = sum(device.process_index == devices[0].process_index for device in devices)
    if num_local % tensor:
        raise ValueError(f"mesh.tensor={tensor} does not divide the {num_local} devices of a process. Use a divisor.")
    return Mesh(np.array(devices).reshape(data, fsdp, tensor), AXES)


class Meshes(NamedTuple):
    """The devices of the two halves of the program; nothing may assume that they are the same devices."""

    learner: Mesh  # every device of every process, axes (data, fsdp, tensor)
    sampler: Mesh  # devices of this process, axes (rows, tensor)


def make_meshes(settings: config_lib.Mesh) -> Meshes:
    """The learner's mesh and the sampler's: here this process's part of the learner's devices.

    Raises:
      ValueError: as `make`.
    """
    learner = make(settings)
    return Meshes(learner, local(learner))


def local(mesh: Mesh, process_index: int | None = None) -> Mesh:
    """The devices of one process (this one by default) as a mesh with axes (rows, tensor), for its sampler."""
    tensor = mesh.shape["tensor"]
    process = jax.process_index() if process_index is None else process_index
    devices = [device for device in mesh.devices.flat if device.process_index == process]
    return Mesh(np.array(devices).reshape(-1, tensor), ("rows", "tensor"))


def num_row_shards(mesh: Mesh) -> int:
    """Number of parts that the rows of a batch are split into, each on devices of its own."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def shardings(mesh: Mesh, logical_axes: types.PyTree, shapes: types.PyTree, table: dict[str, str]) -> types.PyTree:
    """The NamedSharding of every weight, from its logical axes.

    A dimension whose size the mesh axis does not divide is replicated (3 key/value heads over tensor=2); `kept_whole`
    lists these.

    Args:
      logical_axes: tree whose leaves are tuples of axis names, one per dimension.
      shapes: the same tree; leaves have a `.shape`.
      table: LEARNER_AXES or SAMPLER_AXES.
    """

    def place(leaf: Any, axes: tuple[str | None, ...]) -> NamedSharding:
        spec = [table.get(axis) if axis else None for axis in axes]
        for dimension, axis in enumerate(spec):
            if axis and leaf.shape[dimension] % mesh.shape[axis]:
                spec[dimension] = None
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(place, shapes, logical_axes)


def specs(placement: types.PyTree) -> types.PyTree:
    """The PartitionSpec of every NamedSharding in a tree, for `jax.shard_map`."""
    return jax.tree.map(lambda sharding: sharding.spec, placement)


def sum_over_rows(mesh: Mesh, tree: Any, placement: types.PyTree) -> types.PyTree:
    """Sum over devices of values that each device computed from its own rows; call inside a `shard_map` over the mesh.

    A leaf that is split over an axis holds a different part on each device and is not summed over that axis.

    Args:
      placement: tree of PartitionSpecs, from `specs`.
    """

    def add(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
        axes = tuple(axis for axis in ROWS if mesh.shape[axis] > 1 and axis not in spec)
        return jax.lax.psum(leaf, axes) if axes else leaf

    return jax.tree.map(add, tree, placement)


def kept_whole(mesh: Mesh, logical_axes: types.PyTree, shapes: types.PyTree, table: dict[str, str]) -> list[str]:
    """One sentence per logical axis that `shardings` does not split, because the mesh axis does not divide its size."""
    notes = set()
    is_axes = lambda node: isinstance(node, tuple)  # noqa: E731
    for leaf, axes in zip(jax.tree.leaves(shapes), jax.tree.leaves(logical_axes, is_leaf=is_axes), strict=True):
        for size, axis in zip(leaf.shape, axes, strict=True):
            split = table.get(axis) if axis else None
            if split and size % mesh.shape[split]:
                notes.add(
                    f"{axis} ({size}) is kept whole on every device: mesh.{split}={mesh.shape[split]} does not divide it"
                )
    return sorted(notes)


def replicated(mesh: Mesh) -> NamedSharding:
    """One whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put(tree: Any, placement: types.PyTree) -> types.PyTree:
    """Host arrays, equal on every process, as device arrays with the given shardings.

    Args:
      tree: NumPy arrays or scalars.
      placement: one sharding for every leaf, or a tree of shardings.
    """
    if isinstance(placement, jax.sharding.Sharding):
        placement = jax.tree.map(lambda _: placement, tree)

    def place(value: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(place, tree, placement)
