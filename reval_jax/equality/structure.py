r"""The structure of an answer as a tree: lists, sets, tuples, intervals, matrices and equations, with scalars at the leaves.

The kind of a node decides how it is compared. Order matters in a tuple, not in a set. An interval is a tuple of two with its
brackets. A bare list (`1, -2`) has no order and never equals a tuple. `a \pm b` is a list of two; `x > 5` is an interval of x.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from reval_jax.equality import normal, quantities, vocabulary

Comparison = Literal["equal", "different", "open"]
EQUAL: Comparison = "equal"
DIFFERENT: Comparison = "different"
OPEN: Comparison = "open"
"""Neither is proved; symbolic algebra has to decide."""

MAX_DEPTH = 6  # levels of nested structures; deeper text is read as one scalar
MAX_ITEMS = 40  # items of a list that are compared in any order; those of a longer list are compared in order

# Left-hand sides that only name the value: x, y_1, f(x), W(n), AB, |AB|, \angle ABC, \text{Area}, (x, y).
_SYMBOL = r"(?:[A-Za-z]|\\(?!frac|sqrt|in\b|pm|mp|cdot|infty|pi\b)[a-z]+)(?:_(?:[A-Za-z0-9]|\\?[a-z]+|\{[^{}]*\}))?'*"
_NAME = re.compile(
    rf"{_SYMBOL}(?:\(\s*{_SYMBOL}(?:\s*,\s*{_SYMBOL})*\s*\))?|[A-Z]{{2,4}}|[a-z]{{2,3}}|\|\s*[A-Za-z]{{1,4}}\s*\|"
    r"|(?:m\s*)?\\(?:angle|triangle|overline|vec|mathbf)\s*\{?\s*(?:[A-Za-z](?:_(?:[0-9]|\{[0-9]\}))?\s*){1,4}\}?"
    r"|\\(?:text|mathrm|operatorname)\s*\{[A-Za-z ]*\}"
    rf"|\(\s*{_SYMBOL}(?:\s*,\s*{_SYMBOL})+\s*\)"
)
_NEGATION = re.compile(r"\\(?:not|neg)(?![A-Za-z])|(?<![A-Za-z\\])(?:not?|non|nor|nil)(?![A-Za-z])")
_AND = r"(?:and|or|AND|OR)(?![a-z])"
_COMMA = re.compile(rf",\s*(?:{_AND})?|(?<![A-Za-z\\]){_AND}")
_SPACED_COMMA = re.compile(rf",\s+(?:{_AND})?|(?<![A-Za-z\\]){_AND}")
_SEMICOLON = re.compile(r";")
_CUP = re.compile(r"\\cup(?![A-Za-z])")
_APPROX = re.compile(r"\\approx(?![A-Za-z])")
_RELATION = re.compile(r"\\(?:le|ge|neq|in)(?![A-Za-z])|<=|>=|!=|[<>=]")
_OPERATORS = {"<=": r"\le", ">=": r"\ge", "!=": r"\neq"}
_FLIPPED = {">": "<", r"\ge": r"\le"}
_MATRIX = re.compile(
    r"[(\[]?\s*\\begin\{(?:[pb]?matrix|array)\}(?:\{[clr| ]*\})?(.*?)\\end\{(?:[pb]?matrix|array)\}\s*[)\]]?", re.DOTALL
)
_PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])")


class Node(NamedTuple):
    """An answer, or a part of one."""

    kind: str  # scalar, list, set, tuple, union, relation or matrix
    text: str  # the canonical LaTeX; scalars are compared by it
    name: str = ""  # x in `x = 5`; "" for none
    items: tuple[Node, ...] = ()  # the parts; the sides of a relation
    marks: str = ""  # brackets of a tuple; operators of a relation; rows of a matrix


LeafCompare = Callable[[Node, Node], Comparison]


def read(text: str, *, depth: int = 0) -> Node:
    """The structure of a text in canonical LaTeX."""
    text = normal.strip(text)
    if normal.number(text) is not None or depth >= MAX_DEPTH:
        return Node("scalar", text)
    groups = _split(text, _SEMICOLON)
    if len(groups) > 1:
        return _read_list((_as_group(read(group, depth=depth + 1)) for group in groups), text)
    items = _split_list(text)
    if len(items) > 1:
        return _read_list((read(item, depth=depth + 1) for item in items), text)
    exact, *rounded = _split(text, _APPROX)
    if rounded:
        # `x \approx 11` answers 11; `2\sqrt{30} \approx 10.95` answers its exact part.
        is_named = not exact.strip() or _is_name(exact.strip())
        return read(rounded[0] if is_named else exact, depth=depth + 1)
    if _RELATION.search(text):
        relation = _read_relation(text, depth)
        if relation is not None:
            return relation
    regions = _split(text, _CUP)
    if len(regions) > 1:
        return Node("union", text, items=tuple(read(region, depth=depth + 1) for region in regions))
    return _read_bracketed(text, depth)


def _split_list(text: str) -> list[str]:
    """Parts of a bare list; `1,234, 5` has two, because no space follows a comma inside a number."""
    spaced = _split(text, _SPACED_COMMA)
    if len(spaced) == 1 or not all(part.strip() for part in spaced):
        spaced = [text]
    parts: list[str] = []
    for part in spaced:
        parts += [part] if normal.number(part.strip()) else _split(part, _COMMA)
    return [part for part in parts if part.strip()] if all(part.strip() for part in parts[:-1]) else [text]


def _read_list(items: Iterable[Node], text: str) -> Node:
    flat: list[Node] = []
    for item in items:
        flat += item.items if item.kind == "list" else [item]
    # `x < 1 or x > 5` is a union of intervals.
    if flat and all(item.kind == "tuple" and item.name and item.text == "" for item in flat):
        name = flat[0].name
        if all(item.name == name for item in flat):
            return Node("union", text, name, tuple(item._replace(name="") for item in flat))
    return Node("list", text, items=tuple(flat))


def _as_group(node: Node) -> Node:
    """`p = 5, q = 2` between semicolons as the tuple (5, 2)."""
    values = _values_in_name_order(node)
    return Node("tuple", node.text, items=values, marks="()") if values else node


def _values_in_name_order(node: Node) -> tuple[Node, ...]:
    names = [item.name for item in node.items]
    if node.kind != "list" or not all(names) or names != sorted(set(names)):
        return ()
    return tuple(item._replace(name="") for item in node.items)


def _read_relation(text: str, depth: int) -> Node | None:
    operators = [_OPERATORS.get(symbol, symbol) for symbol in _separators_outside_brackets(text, _RELATION)]
    sides = [side.strip() for side in _split(text, _RELATION)]
    if not operators or not all(sides):
        return None
    name = normal.canonical_text(sides[0]) if _is_name(sides[0]) else ""
    if name and operators == [r"\in"]:
        return read(sides[1], depth=depth + 1)._replace(name=name)
    if name and set(operators) == {"="}:
        value = read(sides[-1], depth=depth + 1)
        is_symbol = re.fullmatch(_SYMBOL, sides[-1]) is not None
        # `A = B` is an equation between two unknowns; `f(n) = n` gives the value of f.
        if not value.name and not (is_symbol and "(" not in name):
            items = tuple(item._replace(name=name) for item in value.items)
            return value._replace(items=items) if value.kind == "list" else value._replace(name=name)
    interval = _read_interval(sides, operators)
    if interval is not None:
        return interval
    items = tuple(Node("scalar", side) for side in sides)
    return Node("relation", text, items=items, marks=" ".join(operators))


def _is_name(side: str) -> bool:
    r"""Whether one side of a relation only names the value. Words must be a known quantity: `\text{not} = 5` is not 5."""
    if not _NAME.fullmatch(side) or _NEGATION.search(side):
        return False
    words = re.fullmatch(quantities.TEXT, side)
    return words is None or vocabulary.is_label(words.group(1))


def _read_interval(sides: list[str], operators: list[str]) -> Node | None:
    r"""`-2 \le x < 7` and `x > 5` as intervals of x; None for other relations."""
    if operators[0] in _FLIPPED:
        sides, operators = sides[::-1], [_FLIPPED.get(operator, "") for operator in operators[::-1]]
    if not all(operator in ("<", r"\le") for operator in operators):
        return None
    if len(sides) == 2 and _is_name(sides[0]):
        sides, operators = ["-\\infty", *sides], ["<", *operators]
    elif len(sides) == 2 and _is_name(sides[1]):
        sides, operators = [*sides, "\\infty"], [*operators, "<"]
    if len(sides) != 3 or not _is_name(sides[1]) or re.search("[A-Za-z]", re.sub(r"\\[a-z]+", "", sides[0] + sides[2])):
        return None
    marks = ("(" if operators[0] == "<" else "[") + (")" if operators[1] == "<" else "]")
    # The text is empty, because the answer was written as a relation.
    ends = (Node("scalar", sides[0]), Node("scalar", sides[2]))
    return Node("tuple", "", normal.canonical_text(sides[1]), ends, marks)


def _read_bracketed(text: str, depth: int) -> Node:
    matrix = _MATRIX.fullmatch(text)
    if matrix:
        rows = [row.split("&") for row in re.split(r"\\\\", matrix.group(1)) if row.strip()]
        cells = tuple(Node("scalar", normal.strip(cell)) for row in rows for cell in row)
        return Node("matrix", text, items=cells, marks=",".join(str(len(row)) for row in rows))
    if text.startswith("\\{") and normal.encloses(text, 1) and text.endswith("\\}"):
        inner = read(text[2:-2], depth=depth + 1) if text[2:-2].strip() else None
        items = () if inner is None else inner.items if inner.kind == "list" else (inner,)
        return Node("set", text, items=items)
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and normal.encloses(text):
        parts = _split(text[1:-1], re.compile("[,;]"))
        if len(parts) > 1 and all(part.strip() for part in parts):
            items = tuple(read(part, depth=depth + 1) for part in parts)
            return Node("tuple", text, items=items, marks=text[0] + text[-1])
        if text[0] == "(" and text[-1] == ")":
            inner_text = normal.strip(text, "({")
            # All parentheses go at once, so that a thousand redundant ones cost one level.
            return read(inner_text, depth=depth + 1) if not inner_text.startswith("(") else Node("scalar", inner_text)
    if len(_PLUS_MINUS.findall(text)) == 1:
        both = tuple(Node("scalar", normal.strip(_PLUS_MINUS.sub(sign, text).lstrip("+ "))) for sign in ("+", "-"))
        return Node("list", text, items=both)
    return Node("scalar", text)


def _split(text: str, separator: re.Pattern[str]) -> list[str]:
    """Parts of the text between the separators outside all brackets."""
    begin, parts = 0, []
    for match in _matches_outside_brackets(text, separator):
        parts.append(text[begin : match.start()])
        begin = match.end()
    return [*parts, text[begin:]]


def _separators_outside_brackets(text: str, separator: re.Pattern[str]) -> list[str]:
    return [match.group() for match in _matches_outside_brackets(text, separator)]


def _matches_outside_brackets(text: str, separator: re.Pattern[str]) -> list[re.Match[str]]:
    """Matches outside all brackets and environments."""
    matches = list(separator.finditer(text))
    if not matches:
        return []
    depths, depth = [], 0
    for bracket in re.finditer(r"[({\[)}\]]|\\begin|\\end", text):
        depth += 1 if bracket.group() in ("(", "{", "[", "\\begin") else -1
        depths.append((bracket.start(), depth))
    outside, index, depth = [], 0, 0
    for match in matches:
        while index < len(depths) and depths[index][0] < match.start():
            depth, index = depths[index][1], index + 1
        if depth == 0:
            outside.append(match)
    return outside


def compare(prediction: Node, gold: Node, leaf_compare: LeafCompare) -> Comparison:
    """Whether two answers are equal. `leaf_compare` compares scalars and relations.

    A name (`x =`) may be missing on one side, but two names must be equal. Order matters except in sets and bare lists. A list
    may equal a set, never a tuple. The brackets of tuples must be the same.
    """
    if prediction.name and gold.name and _head(prediction.name) != _head(gold.name):
        return DIFFERENT
    kinds = (prediction.kind, gold.kind)
    if "relation" in kinds:
        return leaf_compare(prediction, gold)
    if kinds == ("scalar", "scalar"):
        return leaf_compare(prediction, gold)
    if kinds == ("tuple", "list") or kinds == ("list", "tuple"):
        one, other = (_values_in_name_order(node) or node.items for node in (prediction, gold))
        is_named = any(_values_in_name_order(node) for node in (prediction, gold))
        return _compare_in_order(one, other, leaf_compare) if is_named else DIFFERENT
    if kinds in (("tuple", "tuple"), ("matrix", "matrix")):
        has_same_marks = prediction.marks == gold.marks
        return _compare_in_order(prediction.items, gold.items, leaf_compare) if has_same_marks else DIFFERENT
    if set(kinds) <= {"list", "set"} or kinds == ("union", "union"):
        return _compare_in_any_order(prediction.items, gold.items, leaf_compare)
    if "scalar" in kinds:
        return _compare_scalar_with_structure(prediction, gold, leaf_compare)
    return DIFFERENT if "union" not in kinds else OPEN


def _head(name: str) -> str:
    """The name without its arguments: W of W(n)."""
    return name.partition("(")[0] or name


def _compare_scalar_with_structure(prediction: Node, gold: Node, leaf_compare: LeafCompare) -> Comparison:
    """Compares a scalar with a structure. A predicted scalar may equal a gold set of one element, never a tuple or matrix."""
    one, many = (prediction, gold) if prediction.kind == "scalar" else (gold, prediction)
    if one is prediction and many.kind == "set" and len(many.items) == 1:
        return compare(one, many.items[0], leaf_compare)
    # A symbol may name the whole structure: `\mathbb{R}`, `\emptyset`.
    return OPEN if re.search(r"\\(?:mathbb|emptyset|mathbf|vec)", one.text) else DIFFERENT


def _compare_in_order(one: tuple[Node, ...], other: tuple[Node, ...], leaf_compare: LeafCompare) -> Comparison:
    if len(one) != len(other):
        return DIFFERENT
    outcomes = set()
    for pair in zip(one, other, strict=True):
        outcomes.add(compare(*pair, leaf_compare))
        if DIFFERENT in outcomes:
            return DIFFERENT
    return OPEN if OPEN in outcomes else EQUAL


def _compare_in_any_order(one: tuple[Node, ...], other: tuple[Node, ...], leaf_compare: LeafCompare) -> Comparison:
    if len(one) != len(other):
        return DIFFERENT
    if len(one) > MAX_ITEMS:
        return _compare_in_order(one, other, leaf_compare)
    candidates, is_open = list(other), False
    for item in one:
        outcomes = []
        for index, candidate in enumerate(candidates):
            outcomes.append(compare(item, candidate, leaf_compare))
            if outcomes[-1] == EQUAL:
                del candidates[index]
                break
        else:
            if OPEN not in outcomes:
                return DIFFERENT
            # The pairing is undecided, and it can change the comparison of the remaining items.
            is_open = True
    return OPEN if is_open else EQUAL
