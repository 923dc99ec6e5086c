"""Parses and checks the name of a data set, `procedural:NAME,key=value,…`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from reval_jax.procedural import tasks

PREFIX = "procedural:"
GYM = "reasoning_gym"
"""The task name for data sets of the reasoning-gym library."""

SPLITS = ("train", "test")
STYLES = ("sentence", "raw", "qa")
DEFAULT_SIZE = 1000
MAX_SIZE = 100_000
"""Largest number of questions in a data set."""


class Name(NamedTuple):
    """The parts of a data set's name."""

    text: str  # as the user wrote it, for messages
    task: str  # a key of tasks.LEVELS, or GYM
    level: int  # from 1; 0 for GYM
    size: int | None  # questions; None: DEFAULT_SIZE, or all if the level has fewer
    seed: int
    split: str
    style: str  # wording of the questions
    settings: tuple[tuple[str, str], ...]  # for GYM: `dataset` first, then that data set's settings as text


def is_procedural(dataset: str) -> bool:
    """Whether the text names a procedural data set rather than a file."""
    return dataset.startswith(PREFIX)


def parse(text: str) -> Name:
    """The parts of a procedural data set's name.

    Raises:
      ValueError: an unknown task, key or value; the message names the nearest known one.
    """
    if not is_procedural(text):
        raise ValueError(
            f"data set {text!r} does not begin with {PREFIX!r}, as procedural data sets do. Write {PREFIX}{text}."
        )
    task, *pairs = (part.strip() for part in text.removeprefix(PREFIX).split(","))
    check_known(text, "task", task, (*tasks.LEVELS, GYM))
    values: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not (key and equals and value):
            raise ValueError(f"data set {text}: {pair!r} is not KEY=VALUE. Write for example size=500.")
        if key in values:
            raise ValueError(f"data set {text}: {key} appears twice. Keep one of them.")
        values[key] = value
    if task == GYM:
        return _gym_name(text, values)
    for key in values:
        check_known(text, "key", key, ("level", "size", "seed", "split", "style"))
    return Name(
        text=text,
        task=task,
        level=_number(text, values, "level", 1, 1, len(tasks.LEVELS[task])),
        size=_number(text, values, "size", 0, 1, MAX_SIZE) or None,
        seed=_number(text, values, "seed", 0, 0, 2**32 - 1),
        split=_choice(text, values, "split", SPLITS),
        style=_choice(text, values, "style", STYLES),
        settings=(),
    )


def _gym_name(text: str, values: dict[str, str]) -> Name:
    if "dataset" not in values:
        raise ValueError(
            f"data set {text} does not name one of the library's data sets. Add for example dataset=chain_sum."
        )
    common = ("size", "seed", "split")
    settings = [("dataset", values["dataset"])]
    settings += [(key, value) for key, value in values.items() if key not in (*common, "dataset")]
    return Name(
        text=text,
        task=GYM,
        level=0,
        size=_number(text, values, "size", 0, 1, MAX_SIZE) or None,
        seed=_number(text, values, "seed", 0, 0, 2**32 - 1),
        split=_choice(text, values, "split", SPLITS),
        style="sentence",
        settings=tuple(settings),
    )


def label(text: str) -> str:
    """A short name for metrics: `arithmetic_level_2_test`, or `chain_sum_test` for a data set of the library.

    Settings with a value other than the default follow, as in `arithmetic_level_2_test_size_64_style_qa`, so that data sets
    with different rows have different names.

    Raises:
      ValueError: `parse` refuses the name.
    """
    name = parse(text)
    kind = dict(name.settings)["dataset"] if name.task == GYM else f"{name.task}_level_{name.level}"
    others = {"size": name.size or 0, "seed": name.seed, "style": "" if name.style == STYLES[0] else name.style}
    parts = [f"{key}_{value}" for key, value in (*others.items(), *name.settings[1:]) if value]
    # The values of the library's settings may be any text.
    return re.sub(r"[^\w.+-]", "_", "_".join([kind, name.split, *parts]))


def check_known(text: str, kind: str, word: str, known: Sequence[str]) -> None:
    """Raise a ValueError that names the nearest known word if `word` is not known.

    Args:
      text: the data set's name, for the message.
      kind: what `word` is, for the message.
    """
    if word in known:
        return
    nearest = difflib.get_close_matches(word, known, n=1, cutoff=0.0)[0]
    options = ", ".join(known) if len(known) < 20 else f"{len(known)} are known"
    raise ValueError(f"data set {text}: unknown {kind} {word!r}. Did you mean {nearest!r}? ({options})")


def _choice(text: str, values: Mapping[str, str], key: str, known: Sequence[str]) -> str:
    """The value of a key that must be one of the known words; the first is the default."""
    value = values.get(key, known[0])
    check_known(text, key, value, known)
    return value


def _number(text: str, values: Mapping[str, str], key: str, default: int, low: int, high: int) -> int:
    """The value of a key that must be a whole number from low to high."""
    if key not in values:
        return default
    value = values[key]
    # isdecimal alone would accept digits of other scripts; int() would accept underscores and megabytes of digits.
    if not (value.isascii() and value.isdecimal() and len(value) <= 10 and low <= int(value) <= high):
        raise ValueError(f"data set {text}: {key}={value} is not a whole number from {low} to {high}. Use one.")
    return int(value)
