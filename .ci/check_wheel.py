"""Checks that reval_jax is imported from the installed wheel and is complete; `make dist` runs it in a new environment."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import pkgutil
import sys
from pathlib import Path

import reval_jax

installed = Path(reval_jax.__file__).resolve()
if not installed.is_relative_to(Path(sys.prefix).resolve()):
    raise SystemExit(f"reval_jax comes from {installed}, not from this environment ({sys.prefix})")
if importlib.metadata.version("reval-jax") != reval_jax.__version__:
    raise SystemExit(
        f"the wheel has version {importlib.metadata.version('reval-jax')}, and the package in it {reval_jax.__version__}"
    )

from reval_jax import objective, scores  # noqa: E402, F401

for module in pkgutil.walk_packages(reval_jax.__path__, "reval_jax."):
    if not module.name.endswith("__main__"):
        __import__(module.name)
files = [entry.name for entry in importlib.resources.files("reval_jax").iterdir()]
print(f"reval_jax {reval_jax.__version__} from {installed.parent}: {len(files)} entries, every module imports")
