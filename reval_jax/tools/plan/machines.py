"""The machines that a run is planned for, TPU slices and hosts with GPUs, behind the same functions."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import jax

from reval_jax.tools.plan import gpu_topology, topology

Machine = topology.Topology | gpu_topology.GpuHosts


def named(name: str) -> Machine:
    """The machine with this name: see `topology.named` and `gpu_topology.named`.

    Raises:
      ValueError: neither knows it.
    """
    return gpu_topology.named(name) if gpu_topology.is_gpu_name(name) else topology.named(name)


def require_compiler(machine: Machine) -> None:
    """Checks that the compiler for this machine is installed.

    Raises:
      ValueError: it is not; the message says how to install it.
    """
    gpu_topology.require_compiler() if is_gpu(machine) else topology.require_compiler()


def devices(machine: Machine) -> list[jax.Device]:
    """Its chips or GPUs, as devices to compile for.

    Raises:
      ValueError: the compiler is not installed, or does not know the machine.
    """
    if isinstance(machine, gpu_topology.GpuHosts):
        return gpu_topology.devices(machine)
    return topology.devices(machine)


def memory_bytes(machine: Machine, device: jax.Device) -> int:
    """Bytes of a device's memory that programs may use."""
    if isinstance(machine, gpu_topology.GpuHosts):
        return gpu_topology.memory_bytes(machine)
    return topology.hbm_bytes(device)


def lowering_for(devices: Sequence[jax.Device]) -> contextlib.AbstractContextManager[None]:
    """Around the lowering of programs for these devices."""
    return gpu_topology.lowering_for(devices)


def is_gpu(machine: Machine) -> bool:
    """Whether it has GPUs."""
    return isinstance(machine, gpu_topology.GpuHosts)
