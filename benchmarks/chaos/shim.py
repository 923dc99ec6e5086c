"""A library that fails, tears or kills at a chosen file-system call of a process, compiled from shim.c when it is needed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")

MODES = ("KILL", "TORN", "EIO", "ENOSPC", "FULL")


def build(directory: Path) -> Path | None:
    """Compiles the library into the directory; None without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    target = directory / "shim.so"
    if not target.exists():
        built = target.with_suffix(".tmp")
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", str(built), str(SOURCE), "-ldl"], check=True)
        built.replace(target)
    return target


def variables(
    library: Path, run_dir: Path, log: Path, *, at: int = 0, mode: str = "", only: tuple[str, str] | None = None
) -> dict[str, str]:
    """The environment variables that make a process use the library on its run directory.

    Args:
      log: gets a line per counted call.
      at: number of the call, from 1; for FULL the number of bytes. 0: calls are only counted.
      mode: one of MODES.
      only: (name, pattern of the path below the run directory) of the calls that are numbered for `at`; None: all.
    """
    chosen = {"SHIM_AT": str(at), "SHIM_DO": mode} if mode else {}
    if only:
        chosen |= {"SHIM_NAME": only[0], "SHIM_PATH": only[1]}
    return {"LD_PRELOAD": str(library), "SHIM_DIR": str(run_dir), "SHIM_LOG": str(log), **chosen}


def calls(log: Path) -> list[tuple[str, str]]:
    """(name, path) of every counted call; those of one process after another where a log is shared."""
    return [(name, path) for number, name, path in _lines(log) if number != "0"]


def struck(log: Path) -> tuple[str, str] | None:
    """(name, path) of the call that was failed, torn or killed at; None if none was reached."""
    return next(((name, path) for number, name, path in _lines(log) if number == "0"), None)


def _lines(log: Path) -> Iterator[list[str]]:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return (parts for line in lines if len(parts := line.split(" ", 2)) == 3)
