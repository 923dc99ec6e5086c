"""The package's import order: a module imports only from rows above its own, and heavy libraries stay in place."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "reval_jax"

DESIGN = ROOT / "docs" / "design.md"


def read_rows(text: str) -> dict[str, int]:
    """Module to row, from the table of docs/design.md; the row of a folder applies to its files without a row."""
    rows = re.findall(r"^\| (\d+) \| `([\w.]+)` \|", text, flags=re.MULTILINE)
    names = [name for _, name in rows]
    assert len(set(names)) == len(names), "a module is listed twice"
    return {name: int(row) for row, name in rows}


ROW = read_rows(DESIGN.read_text(encoding="utf-8"))

# Importable by other trainers: these import jax only, and from this package only the listed modules.
JAX_ONLY = {"objective": set(), "scores": set(), "scores_sharded": {"scores"}, "parallel": set()}


def dotted(path: Path) -> str:
    """The name of a file inside the package: `model.rope`; `model` for model/__init__.py, "" for reval_jax/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_of(name: str) -> str | None:
    """The module in the table that a file belongs to: the longest listed name that is a prefix of the file's name."""
    parts = name.split(".")
    prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in ROW), None)


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Absolute dotted names of all imports of a file, including those inside functions; `from a import b` gives a.b."""
    names: set[str] = set()
    inside = ("reval_jax", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [] if node.level == 0 else list(inside[: len(inside) - node.level + 1])
            base += node.module.split(".") if node.module else []
            names |= {".".join([*base, alias.name]) for alias in node.names}
    return names


def imported_files(path: Path, files: set[str]) -> set[str]:
    """Files of the package that a file imports, named as by `dotted`; a name defined in a file counts as that file."""
    files_imported = set()
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "reval_jax":
            files_imported.add(
                next(".".join(parts[1:end]) for end in range(len(parts), 0, -1) if ".".join(parts[1:end]) in files)
            )
    return files_imported


def imported_modules(path: Path, files: set[str]) -> set[str]:
    """Modules of the table that a file imports from, except its own; reval_jax/__init__.py does not count."""
    modules = {module_of(name) or name for name in imported_files(path, files) if name}
    return modules - {module_of(dotted(path))}


def imported_libraries(path: Path) -> set[str]:
    """Top-level names outside the package and the standard library that a file imports."""
    return {name.split(".")[0] for name in imported(path)} - {"reval_jax", "__future__"} - sys.stdlib_module_names


FILES = {dotted(path) for path in sources()}
each_file = pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))


@each_file
def test_a_module_imports_only_from_rows_above_its_own(path):
    name = dotted(path)
    if name in ("", "tools"):
        assert imported_files(path, FILES) <= {"xla_guard"}, "importing anything runs this file: it imports nothing"
        return
    module = module_of(name)
    assert module, f"{name} is in no row of the table in docs/design.md"
    wrong = {other for other in imported_modules(path, FILES) if ROW.get(other, len(ROW)) >= ROW[module]}
    assert not wrong, f"{module} (row {ROW[module]}) imports {sorted(wrong)}, which are not in a row above it"


def test_every_row_of_the_table_is_a_module():
    assert set(ROW) <= FILES


def test_no_file_imports_itself_through_others():
    """Compares files, not folders, so that a folder's __init__ and the files that it exports are distinct."""
    graph = {dotted(path): imported_files(path, FILES) for path in sources()}
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"an import cycle: {' -> '.join(error.args[1])}")


@each_file
def test_a_library_is_imported_only_where_it_belongs(path):
    module, libraries = module_of(dotted(path)), imported_libraries(path)
    assert "torch" not in libraries
    assert "tensorflow" not in libraries
    if module != "model":
        assert "flax" not in libraries, "model is the only flax import"
    if module in JAX_ONLY:
        assert libraries <= {"jax"}
        assert imported_modules(path, FILES) <= JAX_ONLY[module]
    if module in ("verifier", "equality", "sandbox", "procedural"):
        assert "jax" not in libraries


@each_file
def test_an_init_file_holds_a_docstring_and_exports(path):
    if path.name != "__init__.py":
        return
    for node in ast.parse(path.read_text(encoding="utf-8")).body[1:]:
        is_export = isinstance(node, ast.Import | ast.ImportFrom) or (
            isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("__all__", "__version__")
        )
        assert is_export or path.parent == PACKAGE, f"line {node.lineno} belongs into a file of its own"


def test_the_import_reader_handles_every_form(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "layers.py"
    path.write_text(
        "import jax.numpy as jnp, reval_jax.types\n"
        "from reval_jax import config, mesh as mesh_lib\n"
        "from . import cache\nfrom .. import keys\nfrom ..replay import add\n"
        "def f():\n    from reval_jax.train import run\n    import flax.nnx\n"
    )
    files = {"", "types", "config", "mesh", "model", "model.cache", "model.layers", "keys", "replay", "train"}
    assert imported_files(path, files) == {"types", "config", "mesh", "model.cache", "keys", "replay", "train"}
    assert imported_modules(path, files) == {"types", "config", "mesh", "keys", "replay", "train"}
    assert imported_libraries(path) == {"jax", "flax"}


def test_a_cycle_between_an_init_and_its_file_is_detected(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "__init__.py").write_text("from reval_jax.a.b import f\n")
    (tmp_path / "a" / "b.py").write_text("from reval_jax import a\n")
    graph = {dotted(path): imported_files(path, {"", "a", "a.b"}) for path in sources()}
    with pytest.raises(graphlib.CycleError):
        list(graphlib.TopologicalSorter(graph).static_order())


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that are loaded after the statement has run in a new interpreter."""
    program = f"import sys\n{statement}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_equations_and_scores_load_no_framework():
    heavy = {
        "flax",
        "orbax",
        "transformers",
        "tensorflow",
        "tensorflow_datasets",
        "torch",
        "optax",
        "pydantic",
        "rich",
        "yaml",
    }
    loaded = loaded_by("import reval_jax.objective, reval_jax.scores_sharded")
    assert "jax" in loaded
    assert not loaded & heavy


def test_the_command_answers_before_any_framework_is_loaded():
    heavy = {"jax", "flax", "orbax", "optax", "transformers", "tensorflow", "tensorflow_datasets", "torch", "gguf"}
    assert not loaded_by("import reval_jax.cli") & heavy
