"""Sinks of experiment trackers: Weights & Biases, Trackio and MLflow, each an optional extra, each in a process of its own.

`tracker_process` is that process, and knows the libraries; this module starts it, writes to it, and says what it died of.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

from reval_jax import config as config_lib
from reval_jax import tracker_process

PROJECT = "reval_jax"
"""Name of the project in a tracker, unless a variable of its library names another."""

PACKAGES = {"wandb": ("wandb",), "trackio": ("trackio",), "mlflow": ("mlflow-skinny", "mlflow")}
"""Packages that hold a tracker's library, by its name; one of them has to be installed."""


class TrackerError(Exception):
    """A tracker's library has failed; says how."""


def check_installed(name: str) -> None:
    """Refuses a tracker whose library is not installed; imports nothing.

    Raises:
      ValueError: it is not.
    """
    for package in PACKAGES[name]:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version(package)
            return
    raise ValueError(
        f"run.sinks={name} needs the package {PACKAGES[name][0]}, which is not installed. Run: pip install 'reval-jax[{name}]' "
        f"(in a checkout: pip install -e '.[{name}]' -c requirements.txt), or leave {name} out of run.sinks."
    )


class Tracker:
    """The sink of one tracker; only its thread calls it, except for `kill`."""

    def __init__(self, name: str, config: config_lib.Config, run_dir: Path) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the process
        self._process = subprocess.Popen(  # noqa: S603  # this interpreter, on a file of this package
            # -P: neither the working directory nor this package's own, with its `types.py`, takes the place of a library.
            [sys.executable, "-P", tracker_process.__file__, name, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,  # so that `kill` reaches the processes that the library starts
        )
        self._pipe = cast(IO[bytes], self._process.stdin)
        directory = run_dir.absolute()
        tree = config_lib.to_tree(config)
        self._send({"project": PROJECT, "name": directory.name, "directory": str(directory), "config": tree})

    def __call__(self, round: int, values: Mapping[str, float | str]) -> None:
        """Hand a round to the tracker: its numbers, under their own names; waits while the process takes none.

        Raises:
          TrackerError: the process has ended.
        """
        numbers = {name: value for name, value in values.items() if not isinstance(value, str)}
        self._send({"round": round, "values": numbers})

    def close(self, outcome: str) -> None:
        """Let the library finish the run there as `finished`, `preempted` or `failed`, and wait for it.

        Raises:
          TrackerError: it could not.
        """
        self._send({"outcome": outcome})
        self._pipe.close()
        if reason := self._end():
            raise TrackerError(reason)

    def kill(self) -> None:
        """End the process and those it started; from any thread, at any time."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _send(self, line: dict[str, Any]) -> None:
        try:
            self._pipe.write(json.dumps(line).encode() + b"\n")
            self._pipe.flush()
        except BrokenPipeError:
            raise TrackerError(self._end()) from None

    def _end(self) -> str:
        """Waits for the end of the process; what went wrong, or nothing."""
        code = self._process.wait()
        with contextlib.suppress(BrokenPipeError):  # what it did not read
            self._pipe.close()
        with self._errors:
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").splitlines()
        if not code:
            return ""
        named = [line for line in lines if line.startswith(tracker_process.FAILED)]
        if named:
            return named[-1].removeprefix(tracker_process.FAILED)
        return f"its process ended with code {code}: {' '.join(lines[-1:])}"


SINKS: dict[str, Callable[[config_lib.Config, Path], Tracker]] = {
    name: functools.partial(Tracker, name) for name in tracker_process.LIBRARIES
}
"""The function that opens each tracker's sink, by the tracker's name."""
