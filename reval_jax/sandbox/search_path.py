"""Where modules of the user's own are searched for."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path


def with_directories(path: Sequence[str], directories: Iterable[Path]) -> list[str]:
    """`path` with the directories behind the standard library, and before everything else.

    Before the standard library, a file `random.py` or `string.py` of theirs would take the place of the library's.
    """
    first = [str(directory.resolve()) for directory in directories]
    library = [entry for entry in path if _is_library(entry)]
    return [*library, *first, *(entry for entry in path if entry not in (*library, *first))]


def is_shadowed(module: str) -> bool:
    """Whether the standard library has a module of this name, which is found first."""
    return module.partition(".")[0] in sys.stdlib_module_names


def _is_library(entry: str) -> bool:
    places = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), os.path.dirname(os.__file__)]
    places += [os.path.join(place, "lib-dynload") for place in places]
    archive = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    return (
        os.path.realpath(entry) in {os.path.realpath(place) for place in places} or os.path.basename(entry) == archive
    )
