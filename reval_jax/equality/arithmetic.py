r"""Values of closed forms, in plain Python: an exact rational where possible, and a float with a bound on its error.

Two values whose error bounds do not overlap are certainly different, so algebra is needed only for texts that may be
equal. Each variable gets a number that depends on its name; expressions that differ at that point are different functions.
The reader refuses a text whose meaning is uncertain (a root of a negative number, `2\frac{3}{2}`). A bare `\log` and `f(x)`
have two readings, and a value for each.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

from reval_jax.equality import normal, values

MAX_DEPTH = 40  # of brackets

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"|(?P<command>\\(?:[A-Za-z]+|[{}|]))|(?P<letter>[A-Za-z])|(?P<symbol>[-+*/^_!|'()\[\]{}°]))"
)
_GREEK = frozenset(
    # One string, not a list of one word a line.
    r"""\alpha \beta \gamma \delta \epsilon \varepsilon \zeta \eta \theta \kappa \lambda \mu \nu \xi \rho \sigma \tau \phi
    \varphi \chi \psi \omega \Gamma \Delta \Theta \Lambda \Xi \Sigma \Phi \Psi \Omega \hbar \ell""".split()  # noqa: SIM905
)
_UNKNOWN_FUNCTIONS = frozenset("fghFGHPWuv")
_UNKNOWN_APPLICATION = re.compile(r"(?<![A-Za-z\\])[fghFGHPWuv]\s*\(|'\s*\(")
_BARE_LOGARITHM = re.compile(r"(?<![A-Za-z])\\?log(?![A-Za-z]|\s*_)")
_QUANTITY = r"(?:[A-Za-z]|\\[A-Za-z]+)(?:_(?:[A-Za-z0-9]|\{\s*[A-Za-z0-9]+\s*\}))?"
_OPERATOR = r"(?:d|\\partial(?![A-Za-z]))"
# dy/dx, a letter differentiated by a letter, is one quantity, like a variable.
_DERIVATIVE = re.compile(
    rf"\\frac\s*\{{\s*{_OPERATOR}(?:\s*\^\s*(?:[2-9]|\{{\s*[2-9]\s*\}}))?\s*{_QUANTITY}\s*\}}"
    rf"\s*\{{\s*{_OPERATOR}\s*{_QUANTITY}(?:\s*\^\s*(?:[2-9]|\{{\s*[2-9]\s*\}}))?\s*\}}"
)
_UNREAD_DERIVATIVE = re.compile(r"\\frac\s*\{\s*(?:d|\\partial).*\}\s*\{\s*(?:d|\\partial)\s*[A-Za-z\\]", re.DOTALL)
_OF_ANGLES = frozenset(("\\sin", "\\cos", "\\tan", "\\sec", "\\csc", "\\cot"))
_CALLED = frozenset(("\\abs", "\\floor", "\\ceil", "\\cbrt"))
# A function of an angle or a number, with its power or base, before its argument.
_ARGUMENT = re.compile(
    r"\\(?:arc)?(?:sin|cos|tan|sec|csc|cot|log|ln|exp)h?(?![A-Za-z])\s*(?:[\^_]\s*(?:\{[^{}]*\}|\w)\s*)*"
)
_DEGREE = "1 °^1"
_UNITS_OF_ARGUMENTS = frozenset((_DEGREE, "1 %^1", "1 rad^1"))
_ACCENTS = frozenset((r"\dot", r"\ddot", r"\hat", r"\tilde", r"\vec"))

FLOATS = values.Calculator(values.FLOATS)

Point = Callable[[str], Fraction]
"""Maps a variable's name to its value."""


def near_one(name: str) -> Fraction:
    """The value of a variable: between 1.125 and 2.125, so that its logarithms and roots are real."""
    return Fraction(9, 8) + Fraction(zlib.crc32(name.encode()), 2**32)


class Reading(NamedTuple):
    """A choice where notation is ambiguous."""

    log_base: int | None  # of a bare logarithm; None for e
    is_application: bool  # `f(x)` is a function's value, not a product


def readings(text: str, *, point: Point = near_one) -> tuple[values.Value, ...]:
    """The values of a text in canonical LaTeX, one for each reading; empty if one of the readings fails."""
    bases = (None, 10) if _BARE_LOGARITHM.search(text) else (None,)
    applications = (False, True) if _UNKNOWN_APPLICATION.search(text) else (False,)
    results = [
        value(text, point=point, reading=Reading(base, is_application))
        for base in bases
        for is_application in applications
    ]
    known = tuple(result for result in results if result is not None)
    return known if len(known) == len(results) else ()


def split_unit(text: str) -> tuple[str, str]:
    r"""Like `normal.without_unit`, but a degree or percent sign belongs to the argument of a function: `\cos 60°` has no unit."""
    body, unit = normal.without_unit(text)
    if body.count("°") and unit == _DEGREE and not _ARGUMENT.search(text):
        # `180° - 65°`: each term has the unit, or none.
        terms = re.split(r"[+-]", text)
        return (
            (text.replace("°", ""), unit)
            if all(term.strip().endswith("°") for term in terms if term.strip())
            else (text, "")
        )
    if unit not in _UNITS_OF_ARGUMENTS or not _ends_in_argument(body):
        return body, unit
    return (f"{body}°" if unit == _DEGREE else text), ""


def _ends_in_argument(text: str) -> bool:
    r"""Whether the end of a text is the argument of a function; in doubt (`\sin(30)°`) it is."""
    functions = list(_ARGUMENT.finditer(text))
    if not functions:
        return False
    last = functions[-1]
    argument = text[last.end() :]
    depth = 0
    for place, symbol in enumerate(argument):
        depth += (symbol in "({[") - (symbol in ")}]")
        if depth < 0 or (depth == 0 and place and symbol in "+-=<>,"):
            return False
    return not (last.group().startswith("\\arc") and argument.startswith(("(", "{")))


def value(
    text: str, *, calculator: values.Calculator = FLOATS, point: Point = near_one, reading: Reading | None = None
) -> values.Value | None:
    """The value of a text in canonical LaTeX, None if it cannot be read. Linear time, except for products of long integers.

    Without a `reading`, an ambiguous text cannot be read.
    """
    if re.search("[A-Za-z]{4}", re.sub(r"\\[A-Za-z]+", " ", text)) or _UNREAD_DERIVATIVE.search(
        _DERIVATIVE.sub("", text)
    ):
        return None
    if reading is None and _UNKNOWN_APPLICATION.search(text):
        return None
    try:
        reader = _Reader(text, calculator, point, reading)
        result = reader.sum(0)
        is_finite = calculator.field.is_finite
        is_known = reader.peek() is None and is_finite(result.near) and is_finite(result.error)
    # Complex functions raise the last two on overflow and at a pole.
    except (values.UnreadableError, ArithmeticError, ValueError):
        return None
    return result if is_known else None


class _Reader:
    """Recursive descent over the tokens of one text."""

    def __init__(self, text: str, calculator: values.Calculator, point: Point, reading: Reading | None) -> None:
        self.calculator, self.point, self.reading = calculator, point, reading
        self.tokens: list[tuple[str, str]] = []
        position, text = 0, text.rstrip()
        while position < len(text):
            derivative = _DERIVATIVE.match(text, position)
            token = derivative or _TOKEN.match(text, position)
            if token is None:
                raise values.UnreadableError
            if derivative:
                self.tokens.append(("letter", re.sub(r"[\s{}]", "", derivative.group())))
            else:
                self.tokens.append((token.lastgroup or "", token.group().strip()))
            position = token.end()
        self.index = 0
        self.num_angles = 0  # trigonometric functions whose argument is being read

    def peek(self, ahead: int = 0) -> str | None:
        place = self.index + ahead
        return self.tokens[place][1] if place < len(self.tokens) else None

    def kind(self) -> str:
        return self.tokens[self.index][0] if self.index < len(self.tokens) else ""

    def take(self, expected: str | None = None) -> str:
        symbol = self.peek()
        if symbol is None or (expected is not None and symbol != expected):
            raise values.UnreadableError
        self.index += 1
        return symbol

    def sum(self, depth: int) -> values.Value:
        if depth > MAX_DEPTH:
            raise values.UnreadableError
        total = self.signed(depth)
        while self.peek() in ("+", "-"):
            is_minus = self.take() == "-"
            term = self.product(depth)
            total = self.calculator.add(total, self.calculator.negate(term) if is_minus else term)
        return total

    def signed(self, depth: int) -> values.Value:
        is_minus = False
        while self.peek() in ("+", "-"):
            is_minus ^= self.take() == "-"
        term = self.product(depth)
        return self.calculator.negate(term) if is_minus else term

    def product(self, depth: int) -> values.Value:
        begin = self.index
        result = self.factor(depth)
        while (symbol := self.peek()) is not None:
            if symbol in ("*", "\\cdot"):
                self.take()
                sign = self.peek() == "-"
                if sign:
                    self.take()
                factor = self.factor(depth)
                result = self.calculator.multiply(result, self.calculator.negate(factor) if sign else factor)
            elif symbol == "/":
                self.take()
                result = self.calculator.multiply(result, self.calculator.invert(self.factor(depth)))
                # `1/2x` is ambiguous.
                if self.begins_factor():
                    raise values.UnreadableError
            elif self.begins_factor():
                # `3 4` and `x2` are not products.
                if self.kind() == "number" and self.peek(-1) not in ("}", ")"):
                    raise values.UnreadableError
                is_after_number = self.index == begin + 1 and self.tokens[begin][0] == "number"
                is_mixed = self.tokens[self.index - 1][0] == "number" and self.is_numeric_fraction()
                factor = self.factor(depth)
                if is_mixed:
                    # The mixed number 3\frac{1}{2} is a sum; `2\frac{3}{2}` and `x^2\frac{1}{2}` are ambiguous.
                    if not is_after_number or factor.exact is None or not 0 < factor.exact < 1:
                        raise values.UnreadableError
                    result = self.calculator.add(result, factor)
                else:
                    result = self.calculator.multiply(result, factor)
            else:
                break
        return result

    def is_numeric_fraction(self) -> bool:
        r"""Whether the next tokens are `\frac` and two numerals, braced or not; `2\frac{n}{3}` is a product."""
        tokens = [
            "#" * min(len(text), 2) if kind == "number" else text
            for kind, text in self.tokens[self.index : self.index + 7]
        ]
        # `\frac12` holds one number; of two digits or more, the first is the numerator.
        return re.match(r"\\frac(?:##|(?:#|\{##?\})(?:#|\{##?\}))", "".join(tokens)) is not None

    def begins_factor(self) -> bool:
        # Without `|`, which may as well close an absolute value.
        symbol = self.peek()
        return (
            self.kind() in ("number", "letter")
            or symbol in ("(", "{", "[")
            or (self.kind() == "command" and symbol not in ("\\cdot", "\\}", "\\|", "\\rfloor", "\\rceil"))
        )

    def factor(self, depth: int) -> values.Value:
        base = self.atom(depth)
        while self.peek() in ("^", "!"):
            if self.take() == "!":
                base = self.calculator.factorial(base)
            else:
                base = self.calculator.power(base, self.argument(depth, is_whole=True))
                if self.peek() == "^":
                    raise values.UnreadableError
        if self.peek() == "°" and self.num_angles:
            self.take()
            half_turn = self.calculator.inexact(self.calculator.field.pi)
            base = self.calculator.multiply(
                base, self.calculator.multiply(half_turn, self.calculator.rational(Fraction(1, 180)))
            )
        return base

    def argument(self, depth: int, *, is_whole: bool = False) -> values.Value:
        r"""The argument of a command: a group, one digit, one letter or one command; with `is_whole`, all digits (`2^10`)."""
        if self.peek() == "{":
            return self.group("{", "}", depth)
        if self.peek() == "(":
            return self.group("(", ")", depth)
        is_minus = self.peek() == "-"
        if is_minus:
            self.take()
        if self.kind() == "number":
            result = self.calculator.rational(normal.decimal(self.take() if is_whole else self.take_digit()))
        else:
            result = self.atom(depth + 1)
        return self.calculator.negate(result) if is_minus else result

    def take_digit(self) -> str:
        r"""The first digit of the next number, the only one that LaTeX takes as an argument: `\frac12`."""
        symbol = self.take()
        if len(symbol) > 1:
            self.tokens[self.index - 1 : self.index] = [("number", symbol[0]), ("number", symbol[1:])]
        return symbol[0]

    def group(self, opener: str, closer: str, depth: int) -> values.Value:
        self.take(opener)
        inner = self.sum(depth + 1)
        self.take(closer)
        return inner

    def atom(self, depth: int) -> values.Value:
        if depth > MAX_DEPTH:
            raise values.UnreadableError
        kind, symbol = self.kind(), self.peek()
        if symbol == "(":
            return self.group("(", ")", depth)
        if symbol == "[":
            return self.group("[", "]", depth)
        if symbol == "{":
            return self.group("{", "}", depth)
        if symbol == "|":
            self.take()
            inner = self.sum(depth + 1)
            self.take("|")
            return self.calculator.absolute(inner)
        if kind == "number":
            return self.calculator.rational(normal.decimal(self.take()))
        if kind == "letter" or symbol in _GREEK or symbol in _ACCENTS:
            return self.variable(depth)
        if kind == "command":
            return self.command(depth)
        raise values.UnreadableError

    def variable(self, depth: int) -> values.Value:
        name = self.take()
        if name in _ACCENTS:
            name += self.accented_letter()
        elif (
            self.peek() == "("
            and name in _UNKNOWN_FUNCTIONS
            and self.reading is not None
            and self.reading.is_application
        ):
            return self.calculator.unknown_function(self.point(name), self.group("(", ")", depth))
        primes = self.primes()
        if self.peek() == "_":
            self.take()
            is_group = self.peek() == "{"
            name += "_" + (self.take("{") and self.take() if is_group else self.take_digit())
            if is_group:
                self.take("}")
        name += primes + self.primes()
        if name[-1] == "'" and self.peek() == "(":
            raise values.UnreadableError  # the derivative of a function at a point
        if name == "i":
            return self.calculator.imaginary_unit()
        if name == "e":
            return self.calculator.inexact(self.calculator.field.e)
        return self.calculator.variable(self.point(name))

    def primes(self) -> str:
        """The run of primes at this position, empty if there is none."""
        primes = ""
        while self.peek() == "'":
            primes += self.take()
        return primes

    def accented_letter(self) -> str:
        r"""The letter under an accent: `\dot x`, `\dot{x}`."""
        is_group = self.peek() == "{"
        if is_group:
            self.take()
        if self.kind() != "letter" and self.peek() not in _GREEK:
            raise values.UnreadableError
        letter = self.take()
        if is_group:
            self.take("}")
        return letter

    def command(self, depth: int) -> values.Value:
        name = self.take()
        if name == "\\pi":
            return self.calculator.inexact(self.calculator.field.pi)
        if name == "\\frac":
            top = self.argument(depth)
            return self.calculator.multiply(top, self.calculator.invert(self.argument(depth)))
        if name == "\\sqrt":
            degree = self.group("[", "]", depth) if self.peek() == "[" else self.calculator.rational(Fraction(2))
            if degree.exact is None or degree.exact.denominator != 1 or degree.exact > 100:
                raise values.UnreadableError
            return self.calculator.root(self.argument(depth), int(degree.exact))
        if name in ("\\lfloor", "\\lceil"):
            inner = self.sum(depth + 1)
            self.take("\\rfloor" if name == "\\lfloor" else "\\rceil")
            return self.calculator.round_to_integer(inner, math.floor if name == "\\lfloor" else math.ceil)
        if name == "\\binom":
            above = self.argument(depth)
            return self.calculator.binomial(above, self.argument(depth))
        if name == "\\log":
            return self.logarithm(depth)
        if name in self.calculator.functions:
            self.num_angles += name in _OF_ANGLES
            result = self.application(self.calculator.functions[name], depth, is_called=name in _CALLED)
            self.num_angles -= name in _OF_ANGLES
            return result
        raise values.UnreadableError

    def logarithm(self, depth: int) -> values.Value:
        if self.peek() == "_":
            self.take()
            number = self.argument(depth)
        elif self.reading is None:
            raise values.UnreadableError  # base e or 10: books differ
        elif self.reading.log_base is None:
            return self.application(self.calculator.logarithm, depth)
        else:
            number = self.calculator.rational(Fraction(self.reading.log_base))
        base = self.calculator.logarithm(number)
        return self.calculator.multiply(
            self.application(self.calculator.logarithm, depth), self.calculator.invert(base)
        )

    def application(
        self, function: Callable[[values.Value], values.Value], depth: int, *, is_called: bool = False
    ) -> values.Value:
        r"""A function applied to the argument that follows: `\sin^2(x)`, `\sin 2x`, `\ln\frac{1}{2}`.

        With `is_called` the argument needs brackets, and a power after them is one of the value: `\abs(x)^2`.
        """
        power = None
        if self.peek() == "^":
            self.take()
            power = self.argument(depth)
            if power.exact is not None and power.exact < 0:
                raise values.UnreadableError  # `\sin^{-1}` is the inverse function
        if self.peek() in ("(", "{"):
            at = self.atom(depth + 1)
            # `\sin(x)^2` is ambiguous.
            if self.peek() == "^" and not is_called:
                raise values.UnreadableError
        elif is_called:
            raise values.UnreadableError
        else:
            at = self.factor(depth + 1)
            while self.kind() == "letter" or self.peek() in ("\\pi", *_GREEK):
                at = self.calculator.multiply(at, self.factor(depth + 1))
            if self.peek() == "/":
                raise values.UnreadableError
        result = function(at)
        return result if power is None else self.calculator.power(result, power)
