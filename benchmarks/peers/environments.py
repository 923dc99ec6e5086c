"""Creates a virtual environment for each other library, once."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
NOT_INHERITED = ("OPENBLAS_", "OMP_", "MKL_", "PYTHONPATH", "VIRTUAL_ENV")
"""Prefixes of variables that would limit a trainer's threads, or make it import from another environment."""


def prepare(name: str, directory: Path, python: str) -> str:
    """The interpreter of `directory`/`name`, where the packages pinned in NAME.txt are installed.

    The first call takes minutes and several GB. An incomplete environment, or one for other pins or another Python, is rebuilt.

    Raises:
      RuntimeError: pip or venv failed; its output is on the terminal.
    """
    pins = HERE / f"{name}.txt"
    environment, stamp = directory / name, directory / name / "installed.txt"
    interpreter = environment / "bin" / "python"
    version = subprocess.run([python, "--version"], check=True, capture_output=True, text=True).stdout
    requirements = version + pins.read_text(encoding="utf-8")
    if stamp.exists() and stamp.read_text(encoding="utf-8") == requirements:
        return str(interpreter)
    print(f"{name}: installing {pins} into {environment}", flush=True)
    shutil.rmtree(environment, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / ".gitignore").write_text("*\n", encoding="utf-8")
    for command in (
        [python, "-m", "venv", str(environment)],
        [str(interpreter), "-m", "pip", "install", "--quiet", "--requirement", str(pins)],
    ):
        if subprocess.run(command, check=False, env=variables()).returncode:
            raise RuntimeError(
                f"The environment of {name} cannot be created: `{' '.join(command)}` failed, with the output above. Correct the "
                f"cause and run again, or leave {name} out of --trainers."
            )
    stamp.write_text(requirements, encoding="utf-8")
    return str(interpreter)


def variables() -> dict[str, str]:
    """Environment variables of every trainer's process: JAX on CPU, huge pages, the libraries' own numbers of threads."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}
    return kept | {
        "JAX_PLATFORMS": "cpu",
        "TOKENIZERS_PARALLELISM": "false",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }
