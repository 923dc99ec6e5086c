r"""The slow path: equality by computer algebra. Only for a process that can be killed, because SymPy may never return.

Math-verify's LaTeX grammar (`latex2sympy2_extended`) parses the text and builds expressions from tokens. No string is
evaluated: math-verify's plain-text parser, which evaluates (`sympy.parse_expr`), is never called, and the grammar's reader of
numbers, which evaluates too, is replaced.
`separation` decides whether the values of two expressions at a point are equal. The points are fixed rationals, integers only
where there are factorials. What has no such values (a series without a closed form) equals its own form only.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import sympy
from latex2sympy2_extended import latex2sympy2

from reval_jax.equality import arithmetic, exact, expressions, limits, separation, structure, values

# Coordinates of the k-th variable (column) at the j-th point (row). The integer points are for n! and (-1)^n.
_COORDINATES = (
    ("17/12", "23/9", "31/14", "8/5"),
    ("-13/9", "11/6", "-7/4", "19/8"),
    ("5", "3", "2", "7"),
    ("3/7", "-5/8", "9/10", "-11/13"),
    ("29/7", "5/3", "14/9", "43/11"),
    ("8", "9", "4", "2"),
    ("11", "6", "3", "4"),
    ("13", "10", "12", "9"),
)
_INTEGER_ROWS = tuple(index for index, row in enumerate(_COORDINATES) if Fraction(row[0]).denominator == 1)
_DISCRETE = re.compile(r"!|\\binom(?![A-Za-z])")


def _points() -> list[arithmetic.Point]:
    """One point for each row of _COORDINATES; a hash of the variable's name selects its column."""

    def point(row: tuple[str, ...], name: str) -> Fraction:
        code = zlib.crc32(name.encode())
        return Fraction(row[code % 4]) + (
            code // 4 % 50 if Fraction(row[0]).denominator == 1 else Fraction(code, 2**32)
        )

    return [functools.partial(point, row) for row in _COORDINATES]


_POINTS = _points()
# Functions that are piecewise, or inverses on a part of the numbers: they may agree with another near zero only.
_PIECEWISE = re.compile(
    r"\||\\(?:sqrt|abs|floor|ceil|lfloor|lceil|ln|log|lg|max|min|arc[a-z]+|[lr]?vert)(?![A-Za-z])"
    r"|\^\s*\{?\s*\(?\s*-?\s*(?:[0-9]*\.|[0-9]+\s*/|\\frac)|\\(?:sin|cos|tan|sec|csc|cot)h?\s*\^\s*\{\s*-"
)
_NUM_FAR_SIGNS = 4  # choices of the signs of several variables, each with its opposite


@functools.cache
def _far_points(num_digits: int) -> tuple[arithmetic.Point, ...]:
    """Points on all sides of the kinks of piecewise functions: far from zero, near it, and between small integers.

    Args:
      num_digits: digits of the longest numeral in the texts; the farthest points are far beyond it.
    """

    def far(exponent: int, bit: int | None, sign: int, name: str) -> Fraction:
        code = zlib.crc32(name.encode())
        if bit is not None and code >> bit & 1:
            sign = -sign
        # Just below an integer, where a floor shows the least shift.
        return sign * Fraction(10) ** exponent * (1 + Fraction(code % 1000, 1000)) - Fraction(1, 10**7)

    def between(integer: int, name: str) -> Fraction:
        return integer + Fraction(1, 2) + Fraction(zlib.crc32(name.encode()), 2**34)

    farthest = 5 + max(num_digits, 1)
    signs = [(exponent, None, sign) for exponent in (3, farthest, -3) for sign in (1, -1)]
    mixed = [(farthest if bit % 2 else 3, 3 * bit, sign) for bit in range(_NUM_FAR_SIGNS) for sign in (1, -1)]
    return (
        *(functools.partial(far, *choice) for choice in [*signs, *mixed]),
        *(functools.partial(between, integer) for integer in range(-4, 5)),
    )


def _extra_points(*texts: str) -> tuple[arithmetic.Point, ...]:
    """The points beside _POINTS at which texts must agree too; none unless one is piecewise."""
    if not any(map(_PIECEWISE.search, texts)) or any(map(_DISCRETE.search, texts)):
        return ()
    return _far_points(max((len(digits) for text in texts for digits in re.findall("[0-9]+", text)), default=1))


_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{4,}")
# Notation that the grammar would misread: signs, functions of `notation` that only our reader knows, an antiderivative (it has
# a constant), infinity anywhere but in _BOUNDS; and what people read in two ways, `1/2x` and `x2`.
_UNREAD = re.compile(
    r"\\(?:pm|mp|abs|floor|ceil|cbrt|ldots|infty)(?![A-Za-z])|[°%]|\\int(?![A-Za-z])(?!\s*(?:\\limits)?\s*[_^])"
    r"|/\s*(?:[0-9.]+|[A-Za-z](?!\s*\())\s*(?:[A-Za-z(]|\\(?:frac|sqrt|pi|sin|cos|tan|ln|log|theta|alpha|beta)(?![A-Za-z]))"
    r"|(?<![A-Za-z\\_^])[A-Za-z]\s*[0-9]"
    r"|\^\s*(?:\{(?:[^{}]|\{[^{}]*\})*\}|\\?\w+)\s*\^"  # 2^3^2: LaTeX has no such form
)
_BOUND = r"\s*[_^]\s*(?:\{[^{}]*\}|-?\\infty(?![A-Za-z])|\w)"
_BOUNDS = re.compile(rf"\\(?:lim|(?:sum|prod|int)(?:{_BOUND})?)(?:{_BOUND})")
_DECIMAL = re.compile(r"(?<![0-9A-Za-z_{])(?<!_\{)([0-9]*)\.([0-9]+)")
_PRIMED = re.compile(r"([A-Za-z]|\\[a-z]+)(_(?:[A-Za-z0-9]|\{[A-Za-z0-9]+\}))?('{1,2})(?!\s*[('])")
_CONVERSION = latex2sympy2.ConversionConfig(lowercase_symbols=False)
_NORMALIZATION = latex2sympy2.NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
)


def _parse_number(reader: Any, text: str) -> sympy.Rational:
    return sympy.Rational(text.replace(",", ""))


# The library's version passes the digits to sympy.Number, which evaluates them as Python: slow, and refused in a worker.
latex2sympy2._Latex2Sympy.parse_number = _parse_number

Kind = Literal["ok", "wrong", "unparsed", "limit"]


# One example of each construct that gold answers contain.
_WARM_UP_TEXTS = (
    r"\frac{1}{2n+2}-\frac12", r"3x^{2}-2x+1", r"2\sqrt{3}+\sqrt[3]{5}\pi", r"(a+b)(a-b)^2/4", r"n!+(n-1)!",
    r"e^{-2t}\sin(2t)+\cos^2 x", r"\ln 2+\log_{3}(x+1)", r"\binom{2n}{n}", r"\theta+\omega_0 t", r"2 + 3i",
    r"\lfloor\frac{n}{2}\rfloor+\lceil x\rceil", r"|x_{1}-y_{10}|", r"\sum_{k=1}^{n} k^2", r"f(x)+u(t)",
    r"-\frac{a b^{1/3}}{c}", r"2\cdot 10^{7}",
)  # fmt: skip


@functools.cache
def warm_up() -> None:
    """Builds the grammar's tables, once per process: two seconds that must not count against an answer's time limit."""
    for text in _WARM_UP_TEXTS:
        _carry_out(_parse(_grammar_text(text)))


def clear_caches() -> None:
    """Clears the caches of earlier answers, so that a benchmark can time each answer as a new one."""
    _parse.cache_clear()
    _text_value.cache_clear()


class UnparsedError(ValueError):
    """The grammar cannot read the text."""


def compare(prediction: str, gold: str) -> Kind:
    """The verdict that algebra gives on a prediction. The first call in a process also runs `warm_up`."""
    warm_up()
    if limits.too_big(prediction) or limits.too_big(gold):
        return "limit"
    try:
        outcome = exact.compare_nodes(exact.read(prediction), exact.read(gold), _compare_leaves)
    except UnparsedError:
        return "unparsed"
    return "ok" if outcome == structure.EQUAL else "wrong"


def _compare_leaves(prediction: structure.Node, gold: structure.Node) -> structure.Comparison:
    outcome = exact.compare_leaves(prediction, gold)
    if outcome != structure.OPEN:
        return outcome
    if "relation" in (prediction.kind, gold.kind):
        is_same = _is_same_relation(prediction, gold)
    else:
        agreement = _texts_agree(prediction.text, gold.text)
        if agreement is None:
            texts = _grammar_text(prediction.text), _grammar_text(gold.text)  # both, before the slow parsing of either
            agreement = _is_same_expression(_parse(texts[0]), _parse(texts[1]), _extra_points(*texts))
        is_same = agreement
    return structure.EQUAL if is_same else structure.DIFFERENT


def _texts_agree(prediction: str, gold: str) -> bool | None:
    """Like `_expressions_agree`, but without SymPy and ten times as fast. None if `arithmetic` cannot read both texts."""
    bodies = [arithmetic.split_unit(text)[0] for text in (prediction, gold)]
    num_equal = 0
    extra = _extra_points(*bodies)
    near = [_POINTS[index] for index in _INTEGER_ROWS] if any(map(_DISCRETE.search, bodies)) else _POINTS
    for point in (*near, *extra):
        actual, expected = (_closed(body, point) for body in bodies)
        if expected(separation.calculator()) is None:
            continue
        if num_equal > values.MIN_POINTS or point in extra:
            if _differ(actual, expected):
                return False
            continue
        is_equal = separation.is_equal(actual, expected)
        if not is_equal:
            return is_equal
        num_equal += 1
        if num_equal > values.MIN_POINTS and not extra:
            break
    return True if num_equal >= values.MIN_POINTS else None


def _differ(one: separation.Closed, other: separation.Closed) -> bool:
    """Whether both numbers are known and certainly different, without more digits: far from zero a proof may take long."""
    left, right = one(separation.calculator()), other(separation.calculator())
    return left is not None and right is not None and values.is_different(left, right)


def _closed(text: str, point: arithmetic.Point) -> separation.Closed:
    """Computes the value of a text at a point."""
    return lambda calculator: _text_value(text, point, calculator.bits)


@functools.lru_cache(maxsize=4096)
def _text_value(text: str, point: arithmetic.Point, bits: int) -> values.Value | None:
    return arithmetic.value(text, calculator=separation.calculator(bits), point=point)


def _grammar_text(text: str) -> str:
    """Rewrites a text so that the grammar reads it correctly.

    Raises:
      UnparsedError: the text holds words, or notation that the grammar would misread.
    """
    text, _ = arithmetic.split_unit(text)
    if _WORD.search(re.sub(r"\\[A-Za-z]+", " ", text)) or _UNREAD.search(_BOUNDS.sub("", text)):
        raise UnparsedError(text)
    # The grammar drops primes.
    text = _PRIMED.sub(lambda match: f"\\{'d' * len(match[3])}ot{{{match[1]}}}{match[2] or ''}", text)
    if "'" in text:
        raise UnparsedError(text)
    text = re.sub(r"\\(?:text|mathrm|textbf|operatorname)\s*\{\s*([A-Za-z])\s*\}", r" \1 ", text)
    text = _DECIMAL.sub(lambda match: f"\\frac{{{int(match[1] + match[2])}}}{{{10 ** len(match[2])}}}", text)
    return re.sub(r"\^\s*([0-9]{2,})", r"^{\1}", text).replace("\u2009", " ")


@functools.lru_cache(maxsize=512)
def _parse(text: str) -> Any:
    """The SymPy object that a text represents.

    Args:
      text: output of `_grammar_text`.

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
    except Exception as error:  # the grammar raises a plain Exception; SymPy's constructors raise many kinds
        raise UnparsedError(text) from error
    if not isinstance(parsed, (sympy.Basic, sympy.MatrixBase)):
        raise UnparsedError(text)
    # The grammar reads i as a variable.
    units = [symbol for symbol in parsed.free_symbols if symbol.name == "i"]
    return parsed.subs(dict.fromkeys(units, sympy.I)) if units else parsed


def _is_same_expression(one: Any, other: Any, extra: Sequence[arithmetic.Point]) -> bool:
    """Whether two parsed objects are equal: matrices cell by cell, expressions by their values, else by their form."""
    if one == other:
        return True
    if isinstance(one, sympy.MatrixBase) and isinstance(other, sympy.MatrixBase):
        cells = zip(one, other, strict=False)
        return one.shape == other.shape and all(_is_same_expression(*pair, extra) for pair in cells)
    has_values = all(isinstance(side, sympy.Expr) and not side.has(sympy.MatrixSymbol) for side in (one, other))
    return has_values and bool(_expressions_agree(one, other, extra))


def _expressions_agree(one: sympy.Expr, other: sympy.Expr, extra: Sequence[arithmetic.Point]) -> bool | None:
    """Whether two expressions have equal values at every point where the second is real; None if too few are known.

    If the second contains the imaginary unit, its complex values count too.
    """
    one, other = _carry_out(one), _carry_out(other)
    if one == other or (one.is_Rational and other.is_Rational):
        return bool(one == other)
    points = _substitutions(one, other, extra)
    num_near = len(points) - len(extra)
    is_real = not other.has(sympy.I)
    num_equal = 0
    for index, point in enumerate(points):
        expected = expressions.value(other, point, separation.calculator())
        if expected is None or (is_real and abs(expected.near.imag) > expected.error):
            continue
        sides = _placed(one, point), _placed(other, point)
        if index >= num_near:
            if _differ(*sides):
                return False
            continue
        if not separation.is_equal(*sides):
            return False
        num_equal += 1
    return True if num_equal >= min(values.MIN_POINTS, num_near) else None


def _placed(expression: sympy.Expr, point: dict[Any, Fraction]) -> separation.Closed:
    return lambda calculator: expressions.value(expression, point, calculator)


def _substitutions(one: sympy.Expr, other: sympy.Expr, extra: Sequence[arithmetic.Point]) -> list[dict[Any, Fraction]]:
    """Points for the variables of both expressions, identified by name; the `extra` ones come last."""
    symbols = one.free_symbols | other.free_symbols
    names = sorted({symbol.name for symbol in symbols})
    columns = {symbol: names.index(symbol.name) for symbol in symbols}
    is_discrete = any(side.has(sympy.factorial, sympy.binomial) for side in (one, other))
    rows = [_COORDINATES[index] for index in _INTEGER_ROWS] if is_discrete else _COORDINATES
    # From the fifth variable on, the four columns repeat with an offset, so that no two variables are always equal.
    near = [
        {symbol: Fraction(row[column % 4]) + 2 * (column // 4) for symbol, column in columns.items()}
        for row in (rows if symbols else rows[:1])
    ]
    return near + [{symbol: point(symbol.name) for symbol in symbols} for point in extra]


def _carry_out(expression: sympy.Expr) -> sympy.Expr:
    """Carries out sums, limits and derivatives as far as SymPy can, and turns f(x) and dy/dx into variables."""
    # SymPy differentiates dy/dx to zero if y is a symbol.
    quantities = {one: sympy.Symbol(str(one)) for one in expression.atoms(sympy.Derivative) if one.expr.is_Symbol}
    try:
        expression = expression.xreplace(quantities)
        expression = expression.doit()
    except (MemoryError, RecursionError):
        raise
    except Exception:  # a sum that does not converge, and other things that SymPy cannot do
        return expression
    calls = {call: sympy.Symbol(str(call)) for call in expression.atoms(sympy.core.function.AppliedUndef)}
    return expression.xreplace(calls) if calls else expression


_MIRRORED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "=": "=", "\\neq": "\\neq"}


def _is_same_relation(prediction: structure.Node, gold: structure.Node) -> bool:
    """Whether two equations or inequalities are equivalent: their differences (left side minus right) are proportional."""
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
    """The texts of both sides and the operator, also of a named value `x = ...` and a half-line `x > ...`; None for a chain."""
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
    """The sign of the constant ratio of the two differences; 0 if it is not constant, or if neither difference varies."""

    def text_difference(sides: _Sides, point: arithmetic.Point) -> separation.Closed:
        left, right = (_closed(arithmetic.split_unit(side)[0], point) for side in (sides.left, sides.right))
        return separation.difference(left, right)

    def float_difference(sides: _Sides, point: arithmetic.Point) -> values.Value | None:
        left, right = (arithmetic.value(side, point=point) for side in (sides.left, sides.right))
        return None if left is None or right is None else arithmetic.FLOATS.add(left, arithmetic.FLOATS.negate(right))

    extra = _extra_points(*one, *other)
    if values.is_out_of_proportion([(float_difference(one, at), float_difference(other, at)) for at in extra]):
        return 0
    sign = separation.ratio_sign([(text_difference(one, at), text_difference(other, at)) for at in _POINTS])
    if sign is not None:
        return sign
    differences = []
    for sides in (one, other):
        left, right = (_parse(_grammar_text(side)) for side in (sides.left, sides.right))
        if not isinstance(left, sympy.Expr) or not isinstance(right, sympy.Expr):
            return 0
        differences.append(_carry_out(left - right))
    points = _substitutions(differences[0], differences[1], extra)
    return separation.ratio_sign([(_placed(differences[0], at), _placed(differences[1], at)) for at in points]) or 0
