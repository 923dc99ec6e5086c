"""Files that are on disk, whole, or not there at all: after a crash, a full disk or a power loss."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, whose content is `path`'s once the block has ended; if it raises, `path` stays as it was.

    One process writes a path at a time: two would share the unfinished file.

    Raises:
      OSError: it cannot be written.
    """
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write(path: Path, content: bytes) -> None:
    """Replaces the file's content.

    Raises:
      OSError: it cannot be written; the file stays as it was.
    """
    with replacing(path) as file:
        file.write(content)


def sync_directory(path: Path) -> None:
    """Puts the names of new and renamed files on disk; file systems that cannot do it for a directory are left alone."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
