"""Settings from YAML and back, their hash, and the differences of two."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import reprlib
from pathlib import Path
from typing import Any

import pydantic

from reval_jax.config import yaml_core
from reval_jax.config.sections import Config

RENAMED = {
    "task.overlong": "task.long_prompts",
    "rollout.overlong": "rollout.truncated",
    "rollout.overlong_buffer": "rollout.penalty_tokens",
    "update.reward": "update.reward_design",
    "verifier.reward": "verifier.function",
    "verifier.path": "verifier.function_path",
}
"""Former name → current name of renamed settings. A former name is refused with the current one named."""
REMOVED = {
    "rollout.decode_layers": "the platform chooses now how the sampler holds and runs the layers",
}
"""Former settings: refused, with the reason."""

MAY_CHANGE = ("eval", "checkpoint")
"""Sections that a resumed run may change: no result of training depends on them."""
MAY_CHANGE_FIELDS = (
    ("run", "rounds"),
    ("run", "stop_score"),
    ("run", "stop_rounds"),
    ("run", "sinks"),
    ("run", "max_rollouts_gib"),
    ("run", "grace_seconds"),
    ("rollout", "decode_window"),
    # Verdicts depend on the limits of CPU time and memory, but not on these.
    ("verifier", "workers"),
    ("verifier", "wall_limit"),
    ("verifier", "tasks_per_worker"),
    ("verifier", "max_failed_share"),
)

_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 300


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The sections of a YAML file, unchecked.

    Raises:
      ValueError: the file is missing, not YAML, has a key twice, or is not a mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"config {path} cannot be read: {error.strerror}. Name an existing YAML file.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"config {path} is not YAML: {error}. Save it as UTF-8.") from error
    try:
        tree = yaml_core.parse(text)
    except ValueError as error:
        raise ValueError(f"config {path} {error}.") from error
    if tree is not None and not isinstance(tree, dict):
        raise ValueError(f"config {path} holds a {type(tree).__name__}, not sections. Begin with for example 'model:'.")
    return tree or {}


def load(*paths: str | Path) -> Config:
    """The settings in YAML files; a later file replaces fields of an earlier one, and fields that none names keep their defaults.

    The section `about` of a run directory's config.yaml holds facts, not settings, and is ignored.

    Raises:
      ValueError: the file is missing, not YAML, or names an unknown key or a wrong type.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        tree = read_yaml(path)
        tree.pop("about", None)
        # Alone first, so that a message names the file.
        from_tree(tree, source=str(path))
        for section, fields in tree.items():
            merged[section] = merged.get(section, {}) | fields
    return from_tree(merged, source=" and ".join(map(str, paths)))


def from_tree(tree: dict[str, Any], *, source: str = "config") -> Config:
    """The settings in a nested dict, checked for keys, types and bounds.

    Raises:
      ValueError: naming every offending key and, for an unknown one, the nearest that exists.
    """
    try:
        return pydantic.TypeAdapter(Config).validate_python(tree)
    except pydantic.ValidationError as error:
        raise ValueError(f"{source}: " + "; ".join(_explain(problem) for problem in error.errors())) from error


def to_tree(config: Config) -> dict[str, Any]:
    """The settings as nested dicts of plain values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def results_hash(config: Config) -> str:
    """16 hex digits that change exactly when a field that can alter results does."""
    return hashlib.sha256(json.dumps(_results_tree(config), sort_keys=True).encode()).hexdigest()[:16]


def changed_results(old: Config, new: Config) -> list[str]:
    """`section.field: old -> new` of every field that alters results and differs."""
    return _differences(_results_tree(old), _results_tree(new))


def changed(old: Config, new: Config) -> list[str]:
    """`section.field: old -> new` of every field that differs."""
    return _differences(to_tree(old), to_tree(new))


def _results_tree(config: Config) -> dict[str, Any]:
    tree = {section: fields for section, fields in to_tree(config).items() if section not in MAY_CHANGE}
    for section, field in MAY_CHANGE_FIELDS:
        del tree[section][field]
    return tree


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [
        f"{section}.{field}: {old[section].get(field)} -> {value}"
        for section, fields in new.items()
        for field, value in fields.items()
        if old[section].get(field) != value
    ]


def renamed(old: str) -> str:
    """The message for a setting's former name."""
    if old in REMOVED:
        return f"'{old}' is no setting any more: {REMOVED[old]}. Leave it out."
    return f"'{old}' is called '{RENAMED[old]}' now. Use that name."


def _explain(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "unexpected_keyword_argument":
        if where in RENAMED or where in REMOVED:
            return renamed(where)
        sections = to_tree(Config())
        known = [*sections, *(f"{section}.{field}" for section, fields in sections.items() for field in fields)]
        if where in known:
            section, field = where.split(".")
            return f"unknown key '{where}': a field stands below its section. Write {section}: {{{field}: …}}"
        nearest = difflib.get_close_matches(where, known, n=1, cutoff=0.0)[0]
        return f"unknown key '{where}'. Did you mean '{nearest}'?"
    if problem["type"] in ("dataclass_type", "dataclass_exact_type"):
        return f"{where} is a section with fields, but its value is {_SHOWN.repr(problem['input'])}"
    reason = problem["msg"].removeprefix("Value error, ")
    return f"{where}={_SHOWN.repr(problem['input'])}: {reason[0].lower()}{reason[1:]}"
