r"""Equality of two closed forms, proved: numbers closer than any two different numbers of their size can be are equal.

A sum, product, quotient or root of rationals is U/L with algebraic integers U and L. If no conjugate of U exceeds u in size,
none of L exceeds l, and the roots together have the degree D, then U/L is zero or at least 1 / (u^(D-1) l) away from zero
(Burnikel, Funke, Mehlhorn, Schirra, Schmitt: "A separation bound for real algebraic expressions", Algorithmica 55, 2009).
So both sides are computed to as many digits as this bound asks for. Pi, e and values of functions are not algebraic. For
them the same bound is computed from their size and from the size of their arguments; it is no proof, but it lies far below
every term that the text can write (10^{-80}, e^{-9999}). A pair that needs more than MAX_BITS is undecided.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import mpmath

from reval_jax.equality import values

FIRST_BITS = 240  # binary digits of the first attempt
MAX_BITS = 40_000  # more than 10^{-9999} needs
_MAX_EXACT_BITS = 1 << 17
_MAX_FACTORIAL = 10_000
_FUNCTION_FACTOR = 4  # bits of a function's value for each bit of its argument: cos(t) is 1 - t^2/2
_MIN_FUNCTION_BITS = 400  # for a pair with pi, e or functions


class Size(NamedTuple):
    """Bounds on a number U/L, as base-2 logarithms, with the roots that it contains."""

    top: float  # log2 u >= 0
    bottom: float  # log2 l >= 0
    roots: frozenset[tuple[Any, int]]  # (key, degree); degree 0 marks a number that is not algebraic

    def bits(self) -> float:
        """The number is zero or at least 2^-bits in size."""
        degree, bits = 1, 0
        for _, one in self.roots:
            degree, bits = (degree * one, bits) if one else (degree, _MIN_FUNCTION_BITS)
        return max((degree - 1) * self.top + self.bottom, bits)


_NO_ROOTS: frozenset[tuple[Any, int]] = frozenset()
_FUNCTION = frozenset([("", 0)])


@functools.lru_cache(maxsize=64)
def _field(bits: int) -> values.Field:
    context = mpmath.mp.clone()
    context.prec = bits
    return values.Field(
        epsilon=context.mpf(2) ** (10 - bits),
        number=lambda exact: context.mpf(exact.numerator) / exact.denominator,
        pi=+context.pi,
        e=+context.e,
        i=context.mpc(0, 1),
        functions={name: getattr(context, name) for name in values.FUNCTIONS},
        root=context.root,
        is_finite=context.isfinite,
        max_bits=_MAX_EXACT_BITS,
        max_factorial=_MAX_FACTORIAL,
    )


class Calculator(values.Calculator):
    """Operations on values of many digits, each with its `Size`."""

    def __init__(self, bits: int) -> None:
        super().__init__(_field(bits))
        self.bits = bits

    def rational(self, exact: Fraction) -> values.Value:
        """A rational number of at most _MAX_EXACT_BITS."""
        size = Size(_log(exact.numerator), _log(exact.denominator), _NO_ROOTS)
        return super().rational(exact)._replace(size=size)

    def inexact(self, near: Any, error: Any = 0) -> values.Value:
        """A number that is not known to be rational."""
        magnitude = _magnitude(near)
        return super().inexact(near, error)._replace(size=Size(max(magnitude, 0), max(-magnitude, 0), _FUNCTION))

    def variable(self, at: Fraction) -> values.Value:
        """The exact value of a variable."""
        return self.rational(at)

    def imaginary_unit(self) -> values.Value:
        """The number i, a root of -1."""
        return super().imaginary_unit()._replace(size=Size(0, 0, frozenset([("i", 2)])))

    def add(self, one: values.Value, other: values.Value) -> values.Value:
        """The sum of two values."""
        result = super().add(one, other)
        if result.exact is not None:
            return result
        top = max(one.size.top + other.size.bottom, other.size.top + one.size.bottom) + 1
        return result._replace(size=Size(top, one.size.bottom + other.size.bottom, one.size.roots | other.size.roots))

    def multiply(self, one: values.Value, other: values.Value) -> values.Value:
        """The product of two values."""
        result = super().multiply(one, other)
        if result.exact is not None:
            return result
        top, bottom = one.size.top + other.size.top, one.size.bottom + other.size.bottom
        return result._replace(size=Size(top, bottom, one.size.roots | other.size.roots))

    def negate(self, one: values.Value) -> values.Value:
        """The value with its sign changed."""
        return super().negate(one)._replace(size=one.size)

    def invert(self, one: values.Value) -> values.Value:
        """One over the value, which must be certainly nonzero."""
        size = Size(one.size.bottom, one.size.top, one.size.roots)
        return super().invert(one)._replace(size=size)

    def apply(self, function: Callable[[Any], Any], at: values.Value) -> values.Value:
        """A smooth function of a value."""
        result = super().apply(function, at)
        extra = _FUNCTION_FACTOR * (at.size.top + at.size.bottom)
        if at.near.imag:
            extra += _FUNCTION_FACTOR * float(abs(at.near))  # the sine of a complex number grows like e^t
        return result._replace(
            size=Size(result.size.top + extra, result.size.bottom + extra, at.size.roots | _FUNCTION)
        )

    def absolute(self, at: values.Value) -> values.Value:
        """The absolute value; that of a complex number is a root."""
        roots = at.size.roots | ({(("abs", at.near), 2)} if at.near.imag else _NO_ROOTS)
        return super().absolute(at)._replace(size=Size(at.size.top, at.size.bottom, roots))

    def root(self, at: values.Value, degree: int) -> values.Value:
        """The real root of a nonnegative number; of a negative one too, if the degree is odd."""
        result = super().root(at, degree)
        if result.exact is not None:
            return result
        # The same root of the same number counts once; a rounded number that is the same twice has the same size.
        key = (abs(at.exact) if at.exact is not None else (abs(at.near), at.size.top, at.size.bottom), degree)
        # (U/L)^(1/k) is (U L^(k-1))^(1/k) / L, or U / (U^(k-1) L)^(1/k): the smaller of the two.
        top, bottom = at.size.top, at.size.bottom
        if top >= bottom:
            top = (top + (degree - 1) * bottom) / degree
        else:
            bottom = ((degree - 1) * top + bottom) / degree
        return result._replace(size=Size(top, bottom, at.size.roots | {(key, degree)}))

    def round_to_integer(self, at: values.Value, function: Callable[[Any], int]) -> values.Value:
        """The floor or the ceiling, an integer if it is known at all."""
        result = super().round_to_integer(at, function)
        return self.rational(Fraction(int(result.near.real)))


@functools.lru_cache(maxsize=64)
def calculator(bits: int = FIRST_BITS) -> Calculator:
    """The calculator of a precision."""
    return Calculator(bits)


Closed = Callable[[Calculator], values.Value | None]
"""Computes a number to a calculator's precision; None if it cannot."""


def is_zero(number: Closed) -> bool | None:
    """Whether a number is zero; None if that needs more than MAX_BITS, or if the number cannot be computed."""
    bits = FIRST_BITS
    while bits <= MAX_BITS:
        at = number(calculator(bits))
        if at is None:
            return None
        if at.exact is not None:
            return at.exact == 0
        if not values.may_be_zero(at):
            return False
        needed = at.size.bits() + 3
        if not math.isfinite(needed):
            return None
        if _magnitude(abs(at.near) + at.error) < -needed:
            return True
        # The error falls by one bit with each bit of precision.
        target = bits + needed + _magnitude(at.error) + 8
        bits = max(2 * bits, math.ceil(target / FIRST_BITS) * FIRST_BITS)
    return None


def difference(one: Closed, other: Closed) -> Closed:
    """The first number minus the second."""

    def compute(at: Calculator) -> values.Value | None:
        left, right = one(at), other(at)
        return None if left is None or right is None else at.add(left, at.negate(right))

    return compute


def is_equal(one: Closed, other: Closed) -> bool | None:
    """Whether two numbers are equal; None as in `is_zero`."""
    return is_zero(difference(one, other))


def ratio_sign(pairs: Sequence[tuple[Closed, Closed]]) -> int | None:
    """The sign of the constant ratio of two functions, judged by their values at several points.

    Args:
      pairs: both values at each point.

    Returns:
      0 if the ratio is not constant; 1 or -1 if it is constant at values.MIN_POINTS points or more and the functions vary;
      None if none of this is known.
    """
    known = []
    for pair in pairs:
        left, right = (number(calculator()) for number in pair)
        if left is not None and right is not None:
            known.append((pair, left, right))
    first = next((one for one in known if not (values.may_be_zero(one[1]) or values.may_be_zero(one[2]))), None)
    if first is None or len(known) < values.MIN_POINTS:
        return None
    (one, other), near_one, near_other = first
    for pair, _, _ in known:
        is_constant = is_equal(_product(pair[0], other), _product(pair[1], one))
        if not is_constant:
            return 0 if is_constant is False else None
    ratio = near_one.near / near_other.near
    if ratio.imag or not any(values.is_different(left, near_one) for _, left, _ in known):
        return None
    return 1 if ratio.real > 0 else -1


def _product(one: Closed, other: Closed) -> Closed:
    def compute(at: Calculator) -> values.Value | None:
        left, right = one(at), other(at)
        return None if left is None or right is None else at.multiply(left, right)

    return compute


def _log(number: int) -> int:
    return max(abs(number) - 1, 0).bit_length()


def _magnitude(number: Any) -> float:
    """An upper bound of log2 of a number's size, minus infinity for zero."""
    return float(mpmath.mag(number))
