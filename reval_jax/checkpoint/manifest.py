"""Checksums of a checkpoint's files: written before it gets its name, and compared before anything is read from it."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
from collections.abc import Callable
from concurrent import futures
from pathlib import Path

from reval_jax import durable

NAME = "checksums.json"
"""The manifest's file in a checkpoint: its round, and size and SHA-256 of every other file."""

CHUNK = 1 << 22  # bytes read at once


def write(directory: Path, round: int, *, on_read: Callable[[int], None]) -> None:
    """Brings every file under the directory to storage, reads it back, and writes the checksums; on storage when this returns.

    Args:
      directory: nobody may write in it from now on.
      on_read: gets the number of bytes of each part that was read.

    Raises:
      OSError: a file cannot be read back, or the checksums cannot be written.
    """
    entries = {}
    for name in sorted(_files(directory)):
        size, digest = _read_back(directory / name, on_read)
        entries[name] = {"size": size, "sha256": digest}
    content = {"round": round, "files": entries}
    durable.write(directory / NAME, json.dumps(content, indent=1).encode())
    for parent, _, _ in os.walk(directory, topdown=False):
        durable.sync_directory(Path(parent))


def is_present(directory: Path) -> bool:
    """Whether the checkpoint has checksums; those of earlier versions have none."""
    return (directory / NAME).exists()


def problem(directory: Path, round: int) -> str | None:
    """Why the checkpoint is not as it was saved, in a few words; None if every file is. Writes nothing, raises nothing."""
    try:
        content = json.loads((directory / NAME).read_bytes())
        if content["round"] != round:
            return f"it is a copy of the checkpoint of round {content['round']}"
        expected = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in content["files"].items()}
        found = _files(directory) - {NAME}
    except FileNotFoundError:
        return f"{NAME} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{NAME} is damaged"
    if missing := sorted(expected.keys() - found):
        return f"{_listed(missing)} missing"
    # Systems leave files such as .nfs000000 beside ours.
    if added := sorted(name for name in found - expected.keys() if not Path(name).name.startswith(".")):
        return f"{_listed(added)} not a part of it"
    with futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        is_whole = functools.partial(_is_whole, directory)
        damaged = [
            name for name, whole in zip(expected, pool.map(is_whole, expected.items()), strict=True) if not whole
        ]
    return f"{_listed(damaged)} damaged" if damaged else None


def _files(directory: Path) -> set[str]:
    """Every file under the directory, by its path from there with `/`; a link counts as a file."""
    return {
        (Path(parent) / name).relative_to(directory).as_posix()
        for parent, _, names in os.walk(directory, onerror=_raise)
        for name in names
    }


def _raise(error: OSError) -> None:
    raise error


def _read_back(path: Path, on_read: Callable[[int], None]) -> tuple[int, str]:
    """Size and SHA-256 of what storage returns for the file."""
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # else the copy in memory would be read
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return _digest(file, on_read)


def _is_whole(directory: Path, entry: tuple[str, tuple[int, str]]) -> bool:
    name, expected = entry
    try:
        with (directory / name).open("rb", buffering=0) as file:
            # A file of another length need not be read.
            return os.fstat(file.fileno()).st_size == expected[0] and _digest(file, lambda size: None) == expected
    except OSError:
        return False


def _digest(file: io.FileIO, on_read: Callable[[int], None]) -> tuple[int, str]:
    digest, size, part = hashlib.sha256(), 0, memoryview(bytearray(CHUNK))
    while count := file.readinto(part):
        digest.update(part[:count])
        size += count
        on_read(count)
    return size, digest.hexdigest()


def _listed(names: list[str]) -> str:
    """The first name with its verb: `arrays/d/1 is`, `arrays/d/1 and 3 other files are`."""
    if len(names) == 1:
        return f"{names[0]} is"
    return f"{names[0]} and {len(names) - 1} other {'file' if len(names) == 2 else 'files'} are"
