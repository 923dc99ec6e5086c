"""Hosts with NVIDIA GPUs by name, and their GPUs as devices to compile for on a machine without any.

XLA's compiler for NVIDIA comes in two wheels, which need neither a driver nor CUDA. It takes a GPU's properties as text.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies


class Gpu(NamedTuple):
    """One GPU of a kind.

    Sources: NVIDIA's data sheets of A100, H100, H200 and HGX B200 for the rates; for the rest the CUDA programming guide
    ("compute capabilities") and the device descriptions in XLA's repository (xla/backends/gpu/target_config/specs).
    """

    device_kind: str  # as jax names it
    peak_flops: float  # bfloat16 FLOP/s, dense
    hbm_bandwidth: float  # bytes/s
    link_bandwidth: float  # bytes/s to the host's other GPUs, one way, all NVLinks together
    memory: int  # bytes, as CUDA reports them
    capability: tuple[int, int]
    multiprocessors: int
    fpus: int  # float32 units of a multiprocessor
    clock_ghz: float
    l2_cache: int  # bytes
    shared_memory: int  # bytes of a multiprocessor
    shared_memory_of_block: int  # bytes that a block may ask for


_KIB, _MIB, _GIB = 2**10, 2**20, 2**30
GPUS = {
    "a100-80gb": Gpu(
        *("NVIDIA A100-SXM4-80GB", 312e12, 2039e9, 300e9, 85_100_068_864, (8, 0), 108),
        *(64, 1.41, 40 * _MIB, 164 * _KIB, 163 * _KIB),
    ),
    "h100": Gpu(
        *("NVIDIA H100 80GB HBM3", 989.4e12, 3352e9, 450e9, 84_942_979_072, (9, 0), 132),
        *(128, 1.98, 50 * _MIB, 228 * _KIB, 227 * _KIB),
    ),
    # CUDA's report of an H200's memory: 139.80 GiB.
    "h200": Gpu(
        *("NVIDIA H200", 989.4e12, 4800e9, 450e9, int(139.80 * _GIB), (9, 0), 132),
        *(128, 1.98, 50 * _MIB, 228 * _KIB, 227 * _KIB),
    ),
    "b200": Gpu(
        *("NVIDIA B200", 2250e12, 7672e9, 900e9, 191_514_411_008, (10, 0), 148),
        *(128, 1.965, 132_644_864, 228 * _KIB, 227 * _KIB),
    ),
}
HOST_SIZES = (1, 2, 4, 8)
"""GPUs that a host of a named topology may have."""
NETWORK_BANDWIDTH = 50e9
"""Bytes/s of a GPU to other hosts, one way: one 400 Gbit/s adapter a GPU, as in NVIDIA's DGX H100 and HGX hosts."""

_NAME = re.compile(r"(?:([1-9]\d*)\s*x\s*)?([a-z0-9-]+):([1-9]\d*)")
_PLUGIN = "jax_plugins.xla_cuda13"


class GpuHosts(NamedTuple):
    """Hosts of one kind of GPU. GPUs of a host are connected by NVLink."""

    generation: str  # a key of GPUS
    hosts: int
    host_size: int  # GPUs of a host

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


def is_gpu_name(name: str) -> bool:
    """Whether a name is meant for GPUs rather than for a TPU slice: it begins like a kind of GPU, known or not."""
    return re.match(r"(a|b|h|gb|gh|l|t|rtx|v1)\d|nvidia|gpu|cuda", _kind(name)) is not None


def _kind(name: str) -> str:
    return re.sub(r":.*|^\d+\s*x\s*", "", name.strip().lower())


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
        nearest = [f"{each}:8" for each in difflib.get_close_matches(_kind(name), GPUS, n=2, cutoff=0.0)]
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


def require_compiler() -> None:
    """Checks that the wheels with XLA's compiler for NVIDIA GPUs are installed.

    Raises:
      ValueError: they are not; the message has the command that installs those of this jax.
    """
    try:
        missing = [name for name in (_PLUGIN, "jax_cuda13_plugin") if importlib.util.find_spec(name) is None]
    except ModuleNotFoundError:  # no jax_plugins at all
        missing = [_PLUGIN]
    if missing:
        version = jax.__version__
        raise ValueError(
            "plan compiles for NVIDIA GPUs with jax's CUDA plugin, which is not installed here. No GPU, driver or CUDA is "
            f"needed. jax {version} needs these two wheels (Linux, 142 MB): pip install --no-deps "
            f"jax-cuda13-plugin=={version} jax-cuda13-pjrt=={version}"
        )


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
