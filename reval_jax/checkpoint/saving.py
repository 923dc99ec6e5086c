"""One save in the background: whether it fits, its commit, and an error that names what stands."""

from __future__ import annotations

import functools
import logging
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from reval_jax import durable, types
from reval_jax.checkpoint import manifest

SAVING = ".saving"
DELETING = ".deleting"
DAMAGED = ".damaged"
"""Ends of the names of directories beside the checkpoints: not committed, not wanted any more, not whole."""

_CLOSED = "Event loop is closed"

FILES = 64  # inodes that a save may need


class SaveError(RuntimeError):
    """A checkpoint could not be saved. The message says what was written, what it needs, and what stands."""


def num_bytes(arrays: types.PyTree) -> int:
    """An upper bound of the bytes that the arrays take in a checkpoint, where they are stored compressed."""
    arrays_bytes = sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays))
    return arrays_bytes + arrays_bytes // 64 + (1 << 18)


def check_space(directory: Path, round: int, needed: int, saved: Sequence[int]) -> None:
    """Refuses a save that does not fit.

    Args:
      directory: of the checkpoints; need not exist yet.
      needed: bytes.
      saved: rounds of the checkpoints that stand.

    Raises:
      SaveError: fewer bytes or files are free than a save needs.
    """
    existing = next(parent for parent in (directory, *directory.absolute().parents) if parent.is_dir())
    system = os.statvfs(existing)
    # Some network file systems report no sizes.
    if system.f_blocks and (free := system.f_bavail * system.f_frsize) < needed:
        raise failure(directory, round, f"it needs {_size(needed)}, and {_size(free)} are free there", saved)
    if system.f_files and system.f_favail < FILES:
        reason = f"it needs up to {FILES} files, and the file system has room for {system.f_favail}"
        raise failure(directory, round, reason, saved)


def failure(directory: Path, round: int, reason: str, saved: Sequence[int]) -> SaveError:
    """The error of a save that failed for this reason."""
    stands = "No checkpoint was saved before, so the run begins again from round 0"
    if saved:
        stands = f"The checkpoint of round {max(saved)} stands; later rounds are played again, bit for bit"
    return SaveError(
        f"the checkpoint of round {round} was not saved in {directory}: {reason}. {stands}. Free some space or mend the "
        "file system, then run the same command again."
    )


def cause(error: BaseException) -> str:
    """The reason of a library's error, in one line."""
    found: BaseException | None = error
    while found is not None and not (isinstance(found, OSError) and found.strerror):
        found = found.__cause__ or found.__context__
    if isinstance(found, OSError):
        return f"{found.strerror}: {found.filename}" if found.filename else str(found.strerror)
    text = " ".join(str(error).split())
    # Behind paths and names, and the message is cut.
    if number := re.search(r"os_error_code='(\d+)'", text):
        return os.strerror(int(number[1]))
    # TensorStore's message goes on with its whole specification.
    return f"{type(error).__name__}: {text.split(' [')[0][:300]}"


@functools.cache
def hush() -> None:
    """Keeps what a failed save goes on to print from standard error, where its first error is one message.

    After the first failed write Orbax closes its event loop: asyncio logs the errors of the other writes, and TensorStore's
    threads print a traceback for each answer that comes too late.
    """
    logging.getLogger("asyncio").addFilter(
        lambda record: not ("exception was never retrieved" in record.getMessage() and "orbax" in record.getMessage())
    )
    show = sys.unraisablehook

    def show_others(found: sys.UnraisableHookArgs) -> None:
        # TensorStore names no object; Python's own reports do.
        if found.object is None and isinstance(found.exc_value, RuntimeError) and str(found.exc_value) == _CLOSED:
            return
        show(found)

    sys.unraisablehook = show_others


class Save:
    """A save whose arrays are copied, and that a thread commits; `poll` and `wait` report its end."""

    def __init__(
        self,
        checkpointer: ocp.AsyncCheckpointer,
        saving: Path,
        final: Path,
        *,
        before: Callable[[], None] | None,
        after: Callable[[], None] | None,
    ) -> None:
        """Starts the thread.

        Args:
          checkpointer: has begun to write.
          saving: the directory it writes.
          final: its name once it is whole, with checksums.
          before: called in the thread before the commit, which does not take place if it raises.
          after: called in the thread after the commit; None in a process that does not commit.
        """
        hush()
        self.round = int(final.name)
        self._checkpointer, self._saving, self._final = checkpointer, saving, final
        self._before, self._after = before, after
        self._num_read = 0
        self._error: BaseException | None = None
        # A daemon: a save that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="checkpoint_commit", daemon=True)
        self._thread.start()

    def poll(self) -> BaseException | None:
        """The save's error, if it has failed so far."""
        return self._error

    @property
    def is_running(self) -> bool:
        """Whether the save has not ended."""
        return self._thread.is_alive()

    def wait(self, stall_seconds: float) -> BaseException | None:
        """Blocks until the save ends, or does nothing for `stall_seconds`; its error if it failed.

        Time is measured by a clock that nobody sets.
        """
        seen, since = self._written(), time.monotonic()
        while self._thread.is_alive():
            self._thread.join(timeout=0.5)
            if (now := self._written()) != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > stall_seconds and self._thread.is_alive():
                return TimeoutError(f"nothing was written for {stall_seconds:g} seconds (checkpoint.stall_seconds)")
        return self._error

    def _run(self) -> None:
        try:
            self._checkpointer.wait_until_finished()
            if self._after is not None:
                manifest.write(self._saving, self.round, on_read=self._count)
                if self._before is not None:
                    self._before()
                self._saving.rename(self._final)
                durable.sync_directory(self._final.parent)
                self._after()
        except BaseException as error:
            self._error = error

    def _count(self, size: int) -> None:
        self._num_read += size

    def _written(self) -> tuple[int, int, int]:
        """Numbers that change while the save goes on: files and bytes written, bytes read back."""
        num_files = num_bytes = 0
        try:
            names_here = os.listdir(self._final.parent)
        except OSError:  # gone, or out of reach
            names_here = []
        for entry in (each for each in names_here if each.startswith(self._saving.name)):
            for parent, _, names in os.walk(self._final.parent / entry):
                for name in names:
                    num_files += 1
                    try:
                        num_bytes += os.stat(os.path.join(parent, name)).st_size
                    except OSError:  # renamed since
                        continue
        return num_files, num_bytes, self._num_read


def remove(directory: Path) -> None:
    """Deletes a checkpoint's directory; under another name first, so that no part of it is ever taken for a checkpoint."""
    leaving = directory if directory.suffix == DELETING else directory.with_name(directory.name + DELETING)
    if leaving != directory:
        if leaving.exists():
            shutil.rmtree(leaving, ignore_errors=True)
        directory.rename(leaving)
    shutil.rmtree(leaving, ignore_errors=True)


def _size(count: int) -> str:
    """Bytes for a person."""
    for unit, scale in (("GiB", 30), ("MiB", 20)):
        if count >= 1 << scale:
            return f"{count / (1 << scale):.1f} {unit}"
    return f"{count / 1024:.0f} KiB"
