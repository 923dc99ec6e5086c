r"""Sets of real numbers in one normal form: disjoint intervals in ascending order, an isolated point as [a, a].

`(0,2) \cup [1,3]`, `|x| < 2`, `x \neq 2`, `\mathbb{R} \setminus \{2\}`, `\{x \mid x > 2\}` and `x > 2 and x < 5` are such sets.
Pieces are joined only if the order of their ends is certain; otherwise a set keeps the form in which it was written.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from reval_jax.equality import arithmetic, structure, values
from reval_jax.equality.normal import canonical_text

_REALS = re.compile(
    r"\\mathbb\s*(?:\{\s*R\s*\}|R)|\\mathbf\s*\{\s*R\s*\}|\\(?:R|Reals)(?![A-Za-z])|\u211d"
    r"|(?:\\text\s*\{)?\s*(?:the set of )?(?:all )?real numbers\s*\}?",
    re.IGNORECASE,
)
_POSITIVE = re.compile(r"(?:\\mathbb\s*(?:\{\s*R\s*\}|R)|\u211d)\s*(?:\^|_)\s*(?:\+|\{\s*\+\s*\}|\{\s*>\s*0\s*\})")
_ABSOLUTE = re.compile(r"\|(?P<inside>[^|]+)\|")
_LINEAR = re.compile(r"(?P<x>[a-z])(?:(?P<sign>[+-])(?P<shift>.+))?|(?P<from>[^-+]+)-(?P<y>[a-z])")


class _UncertainError(Exception):
    """The order of two ends is not known, or a part is no set of real numbers."""


class _End(NamedTuple):
    """One end of an interval."""

    text: str
    number: values.Value | None  # None for an infinite end
    sign: int  # of an infinite end; 0 for a finite one


class _Piece(NamedTuple):
    low: _End
    has_low: bool
    high: _End
    has_high: bool


def normal(node: structure.Node) -> structure.Node:
    """The normal form of a set of real numbers; every other answer, and a plain interval, unchanged."""
    if node.kind == "tuple" and not (node.text == "" and node.name.startswith("|")):
        return node
    if node.kind == "scalar" and re.fullmatch(r"\\emptyset", node.text):
        return structure.Node("set", node.text, node.name)
    try:
        name, pieces = _read(node)
    except _UncertainError:
        return node
    items = tuple(
        structure.Node(
            "tuple",
            "",
            items=(structure.Node("scalar", piece.low.text), structure.Node("scalar", piece.high.text)),
            marks=("[" if piece.has_low else "(") + ("]" if piece.has_high else ")"),
        )
        for piece in pieces
    )
    if node.kind == "union" and node.marks == "," and len(items) != len(node.items):
        return node  # `x > 2, x < 5` does not say whether both must hold
    if not items:
        return structure.Node("set", "", name) if node.kind != "intersection" else node
    return items[0]._replace(name=name) if len(items) == 1 else structure.Node("union", "", name, items)


def _read(node: structure.Node) -> tuple[str, list[_Piece]]:
    """The variable, "" for none, and the pieces of a set."""
    if node.kind == "builder":
        return "", _read(node.items[0])[1]
    if node.kind == "tuple":
        return _read_interval(node)
    if node.kind == "scalar":
        if _REALS.fullmatch(node.text):
            return node.name, [_REAL_LINE]
        if _POSITIVE.fullmatch(node.text):
            return node.name, [_REAL_LINE._replace(low=_end("0"))]
        raise _UncertainError
    if node.kind == "relation":
        return _read_relation(node)
    if node.kind == "list":
        return _read_conditions(node)
    if node.kind not in ("union", "intersection", "difference"):
        raise _UncertainError
    names, parts = [node.name], []
    for index, item in enumerate(node.items):
        is_points = item.kind == "set" and (node.kind == "union" or index > 0)
        name, pieces = ("", _points(item)) if is_points else _read(item)
        names.append(name)
        parts.append(pieces)
    combine = {"union": _union, "intersection": _intersection, "difference": _difference}[node.kind]
    return _only_name(names), functools.reduce(combine, parts[1:], _union(parts[0], []))


def _only_name(names: list[str]) -> str:
    known = {name for name in names if name}
    if len(known) > 1:
        raise _UncertainError
    return known.pop() if known else ""


def _read_interval(node: structure.Node) -> tuple[str, list[_Piece]]:
    if len(node.items) != 2 or any(item.kind != "scalar" for item in node.items):
        raise _UncertainError
    low, high = (_end(item.text) for item in node.items)
    piece = _Piece(low, node.marks[0] == "[", high, node.marks[1] == "]")
    order = _order(low, high)
    if order > 0 or (order == 0 and not (piece.has_low and piece.has_high)):
        raise _UncertainError
    if not node.name.startswith("|"):
        return node.name, [piece]
    if not re.fullmatch(r"\|[a-z]\|", node.name):
        raise _UncertainError
    # `1 < |x| < 3`, and `|x| < 3` with minus infinity as its lower end.
    if high.sign == 0 and _order(high, _end("0")) < 0:
        raise _UncertainError
    mirrored = _Piece(_negative(high), piece.has_high, _negative(low), piece.has_low)
    if low.sign < 0 or _order(low, _end("0")) < 0:
        return node.name[1], [mirrored._replace(high=high, has_high=piece.has_high)]
    return node.name[1], _union([mirrored, piece], [])


def _read_relation(node: structure.Node) -> tuple[str, list[_Piece]]:
    r"""`x \neq 2`, `|x - 1| \le 3`, `0 < |x - 1| < 3`."""
    sides, operators = [item.text for item in node.items], node.marks.split()
    if operators == ["\\neq"] and re.fullmatch("[a-z]", sides[0]):
        points = [_end(sides[1].replace("\\pm", sign)) for sign in (("", "-") if "\\pm" in sides[1] else ("",))]
        return sides[0], _difference([_REAL_LINE], _union([_Piece(point, True, point, True) for point in points], []))
    if operators[0] in (">", "\\ge"):
        sides, operators = sides[::-1], [{">": "<", "\\ge": "\\le"}.get(one, "") for one in operators[::-1]]
    if not set(operators) <= {"<", "\\le"}:
        raise _UncertainError
    if len(sides) == 2:
        is_upper = sides[0].startswith("|")
        sides, operators = (
            (["-\\infty", *sides], ["<", *operators]) if is_upper else ([*sides, "\\infty"], [*operators, "<"])
        )
    inside = _ABSOLUTE.fullmatch(sides[1]) if len(sides) == 3 else None
    linear = _LINEAR.fullmatch(re.sub(r"\s", "", inside["inside"])) if inside else None
    if linear is None:
        raise _UncertainError
    name = linear["x"] or linear["y"]
    center = linear["from"] or (
        f"{'-' if linear['sign'] == '+' else ''}({linear['shift']})" if linear["shift"] else "0"
    )
    marks = ("(" if operators[0] == "<" else "[") + (")" if operators[1] == "<" else "]")
    ends = tuple(structure.Node("scalar", side) for side in (sides[0], sides[2]))
    _, pieces = _read_interval(structure.Node("tuple", "", f"|{name}|", ends, marks))
    return name, [piece._replace(low=_moved(piece.low, center), high=_moved(piece.high, center)) for piece in pieces]


def _read_conditions(node: structure.Node) -> tuple[str, list[_Piece]]:
    r"""`x \neq 2, 3`, `x > 0, x \neq 1` and `x \in \mathbb{R}, x \neq 0`: all of them hold. One must be `\neq`."""
    excluded = [item for item in node.items if item.kind == "relation" and item.marks == "\\neq"]
    rest = [item for item in node.items if item not in excluded]
    if not excluded or structure.OR_WORD.search(node.text):
        raise _UncertainError
    if rest and all(item.kind == "scalar" and not item.name for item in rest) and node.items[0] in excluded[:1]:
        name, pieces = _read(excluded[0])
        points = [_Piece(_end(item.text), True, _end(item.text), True) for item in rest]
        return name, _difference(pieces, _union(points, []))
    sets = [_read(item) for item in node.items]
    return _only_name([name for name, _ in sets]), functools.reduce(_intersection, (pieces for _, pieces in sets))


def _points(node: structure.Node) -> list[_Piece]:
    if any(item.kind != "scalar" for item in node.items):
        raise _UncertainError
    return [_Piece(end, True, end, True) for end in (_end(item.text) for item in node.items)]


def _end(text: str) -> _End:
    if re.fullmatch(r"[+-]?\s*\\infty", text):
        return _End("-\\infty" if text.startswith("-") else "\\infty", None, -1 if text.startswith("-") else 1)
    number = arithmetic.value(text)
    has_variables = re.search(
        "[A-Za-z]", re.sub(r"\\(?:frac|sqrt|pi|log|ln|cdot)(?![A-Za-z])", "", text).replace("e", "")
    )
    if number is None or has_variables or number.near.imag:
        raise _UncertainError
    return _End(text, number, 0)


_REAL_LINE = _Piece(_end("-\\infty"), False, _end("\\infty"), False)


def _negative(end: _End) -> _End:
    return _end("-\\infty" if end.sign > 0 else "\\infty") if end.sign else _end(f"-({end.text})")


def _moved(end: _End, by: str) -> _End:
    return end if end.sign or by == "0" else _end(f"{end.text}+({by})")


def _order(one: _End, other: _End) -> int:
    """-1, 0 or 1, as one end is below, at or above another."""
    if one.number is None or other.number is None:
        return (one.sign > other.sign) - (one.sign < other.sign)
    if one.number.exact is not None and one.number.exact == other.number.exact:
        return 0
    if canonical_text(one.text) == canonical_text(other.text):
        return 0
    if not values.is_different(one.number, other.number):
        raise _UncertainError
    return 1 if one.number.near.real > other.number.near.real else -1


def _order_of_pieces(one: _Piece, other: _Piece) -> int:
    return _order(one.low, other.low) or other.has_low - one.has_low


def _union(one: list[_Piece], other: list[_Piece]) -> list[_Piece]:
    joined: list[_Piece] = []
    for piece in sorted([*one, *other], key=functools.cmp_to_key(_order_of_pieces)):
        if not joined:
            joined.append(piece)
            continue
        last = joined[-1]
        gap = _order(piece.low, last.high)
        if gap > 0 or (gap == 0 and not (piece.has_low or last.has_high)):
            joined.append(piece)
            continue
        above = _order(piece.high, last.high)
        has_high = piece.has_high if above > 0 else last.has_high or (above == 0 and piece.has_high)
        joined[-1] = last._replace(high=piece.high if above > 0 else last.high, has_high=has_high)
    return joined


def _intersection(one: list[_Piece], other: list[_Piece]) -> list[_Piece]:
    pieces = []
    for left in one:
        for right in other:
            below, above = _order(left.low, right.low), _order(left.high, right.high)
            low, has_low = (left.low, left.has_low) if below > 0 else (right.low, right.has_low)
            has_low = left.has_low and right.has_low if below == 0 else has_low
            high, has_high = (left.high, left.has_high) if above < 0 else (right.high, right.has_high)
            has_high = left.has_high and right.has_high if above == 0 else has_high
            width = _order(low, high)
            if width < 0 or (width == 0 and has_low and has_high):
                pieces.append(_Piece(low, has_low, high, has_high))
    return _union(pieces, [])


def _difference(one: list[_Piece], other: list[_Piece]) -> list[_Piece]:
    for piece in other:
        below = _Piece(_REAL_LINE.low, False, piece.low, not piece.has_low)
        above = _Piece(piece.high, not piece.has_high, _REAL_LINE.high, False)
        # An infinite end has nothing beyond it.
        rest = [part for part in (below, above) if _order(part.low, part.high) < 0]
        one = _intersection(one, rest)
    return one
