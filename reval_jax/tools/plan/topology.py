"""TPU slices by name, and their chips as devices to compile for on a machine without TPUs."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import math
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from reval_jax import chips


class Chip(NamedTuple):
    """One chip of a generation, as documented at cloud.google.com/tpu/docs/v4, v5e, v5p, v6e."""

    rates: chips.Rates
    link_bandwidth: float  # bytes/s to the other chips, one way, all links together
    counts_cores: bool  # a slice's common name counts TensorCores, two a chip, not chips
    host: tuple[int, ...]  # chips of a host along each dimension, in a slice of several hosts

    @property
    def peak_flops(self) -> float:
        """bfloat16 FLOP/s."""
        return self.rates.bfloat16

    @property
    def hbm_bandwidth(self) -> float:
        """Bytes/s of its memory."""
        return self.rates.memory


CHIPS = {
    "v4": Chip(chips.TPU["v4"], 300e9, True, (2, 2, 1)),
    "v5e": Chip(chips.TPU["v5e"], 200e9, False, (2, 2)),
    "v5p": Chip(chips.TPU["v5p"], 600e9, True, (2, 2, 1)),
    "v6e": Chip(chips.TPU["v6e"], 448e9, False, (2, 2)),
}

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16".split()  # noqa: SIM905
_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e"}
# Without these libtpu queries the machine for a TPU, prints errors if there is none, and refuses a second process.
_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class Topology(NamedTuple):
    """A slice of one generation."""

    generation: str  # a key of CHIPS
    shape: tuple[int, ...]  # chips along each dimension

    @property
    def unit(self) -> str:
        """The word for one device."""
        return "chip"

    @property
    def name(self) -> str:
        """As libtpu names it, for example v5e:4x4."""
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"

    @property
    def chip(self) -> Chip:
        """Its generation's chip."""
        return CHIPS[self.generation]

    @property
    def num_chips(self) -> int:
        """Chips of the slice."""
        return math.prod(self.shape)

    @property
    def host(self) -> Topology:
        """One host's part. A v5e or v6e slice of up to 8 chips is one host; else a host has 4 chips."""
        is_one_host = len(self.shape) == 2 and self.num_chips <= 8
        return self if is_one_host else Topology(self.generation, self.chip.host)

    @property
    def network_bandwidth(self) -> float:
        """Bytes/s of a chip to the others, one way."""
        return self.chip.link_bandwidth

    def larger(self) -> Iterator[Topology]:
        """The common slices of its generation with more chips, from small to large."""
        for each in common_names().values():
            if each.generation == self.generation and each.num_chips > self.num_chips:
                yield each

    @property
    def common_name(self) -> str:
        """Its common slice name, or `name` if it has none."""
        return {topology: name for name, topology in common_names().items()}.get(self, self.name)


def common_names() -> dict[str, Topology]:
    """Topology of each common slice name, such as v5e-256 or v5p-128."""
    names = {}
    for generation, chip in CHIPS.items():
        for text in _DEEP if len(chip.host) == 3 else _FLAT:
            topology = Topology(generation, tuple(int(size) for size in text.split("x")))
            names[f"{generation}-{topology.num_chips * (2 if chip.counts_cores else 1)}"] = topology
    return names


def named(name: str) -> Topology:
    """The slice with this common name (v5e-256, v5litepod-256, v5p-128) or topology (v5e:16x16).

    Raises:
      ValueError: it is neither.
    """
    known = common_names()
    generation, separator, size = name.strip().lower().partition("-" if "-" in name else ":")
    generation = _ALIASES.get(generation, generation)
    if f"{generation}-{size}" in known and separator == "-":
        return known[f"{generation}-{size}"]
    if separator == ":" and generation in CHIPS and re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", size):
        shape = tuple(int(part) for part in size.split("x"))
        if len(shape) == len(CHIPS[generation].host):
            return Topology(generation, shape)
    names = [*known, *(topology.name for topology in known.values())]
    nearest = difflib.get_close_matches(f"{generation}{separator}{size}", names, n=4, cutoff=0.0)
    raise ValueError(
        f"--topology {name!r} is not known. Use a common slice name, or a generation ({', '.join(CHIPS)}) with its chips along "
        f"each dimension. v4 and v5p names count TensorCores, two a chip. Nearest: {', '.join(nearest)}."
    )


def devices(topology: Topology) -> list[jax.Device]:
    """The chips of the slice, as devices to compile for.

    Raises:
      ValueError: libtpu is not installed, or does not know the slice.
    """
    require_compiler()
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    bounds = topology.host.shape
    options: dict[str, Any] = {"chips_per_host_bounds": (*bounds, 1)[:3]}
    if topology.generation == "v4":
        options["chip_config_name"] = "megacore"  # as JAX uses a v4 chip: one device, not one a core
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"--topology {topology.name}: libtpu does not know this slice ({str(error).splitlines()[0]}). Use a common "
            "one, for example v5e-16 or v5p-128."
        ) from error
    return list(description.devices)


def require_compiler() -> None:
    """Checks that libtpu, which holds the TPU compiler, is installed.

    Raises:
      ValueError: it is not; the message names the version that this jax needs.
    """
    if importlib.util.find_spec("libtpu") is not None:
        return
    requirements = [
        line for line in importlib.metadata.requires("jax") or () if re.match(r"libtpu\b.*extra == .tpu", line)
    ]
    package = requirements[0].split(";")[0].strip() if requirements else "libtpu"
    raise ValueError(
        "plan compiles for TPUs with libtpu, which is not installed here. No TPU is needed. jax "
        f"{jax.__version__} needs this version: pip install '{package}'"
    )


def hbm_bytes(device: jax.Device) -> int:
    """Bytes of a chip's memory that a program may use, from the compiler's refusal of a program that needs far more."""
    far_too_much = jax.ShapeDtypeStruct(
        (2**50,), jnp.int8, sharding=jax.sharding.SingleDeviceSharding(device, memory_kind="device")
    )
    try:
        jax.jit(lambda array: array + jnp.int8(1)).lower(far_too_much).compile()
    except jax.errors.JaxRuntimeError as error:
        available = re.search(r"available HBM \(([\d.]+[KMGT]?)\)", str(error))
        if available:
            return parse_bytes(available[1])
        raise
    raise RuntimeError(f"a program of {2**50} bytes compiles for {device.device_kind}, so its memory is unknown")


def parse_bytes(text: str) -> int:
    """Bytes of a size as XLA writes it: 15.75G is 15.75 · 2^30."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return round(float(text.rstrip("KMGT")) * units.get(text[-1], 1))
