"""Single corruptions of a run directory, each a function of its description."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

KINDS = ("flip", "truncate", "empty", "delete", "swap", "edit", "random", "directory")


class Damage(NamedTuple):
    """One corruption: `kind` of the file or directory at `path`."""

    group: str  # the class of file
    kind: str  # one of KINDS
    path: str  # below the run directory
    seed: int  # of the place inside the file, or of the random bytes


def group_of(path: str) -> str:
    """The class of a file of a run directory."""
    parts = path.split("/")
    name = parts[-1]
    if parts[0] == "checkpoints":
        if "notes" in parts:
            return "checkpoint notes"
        if "ocdbt" in name or "d" in parts[:-1]:
            return "checkpoint arrays"
        return "checkpoint checksums" if "checksum" in name else "checkpoint metadata"
    for start in ("rollouts", "journal", "owner", "config_changes", "config", "metrics"):
        if parts[0].startswith(start):
            return start.replace("_", " ")
    return "others"


def files(run_dir: Path) -> dict[str, list[str]]:
    """The files of a run directory by class, in order; of the checkpoints only the two newest."""
    found: dict[str, list[str]] = {}
    newest = sorted(int(entry.name) for entry in (run_dir / "checkpoints").iterdir() if entry.name.isdigit())[-2:]
    for file in sorted(path for path in run_dir.rglob("*") if path.is_file()):
        path = file.relative_to(run_dir).as_posix()
        if path.startswith("checkpoints/") and path.split("/")[1] not in map(str, newest):
            continue
        found.setdefault(group_of(path), []).append(path)
    return found


def plan(run_dir: Path, count: int, source: random.Random) -> list[Damage]:
    """Corruptions over every class of file in turn: each file and kind of its class about equally often."""
    by_group, planned = files(run_dir), list[Damage]()
    choices = {}
    for group, paths in by_group.items():
        pairs = [(kind, path) for path in paths for kind in KINDS if is_possible(run_dir, kind, path)]
        source.shuffle(pairs)
        # Kinds alternate, so that a class of many files meets them all even in a small sample.
        pairs.sort(key=_turn(pairs))
        choices[group] = pairs
    while len(planned) < count:
        turn = len(planned) // len(choices)
        group = list(choices)[len(planned) % len(choices)]
        kind, path = choices[group][turn % len(choices[group])]
        planned.append(Damage(group, kind, path, source.randrange(2**31)))
    return planned


def _turn(pairs: list[tuple[str, str]]) -> Callable[[tuple[str, str]], int]:
    seen: dict[str, int] = {}
    turns = {}
    for kind, path in pairs:
        turns[kind, path] = seen[kind] = seen.get(kind, -1) + 1
    return lambda pair: turns[pair]


def is_possible(run_dir: Path, kind: str, path: str) -> bool:
    """Whether the file can be damaged so."""
    file = run_dir / path
    if kind == "swap":
        return _older(run_dir, path) is not None
    if kind == "edit":
        return any(48 <= byte < 58 for byte in file.read_bytes()) and _is_text(file)
    return kind in ("delete", "directory", "random") or file.stat().st_size > 0


def inflict(run_dir: Path, damage: Damage) -> None:
    """Does it."""
    FUNCTIONS[damage.kind](run_dir, damage.path, random.Random(damage.seed))


def _flip(run_dir: Path, path: str, source: random.Random) -> None:
    content = bytearray((run_dir / path).read_bytes())
    content[source.randrange(len(content))] ^= 1 << source.randrange(8)
    (run_dir / path).write_bytes(content)


def _truncate(run_dir: Path, path: str, source: random.Random) -> None:
    content = (run_dir / path).read_bytes()
    (run_dir / path).write_bytes(content[: source.randrange(len(content))])


def _empty(run_dir: Path, path: str, source: random.Random) -> None:
    (run_dir / path).write_bytes(b"")


def _delete(run_dir: Path, path: str, source: random.Random) -> None:
    (run_dir / path).unlink()


def _swap(run_dir: Path, path: str, source: random.Random) -> None:
    older = _older(run_dir, path)
    if older is not None:
        shutil.copyfile(older, run_dir / path)


def _edit(run_dir: Path, path: str, source: random.Random) -> None:
    content = bytearray((run_dir / path).read_bytes())
    place = source.choice([index for index, byte in enumerate(content) if 48 <= byte < 58])
    content[place] = source.choice([byte for byte in range(48, 58) if byte != content[place]])
    (run_dir / path).write_bytes(content)


def _random(run_dir: Path, path: str, source: random.Random) -> None:
    size = max(16, (run_dir / path).stat().st_size)
    (run_dir / path).write_bytes(source.randbytes(size))


def _directory(run_dir: Path, path: str, source: random.Random) -> None:
    """A directory that no run makes, beside the file; among the checkpoints also one named like a later round."""
    parent = (run_dir / path).parent
    if path.startswith("checkpoints/"):
        parent = source.choice([parent, run_dir / "checkpoints"])
    (parent / source.choice(["99", "lost+found", "copy of 2"])).mkdir(exist_ok=True)


FUNCTIONS: Mapping[str, Callable[[Path, str, random.Random], None]] = {
    "flip": _flip,
    "truncate": _truncate,
    "empty": _empty,
    "delete": _delete,
    "swap": _swap,
    "edit": _edit,
    "random": _random,
    "directory": _directory,
}


def _older(run_dir: Path, path: str) -> Path | None:
    """The same file of an earlier checkpoint or round: by name, or the file of its class with the same place in the order."""
    parts = path.split("/")
    if parts[0] == "checkpoints":
        step = int(parts[1])
        older = run_dir / "checkpoints" / str(step - 1)
        same = older.joinpath(*parts[2:])
        if same.is_file():
            return same
        # The names of data files are random.
        here = sorted(file.name for file in (run_dir / path).parent.iterdir() if file.is_file())
        there = sorted(file for file in older.joinpath(*parts[2:-1]).glob("*") if file.is_file())
        index = here.index(parts[-1])
        return there[index] if index < len(there) else None
    siblings = sorted(file for file in (run_dir / path).parent.glob(f"*{(run_dir / path).suffix}") if file.is_file())
    index = siblings.index(run_dir / path)
    return siblings[index - 1] if index > 0 and parts[0] in ("rollouts", "journal") else None


def _is_text(file: Path) -> bool:
    try:
        file.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
