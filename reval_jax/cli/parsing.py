"""Parses a command line; the settings in it override those of the config file that it names."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from reval_jax import config as config_lib
from reval_jax import run_directory
from reval_jax.cli import arguments, output


def parse(dataclass: Any, command: str, argv: list[str], *, defaults: Any = None) -> Any:
    """An instance of the command's dataclass of arguments.

    Args:
      dataclass: of the arguments; a field `settings` gets the values of --config, or of --run-dir's config, as defaults.
      defaults: an instance with the defaults of all fields; None takes the dataclass's own.

    Raises:
      ValueError: the config file cannot be used, or a setting is named by its former name.
      SystemExit: after help or a message about wrong flags.
    """
    _refuse_renamed(argv)
    if any(field.name == "settings" for field in dataclasses.fields(dataclass)):
        configs, run_dirs = configs_and_run_dirs(argv)
        run_dir = run_dirs[0] if run_dirs and dataclass is not arguments.Train else None
        defaults = dataclass(settings=_load(configs, run_dir))
    parsed = tyro.cli(
        dataclass,
        args=_switches_as_in_python(argv),
        default=defaults or tyro.MISSING_NONPROP,
        prog=f"reval {command}",
        use_underscores=True,
    )
    return dataclasses.replace(
        parsed,
        **{field.name: _with_home(getattr(parsed, field.name)) for field in dataclasses.fields(parsed) if field.init},
    )


def _switches_as_in_python(argv: list[str]) -> list[str]:
    """The words with True and False for the true and false of YAML, which the messages about settings use."""
    switches = {
        f"--{section.name}.{field.name}"
        for section in dataclasses.fields(config_lib.Config)
        for field in dataclasses.fields(section.default)  # type: ignore[arg-type]
        if field.type == "Switch"
    }
    found: list[str] = []
    for word in argv:
        flag, equals, value = word.rpartition("=")
        before = flag if equals else found[-1] if found else ""
        before = "--" + before.removeprefix("--").replace("-", "_")
        is_value = before in switches and value.lower() in ("true", "false")
        found.append(f"{flag}{equals}{value.capitalize()}" if is_value else word)
    return found


def _with_home(value: Any) -> Any:
    """A path, or each of several, with `~` expanded, which no shell does in `--option=~/path`; any other value unchanged."""
    if isinstance(value, Path):
        return Path(os.path.expanduser(value))  # unlike Path.expanduser it lets an unknown user's home stand
    return tuple(map(_with_home, value)) if isinstance(value, tuple) else value


def refuse_repeated(argv: list[str], lists: Sequence[str]) -> None:
    """Refuses an option of `lists`, with a list of values, that appears twice: the later would silently replace the earlier."""
    flags = ["--" + word.removeprefix("--").split("=")[0].replace("-", "_") for word in argv if word.startswith("--")]
    for flag in lists:
        if flags.count(flag) > 1:
            raise ValueError(
                f"{flag} appears {flags.count(flag)} times, and only the last would count. Name all its values after one."
            )


def _refuse_renamed(argv: list[str]) -> None:
    """Refuses settings by their former names.

    Raises:
      ValueError: with the current name.
    """
    for argument in argv:
        name = argument.removeprefix("--").split("=")[0]
        if argument.startswith("--") and (name in config_lib.RENAMED or name in config_lib.REMOVED):
            raise ValueError(f"unknown option {argument}: {config_lib.renamed(name)}")


def configs_and_run_dirs(argv: list[str]) -> tuple[list[Path], list[Path]]:
    """The values of every --config, and of --run-dir, read before the other arguments.

    Raises:
      ValueError: an option without its value.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path, action="append", default=[])
    parser.add_argument("--run-dir", "--run_dir", type=Path, nargs="*", default=[])
    try:
        namespace, _ = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ValueError(f"{error}. Give the option a value.") from error
    return [*map(_with_home, namespace.config)], [*map(_with_home, namespace.run_dir)]


def subcommand(argv: list[str], command: str, about: str, choices: Mapping[str, Any]) -> str | None:
    """The first argument, which names a subcommand; None after printing help, where it is requested or missing.

    Args:
      about: first paragraph of the help.
      choices: name → dataclass of the subcommand's arguments.

    Raises:
      ValueError: there is no such subcommand.
    """
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:<8} {dataclass.__doc__.splitlines()[0]}" for name, dataclass in choices.items()]
        print(f"usage: reval {command} SUBCOMMAND [OPTIONS]\n\n{about}\n\n" + "\n".join(lines))
        print(f"\n`reval {command} SUBCOMMAND --help` lists its options.")
        return None
    if argv[0] not in choices:
        raise ValueError(f"reval {command} has no '{argv[0]}'. Use one of {', '.join(choices)}.")
    return argv[0]


def options_first(argv: list[str], dataclass: Any) -> tuple[list[str], list[str]]:
    """The options of a command and its other words, which may begin with "-"; after "--" no word is an option."""
    fields = [field for field in dataclasses.fields(dataclass) if field.default is not dataclasses.MISSING]
    switches = {f"--{prefix}{field.name}" for field in fields for prefix in ("", "no_") if field.default is False}
    with_value = {f"--{field.name}" for field in fields if field.default is not False}
    options: list[str] = []
    words: list[str] = []
    rest = iter(argv)
    for word in rest:
        name, equals, _ = word.partition("=")
        name = name[:2] + name[2:].replace("-", "_")
        if word == "--":
            words += rest
        elif name in with_value and not equals:
            options += [word, *itertools.islice(rest, 1)]
        elif name in switches | with_value or word in ("-h", "--help"):
            options.append(word)
        else:
            words.append(word)
    return options, words


def _load(configs: list[Path], run_dir: Path | None) -> config_lib.Config:
    if configs:
        return config_lib.load(*configs)
    if run_dir is not None:
        return recorded(run_dir)
    return config_lib.Config()


def recorded(run_dir: Path) -> config_lib.Config:
    """The settings of a run; says on standard error where they come from if config.yaml is damaged.

    Raises:
      ValueError: it isn't a run's, or its copy is damaged as well.
    """
    config, _, notes = run_directory.recorded(run_directory.RunDirectory(run_dir))
    for note in notes:
        output.warn(f"reval: note: the settings of {run_dir} are read from {note}")
    return config


def checked(settings: config_lib.Config) -> config_lib.Config:
    """The settings, with the bounds of those on the command line checked too."""
    return config_lib.from_tree(config_lib.to_tree(settings), source="settings")
