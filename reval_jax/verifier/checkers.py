"""Checkers of answers to generated tasks: exact, bounded, and without evaluating any text as Python.

An answer is model output: any text of any length. Each checker tests the length, then reads the answer once.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable
from fractions import Fraction

DIGITS = string.hexdigits[:16]
MAX_CHARS = 500  # characters of an answer; a longer one is wrong
MAX_DEPTH = 50  # levels of nested parentheses, fractions and signs; a deeper expression is wrong
MAX_DIGITS = 12  # digits of a number; a longer one is wrong

_SPELLINGS = {
    r"\times": "*", r"\cdot": "*", "×": "*", "·": "*", r"\div": "/", "÷": "/", "\u2212": "-", r"\dfrac": r"\frac",
    r"\tfrac": r"\frac", r"\left": "", r"\right": "", r"\{": "(", r"\}": ")", "[": "(", "]": ")", r"\,": " ", r"\;": " ",
    r"\:": " ", r"\!": "", r"\ ": " ", r"\(": " ", r"\)": " ", "$": " ", "\u2009": " ", "\u00a0": " ",
}  # fmt: skip
_SPELLING = re.compile(
    "|".join(
        # A command ends where its letters end: \left must not match in \leftarrow.
        re.escape(spelling) + ("(?![A-Za-z])" if spelling[-1].isalpha() else "")
        for spelling in _SPELLINGS
    )
)
_TOKEN = re.compile(rf"[ \t\r\n]*(?:([0-9]{{1,{MAX_DIGITS}}})(?![0-9.])|(\\frac(?![A-Za-z])|[-+*/(){{}}=]))")


class _InvalidExpressionError(Exception):
    """The text is not an expression of the grammar, or divides by zero."""


def _plain_text(text: str) -> str | None:
    """The text with LaTeX and Unicode symbols replaced by ASCII; None if it is too long."""
    if len(text) > MAX_CHARS:
        return None
    return _SPELLING.sub(lambda match: _SPELLINGS[match.group()], text).strip().removesuffix(".").strip()


def is_countdown(payload: str, answer: str) -> bool:
    r"""Whether `answer` is an expression with the payload's target as its exact value, using each number exactly once.

        expression = sum ["=" target]
        sum        = product {("+" | "-") product}
        product    = signed {("*" | "/") signed}
        signed     = {"+" | "-"} (number | "(" sum ")" | "\frac{" sum "}{" sum "}")

    Values are exact fractions, so intermediate values need not be integers. Multiplication needs its sign: `2(3+4)` is invalid.

    Args:
      payload: the target and the numbers, separated by commas.
      answer: any text, of any length.
    """
    target, *numbers = map(int, payload.split(","))
    text = _plain_text(answer)
    tokens = _tokenize(text) if text else None
    if not tokens:
        return False
    if tokens[-2:] == ("=", str(target)):
        tokens = tokens[:-2]
    # This check comes before any arithmetic: with exactly the puzzle's numbers, no value can become too large.
    if Counter(int(token) for token in tokens if token.isdigit()) != Counter(numbers):
        return False
    try:
        value, end = _parse_sum(tokens, 0, 0)
    except _InvalidExpressionError:
        return False
    return end == len(tokens) and value == target


def _tokenize(text: str) -> tuple[str, ...] | None:
    """Numbers, signs and brackets of an expression; None if it contains anything else."""
    tokens, index = [], 0
    while index < len(text):
        match = _TOKEN.match(text, index)
        if match is None:
            return None
        tokens.append(match.group(1) or match.group(2))
        index = match.end()
    return tuple(tokens)


def _parse_sum(tokens: tuple[str, ...], index: int, depth: int) -> tuple[Fraction, int]:
    """The value of the longest sum that begins at `index`, and the index after it."""
    value, index = _parse_product(tokens, index, depth)
    while index < len(tokens) and tokens[index] in ("+", "-"):
        other, end = _parse_product(tokens, index + 1, depth)
        value = value + other if tokens[index] == "+" else value - other
        index = end
    return value, index


def _parse_product(tokens: tuple[str, ...], index: int, depth: int) -> tuple[Fraction, int]:
    value, index = _parse_signed(tokens, index, depth)
    while index < len(tokens) and tokens[index] in ("*", "/"):
        other, end = _parse_signed(tokens, index + 1, depth)
        value = value * other if tokens[index] == "*" else _divide(value, other)
        index = end
    return value, index


def _parse_signed(tokens: tuple[str, ...], index: int, depth: int) -> tuple[Fraction, int]:
    if depth > MAX_DEPTH or index >= len(tokens):
        raise _InvalidExpressionError
    symbol = tokens[index]
    if symbol.isdigit():
        return Fraction(int(symbol)), index + 1
    if symbol in ("+", "-"):
        value, end = _parse_signed(tokens, index + 1, depth + 1)
        return (value if symbol == "+" else -value), end
    if symbol == "(":
        return _parse_bracketed(tokens, index, depth, "()")
    if symbol == r"\frac":
        top, middle = _parse_bracketed(tokens, index + 1, depth, "{}")
        bottom, end = _parse_bracketed(tokens, middle, depth, "{}")
        return _divide(top, bottom), end
    raise _InvalidExpressionError


def _parse_bracketed(tokens: tuple[str, ...], index: int, depth: int, brackets: str) -> tuple[Fraction, int]:
    if index >= len(tokens) or tokens[index] != brackets[0]:
        raise _InvalidExpressionError
    value, end = _parse_sum(tokens, index + 1, depth + 1)
    if end >= len(tokens) or tokens[end] != brackets[1]:
        raise _InvalidExpressionError
    return value, end + 1


def _divide(top: Fraction, bottom: Fraction) -> Fraction:
    if bottom == 0:
        raise _InvalidExpressionError
    return top / bottom


def is_sorting(payload: str, answer: str) -> bool:
    """Whether `answer` is the payload's whole numbers in the payload's order.

    Commas, semicolons or spaces separate them; one pair of brackets may enclose them.

    Args:
      payload: the numbers in the required order, separated by commas.
      answer: any text, of any length.
    """
    text = _plain_text(answer)
    if text is None:
        return False
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1].strip()
    parts = re.split(r"\s*[,;]\s*|\s+", text)
    if not all(re.fullmatch(rf"[+-]?[0-9]{{1,{MAX_DIGITS}}}", part, re.ASCII) for part in parts):
        return False
    return [int(part) for part in parts] == [int(part) for part in payload.split(",")]


def is_base_conversion(payload: str, answer: str) -> bool:
    """Whether `answer` writes the payload's number in the payload's base.

    Case, leading zeros and spaces between digits don't matter. A prefix `0b`, `0o`, `0x` or a suffix like `_2`, `_{16}` is
    allowed if it names the right base.

    Args:
      payload: the base and the number's digits, separated by a comma.
      answer: any text, of any length.
    """
    base_text, digits = payload.split(",")
    base, text = int(base_text), _plain_text(answer)
    if text is None:
        return False
    text = re.sub(r"\\(?:text|mathrm|mathtt|texttt)\s*\{\s*([^{}]*)\}", r"\1", text).replace(" ", "").lower()
    text = re.sub(rf"_(?:{base}|\{{{base}\}})$", "", text)
    prefix = {2: "0b", 8: "0o", 16: "0x"}.get(base, "")
    text = text.removeprefix(prefix)  # only that of the payload's base: in base 12 and up, 0b1 is a number
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    return bool(text) and all(digit in DIGITS[:base] for digit in text) and text.lstrip("0") == digits.lstrip("0")


CHECKERS: dict[str, Callable[[str, str], bool]] = {
    "base_conversion": is_base_conversion,
    "countdown": is_countdown,
    "sorting": is_sorting,
}
"""Our own checkers: exact, bounded and safe in any process."""

SANDBOXED = ("reasoning_gym",)
"""Checkers of other libraries, which may execute model output: they run only in a worker, by `gym.reasoning_gym_score`."""


def parse_gold(answer: str) -> tuple[str, str] | None:
    """Checker and payload of a gold answer `@NAME:payload`; None for an ordinary gold answer."""
    name, colon, payload = answer.removeprefix("@").partition(":")
    if answer.startswith("@") and colon and (name in CHECKERS or name in SANDBOXED):
        return name, payload
    return None


def needs_whole_answer(answers: Iterable[str]) -> str | None:
    """The name of a checker of these gold answers whose right answers are not decimal numbers; None if there is none.

    With task.answer_format=first_number or last_number, no answer to it could be right.
    """
    pairs = {pair for answer in answers if (pair := parse_gold(answer))}
    whole = {name for name, payload in pairs if name in ("countdown", "sorting")}
    whole |= {name for name, payload in pairs if name == "base_conversion" and int(payload.split(",")[0]) > 10}
    return min(whole, default=None)


def check(name: str, payload: str, answer: str) -> bool:
    """Whether the checker `name` accepts an extracted answer.

    Args:
      name, payload: from `parse_gold`.
      answer: model output; any text, of any length.

    Raises:
      ValueError: no checker of that name is safe in this process, or the payload is not in its format.
    """
    if name not in CHECKERS:
        raise ValueError(
            f"checker {name!r} is none of {', '.join(CHECKERS)}. Scorers of other libraries run in the sandbox only."
        )
    return CHECKERS[name](payload, answer)
