"""Environment of every test: CPU, eight fake devices, strict promotion, and one compilation cache for all runs.

A subprocess of a test inherits the environment below but not jax's settings: it has one device and the
default promotion, like a user's process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "reval_jax" / "xla"))
# Most programs of the tests compile in less than jax's default threshold of a second.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
# No test may contact a hub; a test of the requests overrides this.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import pytest

import reval_jax  # noqa: F401  # before a backend starts: it guards against jaxlib's miscompile

jax.config.update("jax_num_cpu_devices", 8)
# An accidental float64 or a silent broadcast of [B] against [B, 1] fails. optax's adamw promotes int32 to float32:
# a test that steps it does so under `jax.numpy_dtype_promotion("standard")`.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


NEEDED = {"tpu_compile": "libtpu", "parity": "torch"}
"""Marker → the library that its tests need and are skipped without."""

FIXTURES = {"v5e": "tpu_compile", "v5e_4": "tpu_compile", "h100_8": "gpu_compile", "smollm2": "real_model"}
"""Fixture → the marker of the tests that use it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by their fixtures, so that `-m real_model` finds them all."""
    for item in items:
        for fixture, marker in FIXTURES.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test whose library is not installed."""
    for marker, library in NEEDED.items():
        if item.get_closest_marker(marker):
            pytest.importorskip(library, reason=f"{library} is not installed")
    if item.get_closest_marker("gpu_compile"):
        from support import gpu_compiler

        if reason := gpu_compiler.find():
            pytest.skip(reason)


@contextlib.contextmanager
def _without_compilation_cache() -> Iterator[None]:
    """Programs for absent devices can be written to the persistent cache, but not read from it."""
    from jax.experimental.compilation_cache import compilation_cache

    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real SmolLM2-135M-Instruct: the .gguf file REVAL_SMOLLM2 names, else the demo's copy, fetched if need be."""
    from reval_jax import console
    from reval_jax.tools import demo

    if named := os.environ.get("REVAL_SMOLLM2"):
        return Path(named)
    try:
        return demo.fetch_model(Path(__file__).resolve().parent.parent / demo.MODEL, console.Console(is_quiet=True))
    except ValueError as error:
        pytest.skip(f"the real model could not be had: {error}")


@pytest.fixture(scope="module")
def v5e():
    """Eight chips of an absent v5e: libtpu compiles for them on any machine."""
    pytest.importorskip("libtpu", reason="libtpu is not installed, so nothing compiles for a TPU here")
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is used, so none has to be locked
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    with _without_compilation_cache():
        yield devices


@pytest.fixture(scope="module")
def h100_8():
    """Eight absent H100s of one host. Lower programs for them inside `gpu_topology.lowering_for`."""
    from support import gpu_compiler

    from reval_jax.tools.plan import gpu_topology

    if reason := gpu_compiler.find():
        pytest.skip(reason)
    with _without_compilation_cache():
        yield gpu_topology.devices(gpu_topology.named("h100:8"))
