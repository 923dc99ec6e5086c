"""The pages of docs/ for tests: their fenced blocks, the paths, names, settings and commands that they mention."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from reval_jax import cli
from reval_jax import config as config_lib

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
PACKAGE = ROOT / "reval_jax"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
FILE_ENDINGS = ("csv", "html", "json", "jsonl", "md", "npz", "py", "safetensors", "svg", "txt", "yaml")
SECTIONS = {
    section.name: {field.name for field in dataclasses.fields(section.default)}
    for section in dataclasses.fields(config_lib.Config)
}
_FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', flags=re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"(?:^|[\s`(])(?:\.venv/bin/)?reval ((?:[a-z_]+)(?: [^`\n]*)?)", flags=re.MULTILINE)


class Block(NamedTuple):
    """A fenced block."""

    language: str  # bash blocks are commands, text blocks what they print
    title: str  # of a block that is a file: its name; else empty
    text: str


def read(page: str) -> str:
    """The text of docs/`page`."""
    return (DOCS / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """The page's fenced blocks, in order."""
    return [Block(*match.groups(default="")) for match in _FENCE.finditer(read(page))]


def links(page: str) -> list[str]:
    """Targets of the page's links to files, without the part after #."""
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", read(page))
    return [target for target in targets if "://" not in target]


def spans(page: str) -> list[str]:
    """Inline code, and the words of blocks that are not Python, with {a,b} written out."""
    text = read(page)
    prose = re.sub(_FENCE, "", text)
    inline = re.findall(r"`([^`\n]+)`", prose)
    words = [word for line in re.findall(r"^ {4}(.*)$", prose, flags=re.MULTILINE) for word in line.split()]
    words += [word for block in blocks(page) if block.language != "python" for word in block.text.split()]
    return [each for span in [*inline, *words] for each in _expand(span)]


def _expand(text: str) -> Iterator[str]:
    braces = re.search(r"\{([\w,]+,[\w,]+)\}", text)
    if not braces:
        yield text
        return
    for part in braces[1].split(","):
        yield from _expand(text[: braces.start()] + part + text[braces.end() :])


def paths(page: str) -> set[str]:
    """Files and folders of the repository that the page names."""
    top = "reval_jax|tests|docs|configs|benchmarks|launch|.ci"
    pattern = re.compile(rf"(?:{top.replace('.', '[.]')})/[\w./-]*\w/?")
    return {span for span in spans(page) if pattern.fullmatch(span) and "NAME" not in span}


def settings(page: str) -> set[tuple[str, str]]:
    """(section, field) of each `--section.field`, and of each `section.field` whose section is not also a module."""
    names = {match for span in spans(page) for match in re.findall(r"^(\w+)\.(\w+)(?:[=:].*)?$", span)}
    flags = set(re.findall(r"--(\w+)\.(\w+)", read(page))) - {("section", "field")}
    names = {name for name in names if name[0] in SECTIONS and not _is_module(name[0])}
    return flags | {name for name in names if name[1] not in FILE_ENDINGS}


def unknown_names(page: str) -> set[str]:
    """Each `module.name` of the page that is neither a name in the module nor a setting."""
    unknown = set()
    for span in spans(page):
        match = re.fullmatch(r"(?:reval_jax\.)?(\w+)\.(\w+)(?:[(=:].*)?", span)
        if not match or match[2] in FILE_ENDINGS or not _is_module(match[1]):
            continue
        if match[2] not in _names(match[1]) | SECTIONS.get(match[1], set()):
            unknown.add(span)
    return unknown


def _is_module(name: str) -> bool:
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()


@functools.cache
def _names(module: str) -> frozenset[str]:
    """Submodules, and whatever the module's top level defines or imports."""
    folder = PACKAGE / module
    names = {path.stem for path in folder.glob("*") if path.suffix in ("", ".py")} if folder.is_dir() else set()
    source = folder / "__init__.py" if folder.is_dir() else PACKAGE / f"{module}.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    return frozenset(names)


def commands(page: str) -> list[tuple[str, list[str]]]:
    """(command, flags) of each `reval …` in the page; a command with a second word, as `data prepare`, has both."""
    listed = []
    for line in _COMMAND.findall(read(page)):
        line = re.split(r"\s{2,}#|\s&&|;|\s\(", line)[0]
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # prose that continues after the command
            words = line.split()
        name = words[0]
        if name in ("data", "bench") and len(words) > 1 and re.fullmatch("[a-z]+", words[1]):
            name = f"{name} {words[1]}"
        flags = [word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)]
        listed.append((name, [flag for flag in flags if flag not in ("--help",)]))
    return listed


@functools.cache
def known_flags(command: str) -> frozenset[str]:
    """Every flag that `reval COMMAND --help` names, in the spelling with hyphens; empty for an unknown command."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()):
        code = cli.main([*command.split(), "--help"])
    flags = re.findall(r"--[\w.-]+", output.getvalue()) if code == 0 else []
    return frozenset(flag.replace("_", "-") for flag in flags)
