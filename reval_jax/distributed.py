"""Several processes as one program: start, exchange of host data, agreement, and preemption by a signal."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import signal
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from reval_jax import machine, peers, signals


def start(*, cache_directory: str | None = None) -> None:
    """Join the other processes, if there are any, and turn on the persistent compilation cache.

    The processes are named by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. On a TPU pod set only
    JAX_COORDINATOR_ADDRESS, to the word `auto`. The cache is JAX_COMPILATION_CACHE_DIR, else `cache_directory`, else
    ~/.cache/reval_jax/xla.

    Raises:
      ValueError: as `peers.from_environment`, `peers.meet` and `machine.check`.
    """
    if os.environ.get("JAX_COORDINATOR_ADDRESS") == "auto":
        # jax would read the word itself as an address.
        del os.environ["JAX_COORDINATOR_ADDRESS"]
        jax.distributed.initialize()
        signals.watch.rearm()
    elif place := peers.from_environment(os.environ):
        versions = {
            "Python": platform.python_version(),
            "jax": jax.__version__,
            "jaxlib": importlib.metadata.version("jaxlib"),
        }
        met = peers.meet(place, versions, bind_address=os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", ""))
        peers.watch(met, is_stopping=lambda: signals.watch.is_stopping)
        if os.environ.get("JAX_PLATFORMS", "") == "cpu":
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        # The program itself turns SIGTERM into a stop of all, and jax's way would complain of every process that is gone.
        jax.config.update("jax_enable_preemption_service", False)
        address = peers.Forwarder(place.host, place.port).address if place.index else place.address
        # All are there, so none has to wait for long.
        jax.distributed.initialize(address, place.count, place.index, initialization_timeout=60)
        signals.watch.rearm()
    machine.pin()
    machine.check()
    if compilation_cache() is None:
        default = os.path.join(os.path.expanduser("~"), ".cache", "reval_jax", "xla")
        jax.config.update("jax_compilation_cache_dir", cache_directory or default)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def compilation_cache() -> str | None:
    """The directory of the persistent compilation cache, None while it is off."""
    directory: str | None = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    return directory


def fetch(tree: Any) -> Any:
    """Device arrays as NumPy arrays, whole on every process: a collective call."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(lambda leaf: np.asarray(multihost_utils.process_allgather(leaf, tiled=True)), tree)


def gather_bytes(payload: bytes) -> list[bytes]:
    """Every process's payload, in process order, on every process: a collective call.

    Bytes, because jax would narrow 64-bit arrays on the way.
    """
    if jax.process_count() == 1:
        return [payload]
    sizes = multihost_utils.process_allgather(np.int32(len(payload)))
    if not sizes.any():
        return [b""] * len(sizes)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(payload)] = np.frombuffer(payload, np.uint8)
    payloads = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]) for row, size in zip(payloads, sizes, strict=True)]


def check_agreement(values: Mapping[str, str]) -> None:
    """Check that every process has the same values: a collective call.

    Args:
      values: name → value, computed by each process on its own.

    Raises:
      ValueError: some differ; on every process alike.
    """
    gathered = gather_bytes(json.dumps(dict(values)).encode())
    if len(set(gathered)) > 1:
        listed = peers.differing({f"process {index}": json.loads(text) for index, text in enumerate(gathered)})
        raise ValueError(f"the processes differ: {listed}. Start the same command on the same files.")


class Preemption:
    """A stop that all processes agree on, once one of them has received SIGTERM or SIGHUP (`signals.STOPS`).

    In the process of the command `signals.watch` handles the signals, from its first instant on, and ends the process when the
    run does not stop in time. Elsewhere they are handled here, while the block lasts.
    """

    def __init__(self, *, grace_seconds: float = 15.0, standing: Callable[[], str] = str) -> None:
        """Handles nothing until the block is entered; the arguments are those of `signals.Watch.begin_rounds`."""
        self._grace_seconds, self._standing = grace_seconds, standing
        self._was_signalled = False
        self._previous: dict[signal.Signals, Any] = {}
        # At the last `agree` some process had received a signal; a later signal waits for the next call.
        self.is_agreed = False

    def __enter__(self) -> Preemption:
        if signals.watch.is_installed:
            signals.watch.begin_rounds(grace_seconds=self._grace_seconds, standing=self._standing)
        else:
            self._previous = {each: signal.signal(each, self._on_signal) for each in signals.STOPS}
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._previous.items():
            signal.signal(each, handler)

    @property
    def is_requested(self) -> bool:
        """Whether this process received a signal."""
        return self._was_signalled or signals.watch.is_stopping

    def agree(self) -> bool:
        """Whether any process has received a signal: a collective call, so that all stop at the same point."""
        self.is_agreed = any(gather_bytes(b"1" if self.is_requested else b""))
        return self.is_agreed

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._was_signalled = True
