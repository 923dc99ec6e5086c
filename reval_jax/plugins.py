"""Functions of the user's own, named MODULE:FUNCTION in a setting."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
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
        if not callable(function):
            raise TypeError(f"{function_name} is of type {type(function).__name__}, not a function")
    except (Exception, SystemExit) as error:  # a module of the user's may fail in any way
        remedy = f"set {directory_setting} to the module's directory" if directory_setting else "start in its directory"
        raise ValueError(
            f"{setting}={name} cannot be loaded: {type(error).__name__}: {error} (looked for in {path}, then where Python finds "
            f"its modules). Write MODULE:FUNCTION, and {remedy}."
        ) from error
    return function


def sources(name: str, *, directory: str = "") -> dict[str, str]:
    """16 hex digits of each source file of the function `name`, MODULE:FUNCTION, by its path below the directory.

    These are its module's and, followed from file to file, those of the modules that its import statements name, as far as they
    are in the directory; of an installed module only those of its own package. Nothing is imported. Imports by other means, data
    that the code reads, and libraries are not seen.

    Args:
      directory: where the module is; empty for the working directory.
    """
    module, root = name.partition(":")[0], Path(directory).resolve()
    is_own = _file(root, module) is not None
    if not is_own:
        spec = importlib.util.find_spec(module.partition(".")[0])
        places = [*(spec.submodule_search_locations or [])] if spec else []
        if spec is None or not (places or spec.origin):
            return {}
        root = Path(places[0] if places else str(spec.origin)).parent
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        each = waiting.pop()
        file = _file(root, each)
        if file is None or str(file.relative_to(root)) in found or each.partition(".")[0] == "reval_jax":
            continue
        if not is_own and each.partition(".")[0] != module.partition(".")[0]:
            continue
        content = file.read_bytes()
        found[str(file.relative_to(root))] = hashlib.sha256(content).hexdigest()[:16]
        waiting += _imported(content, each if file.name == "__init__.py" else each.rpartition(".")[0])
    return dict(sorted(found.items()))


def _file(root: Path, module: str) -> Path | None:
    """The source file of a module below a directory."""
    path = root.joinpath(*module.split("."))
    return next((file for file in (path / "__init__.py", path.with_name(f"{path.name}.py")) if file.is_file()), None)


def _imported(content: bytes, package: str) -> Iterator[str]:
    """Every module that import statements may mean, with the packages that hold them; none where the text is not Python."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = [*parts, *(node.module.split(".") if node.module else [])]
            names = [".".join(filter(None, [*base, alias.name])) for alias in node.names]
        for name in names:
            steps = name.split(".")
            yield from (".".join(steps[:end]) for end in range(1, len(steps) + 1))
