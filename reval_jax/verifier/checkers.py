"""What decides an answer that is no plain number: exact, bounded, and nothing is ever evaluated by Python.

An answer is model output: any text of any length. Each checker reads it once, after its length was looked at.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable
from fractions import Fraction

DIGITS = string.hexdigits[:16]
MAX_CHARS = 500  # characters of an answer that are read; a longer one is wrong
MAX_DEPTH = 50  # parentheses, fractions and signs inside each other; a deeper expression is wrong
MAX_DIGITS = 12  # digits of a number; a longer one is wrong

_SPELLINGS = {
    r"\times": "*", r"\cdot": "*", "×": "*", "·": "*", r"\div": "/", "÷": "/", "\u2212": "-", r"\dfrac": r"\frac",
    r"\tfrac": r"\frac", r"\left": "", r"\right": "", r"\{": "(", r"\}": ")", "[": "(", "]": ")", r"\,": " ", r"\;": " ",
    r"\:": " ", r"\!": "", r"\ ": " ", r"\(": " ", r"\)": " ", "$": " ", "\u2009": " ", "\u00a0": " ",
}  # fmt: skip
_SPELLING = re.compile(
    "|".join(
        # A command ends where its letters end: \left is not the beginning of \leftarrow.
        re.escape(spelling) + ("(?![A-Za-z])" if spelling[-1].isalpha() else "")
        for spelling in _SPELLINGS
    )
)
_TOKEN = re.compile(rf"[ \t\r\n]*(?:([0-9]{{1,{MAX_DIGITS}}})(?![0-9.])|(\\frac(?![A-Za-z])|[-+*/(){{}}=]))")


class _NoExpressionError(Exception):
    """The text is no expression of the grammar, or divides by zero."""


def _plain(text: str) -> str | None:
    """The text with LaTeX's and Unicode's signs in plain spelling, None for one that is too long to be read."""
    if len(text) > MAX_CHARS:
        return None
    return _SPELLING.sub(lambda found: _SPELLINGS[found.group()], text).strip().removesuffix(".").strip()


def is_countdown(payload: str, answer: str) -> bool:
    r"""Whether `answer` is an expression with the payload's target as its exact value, using each number exactly once.

        expression = sum ["=" target]
        sum        = product {("+" | "-") product}
        product    = signed {("*" | "/") signed}
        signed     = {"+" | "-"} (number | "(" sum ")" | "\frac{" sum "}{" sum "}")

    Values are exact fractions, so an expression may pass through them. No sign is left out: `2(3+4)` is not read.

    Args:
      payload: the target and the numbers, separated by commas.
      answer: any text, of any length.
    """
    target, *numbers = map(int, payload.split(","))
    text = _plain(answer)
    tokens = _tokens(text) if text else None
    if not tokens:
        return False
    if tokens[-2:] == ("=", str(target)):
        tokens = tokens[:-2]
    # Before anything is computed: with the numbers as asked, no value can grow beyond what the puzzle allows.
    if Counter(int(token) for token in tokens if token.isdigit()) != Counter(numbers):
        return False
    try:
        value, end = _sum(tokens, 0, 0)
    except _NoExpressionError:
        return False
    return end == len(tokens) and value == target


def _tokens(text: str) -> tuple[str, ...] | None:
    """Numbers, signs and brackets of an expression, None where something else stands in it."""
    tokens, at = [], 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            return None
        tokens.append(found.group(1) or found.group(2))
        at = found.end()
    return tuple(tokens)


def _sum(tokens: tuple[str, ...], at: int, depth: int) -> tuple[Fraction, int]:
    """The value of the longest sum that begins at `at`, and where it ends."""
    value, at = _product(tokens, at, depth)
    while at < len(tokens) and tokens[at] in ("+", "-"):
        other, end = _product(tokens, at + 1, depth)
        value = value + other if tokens[at] == "+" else value - other
        at = end
    return value, at


def _product(tokens: tuple[str, ...], at: int, depth: int) -> tuple[Fraction, int]:
    value, at = _signed(tokens, at, depth)
    while at < len(tokens) and tokens[at] in ("*", "/"):
        other, end = _signed(tokens, at + 1, depth)
        value = value * other if tokens[at] == "*" else _divided(value, other)
        at = end
    return value, at


def _signed(tokens: tuple[str, ...], at: int, depth: int) -> tuple[Fraction, int]:
    if depth > MAX_DEPTH or at >= len(tokens):
        raise _NoExpressionError
    symbol = tokens[at]
    if symbol.isdigit():
        return Fraction(int(symbol)), at + 1
    if symbol in ("+", "-"):
        value, end = _signed(tokens, at + 1, depth + 1)
        return (value if symbol == "+" else -value), end
    if symbol == "(":
        return _bracketed(tokens, at, depth, "()")
    if symbol == r"\frac":
        top, middle = _bracketed(tokens, at + 1, depth, "{}")
        bottom, end = _bracketed(tokens, middle, depth, "{}")
        return _divided(top, bottom), end
    raise _NoExpressionError


def _bracketed(tokens: tuple[str, ...], at: int, depth: int, brackets: str) -> tuple[Fraction, int]:
    if at >= len(tokens) or tokens[at] != brackets[0]:
        raise _NoExpressionError
    value, end = _sum(tokens, at + 1, depth + 1)
    if end >= len(tokens) or tokens[end] != brackets[1]:
        raise _NoExpressionError
    return value, end + 1


def _divided(top: Fraction, bottom: Fraction) -> Fraction:
    if bottom == 0:
        raise _NoExpressionError
    return top / bottom


def is_sorting(payload: str, answer: str) -> bool:
    """Whether `answer` is the payload's whole numbers in the payload's order.

    They stand apart by commas, semicolons or spaces, and may stand in one pair of brackets.

    Args:
      payload: the numbers in the order that is asked for, separated by commas.
      answer: any text, of any length.
    """
    text = _plain(answer)
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

    Case, leading zeros and spaces between digits don't matter; `0b`, `0o`, `0x` before it and `_2`, `_{16}` behind it may
    stand there if they name the right base.

    Args:
      payload: the base and the number's digits, separated by a comma.
      answer: any text, of any length.
    """
    base_text, digits = payload.split(",")
    base, text = int(base_text), _plain(answer)
    if text is None:
        return False
    text = re.sub(r"\\(?:text|mathrm|mathtt|texttt)\s*\{\s*([^{}]*)\}", r"\1", text).replace(" ", "").lower()
    text = re.sub(rf"_(?:{base}|\{{{base}\}})$", "", text)
    prefix = {2: "0b", 8: "0o", 16: "0x"}.get(base, "")
    text = text.removeprefix(prefix)  # of the payload's own base alone: in base 12 and up, 0b1 is a number
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    return bool(text) and all(digit in DIGITS[:base] for digit in text) and text.lstrip("0") == digits.lstrip("0")


CHECKERS: dict[str, Callable[[str, str], bool]] = {
    "base_conversion": is_base_conversion,
    "countdown": is_countdown,
    "sorting": is_sorting,
}
"""Checkers that are exact, bounded and safe in any process."""

SANDBOXED = ("reasoning_gym",)
"""Checkers of others, which may run model output: only for a sandbox's worker, through `procedural.gym.reasoning_gym_score`."""


def checked(answer: str) -> tuple[str, str] | None:
    """Checker and payload of a gold answer `@NAME:payload`, None for one that the ordinary verifier compares."""
    name, colon, payload = answer.removeprefix("@").partition(":")
    if answer.startswith("@") and colon and (name in CHECKERS or name in SANDBOXED):
        return name, payload
    return None


def needs_whole_answer(answers: Iterable[str]) -> str | None:
    """A checker among those of the gold answers that reads more than a number's digits 0 to 9; None for none.

    Where only a response's first number is graded, no answer to it could be right.
    """
    pairs = {pair for answer in answers if (pair := checked(answer))}
    whole = {name for name, payload in pairs if name in ("countdown", "sorting")}
    whole |= {name for name, payload in pairs if name == "base_conversion" and int(payload.split(",")[0]) > 10}
    return min(whole, default=None)


def check(name: str, payload: str, answer: str) -> bool:
    """Whether an extracted answer is right by the checker `name`.

    Args:
      name, payload: from `checked`.
      answer: model output; any text, of any length.

    Raises:
      ValueError: no checker of that name is safe in this process, or the payload is not one of its.
    """
    if name not in CHECKERS:
        raise ValueError(
            f"checker {name!r} is none of {', '.join(CHECKERS)}. Scorers of others run in the sandbox only."
        )
    return CHECKERS[name](payload, answer)
