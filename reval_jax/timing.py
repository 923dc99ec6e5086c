"""Interleaved timing of functions, the rates of this machine's products and memory, and a description of the machine."""

from __future__ import annotations

import functools
import importlib.metadata
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reval_jax import chips

LEAST_SECONDS = 0.01  # of a timed call: far above the dispatch of a call, about 1e-4 s
NUM_ROWS = 2048  # of the left matrix of `matmul`
FIRST_SIZE, LARGEST_SIZE = 2048, 32768  # rows and columns of its right matrix
CPU_SIZE = 1024  # of both matrices on a CPU, which reaches its rate there
FIRST_ELEMENTS, MOST_ELEMENTS = 2**26, 2**30  # of the float32 array of `memory`
FREE_SHARE = 1 / 8  # of a device's free memory that a timed operation may take


class Timed(NamedTuple):
    """An operation whose work is known."""

    call: Callable[[], jax.Array]
    work: float  # FLOPs or bytes of one call

    def rate(self, seconds: float) -> float:
        """FLOP/s or bytes/s of a call of this duration."""
        return self.work / seconds


class Peak(NamedTuple):
    """The rate that work is compared with, of one device."""

    flops: float  # FLOP/s
    source: str  # "published" or "measured"


def interleaved(candidates: Mapping[str, Callable[[], Any]], *, repeats: int) -> dict[str, list[float]]:
    """Seconds of each candidate's calls, interleaved so that other load on the machine affects all candidates alike.

    Args:
      candidates: functions that return device arrays; each is called once, untimed, before the first timed call.
    """
    for call in candidates.values():
        jax.block_until_ready(call())
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, call in candidates.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each candidate."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def lasting(
    operations: Callable[[int, int], Timed],
    sizes: tuple[int, ...],
    *,
    least: float = LEAST_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> Timed:
    """The first operation whose call takes `least` seconds: larger ones first, then the largest several times in a call.

    A call of microseconds would measure how fast the host dispatches. The second call is timed, since the first compiles.

    Args:
      operations: (size, number of dependent repetitions in a call) → the operation.
      sizes: in growing order.
    """
    sized = iter(sizes)
    size, count = next(sized), 1
    while True:
        operation = operations(size, count)
        jax.block_until_ready(operation.call())
        start = clock()
        jax.block_until_ready(operation.call())
        seconds = clock() - start
        if seconds >= least:
            return operation
        larger = next(sized, None)
        if larger is None:
            # At most a thousandfold: a clock that stands still must not ask for an endless call.
            count *= max(2, math.ceil(1.25 * least / max(seconds, least / 1000)))
        size = larger or size


def matmul(dtype: str) -> Timed:
    """Dependent products with a square matrix of random `dtype` numbers, summed in float32: the machine's product rate.

    Rounding a product to `dtype` for the next one is a pass over it, 2% of the largest product's time on an H100.
    """
    precision = jax.lax.Precision.HIGHEST if dtype == "float32" else jax.lax.Precision.DEFAULT
    is_cpu = jax.default_backend() == "cpu"
    num_rows, first, largest = (CPU_SIZE,) * 3 if is_cpu else (NUM_ROWS, FIRST_SIZE, LARGEST_SIZE)
    rng = np.random.default_rng(0)
    rows, block = (rng.standard_normal((num, first), np.float32) for num in (num_rows, first))
    operands: dict[int, tuple[jax.Array, jax.Array]] = {}

    def multiply(_: Any, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        left, right = pair
        product = jnp.matmul(left, right, precision=precision, preferred_element_type=jnp.float32)
        return product.astype(left.dtype), right

    def of_size(size: int, count: int) -> Timed:
        if size not in operands:
            operands.clear()
            copies = size // first
            # So scaled, products neither overflow nor vanish, however many there are.
            scaled = block / (copies * math.sqrt(first))
            operands[size] = (
                jnp.tile(jnp.asarray(rows, dtype), (1, copies)),
                jnp.tile(jnp.asarray(scaled, dtype), (copies, copies)),
            )
        repeated = jax.jit(lambda left, right: jax.lax.fori_loop(0, count, multiply, (left, right))[0])
        return Timed(functools.partial(repeated, *operands[size]), 2.0 * num_rows * size**2 * count)

    return lasting(of_size, _sizes(first, largest, lambda size: 4 * size**2 + 16 * num_rows * size))


def memory() -> Timed:
    """Passes over an array of random float32 numbers, read and written in place: the memory's rate."""
    block = jnp.asarray(np.random.default_rng(0).random(FIRST_ELEMENTS // 8, np.float32))

    def of_size(num_elements: int, count: int) -> Timed:
        array = [jnp.tile(block, num_elements // block.size)]
        # 1/2 and 1/4: the numbers stay where they are, and no pass leaves an array as it was.
        repeated = jax.jit(
            lambda array: jax.lax.fori_loop(0, count, lambda _, array: 0.5 * array + 0.25, array), donate_argnums=0
        )

        def call() -> jax.Array:
            array[0] = repeated(array[0])
            return array[0]

        return Timed(call, 2.0 * 4 * num_elements * count)

    return lasting(of_size, _sizes(FIRST_ELEMENTS, MOST_ELEMENTS, lambda num: 8 * num))


def _sizes(first: int, largest: int, needed_bytes: Callable[[int], int]) -> tuple[int, ...]:
    """`first` and its multiples by 4, 16, … up to `largest` that take at most FREE_SHARE of the device's free memory."""
    limits = jax.local_devices()[0].memory_stats() or {}
    free = limits.get("bytes_limit", math.inf) - limits.get("bytes_in_use", 0)
    sizes = [first]
    while 4 * sizes[-1] <= largest and needed_bytes(4 * sizes[-1]) <= FREE_SHARE * free:
        sizes.append(4 * sizes[-1])
    return tuple(sizes)


@functools.cache
def measured_peak(dtype: str) -> float:
    """FLOP/s of one device by `matmul`, the fastest of three calls; measured once per process."""
    product = matmul(dtype)
    return product.rate(min(interleaved({"matmul": product.call}, repeats=3)["matmul"]))


def published() -> chips.Rates | None:
    """The published rates of this process's devices, if `chips` knows them."""
    return chips.published(jax.local_devices()[0].device_kind)


def peak_of(dtype: str, measured_rate: float) -> Peak:
    """What one device can multiply: its published rate, or, where none is known, the measured one."""
    rates = published()
    flops = rates.products(dtype) if rates else None
    return Peak(flops, "published") if flops else Peak(measured_rate, "measured")


def device_peak(dtype: str) -> Peak:
    """The same, measured only where nothing is published."""
    peak = peak_of(dtype, math.nan)
    return peak if peak.source == "published" else Peak(measured_peak(dtype), "measured")


def share(work: float, seconds: float, rate: float) -> float:
    """The share of `rate` at which `work` was done in `seconds`; NaN where it is above 1, which is impossible.

    `impossible` is the message to show then.
    """
    value = work / (seconds * rate)
    return value if value <= 1 else math.nan


def impossible(what: str, source: str) -> str:
    """Why a share above 1 is not shown.

    Args:
      source: of the rate, "published" or "measured".
    """
    causes = {
        "measured": "the machine was busy while its rate was measured: measure again on an idle one",
        "published": "the device is not the one that its name says, or `chips` has a wrong rate for it",
    }
    return f"{what} is above the {source} rate, which cannot be: {causes[source]}."


def machine() -> dict[str, Any]:
    """Description of the machine and of the versions, for every JSON result."""
    return {
        "device": f"{jax.default_backend()}: {jax.devices()[0].device_kind}",
        "num_devices": jax.device_count(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")},
    }
