"""XLA's compiler for NVIDIA GPUs in this process, from an environment that deliberately does not have it installed.

Where its wheels are installed, jax reports errors in every process that starts without JAX_PLATFORMS=cpu on a machine without
a driver. So `make install` unpacks them beside the environment's packages.
"""

from __future__ import annotations

import sys
from pathlib import Path

from reval_jax.tools.plan import gpu_topology

FOLDER = Path(sys.prefix) / "cuda-compiler"
"""Where `make install` unpacks the wheels."""


def find() -> str | None:
    """Makes the compiler importable. None, or why it cannot be."""
    if FOLDER.is_dir() and str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    try:
        gpu_topology.require_compiler()
    except ValueError as error:
        return f"{error} (make install unpacks them into {FOLDER} on Linux x86-64)"
    return None
