r"""Size limits of an answer, checked before any arithmetic or algebra. One scan, linear in the text."""

from __future__ import annotations

import re
from typing import NamedTuple

from reval_jax.equality import normal

MAX_CHARS = 1000  # characters of an extracted answer; a longer one gets the verdict `limit`
MAX_DIGITS = 600  # digits of an extracted answer; Python may refuse to convert more than 640
MAX_BARS = 12  # bars of absolute values, which may open or close: reading them takes exponential time
MAX_NESTING = 32  # brackets inside brackets
MAX_TOWER = 2  # exponents on exponents
MAX_EXPONENT = 9999
MAX_INNER_EXPONENT = 20  # an exponent of an exponent
MAX_EXPONENT_PRODUCT = 1_000_000  # product of the numbers in one exponent, where a^b counts as its value
MAX_GROUP_EXPONENTS = 100_000  # product of all exponents of bracketed bases, which may be nested
MAX_FACTORIAL = 5000
MAX_RANGE = 10_000  # terms of a sum or product, elements of a binomial

_TOKEN = re.compile(
    r"(?P<power>\^|\*\*)|(?P<open>[({\[])|(?P<close>[)}\]])|(?P<bang>!)|(?P<number>\.?[0-9]+)|(?P<other>\\[A-Za-z]+|\S)"
)
_BINOMIALS = (r"\binom", r"\dbinom", r"\tbinom")
_RANGED = re.compile(r"\\(?:d?binom|tbinom|choose|sum|prod|bigcup|int)(?![A-Za-z])")


def too_long(answer: str) -> str | None:
    """Why an answer is too long to read, as a clause for a person; None if it is not."""
    if len(answer) > MAX_CHARS:
        return f"it has {len(answer)} characters, and at most {MAX_CHARS} are read"
    digits = sum(map(answer.count, "0123456789"))
    return f"it has {digits} digits, and at most {MAX_DIGITS} are read" if digits > MAX_DIGITS else None


def too_big(answer: str) -> str | None:
    """Why an answer is too big for algebra, as a clause for a person; None if it is not."""
    # A power may be written in Unicode, and a binomial as \choose, so the canonical text is measured too.
    reason = too_long(answer) or _Scan().reason(answer)
    if reason:
        return reason
    text = normal.canonical_latex(answer)
    num_bars = text.count("|")
    return f"it has {num_bars} bars, and at most {MAX_BARS} are read" if num_bars > MAX_BARS else _Scan().reason(text)


class _Bracket(NamedTuple):
    """An open bracket."""

    level: int  # number of exponents that enclose it
    is_exponent: bool  # the bracket itself is an exponent
    is_over_group: bool  # the bracket, or one around it, is the exponent of a bracketed base
    base: int  # largest number in the base of the exponent
    is_in_binomial: bool  # the bracket, or one around it, is an argument of a binomial


class _Scan:
    """State of one scan over an answer's tokens."""

    def __init__(self) -> None:
        self.brackets = [_Bracket(0, False, False, 1, False)]
        self.is_heavy = [False]  # for each open bracket: holds a power, a factorial or a large number
        self.largest = [1]  # for each open bracket: its largest number
        self.group_exponents = 1
        self.num_powers = 0  # consecutive exponents: 2 at the c of a^b^c
        self.is_exponent = False  # the next atom is an exponent
        self.is_over_group = False  # the next atom is the exponent of a bracketed base
        self.last_kind = ""  # kind of the last token
        self.last_size = 1  # largest number in the last atom
        self.base = 1  # largest number in the base of the next exponent
        self.exponent_product = 1
        self.was_exponent = False  # the last atom was an exponent
        self.was_heavy = False  # the last closed bracket was heavy
        self.arguments_due = 0  # brackets that the last binomial command has not opened yet

    def reason(self, answer: str) -> str | None:
        is_ranged = _RANGED.search(answer) is not None
        for token in _TOKEN.finditer(answer):
            kind = token.lastgroup or ""
            reason = self.power() if kind == "power" else self.atom(kind, token.group(), is_ranged)
            if reason:
                return reason
            self.last_kind = kind
        return None

    def power(self) -> str | None:
        self.num_powers = self.num_powers + 1 if self.was_exponent else 1
        self.is_exponent, self.was_exponent = True, False
        self.is_over_group = self.last_kind == "close"
        self.base = self.last_size
        self.is_heavy[-1] = True
        depth = self.brackets[-1].level + self.num_powers
        if depth == 1:
            self.exponent_product = 1
        return f"its powers are {depth} high" if depth > MAX_TOWER else None

    def atom(self, kind: str, text: str, is_ranged: bool) -> str | None:
        around = self.brackets[-1]
        level = around.level + (self.num_powers if self.is_exponent else 0)
        is_over_group = around.is_over_group or (self.is_exponent and self.is_over_group)
        reason, was_exponent = None, self.is_exponent
        if kind == "open":
            base = self.base if self.is_exponent else around.base
            is_argument = self.arguments_due > 0 and not around.is_in_binomial
            self.arguments_due -= is_argument
            is_in_binomial = around.is_in_binomial or is_argument
            self.brackets.append(_Bracket(level, self.is_exponent, is_over_group, base, is_in_binomial))
            self.is_heavy.append(False)
            self.largest.append(1)
            was_exponent = False
            reason = f"its brackets are more than {MAX_NESTING} deep" if len(self.brackets) > MAX_NESTING + 1 else None
        elif kind == "close" and len(self.brackets) > 1:
            was_exponent = self.brackets.pop().is_exponent
            self.was_heavy = self.is_heavy.pop()
            self.is_heavy[-1] |= self.was_heavy
            self.last_size = self.largest.pop()
            self.largest[-1] = max(self.largest[-1], self.last_size)
        elif kind == "number":
            base = self.base if self.is_exponent else around.base
            reason = self.number(text, level, base, is_over_group, is_ranged)
            reason = reason or self.power_in_binomial(text, level, base)
        elif kind == "bang":
            reason = self.factorial(level)
        else:
            self.last_size = 1
            self.arguments_due = 2 if text in _BINOMIALS else self.arguments_due
        # The sign of an exponent is not the exponent itself.
        if not (text in "+-" and self.is_exponent):
            self.was_exponent, self.is_exponent = was_exponent, False
        return reason

    def number(self, text: str, level: int, base: int, is_over_group: bool, is_ranged: bool) -> str | None:
        digits = text.lstrip("0")
        size = 0 if text.startswith(".") else int(digits or "0") if len(digits) < 10 else 10**9
        self.last_size = size
        self.largest[-1] = max(self.largest[-1], size)
        self.is_heavy[-1] |= size > MAX_FACTORIAL
        if level == 1 and size > MAX_EXPONENT:
            return f"an exponent is above {MAX_EXPONENT}"
        if level > 1 and size > MAX_INNER_EXPONENT:
            return f"an exponent of an exponent is above {MAX_INNER_EXPONENT}"
        if is_ranged and (level > 1 or size > MAX_RANGE):
            return f"a sum, product, integral or binomial holds a number above {MAX_RANGE} or a power of a power"
        if level:
            self.exponent_product *= max(size, 1) if level == 1 else max(base, 1) ** max(size - 1, 0)
            if self.exponent_product > MAX_EXPONENT_PRODUCT:
                return f"the numbers in an exponent multiply to more than {MAX_EXPONENT_PRODUCT}"
        if is_over_group:
            self.group_exponents *= max(size, 1)
            if self.group_exponents > MAX_GROUP_EXPONENTS:
                return f"the exponents of its brackets multiply to more than {MAX_GROUP_EXPONENTS}"
        return None

    def power_in_binomial(self, text: str, level: int, base: int) -> str | None:
        """Why a number in a binomial is too big as the exponent of `base`. Both are already known to be small."""
        if level and self.brackets[-1].is_in_binomial and base > 1 and base ** int(text.lstrip(".")) > MAX_RANGE:
            return f"a binomial holds a power above {MAX_RANGE}"
        return None

    def factorial(self, level: int) -> str | None:
        self.is_heavy[-1] = True
        if level:
            return "an exponent holds a factorial"
        if self.last_kind == "bang" or (self.last_kind == "close" and self.was_heavy):
            return "it takes the factorial of a power, a factorial or a large number"
        if self.last_kind == "number" and self.last_size > MAX_FACTORIAL:
            return f"it takes the factorial of a number above {MAX_FACTORIAL}"
        return None
