"""Interleaved timing of functions, the machine's matmul and memory rates, and a description of the machine."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

PEAK_SIZE = 2048  # rows and columns of the matrices whose product is timed
MEMORY_SIZE = 64 * 2**20  # float32 elements of the array of `memory`


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


def matmul(dtype: str) -> Callable[[], jax.Array]:
    """A product of two square matrices with `dtype` operands and a float32 result: the peak of MFU."""
    left, right = (jnp.full((PEAK_SIZE, PEAK_SIZE), value, dtype) for value in (0.5, 0.25))
    precision = jax.lax.Precision.HIGHEST if dtype == "float32" else jax.lax.Precision.DEFAULT
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision, preferred_element_type=jnp.float32))
    return lambda: product(left, right)


def matmul_rate(seconds: float) -> float:
    """FLOP/s of `matmul` on one device."""
    return 2 * PEAK_SIZE**3 / seconds


@functools.cache
def device_peak(dtype: str) -> float:
    """FLOP/s of one device by `matmul`, the median of three; measured once per process."""
    return matmul_rate(medians(interleaved({"matmul": matmul(dtype)}, repeats=3))["matmul"])


def memory() -> Callable[[], jax.Array]:
    """One pass over an array of 256 MiB, read and written in place: the memory bandwidth of the roofline."""
    add_one = jax.jit(lambda array: array + 1.0, donate_argnums=0)
    array = [jnp.zeros(MEMORY_SIZE, jnp.float32)]

    def call() -> jax.Array:
        array[0] = add_one(array[0])
        return array[0]

    return call


def memory_rate(seconds: float) -> float:
    """Bytes per second of `memory` on one device, read and written."""
    return 2 * 4 * MEMORY_SIZE / seconds


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
