r"""How large an answer may be before any arithmetic or algebra looks at it. One scan, linear in the text."""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_CHARS = 1000  # of an extracted answer; a longer one is `limit`
MAX_DIGITS = 600  # of an extracted answer; Python may refuse to convert more than 640
MAX_NESTING = 32  # brackets inside brackets
MAX_TOWER = 2  # exponents on exponents
MAX_EXPONENT = 9999
MAX_INNER_EXPONENT = 20  # an exponent of an exponent
MAX_EXPONENT_PRODUCT = 1_000_000  # of the numbers in one exponent, powers in it carried out
MAX_GROUP_EXPONENTS = 100_000  # product of the exponents of bracketed bases, which may lie in each other
MAX_FACTORIAL = 5000
MAX_RANGE = 10_000  # terms of a sum or product, elements of a binomial

_TOKEN = re.compile(
    r"(?P<power>\^|\*\*)|(?P<open>[({\[])|(?P<close>[)}\]])|(?P<bang>!)|(?P<number>\.?[0-9]+)|(?P<other>\\[A-Za-z]+|\S)"
)
_BINOMIALS = (r"\binom", r"\dbinom", r"\tbinom")
_RANGED = re.compile(r"\\(?:d?binom|tbinom|choose|sum|prod|bigcup|int)(?![A-Za-z])")


def too_long(answer: str) -> str | None:
    """Why an answer is not even read, as a clause for a person; None for one that is."""
    if len(answer) > MAX_CHARS:
        return f"it has {len(answer)} characters, and at most {MAX_CHARS} are read"
    digits = sum(map(answer.count, "0123456789"))
    return f"it has {digits} digits, and at most {MAX_DIGITS} are read" if digits > MAX_DIGITS else None


def too_big(answer: str) -> str | None:
    """Why no algebra is tried on an answer, as a clause for a person; None for one that is safe to try."""
    return too_long(answer) or _Scan().reason(answer)


class _Bracket(NamedTuple):
    """An open bracket."""

    level: int  # exponents around it
    is_exponent: bool  # it is one itself
    is_over_group: bool  # it, or one around it, is the exponent of a bracket
    base: int  # largest number in what it is the exponent of
    is_in_binomial: bool  # it, or one around it, is an argument of one


class _Scan:
    """State of one scan."""

    def __init__(self) -> None:
        self.brackets = [_Bracket(0, False, False, 1, False)]
        self.heavy = [False]  # for each of them whether it holds a power, a factorial or a large number
        self.largest = [1]  # number in each of them
        self.group_exponents = 1
        self.run = 0  # 2 at the c of a^b^c
        self.is_exponent = False  # the next atom is one
        self.is_over_group = False  # of a bracket
        self.before = ""  # kind of the last token
        self.size_before = 1  # largest number in the last atom
        self.base = 1  # the same of what the next exponent is raised from
        self.exponent_product = 1
        self.was_exponent = False  # the atom just read
        self.was_heavy = False  # the bracket closed last
        self.arguments_due = 0  # brackets that the binomial just named has still to open

    def reason(self, answer: str) -> str | None:
        is_ranged = _RANGED.search(answer) is not None
        for found in _TOKEN.finditer(answer):
            kind = found.lastgroup or ""
            why = self.power() if kind == "power" else self.atom(kind, found.group(), is_ranged)
            if why:
                return why
            self.before = kind
        return None

    def power(self) -> str | None:
        self.run = self.run + 1 if self.was_exponent else 1
        self.is_exponent, self.was_exponent = True, False
        self.is_over_group = self.before == "close"
        self.base = self.size_before
        self.heavy[-1] = True
        depth = self.brackets[-1].level + self.run
        if depth == 1:
            self.exponent_product = 1
        return f"its powers are {depth} high" if depth > MAX_TOWER else None

    def atom(self, kind: str, text: str, is_ranged: bool) -> str | None:
        around = self.brackets[-1]
        level = around.level + (self.run if self.is_exponent else 0)
        is_over_group = around.is_over_group or (self.is_exponent and self.is_over_group)
        why, was_exponent = None, self.is_exponent
        if kind == "open":
            base = self.base if self.is_exponent else around.base
            is_argument = self.arguments_due > 0 and not around.is_in_binomial
            self.arguments_due -= is_argument
            is_in_binomial = around.is_in_binomial or is_argument
            self.brackets.append(_Bracket(level, self.is_exponent, is_over_group, base, is_in_binomial))
            self.heavy.append(False)
            self.largest.append(1)
            was_exponent = False
            why = f"its brackets are more than {MAX_NESTING} deep" if len(self.brackets) > MAX_NESTING + 1 else None
        elif kind == "close" and len(self.brackets) > 1:
            was_exponent = self.brackets.pop().is_exponent
            self.was_heavy = self.heavy.pop()
            self.heavy[-1] |= self.was_heavy
            self.size_before = self.largest.pop()
            self.largest[-1] = max(self.largest[-1], self.size_before)
        elif kind == "number":
            base = self.base if self.is_exponent else around.base
            why = self.number(text, level, base, is_over_group, is_ranged) or self.power_in_binomial(text, level, base)
        elif kind == "bang":
            why = self.factorial(level)
        else:
            self.size_before = 1
            self.arguments_due = 2 if text in _BINOMIALS else self.arguments_due
        # The sign of an exponent is not yet the exponent.
        if not (text in "+-" and self.is_exponent):
            self.was_exponent, self.is_exponent = was_exponent, False
        return why

    def number(self, text: str, level: int, base: int, is_over_group: bool, is_ranged: bool) -> str | None:
        digits = text.lstrip("0")
        size = 0 if text.startswith(".") else int(digits or "0") if len(digits) < 10 else 10**9
        self.size_before = size
        self.largest[-1] = max(self.largest[-1], size)
        self.heavy[-1] |= size > MAX_FACTORIAL
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
        """Why a number there is too big as the exponent of `base`; both are known to be small."""
        if level and self.brackets[-1].is_in_binomial and base > 1 and base ** int(text.lstrip(".")) > MAX_RANGE:
            return f"a binomial holds a power above {MAX_RANGE}"
        return None

    def factorial(self, level: int) -> str | None:
        self.heavy[-1] = True
        if level:
            return "an exponent holds a factorial"
        if self.before == "bang" or (self.before == "close" and self.was_heavy):
            return "it takes the factorial of a power, a factorial or a large number"
        if self.before == "number" and self.size_before > MAX_FACTORIAL:
            return f"it takes the factorial of a number above {MAX_FACTORIAL}"
        return None
