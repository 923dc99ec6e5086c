r"""Extracts the answer from a response, and the accepted forms from a gold answer. Every scan is linear in the text."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from reval_jax.equality import exact, limits
from reval_jax.verifier import boxes, free

GOLD_SEPARATOR = " ||| "
"""Separates the accepted forms of one gold answer."""

_BETWEEN_GOLD_PARTS = re.compile(
    r"[^A-Za-z]{0,20}|.{0,50}?(?<![A-Za-z])(?:and|or)(?![A-Za-z]).{0,20}|.{0,10}[,;].{0,10}", re.DOTALL
)
# The text of a token that a tokenizer adds for its own use: <|im_start|>, </s>, <pad>, [INST].
_SPECIAL = re.compile(
    r"<[|｜][^<>\n]{1,60}[|｜]>|</?[A-Za-z][A-Za-z_-]{0,40}>|\[/?(?:INST|PAD|UNK|CLS|SEP|MASK|BOS|EOS)\]"
)

# A sign belongs to the number unless an operand precedes it: `2-3` begins with 2. A fraction is one number. A number with more
# groups of three digits would be too long an answer anyway, and without a bound each group would be scanned repeatedly.
_NUMBER = re.compile(
    r"(?:(?<![\w.)\]}])[+\-\u2212])?(?:"
    r"\\[dtc]?frac\{[+-]?[0-9]+\}\{[+-]?[0-9]+\}"
    r"|(?:(?:[1-9][0-9]{0,2}(?:,[0-9]{3}){1,200}(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+)(?:/[0-9]+)?"
    r")"
)


class Extraction(NamedTuple):
    """The answer of a response, or why it has none."""

    answer: str | None  # None if the response has no answer
    kind: str  # "" with an answer, else the verdict: unclosed_think, no_box or unparsed
    explanation: str  # one sentence for a person; "" with an answer


def extract(text: str, *, answer_format: str, prompt_opens_think: bool) -> Extraction:
    r"""The answer in the text after the last `</think>`.

    Args:
      answer_format: a key of FORMATS.
    """
    closed, opened = text.rfind("</think>"), text.rfind("<think>")
    if opened > closed or (prompt_opens_think and closed < 0):
        return Extraction(None, "unclosed_think", "the response never closes its <think>")
    final = text[closed + len("</think>") :] if closed >= 0 else text
    extraction = FORMATS[answer_format](final)
    if extraction.answer is not None and _SPECIAL.search(extraction.answer):
        return Extraction(None, "unparsed", "the answer holds a special token of a tokenizer")
    return extraction


def _extract_box(text: str) -> Extraction:
    """The last balanced box, joined with the boxes before it that are parts of the same answer.

    If a later box is never closed, or the last one is denied, hidden or a part of a longer formula, the response has no answer.
    """
    return _of_boxes(text, boxes.find(text))


def _of_boxes(text: str, found: boxes.Boxes) -> Extraction:
    if found.is_open:
        return Extraction(None, "no_box", "the last \\boxed{ of the response is never closed")
    if not found.contents:
        return Extraction(None, "no_box", "the response holds no \\boxed{...}")
    if boxes.is_withdrawn(text, found):
        return Extraction(
            None, "no_box", "the response denies or hides its last box, or makes it a part of a longer formula"
        )
    return Extraction(_joined(boxes.join(text, found)), "", "")


def _extract_free(text: str) -> Extraction:
    """The boxes if there are any, else the last statement of the answer, else the last formula, else the last number."""
    found = boxes.find(text)
    if found.contents or found.is_open:
        return _of_boxes(text, found)
    stated = free.statements(text)
    spans = stated or free.formulas(text) or [(*match.span(), *match.span()) for match in _NUMBER.finditer(text)]
    if spans and (boxes.is_denied(text, spans[-1][0], spans[-1][3]) or free.is_replaced(text, spans[-1][3])):
        return Extraction(None, "unparsed", "the response denies its last answer, or names another one after it")
    parts = free.join(text, spans, needs_separator=not stated) if spans else [""]
    answer = _joined([free.clean(part) for part in parts] if stated else parts)
    if not answer.strip():
        return Extraction(None, "unparsed", "the response states no answer, and holds no formula and no number")
    return Extraction(answer, "", "")


def _joined(parts: list[str]) -> str:
    """The parts of one answer as a list; parts that are equal are one."""
    if len(parts) == 1:
        return parts[0]
    kept: dict[str, str] = {}
    for part in parts:
        kept.setdefault(part.strip() if limits.too_long(part) else exact.normal_form(part), part)
    return ", ".join(kept.values()) if len(kept) > 1 else parts[-1]


def _extract_first_number(text: str) -> Extraction:
    return _extract_number(text, 0)


def _extract_last_number(text: str) -> Extraction:
    return _extract_number(text, -1)


def _extract_number(text: str, index: int) -> Extraction:
    """The number at `index` of all numbers in the text: `1/2` is one number, `2-3` are 2 and 3."""
    numbers = [match.group() for match in _NUMBER.finditer(text)]
    if not numbers:
        return Extraction(None, "unparsed", "the response holds no number")
    return Extraction(numbers[index], "", "")


FORMATS: dict[str, Callable[[str], Extraction]] = {
    "boxed": _extract_box,
    "first_number": _extract_first_number,
    "last_number": _extract_last_number,
    "free": _extract_free,
}
"""The function that extracts the answer, for each value of config.AnswerFormat."""


def split_gold(answer: str) -> list[str]:
    r"""The accepted forms of a gold answer: the parts between ` ||| ` or ` \text{ OR } `, each without its box.

    Some data sets store the whole solution, in which several boxes may be parts of one answer.
    """
    forms = re.split(r" \|\|\| |\s*\\text\s*\{\s*OR\s*\}\s*", answer)
    return [_unbox(form) for form in forms]


def _unbox(gold: str) -> str:
    found = boxes.find(gold)
    if found.contents and not found.is_open:
        parts = [gold[slice(*found.contents[-1])]]
        for index in range(len(found.contents) - 2, -1, -1):
            between = gold[found.outsides[index][1] : found.outsides[index + 1][0]]
            if len(between) > boxes.MAX_BETWEEN or not _BETWEEN_GOLD_PARTS.fullmatch(between):
                break
            parts.append(gold[slice(*found.contents[index])])
        return _joined(parts[::-1])
    begin = re.match(r"\s*\$*\\{1,2}boxed\s*\{", gold)
    return gold[begin.end() :] if begin and found.is_open and not found.contents else gold
