"""Hosts with NVIDIA GPUs by name, and their GPUs as devices to compile for on a machine without any.

XLA's compiler for NVIDIA comes in wheels of jax and of NVIDIA, which need no driver. It takes a GPU's properties as text.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from reval_jax import chips


class Gpu(NamedTuple):
    """One GPU of a kind.

    Sources: NVIDIA's data sheets of A100, H100, H200 and HGX B200 for NVLink; for the rest the CUDA programming guide ("compute
    capabilities") and the device descriptions in XLA's repository (xla/backends/gpu/target_config/specs).
    """

    device_kind: str  # as jax names it
    link_bandwidth: float  # bytes/s to the host's other GPUs, one way, all NVLinks together
    memory: int  # bytes, as CUDA reports them
    capability: tuple[int, int]
    multiprocessors: int
    fpus: int  # float32 units of a multiprocessor
    clock_ghz: float
    l2_cache: int  # bytes
    shared_memory: int  # bytes of a multiprocessor
    shared_memory_of_block: int  # bytes that a block may ask for

    @property
    def peak_flops(self) -> float:
        """bfloat16 FLOP/s, dense."""
        return chips.GPU[self.device_kind].bfloat16

    @property
    def hbm_bandwidth(self) -> float:
        """Bytes/s of its memory."""
        return chips.GPU[self.device_kind].memory


_KIB, _MIB, _GIB = 2**10, 2**20, 2**30
_A100 = Gpu("NVIDIA A100-SXM4-80GB", 300e9, 85_100_068_864, (8, 0), 108, 64, 1.41, 40 * _MIB, 164 * _KIB, 163 * _KIB)
_H100 = Gpu("NVIDIA H100 80GB HBM3", 450e9, 84_942_979_072, (9, 0), 132, 128, 1.98, 50 * _MIB, 228 * _KIB, 227 * _KIB)
GPUS = {
    "a100-80gb": _A100,
    "h100": _H100,
    "h200": _H100._replace(device_kind="NVIDIA H200", memory=int(139.80 * _GIB)),
    "b200": Gpu("NVIDIA B200", 900e9, 191_514_411_008, (10, 0), 148, 128, 1.965, 132_644_864, 228 * _KIB, 227 * _KIB),
}
HOST_SIZES = (1, 2, 4, 8)
"""GPUs that a host of a named topology may have."""
ADAPTER_BANDWIDTH = 50e9
"""Bytes/s of a network adapter, one way; hosts have one of 400 Gbit/s for each GPU, as NVIDIA's DGX H100."""
MEMORY_FRACTION = 0.75
"""Share of a GPU's memory that jax takes when it starts, all that programs may use, unless the environment says otherwise."""
LARGEST_FRACTION = 0.92
"""Share that programs may be given: CUDA's context, NCCL's buffers and the libraries' workspaces need the rest."""

_NAME = re.compile(r"(?:([1-9]\d*)\s*x\s*)?([a-z0-9-]+):([1-9]\d*)")
_PLUGIN = "jax_plugins.xla_cuda13"
_TOOLKIT = Path("/usr/local/cuda")


class GpuHosts(NamedTuple):
    """Hosts of one kind of GPU. GPUs of a host are connected by NVLink."""

    generation: str  # a key of GPUS
    hosts: int
    host_size: int  # GPUs of a host

    @property
    def unit(self) -> str:
        """The word for one device."""
        return "GPU"

    @property
    def name(self) -> str:
        """For example h100:8, or 4x h100:8 for four such hosts."""
        return (f"{self.hosts}x " if self.hosts > 1 else "") + f"{self.generation}:{self.host_size}"

    @property
    def chip(self) -> Gpu:
        """Its kind of GPU."""
        return GPUS[self.generation]

    @property
    def num_chips(self) -> int:
        """GPUs of all hosts."""
        return self.hosts * self.host_size

    @property
    def host(self) -> GpuHosts:
        """One of the hosts."""
        return self._replace(hosts=1)

    @property
    def common_name(self) -> str:
        """Its name as one word: 4xh100:8."""
        return self.name.replace(" ", "")

    @property
    def network_bandwidth(self) -> float:
        """Bytes/s that each GPU receives where all gather or sum together, by NVLink and, between hosts, by their adapters.

        All adapters of a host count: NCCL lets a ring pass through each of them.
        """
        link = self.chip.link_bandwidth
        return link if self.hosts == 1 else min(link, self.host_size * ADAPTER_BANDWIDTH)

    def larger(self) -> Iterator[GpuHosts]:
        """More of the same GPUs: up to eight in a host, then twice as many hosts and so on, up to 64."""
        for size in HOST_SIZES:
            if self.hosts == 1 and size > self.host_size:
                yield self._replace(host_size=size)
        for doublings in range(1, 7):
            hosts = 2**doublings
            if hosts > self.hosts:
                yield self._replace(hosts=hosts, host_size=8)


def is_gpu_name(name: str) -> bool:
    """Whether a name is meant for GPUs rather than for a TPU slice: it begins like a kind of GPU, known or not."""
    return re.match(r"(a|b|h|gb|gh|l|t|rtx|v1)\d|nvidia|gpu|cuda", _kind(name)) is not None


def _kind(name: str) -> str:
    return re.sub(r":.*|^(\d+\s*x?\s+|\d+\s*x|x\s+)\s*", "", name.strip().lower())


def named(name: str) -> GpuHosts:
    """The hosts with this name: h100:8, a100-80gb:4, or 4x h100:8 (also 4xh100:8) for several hosts.

    Raises:
      ValueError: it is no such name.
    """
    match = _NAME.fullmatch(name.strip().lower())
    if match and match[2] in GPUS and int(match[3]) in HOST_SIZES:
        return GpuHosts(match[2], int(match[1] or 1), int(match[3]))
    if match and match[2] in GPUS and int(match[3]) % 8 == 0:
        hosts = int(match[1] or 1) * int(match[3]) // 8
        nearest = [f"{8 * hosts} GPUs are '{hosts}x {match[2]}:8'"]
    else:
        kind = _kind(name)
        longer = [each for each in GPUS if kind and each.startswith(kind)]
        nearest = [f"{each}:8" for each in longer or difflib.get_close_matches(kind, GPUS, n=2, cutoff=0.0)]
    raise ValueError(
        f"--topology {name!r} is not known. Name a kind of GPU ({', '.join(GPUS)}) with the GPUs of a host "
        f"({', '.join(map(str, HOST_SIZES))}), for several hosts after their number: h100:8 or '4x h100:8'. "
        f"Nearest: {', '.join(nearest)}."
    )


def devices(topology: GpuHosts) -> list[jax.Device]:
    """The GPUs of the hosts, as devices to compile for. Lower programs for them inside `lowering_for`.

    Raises:
      ValueError: the compiler is not installed.
    """
    require_compiler()
    _register()
    description = topologies.get_topology_desc(
        platform="cuda",
        topology_name=topology.generation,
        target_config=target_config(topology.chip),
        topology=f"{topology.hosts}x1x{topology.host_size}",  # NVLink domains x hosts of one x GPUs of one
    )
    return list(description.devices)


def target_config(gpu: Gpu) -> str:
    """The GPU's properties, as XLA reads them: the text of a GpuTargetConfigProto."""
    limits = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "threads_per_core_limit": 2048,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
        "shared_memory_per_block": 48 * _KIB,
        "shared_memory_per_block_optin": gpu.shared_memory_of_block,
        "shared_memory_per_core": gpu.shared_memory,
        "core_count": gpu.multiprocessors,
        "fpus_per_core": gpu.fpus,
        "clock_rate_ghz": gpu.clock_ghz,
        "l2_cache_size": gpu.l2_cache,
        "memory_bandwidth": int(gpu.hbm_bandwidth),
        "device_memory_size": gpu.memory,
    }
    major, minor = gpu.capability
    fields = " ".join(f"{name}: {value}" for name, value in limits.items())
    return (
        f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
        'platform_name: "CUDA" dnn_version_info { major: 9 minor: 12 } runtime_version { major: 13 minor: 0 patch: 0 } '
        f'device_description_str: "{gpu.device_kind}"'
    )


def memory_fraction() -> float:
    """The share of a GPU's memory that programs may use: MEMORY_FRACTION, or what the environment sets for jax.

    Raises:
      ValueError: the environment's value is not a share.
    """
    for name in ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION"):
        if text := os.environ.get(name):
            with contextlib.suppress(ValueError):
                if 0 < float(text) <= 1:
                    return float(text)
            raise ValueError(
                f"{name}={text!r} is not a share of a GPU's memory. Use a number above 0 and up to 1, such as 0.9."
            )
    return MEMORY_FRACTION


def memory_bytes(topology: GpuHosts) -> int:
    """Bytes of a GPU's memory that programs may use."""
    return int(topology.chip.memory * memory_fraction())


def wheels() -> str:
    """The wheels with the compiler, as pip takes them: XLA's plugin of this jax, and NVIDIA's assembler and device library."""
    version = jax.__version__
    return f"jax-cuda13-plugin=={version} jax-cuda13-pjrt=={version} 'nvidia-cuda-nvcc>=13,<14' 'nvidia-nvvm>=13,<14'"


def require_compiler() -> None:
    """Checks that the wheels with the compiler for NVIDIA GPUs are installed.

    Raises:
      ValueError: they are not; the message has the command that installs those of this jax.
    """
    if not (_has_plugin() and _has_toolkit()):
        raise ValueError(
            "plan compiles for NVIDIA GPUs with jax's CUDA plugin and NVIDIA's assembler, which are not both installed here. No "
            f"GPU and no driver is needed. jax {jax.__version__} needs these wheels (Linux, 270 MB): pip install --no-deps "
            f"{wheels()}"
        )


def _has_plugin() -> bool:
    try:
        return all(importlib.util.find_spec(name) is not None for name in (_PLUGIN, "jax_cuda13_plugin"))
    except ModuleNotFoundError:  # no jax_plugins at all
        return False


def _has_toolkit() -> bool:
    """Whether XLA will find ptxas and libdevice: in NVIDIA's wheels beside the plugin, or in a CUDA toolkit."""
    plugin: Any = importlib.util.find_spec(_PLUGIN)
    folders = [Path(plugin.origin).parents[2] / "nvidia" / "cu13", _TOOLKIT]
    needed = ("bin/ptxas", "nvvm/libdevice/libdevice.10.bc")
    return any(all((folder / file).is_file() for file in needed) for folder in folders)


def _register() -> None:
    """Loads the plugin into a process whose jax looked for plugins before this one could be found."""
    jax.local_devices(backend="cpu")  # starts jax, which looks for plugins
    if "cuda" not in sys.modules["jax._src.xla_bridge"]._topology_factories:
        importlib.import_module(_PLUGIN).initialize()


@contextlib.contextmanager
def lowering_for(devices: Sequence[jax.Device]) -> Iterator[None]:
    """Around the lowering of programs for these devices: makes jax take a Pallas kernel's GPU from them.

    Since 0.11 the Triton backend of Pallas asks which GPU it lowers for. Inside a `jax.shard_map` jax takes it from the mesh, in
    other programs from this process's first device, which is a CPU. 0.10 assumes compute capability 9.0 for absent GPUs.
    """
    if devices[0].platform != "gpu":
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The Pallas Triton backend is deprecated")
        try:
            gpu_info: Any = importlib.import_module("jax._src.pallas.triton.gpu_info")
        except ImportError:  # jax 0.10
            yield
            return
        ask, kind = gpu_info.get_gpu_info, devices[0].device_kind
        gpu_info.get_gpu_info = lambda: gpu_info.get_gpu_info_from_version(gpu_info.gpu_version_from_device_kind(kind))
        try:
            yield
        finally:
            gpu_info.get_gpu_info = ask
