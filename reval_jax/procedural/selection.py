"""Selection and order of a data set's problems: a pure function of its name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from reval_jax.procedural import naming, tasks

TEST_ONE_IN = 4
"""The test split has one problem in TEST_ONE_IN; the share is large because some levels are small."""


def rows(name: naming.Name) -> list[tuple[str, str]]:
    """Question and answer of every row. A larger size begins with the rows of a smaller one.

    Raises:
      ValueError: the level has fewer problems in this split than `size` asks for.
    """
    level = tasks.LEVELS[name.task][name.level - 1]
    max_rows = naming.DEFAULT_SIZE if name.size is None else name.size
    answers: dict[str, str] = {}  # by question
    for number in _order(level.total, f"{name.task} {name.level} {name.seed}"):
        problem = level.problem(number)
        if problem is not None and split_of(f"{name.task} {problem.key}") == name.split:
            answers[question(problem, name.style)] = problem.answer
            if len(answers) == max_rows:
                break
    if name.size is not None and len(answers) < name.size:
        raise ValueError(
            f"data set {name.text}: size={name.size}, but level {name.level} of {name.task} ({level.about}) has "
            f"{len(answers)} questions in split={name.split}. Use size={len(answers)} or less, or a higher level."
        )
    return list(answers.items())


def question(problem: tasks.Problem, style: str) -> str:
    """The question in one of naming.STYLES; `qa` adds the start of the answer, a form that base models know."""
    if style == "raw":
        return problem.raw
    if style == "sentence":
        return problem.sentence
    if problem.expression:
        return f"Q: {problem.expression}?\nA: {problem.expression} ="
    return f"Q: {problem.sentence}\nA:"


def split_of(key: str) -> str:
    """The split of a problem, independent of seed, size, level and wording."""
    return "test" if _hash(key) % TEST_ONE_IN == 0 else "train"


def _order(total: int, purpose: str) -> Iterator[int]:
    """The numbers 0 .. total - 1 in an order that depends on `purpose` alone: a shuffle that stores only the moved entries.

    It uses hashes, because the methods of the standard library's generator may change with the Python version.
    """
    moved: dict[int, int] = {}
    for step in range(total):
        chosen = step + _hash(f"{purpose} {step}") % (total - step)
        here = moved.pop(step, step)
        yield moved.get(chosen, chosen) if chosen != step else here
        if chosen != step:
            moved[chosen] = here


def _hash(text: str) -> int:
    """128 bits of the text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest())
