r"""The structure of an answer as a tree: lists, sets, tuples, intervals, matrices and equations, with scalars at the leaves.

The kind of a node decides how it is compared. Order matters in a tuple, not in a set. An interval is a tuple of two with its
brackets. A bare list (`1, -2`) has no order and never equals a tuple. `a \pm b` is a list of two; `x > 5` is an interval of x.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from reval_jax.equality import arithmetic, normal, quantities, vocabulary

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
    rf"|\(\s*{_SYMBOL}(?:\s*,\s*{_SYMBOL})+\s*\)|{_SYMBOL}(?:\s*:\s*{_SYMBOL})+|{_SYMBOL}\s*/\s*{_SYMBOL}"
    rf"|\\frac\s*\{{\s*(?:{_SYMBOL}|[A-Z]{{2}})\s*\}}\s*\{{\s*(?:{_SYMBOL}|[A-Z]{{2}})\s*\}}|[fghFGHP]\(\s*-?[0-9]+\s*\)"
)
_NEGATION = re.compile(r"\\(?:not|neg)(?![A-Za-z])|(?<![A-Za-z\\])(?:not?|non|nor|nil|bad|off|inv|mod|log)(?![A-Za-z])")
_AND = r"(?:and|or|AND|OR)(?![a-z])"
_COMMA = re.compile(rf",\s*(?:{_AND})?|(?<![A-Za-z\\]){_AND}")
_SPACED_COMMA = re.compile(rf",\s+(?:{_AND})?|(?<![A-Za-z\\]){_AND}")
OR_WORD = re.compile(r"(?<![A-Za-z\\])(?:or|OR)(?![a-z])")
_AND_WORD = re.compile(r"(?<![A-Za-z\\])(?:and|AND)(?![a-z])")
_CAP = re.compile(r"\\cap(?![A-Za-z])")
_SETMINUS = re.compile(r"\\(?:setminus|backslash|smallsetminus)(?![A-Za-z])|(?<=[\w)}\]])\s*-(?=\s*\\\{)")
_BUILDER = re.compile(rf"\s*({_SYMBOL})\s*(?:\\in\s*(?:\\mathbb\s*\{{?\s*R\s*\}}?|\u211d)\s*)?[|:](.*)", re.DOTALL)
_ROUNDED = re.compile(r"[+-]?[0-9]*(?:\.([0-9]*))?")
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

    kind: str  # scalar, list, set, tuple, union, intersection, difference, builder, relation, chain or matrix
    text: str  # the canonical LaTeX; scalars are compared by it
    name: str = ""  # x in `x = 5`; "" for none
    items: tuple[Node, ...] = ()  # the parts; the sides of a relation
    marks: str = ""  # brackets of a tuple; operators of a relation or a chain; rows of a matrix; a union's comma


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
        return _read_rounded(exact.strip(), [side.strip() for side in rounded], text, depth)
    if _RELATION.search(text):
        relation = _read_relation(text, depth)
        if relation is not None:
            return relation
    for kind, operator in (("union", _CUP), ("intersection", _CAP), ("difference", _SETMINUS)):
        regions = _split(text, operator)
        if len(regions) > 1:
            return Node(kind, text, items=tuple(read(region, depth=depth + 1) for region in regions))
    return _read_bracketed(text, depth)


def _is_name(side: str) -> bool:
    r"""Whether one side of a relation only names the value. Words must be a known quantity: `\text{not} = 5` is not 5."""
    if not _NAME.fullmatch(side) or _NEGATION.search(side):
        return False
    words = re.fullmatch(quantities.TEXT, side)
    return words is None or vocabulary.is_label(words.group(1))


def _read_rounded(exact: str, rounded: list[str], text: str, depth: int) -> Node:
    r"""`x \approx 11` answers 11; `2\sqrt{30} \approx 10.95` answers its exact part."""
    if not exact or (_is_name(exact) and exact != "e"):
        exact, *rounded = rounded
    value = read(exact, depth=depth + 1)
    sides = tuple(Node("scalar", side) for side in rounded)
    return Node("chain", text, value.name, (value, *sides), "\\approx") if rounded else value


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
    # `x < 1 or x > 5` is a union of intervals, `x > 1 and x < 5` an intersection.
    if flat and all(item.kind == "tuple" and item.name and item.text == "" for item in flat):
        name = flat[0].name
        words = {pattern for pattern in (OR_WORD, _AND_WORD) if _split(text, pattern)[1:]}
        if all(item.name == name for item in flat) and len(words) < 2:
            kind = "intersection" if words == {_AND_WORD} else "union"
            marks = "" if words else ","
            return Node(kind, text, name, tuple(item._replace(name="") for item in flat), marks)
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
        values = [
            read(side, depth=depth + 1)
            for index, side in enumerate(sides)
            if not _is_name(side) or index + 1 == len(sides)
        ]
        is_symbol = re.fullmatch(_SYMBOL, sides[-1]) is not None
        # `A = B` is an equation between two unknowns; `f(n) = n` gives the value of f.
        if not values[-1].name and not (is_symbol and "(" not in name):
            return _named(values[0], name) if len(values) == 1 else Node("chain", text, name, tuple(values), "=")
    interval = _read_interval(sides, operators)
    if interval is not None:
        return interval
    items = tuple(Node("scalar", side) for side in sides)
    return Node("relation", text, items=items, marks=" ".join(operators))


def _named(value: Node, name: str) -> Node:
    items = tuple(item._replace(name=name) for item in value.items)
    return value._replace(items=items) if value.kind == "list" else value._replace(name=name)


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
        builder = _BUILDER.fullmatch(text[2:-2])
        if builder:
            return _read_builder(builder[1], builder[2], text, depth)
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


def _read_builder(name: str, condition: str, text: str, depth: int) -> Node:
    r"""`\{x : 2 < x < 9, x \neq 5\}`, whose comma means `and`."""
    parts = [read(part, depth=depth + 1) for part in _split(condition, re.compile(r",|(?<![A-Za-z\\])and(?![a-z])"))]
    if any(part.name not in ("", name, f"|{name}|") for part in parts):
        return Node("scalar", text)
    inner = parts[0] if len(parts) == 1 else Node("intersection", condition, items=tuple(parts))
    return Node("builder", text, items=(inner,))


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
    may equal a set, never a tuple. The brackets of tuples must be the same. Each link of a chain (`x = 2 + 3 = 5`) must hold;
    that of the gold answer is trusted.
    """
    if prediction.name and gold.name and _head(prediction.name) != _head(gold.name):
        return DIFFERENT
    if gold.kind == "relation" != prediction.kind and _is_closed_chain(gold):
        gold = read(gold.items[-1].text, depth=1)
    if gold.kind == "chain":
        return compare(prediction, _chain_value(gold), leaf_compare)
    if prediction.kind == "relation" != gold.kind and not gold.name and set(prediction.marks.split()) == {"="}:
        # `2 + 3 = 5` answers 5; an equation with unequal sides has no value.
        sides = tuple(read(side.text, depth=1) for side in prediction.items)
        prediction = Node("chain", prediction.text, items=sides, marks="=")
    if prediction.kind == "chain":
        return _compare_chain(prediction, gold, leaf_compare)
    kinds = (prediction.kind, gold.kind)
    if "relation" in kinds:
        return leaf_compare(prediction, gold)
    if kinds == ("scalar", "scalar"):
        return leaf_compare(prediction, gold)
    if kinds == ("tuple", "list") or kinds == ("list", "tuple"):
        return _compare_names_with_tuple(prediction, gold, leaf_compare)
    if kinds == ("tuple", "tuple"):
        # `1 < x < 2` is no point, and a gold (1, 2) may be one.
        is_region = prediction.text == "" and gold.text and not gold.name and _may_be_point(gold)
        has_same_marks = prediction.marks == gold.marks and not is_region
        return _compare_in_order(prediction.items, gold.items, leaf_compare) if has_same_marks else DIFFERENT
    if kinds == ("matrix", "matrix"):
        has_same_rows = prediction.marks == gold.marks
        return _compare_in_order(prediction.items, gold.items, leaf_compare) if has_same_rows else DIFFERENT
    if set(kinds) <= {"list", "set"}:
        return _compare_lists(prediction, gold, leaf_compare)
    if kinds[0] == kinds[1] and kinds[0] in ("union", "intersection"):
        return _compare_in_any_order(prediction.items, gold.items, leaf_compare)
    if kinds in (("builder", "builder"), ("difference", "difference")):
        return _compare_in_order(prediction.items, gold.items, leaf_compare)
    if "scalar" in kinds:
        return _compare_scalar_with_structure(prediction, gold, leaf_compare)
    return DIFFERENT


def _is_closed_chain(relation: Node) -> bool:
    """Whether a relation is a chain of equal numbers, without unknowns."""
    has_letters = re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", relation.text))
    return has_letters is None and set(relation.marks.split()) == {"="}


def _chain_value(chain: Node) -> Node:
    """The value that a chain gives: its last side, or the exact one before rounded ones."""
    value = chain.items[0] if chain.marks == "\\approx" else chain.items[-1]
    return _named(value, chain.name) if chain.name else value


def _compare_chain(chain: Node, gold: Node, leaf_compare: LeafCompare) -> Comparison:
    links = itertools.pairwise(chain.items)
    if chain.marks == "\\approx":
        exact = chain.items[0]
        if not all(_rounds_to(exact.items[-1] if exact.kind == "chain" else exact, side) for side in chain.items[1:]):
            return DIFFERENT
        links = itertools.pairwise(())
    outcomes = {compare(one, other, leaf_compare) for one, other in links}
    outcomes.add(compare(_chain_value(chain), gold, leaf_compare))
    return DIFFERENT if DIFFERENT in outcomes else OPEN if OPEN in outcomes else EQUAL


def _rounds_to(exact: Node, rounded: Node) -> bool:
    """Whether a decimal is the nearest one to a value, with as many places."""
    (left, _), (right, _) = arithmetic.split_unit(exact.text), arithmetic.split_unit(rounded.text)
    decimal, number = _ROUNDED.fullmatch(right), normal.number(right)
    value = arithmetic.value(left)
    if exact.kind != "scalar" or value is None or number is None or decimal is None:
        return False
    places = len(decimal[1] or "")
    return bool(abs(value.near - float(number.value)) <= 0.5 * 10**-places + 4 * value.error)


def _may_be_point(node: Node) -> bool:
    return node.marks == "()" and not any("\\infty" in item.text for item in node.items)


def _compare_names_with_tuple(prediction: Node, gold: Node, leaf_compare: LeafCompare) -> Comparison:
    """Compares `m = 3, n = 8` with the point (3, 8), or with (m, n) = (3, 8); never with an interval."""
    point = gold if gold.kind == "tuple" else prediction
    named = prediction if point is gold else gold
    if not _may_be_point(point) or point.text == "":
        return DIFFERENT
    if point.name.startswith("("):
        by_name = {item.name: item._replace(name="") for item in named.items}
        names = point.name.strip("()").split(",")
        values = tuple(by_name[name] for name in names) if set(names) == set(by_name) else ()
    else:
        values = () if point.name else _values_in_name_order(named)
    if not values or len(values) != len(named.items):
        return DIFFERENT
    pair = (values, point.items) if point is gold else (point.items, values)
    return _compare_in_order(*pair, leaf_compare)


def _compare_lists(prediction: Node, gold: Node, leaf_compare: LeafCompare) -> Comparison:
    """Compares lists and sets. Values of different unknowns (`x = 1, y = 2`) are in the order of the gold answer."""
    ours, theirs = ([item.name for item in node.items if item.name] for node in (prediction, gold))
    if ours and theirs:
        # `x = 1 or x = 2` has the values of x_1 and x_2.
        bases = {_base(name) for name in (*ours, *theirs)}
        if min(len(set(ours)), len(set(theirs))) == len(bases) == 1:
            items = tuple(item._replace(name="") for item in gold.items)
            return _compare_in_any_order(prediction.items, items, leaf_compare)
    elif len({_base(name) for name in ours}) > 1:
        return DIFFERENT
    elif len(set(theirs)) > 1:
        return _compare_in_order(prediction.items, gold.items, leaf_compare) if prediction.kind == "list" else DIFFERENT
    if gold.kind == "set" and max(len(prediction.items), len(gold.items)) <= MAX_ITEMS:
        return _compare_as_sets(prediction.items, gold.items, leaf_compare)
    return _compare_in_any_order(prediction.items, gold.items, leaf_compare)


def _base(name: str) -> str:
    """The letter of a name without its arguments and its index: x of x_1."""
    return re.split("[(_']", name)[0]


def _compare_as_sets(one: tuple[Node, ...], other: tuple[Node, ...], leaf_compare: LeafCompare) -> Comparison:
    """Whether each item of either set equals one of the other; an item that is written twice counts once."""
    outcomes = [[compare(left, right, leaf_compare) for right in other] for left in one]
    columns = [*outcomes, *([row[index] for row in outcomes] for index in range(len(other)))]
    best = {EQUAL if EQUAL in column else OPEN if OPEN in column else DIFFERENT for column in columns}
    return DIFFERENT if DIFFERENT in best else OPEN if OPEN in best else EQUAL


def _head(name: str) -> str:
    """The name without its arguments: W of W(n). f(2) and f(3) are two names."""
    return name if re.search("[(][^)]*[0-9]", name) else name.partition("(")[0] or name


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
