r"""Response text to reward and verdict. Nothing is ever evaluated, and no tolerance is ever applied.

A response is model output: it may be a megabyte of digits, braces or power towers. So the scans over a whole response
are linear in its length, and an extracted answer is measured before anything is read.

`grade` finds the answer and decides what arithmetic and text decide (`exact`). What needs algebra it leaves as pairs, for
`symbolic` in a process that can be killed; `settle` turns the outcomes into the final grade.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from reval_jax import types
from reval_jax.equality import exact, limits, normal, structure
from reval_jax.verifier import extraction

GOLD_SEPARATOR = extraction.GOLD_SEPARATOR
ANSWER_FORMATS = ("boxed", "first_number", "last_number")  # as config.AnswerFormat

_SHOWN = 80  # characters of an answer in an explanation


class Grade(NamedTuple):
    """One graded response."""

    reward: float  # 1 for a right answer, else 0
    kind: str  # one of types.VERDICTS
    extracted: str | None  # the text that was compared; None where nothing was found
    explanation: str  # one sentence for a person
    answer: str = ""  # normal form of the extracted text, as maj@k counts it; "" where there is none
    pairs: tuple[tuple[str, str], ...] = ()  # (prediction, gold) that only algebra decides; empty once settled


def verdicts(grades: Iterable[Grade]) -> types.Verdicts:
    """The grades of B responses as arrays."""
    grades = list(grades)
    return types.Verdicts(
        reward=np.array([one.reward for one in grades], np.float32),
        kind=np.array([types.VERDICTS.index(one.kind) for one in grades], np.int8),
        answer=tuple(one.answer for one in grades),
    )


def grade(
    text: str, answer: str, *, answer_format: str, prompt_opens_think: bool = False, extracted: bool = False
) -> Grade:
    r"""The grade of one response: 1 if its final answer equals a gold answer, else 0.

    Only what follows the last `</think>` counts. "boxed" reads the last balanced `\boxed{...}`; a box opened after it
    and never closed withdraws it (`no_box`). "first_number" and "last_number" read a number: `1/2` is one, `2-3` begins
    with 2 and ends with 3. Numbers are equal as exact rationals, with no tolerance and with `%` as a unit, not a factor; a unit
    (a known word) or a variable (`x =`) may be missing on one side but not differ. The kinds that are not a plain `ok`
    or `wrong`: `unparsed` is an answer that is empty or, so far, undecided; `limit` is one too long to be read.

    An answer that only algebra can decide has `pairs`: pass what `symbolic.compare` says of each to `settle`.

    Args:
      text: the response; any string, of any length.
      answer: the gold answer; several accepted forms are separated by ` ||| `.
      answer_format: one of ANSWER_FORMATS.
      prompt_opens_think: the prompt has opened `<think>`, so a response without `</think>` is thinking to its end.
      extracted: the text is an answer, not a response: all of it is compared.

    Raises:
      ValueError: unknown answer_format.
    """
    if answer_format not in ANSWER_FORMATS:
        raise ValueError(f"task.answer_format={answer_format!r} is not known. Use one of: {', '.join(ANSWER_FORMATS)}.")
    found = extraction.Found(text, "", "")
    if not extracted:
        found = extraction.find(text, answer_format=answer_format, prompt_opens_think=prompt_opens_think)
    if found.answer is None:
        return Grade(0.0, found.kind, None, found.explanation)
    return _compare(found.answer, extraction.golds(answer))


def settle(open_grade: Grade, outcomes: Sequence[str]) -> Grade:
    """The final grade, given for each of its pairs what `symbolic.compare` said, or how the attempt ended.

    The best outcome counts: `ok`, then `wrong`, then whatever else there is, the first of it.

    Args:
      open_grade: a grade with pairs; one without is returned as it is.
      outcomes: one of types.VERDICTS for each pair.
    """
    if not open_grade.pairs:
        return open_grade
    shown = _shown(open_grade.extracted or "")
    if "ok" in outcomes:
        return open_grade._replace(reward=1.0, kind="ok", explanation=f"{shown} equals the gold answer", pairs=())
    kind = "wrong" if "wrong" in outcomes else outcomes[0]
    explanation = {
        "wrong": f"{shown} differs from the gold answer",
        "unparsed": f"{shown} is no mathematics that is understood, and differs from the gold answer's text",
        "limit": f"{shown} needs more than the verifier spends on one answer",
        "timeout": f"the worker that compared {shown} with the gold answer did not come back in time",
        "crash": f"the worker that compared {shown} with the gold answer died",
    }[kind]
    return open_grade._replace(kind=kind, explanation=explanation, pairs=())


def _compare(answer: str, golds: Sequence[str]) -> Grade:
    """The grade of an extracted answer against every accepted gold."""
    extracted, answer = answer, normal.peeled(answer.strip())
    why = limits.too_long(answer)
    if why:
        return Grade(0.0, "limit", extracted, f"the answer is not read: {why}")
    if not normal.form(normal.spelled(answer)):
        return Grade(0.0, "unparsed", extracted, "the answer is empty")
    counted = exact.normal_form(answer)
    readable = [gold for gold in golds if not limits.too_long(gold)]
    outcomes = [exact.compare(answer, gold) for gold in readable]
    if structure.EQUAL in outcomes:
        return Grade(1.0, "ok", extracted, f"{_shown(answer)} equals the gold answer", counted)
    if not readable:
        return Grade(0.0, "limit", extracted, f"the gold answer is not read: {limits.too_long(golds[0])}", counted)
    pairs = [(answer, gold) for gold, outcome in zip(readable, outcomes, strict=True) if outcome == structure.OPEN]
    if not pairs:
        return Grade(0.0, "wrong", extracted, f"{_shown(answer)} differs from the gold answer", counted)
    why = limits.too_big(answer)
    if why:
        return Grade(0.0, "limit", extracted, f"no algebra is tried on the answer: {why}", counted)
    return Grade(0.0, "unparsed", extracted, f"only algebra can compare {_shown(answer)}", counted, tuple(pairs))


def _shown(answer: str) -> str:
    return repr(answer if len(answer) <= _SHOWN else answer[: _SHOWN - 3] + "...")
