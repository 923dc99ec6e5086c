"""Numbers with a bound on their error: exact rationals where possible, else floats or numbers of more digits."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any, NamedTuple

MAX_DEGREE = 100  # largest degree of a root
MAX_CHOSEN = 20  # items chosen out of a number that is no integer
MAX_POWER = 10_000  # largest power of an inexact number
MIN_POINTS = 3  # points at which two functions must both have a value to count as equal


class Value(NamedTuple):
    """A number, or a function's value at the chosen point. `near` and `error` are numbers of one `Field`."""

    exact: Fraction | None  # None if the number is not known to be rational
    near: Any  # complex; the best approximation
    error: Any  # real: |near - true value| is at most this
    size: Any = None  # a `separation.Size`, where one is computed


class Field(NamedTuple):
    """A number type of limited precision: floats, or a library's numbers of more digits."""

    epsilon: Any  # bound on the relative error of one operation
    number: Callable[[Fraction], Any]
    pi: Any
    e: Any
    i: Any
    functions: dict[str, Callable[[Any], Any]]  # those of FUNCTIONS, for complex numbers
    root: Callable[[Any, int], Any]  # of a positive number
    is_finite: Callable[[Any], bool]
    max_bits: int  # of an exact numerator or denominator
    max_factorial: int  # largest number whose factorial is exact


FUNCTIONS = ("exp", "log", "sin", "cos", "tan", "asin", "acos", "atan")
FLOATS = Field(
    epsilon=2.0**-50,
    number=float,
    pi=math.pi,
    e=math.e,
    i=1j,
    functions={name: getattr(cmath, name) for name in FUNCTIONS},
    root=lambda at, degree: math.exp(math.log(at) / degree),
    is_finite=cmath.isfinite,
    max_bits=999,  # a float overflows beyond
    max_factorial=170,
)


class UnreadableError(Exception):
    """The text is not arithmetic that this reader knows, or its value is too large to compute."""


def is_different(one: Value, other: Value) -> bool:
    """Whether two values are certainly different."""
    if one.exact is not None and other.exact is not None:
        return one.exact != other.exact
    return bool(abs(one.near - other.near) > 4 * (one.error + other.error))


def is_out_of_proportion(pairs: Iterable[tuple[Value | None, Value | None]]) -> bool:
    """Whether the ratio of two functions is certainly not constant, judged by their values at several points.

    Args:
      pairs: both values at each point, numbers of FLOATS; None for an unknown value.
    """
    calculator = Calculator(FLOATS)
    known = [(one, other) for one, other in pairs if one is not None and other is not None]
    first = next(((one, other) for one, other in known if not (may_be_zero(one) or may_be_zero(other))), None)
    return first is not None and any(
        is_different(calculator.multiply(one, first[1]), calculator.multiply(other, first[0])) for one, other in known
    )


def may_be_zero(one: Value) -> bool:
    """Whether a value is zero, or not certainly another number."""
    return one.exact == 0 or abs(one.near) <= 4 * one.error


class Calculator:
    """Operations on values, each with a bound on its error."""

    def __init__(self, field: Field) -> None:
        self.field = field
        call = field.functions
        self.functions: dict[str, Callable[[Value], Value]] = {
            "\\sin": lambda at: self.apply(call["sin"], at),
            "\\cos": lambda at: self.apply(call["cos"], at),
            "\\tan": lambda at: self.apply(call["tan"], at),
            "\\sec": lambda at: self.invert(self.apply(call["cos"], at)),
            "\\csc": lambda at: self.invert(self.apply(call["sin"], at)),
            "\\cot": lambda at: self.invert(self.apply(call["tan"], at)),
            "\\arcsin": lambda at: self.inverse_trigonometric(call["asin"], at),
            "\\arccos": lambda at: self.inverse_trigonometric(call["acos"], at),
            "\\arctan": lambda at: self.inverse_trigonometric(call["atan"], at),
            "\\exp": lambda at: self.apply(call["exp"], at),
            "\\sinh": lambda at: self.hyperbolic(at, is_sine=True),
            "\\cosh": lambda at: self.hyperbolic(at, is_sine=False),
            "\\tanh": lambda at: self.multiply(
                self.hyperbolic(at, is_sine=True), self.invert(self.hyperbolic(at, is_sine=False))
            ),
            "\\coth": lambda at: self.multiply(
                self.hyperbolic(at, is_sine=False), self.invert(self.hyperbolic(at, is_sine=True))
            ),
            "\\abs": self.absolute,
            "\\floor": lambda at: self.round_to_integer(at, math.floor),
            "\\ceil": lambda at: self.round_to_integer(at, math.ceil),
            "\\cbrt": lambda at: self.root(at, 3),
            "\\ln": self.logarithm,
        }

    def rational(self, exact: Fraction) -> Value:
        """A rational number, within the field's `max_bits`."""
        if max(exact.numerator.bit_length(), exact.denominator.bit_length()) > self.field.max_bits:
            raise UnreadableError
        near = self.field.number(exact)
        return Value(exact, near, abs(near) * self.field.epsilon)

    def inexact(self, near: Any, error: Any = 0) -> Value:
        """A number that is not known to be rational; adds the error of one rounding."""
        return Value(None, near, error + abs(near) * self.field.epsilon)

    def variable(self, at: Fraction) -> Value:
        """The value of a variable. It counts as inexact unless it is an integer, as factorials need it."""
        return self.rational(at) if at.denominator == 1 else self.inexact(self.field.number(at))

    def imaginary_unit(self) -> Value:
        """The number i."""
        return Value(None, self.field.i, 0)

    def add(self, one: Value, other: Value) -> Value:
        """The sum of two values."""
        if one.exact is not None and other.exact is not None:
            return self.rational(one.exact + other.exact)
        # Rounding is relative to the terms, not to their sum: they may cancel.
        size = abs(one.near) + abs(other.near)
        return Value(None, one.near + other.near, one.error + other.error + size * self.field.epsilon)

    def multiply(self, one: Value, other: Value) -> Value:
        """The product of two values."""
        if one.exact is not None and other.exact is not None:
            return self.rational(one.exact * other.exact)
        error = abs(one.near) * other.error + abs(other.near) * one.error + one.error * other.error
        return self.inexact(one.near * other.near, error)

    def negate(self, one: Value) -> Value:
        """The value with its sign changed."""
        return Value(None if one.exact is None else -one.exact, -one.near, one.error)

    def invert(self, one: Value) -> Value:
        """One over the value, which must be certainly nonzero."""
        if one.exact is not None:
            return self.rational(1 / one.exact)
        size = abs(one.near)
        if size <= 2 * one.error:
            raise UnreadableError
        return self.inexact(1 / one.near, 2 * one.error / size**2)

    def power(self, base: Value, exponent: Value) -> Value:
        """A real power; a negative base takes an integer exponent only."""
        if exponent.exact is not None and exponent.exact.denominator == 1:
            return self.integer_power(base, int(exponent.exact))
        if exponent.exact is not None and 1 < exponent.exact.denominator <= MAX_DEGREE:
            if base.near.real < 0:
                raise UnreadableError  # (-8)^{1/3} is complex for some authors
            root = self.root(base, exponent.exact.denominator)
            return self.integer_power(root, exponent.exact.numerator)
        if base.near.imag or base.near.real <= 2 * base.error:
            raise UnreadableError
        return self.apply(self.field.functions["exp"], self.multiply(exponent, self.logarithm(base)))

    def integer_power(self, base: Value, times: int) -> Value:
        """An integer power, by repeated squaring."""
        if base.exact is not None:
            bits = max(base.exact.numerator.bit_length(), base.exact.denominator.bit_length())
            if bits * abs(times) > self.field.max_bits:
                raise UnreadableError
            return self.rational(base.exact**times)
        if abs(times) > MAX_POWER:
            raise UnreadableError
        base = base if times >= 0 else self.invert(base)
        result, times = self.rational(Fraction(1)), abs(times)
        while times:
            if times % 2:
                result = self.multiply(result, base)
            base, times = self.multiply(base, base) if times > 1 else base, times // 2
        return result

    def apply(self, function: Callable[[Any], Any], at: Value) -> Value:
        """A smooth function of a value. Its error is twice the change over a step as large as the argument's error."""
        near = function(at.near)
        step = max(at.error, abs(at.near) * self.field.epsilon)
        change = max(abs(function(at.near + step) - near), abs(function(at.near - step) - near))
        return self.inexact(near, 2 * change)

    def hyperbolic(self, at: Value, *, is_sine: bool) -> Value:
        """The hyperbolic sine or cosine: half of e^x minus or plus e^-x."""
        grown = self.apply(self.field.functions["exp"], at)
        fallen = self.invert(grown)
        both = self.add(grown, self.negate(fallen) if is_sine else fallen)
        return self.multiply(both, self.rational(Fraction(1, 2)))

    def unknown_function(self, phase: Fraction, at: Value) -> Value:
        """The value of a function known only by name; `phase` is a number derived from the name."""
        shift = self.inexact(self.field.number(phase))
        cosine = self.apply(self.field.functions["cos"], self.add(at, shift))
        return self.add(self.rational(Fraction(2)), cosine)

    def inverse_trigonometric(self, function: Callable[[Any], Any], at: Value) -> Value:
        """An inverse trigonometric function, where it is real."""
        if at.near.imag:
            raise UnreadableError
        result = self.apply(function, at)
        if result.near.imag:
            raise UnreadableError
        return result

    def root(self, at: Value, degree: int) -> Value:
        """The real root of a nonnegative number; of a negative one too, if the degree is odd."""
        if degree % 2 and at.near.real < 0:
            return self.negate(self.root(self.negate(at), degree))
        if at.near.imag or at.near.real < 0 or not 1 <= degree <= MAX_DEGREE:
            raise UnreadableError
        if at.exact is not None:
            top, bottom = (_integer_root(part, degree) for part in (at.exact.numerator, at.exact.denominator))
            if top is not None and bottom is not None:
                return self.rational(Fraction(top, bottom))
        elif at.near.real <= 2 * at.error:
            raise UnreadableError
        near = self.field.root(at.near.real, degree)
        return self.inexact(near, 2 * near * (at.error / abs(at.near) + self.field.epsilon))

    def logarithm(self, at: Value) -> Value:
        """The natural logarithm of a certainly positive number."""
        if at.near.imag or at.near.real <= 2 * at.error:
            raise UnreadableError
        return self.apply(self.field.functions["log"], at)

    def absolute(self, at: Value) -> Value:
        """The absolute value."""
        return Value(None if at.exact is None else abs(at.exact), abs(at.near), at.error)

    def round_to_integer(self, at: Value, function: Callable[[Any], int]) -> Value:
        """The floor or the ceiling, as `function` says, if it is the same over the whole error interval."""
        if at.exact is not None:
            return self.rational(Fraction(function(at.exact)))
        lower, upper = function(at.near.real - at.error), function(at.near.real + at.error)
        if at.near.imag or lower != upper:
            raise UnreadableError
        return self.inexact(self.field.number(Fraction(lower)))

    def factorial(self, at: Value) -> Value:
        """The factorial of an integer up to the field's `max_factorial`."""
        if at.exact is None or at.exact.denominator != 1 or not 0 <= at.exact <= self.field.max_factorial:
            raise UnreadableError
        return self.rational(Fraction(math.factorial(int(at.exact))))

    def binomial(self, above: Value, below: Value) -> Value:
        """The number of ways to choose among at most `max_factorial`."""
        n, k = above.exact, below.exact
        if n is None or k is None or k.denominator != 1 or k < 0:
            raise UnreadableError
        if n.denominator != 1 and k <= MAX_CHOSEN:
            product = math.prod((n - index for index in range(int(k))), start=Fraction(1))
            return self.rational(product / math.factorial(int(k)))
        if n.denominator != 1 or not k <= n <= self.field.max_factorial:
            raise UnreadableError
        return self.rational(Fraction(math.comb(int(n), int(k))))


def _integer_root(number: int, degree: int) -> int | None:
    """The exact integer root of an integer, or None. Newton's iteration, from above."""
    root = 1 << -(-number.bit_length() // degree)
    while number:
        lower = ((degree - 1) * root + number // root ** (degree - 1)) // degree
        if lower >= root:
            return root if root**degree == number else None
        root = lower
    return 0
