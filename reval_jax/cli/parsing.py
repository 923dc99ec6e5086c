"""Command line → arguments, whose settings begin from the config file named among them."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tyro

from reval_jax import config as config_lib
from reval_jax.cli import arguments


def parse(kind: Any, command: str, argv: list[str], *, start: Any = None) -> Any:
    """The command's arguments, beginning from `start`; settings begin from the config file named among them, if one is."""
    default: dict[str, Any] = {}
    _refuse_renamed(argv)
    if any(field.name == "settings" for field in dataclasses.fields(kind)):
        config, run_dirs = named_files(argv)
        default["settings"] = _start_from(config, run_dirs[0] if run_dirs and kind is not arguments.Train else None)
    prototype = kind(**default) if default else start or tyro.MISSING_NONPROP
    return tyro.cli(kind, args=argv, default=prototype, prog=f"reval {command}", use_underscores=True)


def _refuse_renamed(argv: list[str]) -> None:
    """Refuses settings by the name they had before.

    Raises:
      ValueError: naming the name they have now.
    """
    for argument in argv:
        name = argument.removeprefix("--").split("=")[0]
        if argument.startswith("--") and (name in config_lib.RENAMED or name in config_lib.REMOVED):
            raise ValueError(f"unknown option {argument}: {config_lib.renamed(name)}")


def named_files(argv: list[str]) -> tuple[Path | None, list[Path]]:
    """What --config and --run-dir name, before the other arguments are read.

    Raises:
      ValueError: an option without its value.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config", type=Path)
    finder.add_argument("--run-dir", "--run_dir", type=Path, nargs="*", default=[])
    try:
        found, _ = finder.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ValueError(f"{error}. Give the option a value.") from error
    return found.config, found.run_dir


def choose(argv: list[str], command: str, about: str, kinds: Mapping[str, Any]) -> str | None:
    """The first argument of a command that has kinds; None after the help that was asked for, or was needed, is printed.

    Args:
      about: what the command is for.
      kinds: name → the dataclass of its arguments.

    Raises:
      ValueError: no such kind.
    """
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:<8} {kind.__doc__.splitlines()[0]}" for name, kind in kinds.items()]
        print(f"usage: reval {command} WHAT [OPTIONS]\n\n{about}\n\n" + "\n".join(lines))
        print(f"\n`reval {command} WHAT --help` lists options.")
        return None
    if argv[0] not in kinds:
        raise ValueError(f"reval {command} has no '{argv[0]}'. Use one of {', '.join(kinds)}.")
    return argv[0]


def _start_from(config: Path | None, run_dir: Path | None) -> config_lib.Config:
    if config is not None:
        return config_lib.load(config)
    if run_dir is not None:
        return config_lib.load(run_dir / "config.yaml")
    return config_lib.Config()


def checked(settings: config_lib.Config) -> config_lib.Config:
    """The settings with the overrides' bounds checked too."""
    return config_lib.from_tree(config_lib.to_tree(settings), source="settings")
