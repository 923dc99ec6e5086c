r"""Extracts the answer from a response, and the accepted forms from a gold answer. Every scan is linear in the text."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

GOLD_SEPARATOR = " ||| "
"""Separates the accepted forms of one gold answer."""

# Two backslashes are accepted too, for responses that escape as in a string literal. Each alternative is bounded or consumes
# the text that it scans, so the search is linear.
_BOX_OR_BRACE = re.compile(r"\\{1,2}boxed\s*\{|\\.|[{}]", re.DOTALL)

# The text between two boxes that are parts of one answer: math delimiters, a comma or a word, the name of the next part.
_BETWEEN_PARTS = re.compile(
    r"(?:[\s$.]|\\[()\[\]])*(?:[,;]|(?:,?\s*(?:\\text\{\s*)?(?:and|or)\s*\}?))(?:[\s$]|\\[()\[\]])*"
    r"(?:[A-Za-z](?:_(?:[A-Za-z0-9]|\{[A-Za-z0-9]{1,3}\}))?(?:\([a-z]\))?\s*=\s*)?"
)
_BETWEEN_GOLD_PARTS = re.compile(
    r"[^A-Za-z]{0,20}|.{0,50}?(?<![A-Za-z])(?:and|or)(?![A-Za-z]).{0,20}|.{0,10}[,;].{0,10}", re.DOTALL
)
_MAX_BETWEEN = 70  # characters

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
    return FORMATS[answer_format](final)


def _extract_box(text: str) -> Extraction:
    """The last balanced box, joined with the boxes before it that are parts of the same answer.

    If a later box is never closed, the response has no answer.
    """
    boxes, is_open = box_spans(text)
    if is_open:
        return Extraction(None, "no_box", "the last \\boxed{ of the response is never closed")
    if not boxes:
        return Extraction(None, "no_box", "the response holds no \\boxed{...}")
    return Extraction(_join_parts(text, boxes, _BETWEEN_PARTS), "", "")


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
}
"""The function that extracts the answer, for each value of config.AnswerFormat."""


def split_gold(answer: str) -> list[str]:
    r"""The accepted forms of a gold answer: the parts between ` ||| ` or ` \text{ OR } `, each without its box.

    Some data sets store the whole solution, in which several boxes may be parts of one answer.
    """
    forms = re.split(r" \|\|\| |\s*\\text\s*\{\s*OR\s*\}\s*", answer)
    return [_unbox(form) for form in forms]


def _unbox(gold: str) -> str:
    boxes, is_open = box_spans(gold)
    if boxes and not is_open:
        return _join_parts(gold, boxes, _BETWEEN_GOLD_PARTS)
    begin = re.match(r"\s*\$*\\{1,2}boxed\s*\{", gold)
    return gold[begin.end() :] if begin and is_open and not boxes else gold


def _join_parts(text: str, boxes: list[tuple[int, int]], between: re.Pattern[str]) -> str:
    """Content of the last box, joined with the boxes before it that are parts of the same answer."""
    parts = [text[slice(*boxes[-1])]]
    for index in range(len(boxes) - 2, -1, -1):
        (begin, end), after = boxes[index], boxes[index + 1][0]
        # From the closing brace to the backslash of the next box.
        gap = text[end + 1 : text.rfind("\\boxed", 0, after)].removesuffix("\\")
        if len(gap) > _MAX_BETWEEN or not between.fullmatch(gap):
            break
        if text[begin:end] != parts[-1]:
            parts.append(text[begin:end])
    return ", ".join(reversed(parts))


def box_spans(text: str) -> tuple[list[tuple[int, int]], bool]:
    """Content spans of the outermost balanced boxes, in order, and whether a later box is never closed."""
    braces: list[tuple[int, bool]] = []  # open braces: start of the content, whether the brace opens a box
    boxes: list[tuple[int, int]] = []
    for token in _BOX_OR_BRACE.finditer(text):
        symbol = token.group()
        if symbol == "}":
            begin, is_box = braces.pop() if braces else (0, False)
            if is_box:
                while boxes and boxes[-1][0] > begin:
                    boxes.pop()
                boxes.append((begin, token.start()))
        elif symbol[-1] == "{" and symbol != "\\{":
            braces.append((token.end(), symbol != "{"))
    last_open = max((begin for begin, is_box in braces if is_box), default=-1)
    is_open = last_open > (boxes[-1][0] if boxes else -1)
    return boxes, is_open
