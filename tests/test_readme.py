"""README.md is correct: its Python runs, its tree matches the disk, its functions and links exist. So is CITATION.cff."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import reval_jax

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "reval_jax"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", "BUILD.md", "CONTRIBUTING.md", "CHANGELOG.md", "launch/README.md"]


def tree_paths(text: str) -> list[str]:
    """Paths in the tree under "The files", with the folder of a file in front."""
    block = re.search(r"^## The files\n.*?^```\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert block, "README.md has no tree under '## The files'"
    paths: list[str] = []
    folders: list[tuple[int, str]] = []
    for line in block[1].splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        if name == "#":
            continue
        while folders and folders[-1][0] >= indent:
            folders.pop()
        path = (folders[-1][1] if folders else "") + name
        paths.append(path)
        if name.endswith("/"):
            folders.append((indent, path))
    return paths


def missing_modules(paths: list[str]) -> list[str]:
    """Modules of the package that are not in the tree, and not in a folder that is a leaf of the tree."""
    files = {path for path in paths if not path.endswith("/")}
    leaves = {path for path in paths if path.endswith("/") and not any(path != p and p.startswith(path) for p in paths)}
    modules = [path.relative_to(ROOT).as_posix() for path in sorted(PACKAGE.rglob("*.py"))]
    return [
        module
        for module in modules
        if not module.endswith("__init__.py") and module not in files and not any(map(module.startswith, leaves))
    ]


def test_the_python_of_the_readme_prints_the_values_in_its_comments():
    blocks = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        expected = re.findall(r"^print\(.*\)  # (.*)$", block, flags=re.MULTILINE)
        result = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert [" ".join(line.split()) for line in result.stdout.splitlines()] == expected


def test_every_path_of_the_tree_exists():
    wrong = [
        path
        for path in tree_paths(README)
        if not ((ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file())
    ]
    assert not wrong, f"README.md's tree names {wrong}, which do not exist: correct the tree"


def test_the_tree_names_every_module_or_its_folder():
    missing = missing_modules(tree_paths(README))
    assert not missing, f"README.md's tree lacks {missing}: add a line for each, or name its folder alone"


def test_a_folder_whose_files_are_listed_does_not_hide_a_new_one():
    listed = [path for path in tree_paths(README) if path != "reval_jax/model/forward.py"]
    assert missing_modules(listed) == ["reval_jax/model/forward.py"]


def test_every_function_of_the_equation_table_exists():
    names = re.findall(r"`(\w+)\.(\w+)`", README.partition("## How it works")[2].partition("## The files")[0])
    assert len(names) > 10
    for module, name in names:
        folder = PACKAGE / module
        source = folder / "__init__.py" if folder.is_dir() else PACKAGE / f"{module}.py"
        body = ast.parse(source.read_text(encoding="utf-8")).body
        functions = {node.name for node in body if isinstance(node, ast.FunctionDef)}
        exported = {alias.name for node in body if isinstance(node, ast.ImportFrom) for alias in node.names}
        assert name in (exported if folder.is_dir() else functions), (
            f"README.md names {module}.{name}, which {source.relative_to(ROOT)} does not have"
        )


@pytest.mark.parametrize("page", PAGES)
def test_every_link_to_a_file_leads_somewhere(page):
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{page} links to {target}, which does not exist"


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == reval_jax.__version__
    assert citation["authors"] == [{"name": "The reval_jax authors"}]
    assert citation["references"][0]["url"].endswith("2603.23355")
