"""Checks of an installation: versions, devices, memory, disk, and whether reval_jax computes correctly."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reval_jax import distributed, model, run_directory, scores, xla_guard


class Finding(NamedTuple):
    """The result of one check."""

    name: str
    result: str
    is_fine: bool


def examine() -> list[Finding]:
    """Versions, devices, memory, disk, the compilation cache, a known fault, and two computations against NumPy in float64."""
    distributed.start()
    devices = jax.devices()
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    cache = str(distributed.compilation_cache())
    return [
        Finding("python", f"{platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores", True),
        *(_version(name) for name in run_directory.PACKAGES),
        Finding("devices", f"{len(devices)} {jax.default_backend()} ({kinds}), {jax.process_count()} processes", True),
        *accelerator(),
        _memory(),
        _disk(Path.cwd()),
        Finding("compilation cache", cache, os.access(_nearest_existing(Path(cache)), os.W_OK)),
        Finding(
            "jaxlib CPU fault 39103",
            xla_guard.exposure_message() if xla_guard.is_exposed() else "guarded, or this release is not affected",
            not xla_guard.is_exposed(),
        ),
        _matrix_vector(),
        _scores(),
        *(_of_learner(devices[0]) if jax.default_backend() == "gpu" else ()),
    ]


def accelerator() -> list[Finding]:
    """What a user of a GPU needs to know: driver, memory that jax may take, and cuDNN; nothing on a CPU or TPU."""
    if jax.default_backend() != "gpu":
        return []
    (device, *_) = jax.local_devices()
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return [
        Finding("GPU driver", _driver(), True),
        Finding("GPU memory for jax", f"{limit / 2**30:.1f} GiB of each GPU" if limit else "unknown", True),
        Finding("cuDNN", _cudnn(), True),
    ]


def _driver() -> str:
    """The version of the NVIDIA driver, from nvidia-smi."""
    words = ["nvidia-smi", "--query-gpu=driver_version,name,memory.total", "--format=csv,noheader"]
    try:
        found = subprocess.run(words, capture_output=True, text=True, check=True, timeout=30).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return "unknown: nvidia-smi does not run"
    return "; ".join(dict.fromkeys(line.strip() for line in found.splitlines()))


def _cudnn() -> str:
    """The version of cuDNN's wheel."""
    for package in ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12"):
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed as a wheel; attention uses the system's, or plain XLA"


def _version(package: str) -> Finding:
    try:
        return Finding(package, importlib.metadata.version(package), True)
    except importlib.metadata.PackageNotFoundError:
        # reval-jax itself may run from a checkout; its dependencies must be installed.
        return Finding(package, "not installed", package == "reval-jax")


def _memory() -> Finding:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return Finding("host memory", "unknown", True)
    return Finding("host memory", f"{total / 2**30:.1f} GiB", True)


def _disk(path: Path) -> Finding:
    free = shutil.disk_usage(path).free
    return Finding("free disk here", f"{free / 2**30:.1f} GiB (the demo needs up to 4.4)", free > 5 * 2**30)


def _nearest_existing(path: Path) -> Path:
    """The path itself or its nearest parent that exists."""
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _matrix_vector() -> Finding:
    """The pattern that jaxlib 0.10.2 miscompiles on CPU: a vmapped matrix-vector product followed by a reduction."""
    rng = np.random.default_rng(0)
    matrices, vectors = rng.standard_normal((8, 64, 64)), rng.standard_normal((8, 64))
    result = jax.jit(lambda m, v: jax.vmap(lambda a, b: jnp.matmul(a, b, precision="highest"))(m, v).sum(axis=1))(
        jnp.asarray(matrices, jnp.float32), jnp.asarray(vectors, jnp.float32)
    )
    error = float(np.abs(np.asarray(result) - np.einsum("bij,bj->b", matrices, vectors)).max())
    return Finding("batched matrix-vector sums", f"largest error {error:.1e}", error < 1e-3)


def _scores() -> Finding:
    """Token scores of a random head, compared with NumPy in float64."""
    rng = np.random.default_rng(1)
    hidden, head = rng.standard_normal((32, 64)), rng.standard_normal((64, 512))
    targets = rng.integers(0, 512, 32)
    logits = hidden @ head
    expected = (
        logits[np.arange(32), targets] - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) - logits.max(1)
    )
    log_prob, _ = scores.token_scores(
        jnp.asarray(hidden, jnp.float32), jnp.asarray(head, jnp.float32), jnp.asarray(targets, jnp.int32)
    )
    error = float(np.abs(np.asarray(log_prob) - expected).max())
    return Finding("token scores", f"largest error {error:.1e} nats", error < 1e-3)


def _of_learner(device: jax.Device) -> list[Finding]:
    """The learner's attention on GPUs."""
    cudnn = model.attention.cudnn
    is_packed = cudnn.packed_refusal(device, "bfloat16", 128) is None
    return [_packed_attention(device), repeats(cudnn.attend_packed if is_packed else cudnn.attend)]


def _packed_attention(device: jax.Device) -> Finding:
    """Whether the learner's attention on GPUs can use cuDNN's packed form; where it cannot, a mask takes its place."""
    refusal = model.attention.cudnn.packed_refusal(device, "bfloat16", 128)
    return Finding("packed attention", "right" if refusal is None else f"replaced by a mask: {refusal}", True)


def repeats(attend: model.kernels.Attend) -> Finding:
    """Whether an attention's gradients repeat bit for bit, with the compiler's options of `model.deterministic`."""
    cudnn, name = model.attention.cudnn, "deterministic gradients"
    try:
        is_equal = cudnn.repeats(attend, jax.local_devices()[0], "bfloat16", cudnn.Heads(2, 512, 4, 2, 64))
    except cudnn.FAILURES as failure:  # this card, or this cuDNN, has no such kernel
        return Finding(name, f"do not compile: {type(failure).__name__} {' '.join(str(failure).split())[:200]}", False)
    return Finding(name, "repeat bit for bit" if is_equal else "differ from call to call", is_equal)
