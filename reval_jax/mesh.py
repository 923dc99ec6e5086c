"""Process start, device meshes, the table from logical axes to mesh axes, and placement between host and devices."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from reval_jax import config as config_lib
from reval_jax import parallel

AXES = (parallel.DATA, parallel.FSDP, parallel.TENSOR)
ROWS = (parallel.DATA, parallel.FSDP)
"""Mesh axes that the rows of a batch are spread over."""

LEARNER_AXES = {"vocab": "tensor", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "width": "fsdp"}
"""Where the learner puts each logical axis of a weight; an axis that is not named is not split."""

SAMPLER_AXES = {"vocab": "tensor", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor"}
"""Where the sampler puts them: whole copies but for the tensor axis, so that decoding gathers no weights."""


def start(*, cache_directory: str | None = None) -> None:
    """Join the other processes, if there are any, and turn on the persistent compilation cache.

    Processes find each other by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; a TPU pod needs none of
    them when JAX_COORDINATOR_ADDRESS is the word `auto`. The cache lies in JAX_COMPILATION_CACHE_DIR, else in
    `cache_directory`, else in ~/.cache/reval_jax/xla.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address == "auto":
        # jax would take the word itself for an address.
        del os.environ["JAX_COORDINATOR_ADDRESS"]
        jax.distributed.initialize()
    elif address:
        try:
            count, index = int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"JAX_COORDINATOR_ADDRESS={address} asks for several processes, but JAX_NUM_PROCESSES and JAX_PROCESS_ID are "
                "not both set to integers. Set them, or unset JAX_COORDINATOR_ADDRESS to run one process."
            ) from error
        if os.environ.get("JAX_PLATFORMS", "") == "cpu":
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, count, index)
    if compilation_cache() is None:
        default = os.path.join(os.path.expanduser("~"), ".cache", "reval_jax", "xla")
        jax.config.update("jax_compilation_cache_dir", cache_directory or default)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def compilation_cache() -> str | None:
    """The directory of the persistent compilation cache, None while it is off."""
    directory: str | None = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    return directory


def make(settings: config_lib.Mesh, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The learner's mesh over every device of every process, axes (data, fsdp, tensor).

    Args:
      devices: other devices than this program's, to compile for.

    Raises:
      ValueError: the axes' product is not the number of devices, or `tensor` would span processes.
    """
    devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    data, fsdp, tensor = settings.data, settings.fsdp, settings.tensor
    if fsdp == -1:
        fsdp = max(1, len(devices) // (data * tensor))
    if data * fsdp * tensor != len(devices):
        raise ValueError(
            f"mesh.data={data} x mesh.fsdp={settings.fsdp} x mesh.tensor={tensor} does not make {len(devices)}, the number of "
            f"{devices[0].platform} devices. Use axes whose product is {len(devices)}, for example mesh.fsdp=-1 and "
            "mesh.data=1, mesh.tensor=1."
        )
    of_process = sum(device.process_index == devices[0].process_index for device in devices)
    if of_process % tensor:
        raise ValueError(f"mesh.tensor={tensor} does not divide the {of_process} devices of a process. Use a divisor.")
    return Mesh(np.array(devices).reshape(data, fsdp, tensor), AXES)


def local(mesh: Mesh, process_index: int | None = None) -> Mesh:
    """This process's part of the mesh, axes (rows, tensor): where its sampler decodes."""
    tensor = mesh.shape["tensor"]
    process = jax.process_index() if process_index is None else process_index
    mine = [device for device in mesh.devices.flat if device.process_index == process]
    return Mesh(np.array(mine).reshape(-1, tensor), ("rows", "tensor"))


def num_row_shards(mesh: Mesh) -> int:
    """Devices that the rows of a batch are spread over."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def shardings(mesh: Mesh, logical_axes: Any, shapes: Any, table: dict[str, str]) -> Any:
    """A NamedSharding for every weight, by its logical axes.

    A dimension that its mesh axis does not divide is kept whole (3 key/value heads over tensor=2); `kept_whole` says which.

    Args:
      logical_axes: tree whose leaves are tuples of axis names, one a dimension.
      shapes: the same tree with anything that has a `.shape`.
      table: LEARNER_AXES or SAMPLER_AXES.
    """

    def place(leaf: Any, axes: tuple[str | None, ...]) -> NamedSharding:
        spec = [table.get(axis) if axis else None for axis in axes]
        for dimension, axis in enumerate(spec):
            if axis and leaf.shape[dimension] % mesh.shape[axis]:
                spec[dimension] = None
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(place, shapes, logical_axes)


def specs(placement: Any) -> Any:
    """The PartitionSpec of every NamedSharding in a tree, as `jax.shard_map` takes them."""
    return jax.tree.map(lambda sharding: sharding.spec, placement)


def sum_over_rows(mesh: Mesh, tree: Any, placement: Any) -> Any:
    """The sum over devices of values that each computed from its own rows, inside a `shard_map` over the mesh.

    What is split over an axis is a different part on each of its devices and is not summed over it.

    Args:
      placement: tree of PartitionSpecs, as of `specs`.
    """

    def add(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
        axes = tuple(axis for axis in ROWS if mesh.shape[axis] > 1 and axis not in spec)
        return jax.lax.psum(leaf, axes) if axes else leaf

    return jax.tree.map(add, tree, placement)


def kept_whole(mesh: Mesh, logical_axes: Any, shapes: Any, table: dict[str, str]) -> list[str]:
    """One sentence for each logical axis whose size its mesh axis does not divide, so that `shardings` does not split it."""
    found = set()
    is_axes = lambda node: isinstance(node, tuple)  # noqa: E731
    for leaf, axes in zip(jax.tree.leaves(shapes), jax.tree.leaves(logical_axes, is_leaf=is_axes), strict=True):
        for size, axis in zip(leaf.shape, axes, strict=True):
            split = table.get(axis) if axis else None
            if split and size % mesh.shape[split]:
                found.add(
                    f"{axis} ({size}) is kept whole on every device: mesh.{split}={mesh.shape[split]} does not divide it"
                )
    return sorted(found)


def replicated(mesh: Mesh) -> NamedSharding:
    """One whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put(tree: Any, placement: Any) -> Any:
    """Host arrays, the same on every process, as device arrays under the given sharding(s).

    Args:
      tree: NumPy arrays or scalars.
      placement: one sharding for all leaves, or a tree of them.
    """
    if isinstance(placement, jax.sharding.Sharding):
        placement = jax.tree.map(lambda _: placement, tree)

    def place(value: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(place, tree, placement)


def fetch(tree: Any) -> Any:
    """Device arrays as NumPy arrays, whole on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(lambda leaf: np.asarray(multihost_utils.process_allgather(leaf, tiled=True)), tree)


def gather_bytes(payload: bytes) -> list[bytes]:
    """Every process's payload, in process order, on every process. Bytes, so that no dtype is narrowed on the way."""
    if jax.process_count() == 1:
        return [payload]
    sizes = multihost_utils.process_allgather(np.int32(len(payload)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(payload)] = np.frombuffer(payload, np.uint8)
    everyone = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]) for row, size in zip(everyone, sizes, strict=True)]


def check_agreement(said: str, what: str) -> None:
    """Compare a text that every process must have come to by itself: a collective call.

    Raises:
      ValueError: they differ, on every process alike.
    """
    everyone = gather_bytes(said.encode())
    if len(set(everyone)) > 1:
        listed = "; ".join(f"process {index}: {text.decode()}" for index, text in enumerate(everyone))
        raise ValueError(
            f"the processes do not have the same {what} ({listed}). Start the same command on the same files."
        )
