r"""The slow path: equality by computer algebra. Only for a process that can be killed: SymPy may run without end.

Text is parsed by math-verify's LaTeX grammar (`latex2sympy2_extended`), which builds expressions from tokens. No string is
evaluated: math-verify's plain-text parser, which does (`sympy.parse_expr`), is never called, and the grammar's reader of
numbers, which does too, is replaced.
Equality is decided by values to 40 digits at fixed points; `math_verify.verify` is asked where there are no values, with
its SIGALRM timeouts off. Three of its habits are not taken over: floats equal to six decimals (decimals become fractions
here), variables of either case as one, and equations equal when neither has a real solution.
"""

from __future__ import annotations

import functools
import logging
import re
import zlib
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import math_verify
import mpmath
import sympy
from latex2sympy2_extended import latex2sympy2

from reval_jax.equality import arithmetic, exact, limits, normal, structure, values

# It warns that its timeouts are off: this process is bounded from outside.
logging.getLogger("math_verify").setLevel(logging.ERROR)

DIGITS = 40  # of a value
_SHARE = sympy.Rational(1, 10**25)  # of the larger value: what equal values may differ by through rounding

# Coordinates of the k-th variable at the j-th point. Those of integers are for n! and (-1)^n.
_COORDINATES = (
    ("17/12", "23/9", "31/14", "8/5"),
    ("-13/9", "11/6", "-7/4", "19/8"),
    ("5", "3", "2", "7"),
    ("3/7", "-5/8", "9/10", "-11/13"),
    ("29/7", "5/3", "14/9", "43/11"),
    ("8", "9", "4", "2"),
    ("11", "6", "3", "4"),
)


def _points() -> list[arithmetic.Point]:
    """A point for each row of _COORDINATES: a variable's column is its name's."""

    def point(row: tuple[str, ...], name: str) -> Fraction:
        code = zlib.crc32(name.encode())
        return Fraction(row[code % 4]) + (
            code // 4 % 50 if Fraction(row[0]).denominator == 1 else Fraction(code, 2**32)
        )

    return [functools.partial(point, row) for row in _COORDINATES]


_POINTS = _points()
_CONTEXT = mpmath.mp.clone()
_CONTEXT.prec = 240
_MANY_DIGITS = values.Field(
    epsilon=_CONTEXT.mpf(2) ** -230,
    number=lambda exact: _CONTEXT.mpf(exact.numerator) / exact.denominator,
    pi=+_CONTEXT.pi,
    e=+_CONTEXT.e,
    i=_CONTEXT.mpc(0, 1),
    functions={name: getattr(_CONTEXT, name) for name in ("exp", "log", "sin", "cos", "tan", "asin", "acos", "atan")},
    is_finite=_CONTEXT.isfinite,
)
_SURE = _CONTEXT.mpf(10) ** -DIGITS

_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{4,}")
_FUNCTIONS = re.compile(r"(?<![A-Za-z\\])(sqrt|sin|cos|tan|cot|sec|csc|ln|log|exp|arcsin|arccos|arctan)(?![A-Za-z])")
_DECIMAL = re.compile(r"(?<![0-9A-Za-z_{])(?<!_\{)([0-9]*)\.([0-9]+)")
_PRIMED = re.compile(r"([A-Za-z]|\\[a-z]+)(_(?:[A-Za-z0-9]|\{[A-Za-z0-9]+\}))?('{1,2})(?!\s*[('])")
_CONVERSION = latex2sympy2.ConversionConfig(lowercase_symbols=False)
_NORMALIZATION = latex2sympy2.NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
)


def _number(reader: Any, text: str) -> sympy.Rational:
    return sympy.Rational(text.replace(",", ""))


# The library's own hands the digits to sympy.Number, which evaluates them as Python: slow, and refused in a worker.
latex2sympy2._Latex2Sympy.parse_number = _number

Kind = Literal["ok", "wrong", "unparsed", "limit"]


# One of each construct that golds have.
_FIRST_TEXTS = (
    r"\frac{1}{2n+2}-\frac12", r"3x^{2}-2x+1", r"2\sqrt{3}+\sqrt[3]{5}\pi", r"(a+b)(a-b)^2/4", r"n!+(n-1)!",
    r"e^{-2t}\sin(2t)+\cos^2 x", r"\ln 2+\log_{3}(x+1)", r"\binom{2n}{n}", r"\theta+\omega_0 t", r"2 + 3i",
    r"\lfloor\frac{n}{2}\rfloor+\lceil x\rceil", r"|x_{1}-y_{10}|", r"\sum_{k=1}^{n} k^2", r"f(x)+u(t)",
    r"-\frac{a b^{1/3}}{c}", r"2\cdot 10^{7}",
)  # fmt: skip


@functools.cache
def warm_up() -> None:
    """Makes the grammar build its tables, once a process: two seconds that no answer's time should pay for."""
    for text in _FIRST_TEXTS:
        _done(_parse(_spelled(text)))


def forget() -> None:
    """Drops what is remembered of earlier answers, so that a benchmark times each as if it were new."""
    _parse.cache_clear()
    _at.cache_clear()


class UnparsedError(ValueError):
    """The text is no mathematics that the grammar knows."""


def compare(prediction: str, gold: str) -> Kind:
    """The kind of verdict on a prediction, as far as it depends on algebra. The first call of a process warms up."""
    warm_up()
    if limits.too_big(prediction) or limits.too_big(gold):
        return "limit"
    try:
        outcome = exact.compare_nodes(exact.read(prediction), exact.read(gold), _leaf)
    except UnparsedError:
        return "unparsed"
    return "ok" if outcome == structure.EQUAL else "wrong"


def _leaf(prediction: structure.Node, gold: structure.Node) -> structure.Outcome:
    outcome = exact.leaf(prediction, gold)
    if outcome != structure.OPEN:
        return outcome
    if "relation" in (prediction.kind, gold.kind):
        is_same = _is_same_relation(prediction, gold)
    else:
        known = _is_value_same(prediction.text, gold.text)
        if known is None:
            texts = _spelled(prediction.text), _spelled(gold.text)  # both, before the grammar takes its time
            known = _is_same(_parse(texts[0]), _parse(texts[1]))
        is_same = known
    return structure.EQUAL if is_same else structure.DIFFERENT


def _is_value_same(prediction: str, gold: str) -> bool | None:
    """What `_agree` says, found without SymPy: ten times as fast. None where `arithmetic` cannot read both texts."""
    prediction, gold = (normal.without_unit(text)[0] for text in (prediction, gold))
    agreed = 0
    for index in range(len(_COORDINATES)):
        expected = _at(gold, index)
        if expected is None:
            continue
        found = _at(prediction, index)
        if found is None:
            return None
        if values.is_different(found, expected):
            return False
        # Both may be zero: then no digit says so.
        if found.error + expected.error > _SURE * max(abs(found.near), abs(expected.near)):
            return None
        agreed += 1
        if agreed > values.MIN_POINTS:
            break
    return True if agreed >= values.MIN_POINTS else None


@functools.lru_cache(maxsize=4096)
def _at(text: str, index: int) -> values.Value | None:
    return arithmetic.value(text, field=_MANY_DIGITS, point=_POINTS[index])


def _spelled(text: str) -> str:
    """A text as the grammar reads it.

    Raises:
      UnparsedError: it holds words, or what the grammar would take for something else.
    """
    text, _ = normal.without_unit(text)
    text = _FUNCTIONS.sub(r"\\\1 ", text)
    if _WORD.search(re.sub(r"\\[A-Za-z]+", " ", text)) or "\\pm" in text or "°" in text:
        raise UnparsedError(text)
    # The grammar drops primes.
    text = _PRIMED.sub(lambda found: f"\\{'d' * len(found[3])}ot{{{found[1]}}}{found[2] or ''}", text)
    if "'" in text:
        raise UnparsedError(text)
    text = re.sub(r"\\(?:text|mathrm|textbf|operatorname)\s*\{\s*([A-Za-z])\s*\}", r" \1 ", text)
    text = _DECIMAL.sub(lambda found: f"\\frac{{{int(found[1] + found[2])}}}{{{10 ** len(found[2])}}}", text)
    return re.sub(r"\^\s*([0-9]{2,})", r"^{\1}", text).replace("\u2009", " ")


@functools.lru_cache(maxsize=512)
def _parse(text: str) -> Any:
    """The SymPy object that a text stands for.

    Args:
      text: as `_spelled` writes it.

    Raises:
      UnparsedError: the text is not in the grammar.
    """
    try:
        is_real = re.search(r"(?<![A-Za-z\\])i(?![A-Za-z])|\\mathbb\{C\}", text) is None
        parsed = latex2sympy2.latex2sympy(
            text, is_real=is_real, normalization_config=_NORMALIZATION, conversion_config=_CONVERSION
        )
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # the grammar raises plain Exception, and what SymPy's constructors raise
        raise UnparsedError(text) from error
    if not isinstance(parsed, (sympy.Basic, sympy.MatrixBase)):
        raise UnparsedError(text)
    # The grammar reads i as a variable.
    units = [symbol for symbol in parsed.free_symbols if symbol.name == "i"]
    return parsed.subs(dict.fromkeys(units, sympy.I)) if units else parsed


def _is_same(one: Any, other: Any) -> bool:
    if one == other:
        return True
    has_values = all(isinstance(side, sympy.Expr) and not side.has(sympy.MatrixSymbol) for side in (one, other))
    agreed = _agree(one, other) if has_values else None
    return _is_verified(one, other) if agreed is None else agreed


def _agree(one: sympy.Expr, other: sympy.Expr) -> bool | None:
    """Whether two expressions have the same values wherever the second has a real one; None where too few are known.

    With an imaginary unit in the second, its complex values count.
    """
    one, other = _done(one), _done(other)
    points = _placements(one, other)
    is_real = not other.has(sympy.I)
    agreed = 0
    for point in points:
        expected = _value(other, point)
        if expected is None or (is_real and abs(sympy.im(expected)) > _SHARE * abs(expected)):
            continue
        found = _value(one, point)
        if found is None or abs(found - expected) > _SHARE * max(abs(found), abs(expected)):
            return False
        agreed += 1
    return True if agreed >= min(values.MIN_POINTS, len(points)) else None


def _placements(one: sympy.Expr, other: sympy.Expr) -> list[dict[Any, sympy.Rational]]:
    """Points for the variables of both, which are told apart by name alone; one empty point where there are none."""
    symbols = one.free_symbols | other.free_symbols
    names = sorted({symbol.name for symbol in symbols})
    columns = {symbol: names.index(symbol.name) for symbol in symbols}
    # From the fifth variable on the four columns are shifted, so that no two variables are the same at every point.
    return [
        {symbol: sympy.Rational(row[column % 4]) + 2 * (column // 4) for symbol, column in columns.items()}
        for row in (_COORDINATES if symbols else _COORDINATES[:1])
    ]


def _done(expression: sympy.Expr) -> sympy.Expr:
    """The expression with its sums, limits and derivatives carried out where SymPy can, and f(x) and dy/dx as variables."""
    # SymPy calls dy/dx zero, where y is a symbol.
    quantities = {one: sympy.Symbol(str(one)) for one in expression.atoms(sympy.Derivative) if one.expr.is_Symbol}
    try:
        expression = expression.xreplace(quantities)
        expression = expression.doit()
    except (MemoryError, RecursionError):
        raise
    except Exception:  # a sum that does not converge, and what else SymPy cannot
        return expression
    unknown = {call: sympy.Symbol(str(call)) for call in expression.atoms(sympy.core.function.AppliedUndef)}
    return expression.xreplace(unknown) if unknown else expression


def _value(expression: sympy.Expr, point: dict[Any, sympy.Rational]) -> Any:
    """The value at a point to DIGITS digits; None where it has none, or none that is known to that many digits."""
    try:
        placed = expression.subs(point)
        value = placed.evalf(DIGITS, maxn=400)
        if not value.is_number or value.has(sympy.nan, sympy.zoo, sympy.oo) or not value.is_finite:
            return None
        real, imaginary = value.as_real_imag()
        if not (real.is_Number and imaginary.is_Number):
            return None
        if value != 0 and min(part._prec for part in (real, imaginary) if part != 0 and part.is_Float) < 90:
            # All digits cancelled: zero, unless proved otherwise.
            return sympy.Integer(0) if sympy.simplify(placed) == 0 else None
    except (MemoryError, RecursionError):
        raise
    except Exception:  # what a function raises at its pole, and a sum that does not converge
        return None
    return value


def _is_verified(one: Any, other: Any) -> bool:
    """math-verify's own comparison, for matrices, functions without values and the like."""
    return bool(math_verify.verify(other, one, strict=True, timeout_seconds=None))


_MIRRORED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "=": "=", "\\neq": "\\neq"}


def _is_same_relation(prediction: structure.Node, gold: structure.Node) -> bool:
    """Whether two equations or inequalities of two sides say the same: their differences are proportional."""
    one, other = _sides(prediction), _sides(gold)
    if one is None or other is None:
        return False
    sign = _ratio_sign(one, other)
    if one.operator in ("=", "\\neq"):
        return sign != 0 and one.operator == other.operator
    return sign != 0 and other.operator == (one.operator if sign > 0 else _MIRRORED[one.operator])


class _Sides(NamedTuple):
    left: str
    right: str
    operator: str


def _sides(node: structure.Node) -> _Sides | None:
    """The texts of both sides and the operator; `x = ...` has them too. None for a chain."""
    if node.kind == "relation" and len(node.items) == 2:
        sides = _Sides(node.items[0].text, node.items[1].text, node.marks)
    elif node.kind == "scalar" and node.name:
        sides = _Sides(node.name, node.text, "=")
    elif node.kind == "tuple" and node.name and any("infty" in item.text for item in node.items):
        is_below = "infty" in node.items[0].text
        mark = node.marks[1 if is_below else 0]
        operator = {"(": ">", "[": "\\ge", ")": "<", "]": "\\le"}[mark]
        sides = _Sides(node.name, node.items[1 if is_below else 0].text, operator)
    else:
        return None
    return sides if sides.operator in _MIRRORED else None


def _ratio_sign(one: _Sides, other: _Sides) -> int:
    """The sign of the constant that the first difference is of the second at every point; 0 if it is none, or nothing varies."""

    def at(sides: _Sides, index: int) -> values.Value | None:
        left, right = (_at(normal.without_unit(side)[0], index) for side in (sides.left, sides.right))
        return values.difference(left, right, _MANY_DIGITS)

    pairs = ((at(one, index), at(other, index)) for index in range(len(_COORDINATES)))
    known = values.ratio_sign(pairs, _MANY_DIGITS, share=_SURE)
    if known is not None:
        return known
    differences = []
    for sides in (other, one):
        left, right = (_parse(_spelled(side)) for side in (sides.left, sides.right))
        if not isinstance(left, sympy.Expr) or not isinstance(right, sympy.Expr):
            return 0
        differences.append(_done(left - right))
    ratio = _ratio(differences[1], differences[0])
    return 0 if ratio is None else 1 if ratio > 0 else -1


def _ratio(one: sympy.Expr, other: sympy.Expr) -> sympy.Expr | None:
    """The constant that one expression is of the other at every point; None if it is none, or nothing varies."""
    ratios = []
    for point in _placements(one, other):
        left, right = _value(one, point), _value(other, point)
        if left is None or right is None:
            continue
        if left == 0 or right == 0:
            if left != right:
                return None
            continue
        ratios.append(left / right)
    if len(ratios) < values.MIN_POINTS or not ratios[0].is_real:
        return None
    if any(abs(ratio - ratios[0]) > _SHARE * abs(ratios[0]) for ratio in ratios):
        return None
    return ratios[0]
