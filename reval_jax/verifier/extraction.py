r"""Where the answer stands in a response, and what a gold answer accepts. Scans are linear in the text."""

from __future__ import annotations

import re
from typing import NamedTuple

GOLD_SEPARATOR = " ||| "
"""Stands between the accepted forms of one gold answer."""

# Two backslashes are let through, for responses that escape as in a string literal. Each alternative is bounded or
# consumes what it scans, so the whole is linear.
_BOX_OR_BRACE = re.compile(r"\\{1,2}boxed\s*\{|\\.|[{}]", re.DOTALL)

# Between two boxes that are parts of one answer: delimiters of mathematics, a comma or a word, the next one's name.
_BETWEEN_PARTS = re.compile(
    r"(?:[\s$.]|\\[()\[\]])*(?:[,;]|(?:,?\s*(?:\\text\{\s*)?(?:and|or)\s*\}?))(?:[\s$]|\\[()\[\]])*"
    r"(?:[A-Za-z](?:_(?:[A-Za-z0-9]|\{[A-Za-z0-9]{1,3}\}))?(?:\([a-z]\))?\s*=\s*)?"
)
_BETWEEN_GOLD_PARTS = re.compile(
    r"[^A-Za-z]{0,20}|.{0,50}?(?<![A-Za-z])(?:and|or)(?![A-Za-z]).{0,20}|.{0,10}[,;].{0,10}", re.DOTALL
)
_MAX_BETWEEN = 70  # characters

# A sign belongs to the number unless an operand stands before it: `2-3` begins with 2. A fraction is one number. More
# groups of three than are counted here are too long an answer in any case, and would be scanned again from each of them.
_NUMBER = re.compile(
    r"(?:(?<![\w.)\]}])[+\-\u2212])?(?:"
    r"\\[dtc]?frac\{[+-]?[0-9]+\}\{[+-]?[0-9]+\}"
    r"|(?:(?:[1-9][0-9]{0,2}(?:,[0-9]{3}){1,200}(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+)(?:/[0-9]+)?"
    r")"
)


class Found(NamedTuple):
    """What a response was found to answer."""

    answer: str | None  # None where there is none
    kind: str  # "" with an answer, else the verdict: unclosed_think, no_box or unparsed
    explanation: str  # one sentence for a person; "" with an answer


def find(text: str, *, answer_format: str, prompt_opens_think: bool) -> Found:
    r"""The answer of a response: what follows the last `</think>` counts, and of that the last balanced box.

    Boxes that only a comma, `and` or `or` keeps apart are one answer in parts. A box opened after the last one and
    never closed withdraws it. "first_number" and "last_number" read a number instead: `1/2` is one, `2-3` are 2 and 3.
    """
    closed, opened = text.rfind("</think>"), text.rfind("<think>")
    if opened > closed or (prompt_opens_think and closed < 0):
        return Found(None, "unclosed_think", "the response never closes its <think>")
    final = text[closed + len("</think>") :] if closed >= 0 else text
    if answer_format in ("first_number", "last_number"):
        numbers = [found.group() for found in _NUMBER.finditer(final)]
        if not numbers:
            return Found(None, "unparsed", "the response holds no number")
        return Found(numbers[0 if answer_format == "first_number" else -1], "", "")
    boxes, is_open = box_spans(final)
    if is_open:
        return Found(None, "no_box", "the last \\boxed{ of the response is never closed")
    if not boxes:
        return Found(None, "no_box", "the response holds no \\boxed{...}")
    return Found(_joined(final, boxes, _BETWEEN_PARTS), "", "")


def golds(answer: str) -> list[str]:
    r"""The accepted forms of a gold answer: split at ` ||| ` and ` \text{ OR } `, each freed of its box.

    Some data sets keep the whole solution, in which several boxes may be parts of one answer.
    """
    forms = re.split(r" \|\|\| |\s*\\text\s*\{\s*OR\s*\}\s*", answer)
    return [_unboxed(form) for form in forms]


def _unboxed(gold: str) -> str:
    boxes, is_open = box_spans(gold)
    if boxes and not is_open:
        return _joined(gold, boxes, _BETWEEN_GOLD_PARTS)
    begin = re.match(r"\s*\$*\\{1,2}boxed\s*\{", gold)
    return gold[begin.end() :] if begin and is_open and not boxes else gold


def _joined(text: str, boxes: list[tuple[int, int]], between: re.Pattern[str]) -> str:
    """Content of the last box, with those before it that are parts of the same answer."""
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
    """Spans of the contents of the outermost balanced boxes in order, and whether one opened after them stays open."""
    braces: list[tuple[int, bool]] = []  # open braces: where the content begins, whether it is a box
    boxes: list[tuple[int, int]] = []
    for found in _BOX_OR_BRACE.finditer(text):
        symbol = found.group()
        if symbol == "}":
            begin, is_box = braces.pop() if braces else (0, False)
            if is_box:
                while boxes and boxes[-1][0] > begin:
                    boxes.pop()
                boxes.append((begin, found.start()))
        elif symbol[-1] == "{" and symbol != "\\{":
            braces.append((found.end(), symbol != "{"))
    last_open = max((begin for begin, is_box in braces if is_box), default=-1)
    is_open = last_open > (boxes[-1][0] if boxes else -1)
    return boxes, is_open
