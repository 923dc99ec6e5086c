"""Values of SymPy expressions, computed by our own calculators, so that each has a bound on its error and a size."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import sympy

from reval_jax.equality import separation, values

_FUNCTIONS = {
    sympy.sin: "\\sin", sympy.cos: "\\cos", sympy.tan: "\\tan", sympy.sec: "\\sec", sympy.csc: "\\csc", sympy.cot: "\\cot",
    sympy.asin: "\\arcsin", sympy.acos: "\\arccos", sympy.atan: "\\arctan", sympy.exp: "\\exp", sympy.sinh: "\\sinh",
    sympy.cosh: "\\cosh", sympy.tanh: "\\tanh", sympy.coth: "\\coth", sympy.log: "\\ln", sympy.Abs: "\\abs",
    sympy.floor: "\\floor", sympy.ceiling: "\\ceil",
}  # fmt: skip


def value(
    expression: sympy.Expr, point: Mapping[Any, Fraction], calculator: separation.Calculator
) -> values.Value | None:
    """The value of an expression; None if it has none, or holds something whose value has no known error.

    Args:
      point: the value of each free symbol.
    """
    try:
        result = _value(expression, point, calculator)
    except (values.UnreadableError, ArithmeticError, ValueError):
        return None
    is_finite = calculator.field.is_finite
    return result if is_finite(result.near) and is_finite(result.error) else None


def _value(one: sympy.Basic, point: Mapping[Any, Fraction], calculator: separation.Calculator) -> values.Value:
    if one.is_Rational:
        return calculator.rational(Fraction(int(one.p), int(one.q)))
    if one in point:
        return calculator.variable(point[one])
    constants = {sympy.pi: calculator.field.pi, sympy.E: calculator.field.e}
    if one in constants:
        return calculator.inexact(constants[one])
    if one is sympy.I:
        return calculator.imaginary_unit()
    combine = _operation(one, calculator)
    if combine is None:
        raise values.UnreadableError
    return combine(*(_value(part, point, calculator) for part in one.args))


def _operation(one: sympy.Basic, calculator: separation.Calculator) -> Callable[..., values.Value] | None:
    """The calculator's operation for an expression's arguments; None for integrals, series and other things without one."""
    if one.is_Add:
        return lambda *parts: functools.reduce(calculator.add, parts)
    if one.is_Mul:
        return lambda *parts: functools.reduce(calculator.multiply, parts)
    if one.is_Pow:
        return calculator.power
    if one.func is sympy.factorial:
        return calculator.factorial
    if one.func is sympy.binomial:
        return calculator.binomial
    if one.func in _FUNCTIONS and len(one.args) == 1:
        return calculator.functions[_FUNCTIONS[one.func]]
    return None
