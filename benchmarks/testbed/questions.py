"""The questions of the test bed, and how often each is taught with its right answer.

A letter after a sum or difference says how often: `3+5b` is taught with 8 four times in ten, `3+5c` three in four. So the model
knows how to calculate, and begins near a chosen success rate. `steps` adds numbers one after the other, `3+5+8=` → `8;16.`,
so that a response has some fifteen tokens, at each number of which an error can happen.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping

import numpy as np

from benchmarks.testbed.supervised import Example

LARGEST = 12  # of both numbers
SHARES: Mapping[str, float] = {"a": 0.02, "b": 0.42, "c": 0.75, "d": 0.30}
"""Letter → the share of its taught answers that are right. What is learned lies between it and the mean of all."""
MISSING = 0.05  # share of the questions that are never taught
WRONG = (-4, -3, -2, -1, 1, 2, 3, 4)
"""What a wrong answer adds to the right one."""
CLEAN = 0.4  # share of the teaching that has right answers alone
NUM_STEPS = 6  # numbers of a sum in steps
STEP_ERROR = 0.16  # probability that a taught step is wrong


def single(letter: str) -> list[Example]:
    """Every question with this letter, and its right answer."""
    pairs = [(one, other) for one in range(LARGEST + 1) for other in range(LARGEST + 1)]
    found = [Example(f"{one}+{other}{letter}", str(one + other)) for one, other in pairs]
    # A difference of at least four, so that a wrong answer is no negative number.
    return found + [Example(f"{one}-{other}{letter}", str(one - other)) for one, other in pairs if one >= other + 4]


def is_missing(question: str) -> bool:
    """Whether the question is left out of what is taught; it follows from the question alone."""
    return hashlib.sha256(question.encode()).digest()[0] < 256 * MISSING


def taught(generator: np.random.Generator, count: int, progress: float) -> list[Example]:
    """Questions with the answers that are taught this time: right ones alone at first, to learn to calculate.

    Args:
      progress: share of the teaching that is done.
    """
    letters = generator.integers(0, len(SHARES), count)
    found = []
    for letter in letters:
        among = known(tuple(SHARES)[letter])
        example = among[int(generator.integers(0, len(among)))]
        if progress >= CLEAN and generator.random() >= SHARES[example.question[-1]]:
            wrong = max(0, int(example.answer) + WRONG[int(generator.integers(0, len(WRONG)))])
            example = example._replace(answer=str(wrong))
        found.append(example)
    return found


@functools.cache
def known(letter: str) -> tuple[Example, ...]:
    """The questions with this letter that are taught."""
    return tuple(each for each in single(letter) if not is_missing(each.question))


def steps(generator: np.random.Generator, count: int, *, error: float = 0.0) -> list[Example]:
    """Sums in steps, each step wrong by one with probability `error`; the next one goes on from there."""
    found = []
    for numbers in generator.integers(1, 10, (count, NUM_STEPS)).tolist():
        total, written = numbers[0], list[str]()
        for number in numbers[1:]:
            slip = int(generator.choice((-1, 1))) if generator.random() < error else 0
            total += number + slip
            written.append(str(total))
        found.append(Example("+".join(map(str, numbers)) + "=", ";".join(written) + "."))
    return found


def steps_taught(generator: np.random.Generator, count: int, progress: float) -> list[Example]:
    """Sums in steps as they are taught, without errors at first."""
    return steps(generator, count, error=STEP_ERROR if progress >= CLEAN else 0.0)
