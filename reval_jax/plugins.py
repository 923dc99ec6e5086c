"""Functions of the user's own, named MODULE:FUNCTION in a setting."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reval_jax.sandbox import search_path


def load(setting: str, name: str, *, directory: str = "", directory_setting: str = "") -> Callable[..., Any]:
    """The function `name`, MODULE:FUNCTION; its module is searched for in the standard library, in the directory, as Python does.

    Args:
      setting: the setting that holds the name, for messages.
      directory: where the module is; empty for the working directory.
      directory_setting: the setting that holds the directory, if there is one, for messages.

    Raises:
      ValueError: no such directory, module or function, or the module fails while it is imported.
    """
    path = Path(os.path.expanduser(directory)).resolve()
    if not path.is_dir():
        raise ValueError(
            f"{directory_setting}={directory} is not a directory. Name the directory of the module of {setting}."
        )
    module_name, _, function_name = name.partition(":")
    if search_path.is_shadowed(module_name):
        raise ValueError(
            f"{setting}={name} cannot be loaded: the standard library has a module {module_name}, which is found before yours. "
            "Give your file another name."
        )
    # The directory stays on the path: the module may import others of it later.
    sys.path[:] = search_path.with_directories(sys.path, [path])
    importlib.invalidate_caches()
    try:
        function: Any = functools.reduce(getattr, function_name.split("."), importlib.import_module(module_name))
    except Exception as error:  # a module of the user's may fail in any way
        remedy = f"set {directory_setting} to the module's directory" if directory_setting else "start in its directory"
        raise ValueError(
            f"{setting}={name} cannot be loaded: {type(error).__name__}: {error} (looked for in {path}, then where Python finds "
            f"its modules). Write MODULE:FUNCTION, and {remedy}."
        ) from error
    return function
