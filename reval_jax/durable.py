"""Files that are on disk, whole, or not there at all: after a crash, a full disk or a power loss."""

from __future__ import annotations

import contextlib
import os
import secrets
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


@contextlib.contextmanager
def output(path: Path, *, is_new: bool = False) -> Iterator[BinaryIO]:
    """As `replacing`, for a file that a user names, which several processes may write at once: the last one's stays, whole.

    A device or a pipe is written as it stands, and so is a file whose directory takes no new names.

    Args:
      is_new: the file must not exist when the block ends.

    Raises:
      FileExistsError: with `is_new`, it does.
      OSError: it cannot be written.
    """
    target = path.resolve()
    if path.exists() and not (path.is_file() and os.access(target.parent, os.W_OK | os.X_OK)):
        with path.open("wb") as file:
            yield file
        return
    temporary = target.with_name(f".reval_{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            yield file
        if not is_new:
            temporary.replace(target)
            return
        try:
            os.link(temporary, target)  # fails if there is such a file
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, content: bytes) -> None:
    """Replaces the file's content.

    Raises:
      OSError: it cannot be written; the file stays as it was.
    """
    with replacing(path) as file:
        file.write(content)


def append(path: Path, content: bytes) -> None:
    """Adds to the file's end; it is on disk when this returns.

    Raises:
      OSError: it cannot be written; a part may be.
    """
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Puts the names of new and renamed files on disk; file systems that cannot do it for a directory are left alone."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
