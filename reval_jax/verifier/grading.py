r"""Response text to reward and verdict. No text is ever evaluated as code, and there is no tolerance.

A response is model output: it may be a megabyte of digits, braces or power towers. So each scan over a whole response is
linear in its length, and the size of an extracted answer is checked before the answer is read.

`grade` extracts the answer and compares it by arithmetic and text (`exact`). Pairs that need algebra are left to `symbolic`, in
a process that can be killed; `settle` turns the results into the final grade.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from reval_jax import types
from reval_jax.equality import exact, limits, normal, structure
from reval_jax.verifier import extraction

GOLD_SEPARATOR = extraction.GOLD_SEPARATOR

_MAX_SHOWN = 80  # characters of an answer that an explanation shows


class Grade(NamedTuple):
    """One graded response."""

    reward: float  # 1 for a right answer, else 0
    kind: str  # one of types.VERDICTS
    extracted: str | None  # the answer in the response; None if it has none
    explanation: str  # one sentence for a person
    answer: str = ""  # normal form of the answer, for maj@k; "" if there is none
    pairs: tuple[tuple[str, str], ...] = ()  # (prediction, gold) pairs that need algebra; empty in a final grade


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

    Only the text after the last `</think>` counts. "boxed" reads the last balanced `\boxed{...}`; a later box that is never
    closed withdraws it (`no_box`). "first_number" and "last_number" read a number: `1/2` is one number, `2-3` begins with 2
    and ends with 3. Numbers are compared as exact rationals, without tolerance; `%` is a unit, not a factor. A unit (a known
    word) or a variable (`x =`) may be missing on one side, but two of them must be equal. The kind `unparsed` means that the
    answer is empty or not decided yet, `limit` that it is too long to read.

    A grade that needs algebra has `pairs`: pass the result of `symbolic.compare` for each pair to `settle`.

    Args:
      text: the response; any string, of any length.
      answer: the gold answer; several accepted forms are separated by ` ||| `.
      answer_format: one of config.AnswerFormat.
      prompt_opens_think: the prompt ends with an open `<think>`, so a response without `</think>` has no answer.
      extracted: the text is an answer, not a response: compare all of it.

    Raises:
      ValueError: unknown answer_format.
    """
    if answer_format not in extraction.FORMATS:
        known = ", ".join(extraction.FORMATS)
        raise ValueError(f"task.answer_format={answer_format!r} is not known. Use one of: {known}.")
    prediction = extraction.Extraction(text, "", "")
    if not extracted:
        prediction = extraction.extract(text, answer_format=answer_format, prompt_opens_think=prompt_opens_think)
    if prediction.answer is None:
        return Grade(0.0, prediction.kind, None, prediction.explanation)
    return _compare(prediction.answer, extraction.split_gold(answer))


def settle(pending: Grade, kinds: Sequence[str]) -> Grade:
    """The final grade of a response whose pairs have been compared.

    The best kind counts: `ok`, then `wrong`, then the first of the others.

    Args:
      pending: a grade with pairs; one without pairs is returned unchanged.
      kinds: the result of `symbolic.compare` for each pair, or the reason why there is none; all in types.VERDICTS.
    """
    if not pending.pairs:
        return pending
    shown = _shorten(pending.extracted or "")
    if "ok" in kinds:
        return pending._replace(reward=1.0, kind="ok", explanation=f"{shown} equals the gold answer", pairs=())
    kind = "wrong" if "wrong" in kinds else kinds[0]
    explanation = {
        "wrong": f"{shown} differs from the gold answer",
        "unparsed": f"{shown} is not mathematics that the verifier can read, and differs from the gold answer's text",
        "limit": f"{shown} needs more time or memory than the verifier allows for one answer",
        "timeout": f"the worker that compared {shown} with the gold answer did not answer in time",
        "crash": f"the worker that compared {shown} with the gold answer died",
    }[kind]
    return pending._replace(kind=kind, explanation=explanation, pairs=())


def _compare(answer: str, golds: Sequence[str]) -> Grade:
    """The grade of an extracted answer against all accepted forms of the gold answer."""
    extracted, answer = answer, normal.strip_parens(answer.strip())
    reason = limits.too_long(answer)
    if reason:
        return Grade(0.0, "limit", extracted, f"the answer is too long to read: {reason}")
    if not normal.canonical_text(normal.canonical_latex(answer)):
        return Grade(0.0, "unparsed", extracted, "the answer is empty")
    normal_form = exact.normal_form(answer)
    readable = [gold for gold in golds if not limits.too_long(gold)]
    comparisons = [exact.compare(answer, gold) for gold in readable]
    if structure.EQUAL in comparisons:
        return Grade(1.0, "ok", extracted, f"{_shorten(answer)} equals the gold answer", normal_form)
    if not readable:
        return Grade(
            0.0, "crash", extracted, f"the gold answer is too long to read: {limits.too_long(golds[0])}", normal_form
        )
    pairs = [
        (answer, gold) for gold, comparison in zip(readable, comparisons, strict=True) if comparison == structure.OPEN
    ]
    if not pairs:
        return Grade(0.0, "wrong", extracted, f"{_shorten(answer)} differs from the gold answer", normal_form)
    reason = limits.too_big(answer)
    if reason:
        return Grade(0.0, "limit", extracted, f"the answer is too big for algebra: {reason}", normal_form)
    return Grade(0.0, "unparsed", extracted, f"only algebra can compare {_shorten(answer)}", normal_form, tuple(pairs))


def _shorten(answer: str) -> str:
    return repr(answer if len(answer) <= _MAX_SHOWN else answer[: _MAX_SHOWN - 3] + "...")
