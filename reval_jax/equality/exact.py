"""The fast path: rational arithmetic, text and structure prove answers equal or different, without algebra.

Undecided pairs stay open, for `symbolic`. No rule has a tolerance: a decimal is its exact fraction, and a percentage is a
number with a unit.
"""

from __future__ import annotations

import functools
import itertools
import re

from reval_jax.equality import arithmetic, choices, normal, notation, regions, structure, values

_WORD = re.compile("[A-Za-z][A-Za-z ]*")
_BASED = re.compile(r"([0-9][0-9a-f]*|[a-f][0-9a-f]+)_(?:([0-9])|\{\s*([0-9]{1,2})\s*\})", re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
_POINTS: tuple[arithmetic.Point, ...] = (
    arithmetic.near_one,
    lambda name: arithmetic.near_one(name + "'"),
)  # the second point: other values, drawn by another name
_INFINITY = re.compile(r"[+-]?\\infty")


def compare(prediction: str, gold: str) -> structure.Comparison:
    """Whether two answers within the size limits are equal, different, or still open."""
    one, other = read(prediction), read(gold)
    is_same_kind = (one.kind, one.name) == (other.kind, other.name) and one.text != ""
    if is_same_kind and normal.canonical_text(one.text) == normal.canonical_text(other.text):
        return structure.EQUAL
    return compare_nodes(one, other, compare_leaves)


def compare_nodes(
    one: structure.Node, other: structure.Node, leaf_compare: structure.LeafCompare
) -> structure.Comparison:
    """`structure.compare`, plus two rules for whole answers, not for their parts: choices with content, decimal commas."""
    if choices.is_letter(other.text):
        return _decided(choices.letter(one.text) == choices.letter(other.text))
    if choices.is_letter(one.text) and choices.letter(other.text):
        # The gold answer holds its option's text too: `(C) 12`.
        return _decided(choices.letter(one.text) == choices.letter(other.text))
    decimals = _decimal_comma(one, other) or _decimal_comma(other, one)
    return structure.EQUAL if decimals else structure.compare(one, other, leaf_compare)


@functools.lru_cache(maxsize=4096)
def read(answer: str) -> structure.Node:
    """The structure of an answer."""
    return regions.normal(structure.read(notation.canonical_latex(answer)))


def normal_form(answer: str) -> str:
    """The normal form in which maj@k counts answers: the same for equal numbers and for equal texts."""
    return _write(read(answer))


def _write(node: structure.Node) -> str:
    if node.kind == "scalar":
        number = normal.number(node.text)
        constants = () if number else _text_values(node.text)
        exact = number.value if number else constants[0].exact if len(constants) == 1 else None
        return normal.canonical_text(node.text) if exact is None else str(exact)
    parts = [_write(item) for item in node.items]
    if node.kind in ("list", "set"):
        return ", ".join(sorted(parts))
    if node.kind == "tuple":
        return node.marks[0] + ", ".join(parts) + node.marks[1]
    return normal.canonical_text(node.text)


def _decimal_comma(one: structure.Node, other: structure.Node) -> bool:
    """Whether `1000,99` means the other side's 1000.99. A comma before three digits separates thousands."""
    if not _DECIMAL_COMMA.fullmatch(one.text) or normal.number(one.text) or "." not in other.text:
        return False
    first, second = normal.number(one.text.replace(",", ".")), normal.number(other.text)
    return first is not None and second is not None and first.value == second.value


def compare_leaves(prediction: structure.Node, gold: structure.Node) -> structure.Comparison:
    """Compares two scalars or relations; an equation stays open unless it is a chain of equal numbers."""
    if "relation" in (prediction.kind, gold.kind):
        return _compare_relations(prediction, gold)
    one, other = normal.number(prediction.text), normal.number(gold.text)
    if one and other:
        return _decided(normal.is_same_number(one, other))
    left, left_unit = arithmetic.split_unit(prediction.text)
    right, right_unit = arithmetic.split_unit(gold.text)
    if not _is_unit_equal(left_unit or (one.unit if one else ""), right_unit or (other.unit if other else "")):
        return structure.DIFFERENT
    if (left_form := normal.canonical_text(left)) == (right_form := normal.canonical_text(right)):
        return structure.EQUAL
    return _compare_texts(left_form, right_form) or _compare_clocks(left, right) or _compare_values(left, right)


def _decided(is_equal: bool) -> structure.Comparison:
    return structure.EQUAL if is_equal else structure.DIFFERENT


def _is_unit_equal(one: str, other: str) -> bool:
    return one == other or not one or not other


def _compare_relations(prediction: structure.Node, gold: structure.Node) -> structure.Comparison:
    if prediction.kind == "relation" == gold.kind:
        one, other = normal.canonical_text(prediction.text), normal.canonical_text(gold.text)
        if prediction.marks == gold.marks and one == other:
            return structure.EQUAL
        return structure.DIFFERENT if _is_out_of_proportion(prediction, gold) else structure.OPEN
    # A named value or a half-line may be an equation or inequality too.
    named = prediction if gold.kind == "relation" else gold
    return structure.OPEN if named.name else structure.DIFFERENT


def _is_out_of_proportion(prediction: structure.Node, gold: structure.Node) -> bool:
    """Whether the differences (left side minus right) of two relations are certainly not proportional."""
    if len(prediction.items) != 2 or len(gold.items) != 2:
        return False
    pairs = []
    for point in _POINTS:
        one, other = (_difference(node, point) for node in (prediction, gold))
        pairs.append((one, other))
    return values.is_out_of_proportion(pairs)


def _difference(relation: structure.Node, point: arithmetic.Point) -> values.Value | None:
    """The left side minus the right side; None if one is unknown."""
    left, right = (arithmetic.value(side.text, point=point) for side in relation.items)
    return None if left is None or right is None else arithmetic.FLOATS.add(left, arithmetic.FLOATS.negate(right))


def _compare_texts(one: str, other: str) -> structure.Comparison | None:
    """Compares words, infinities and numerals with a base; None for anything else."""
    if _WORD.fullmatch(one) and _WORD.fullmatch(other):
        # The case of a single letter matters (a variable or a choice), that of a word does not.
        return _decided(min(len(one), len(other)) > 1 and one.lower() == other.lower())
    for text, beside in ((one, other), (other, one)):
        if re.fullmatch("[A-Za-z]{4,}[A-Za-z ]*", text):
            return structure.DIFFERENT
        if _INFINITY.fullmatch(text) and (normal.number(beside) or _INFINITY.fullmatch(beside)):
            return _decided(text.lstrip("+") == beside.lstrip("+"))
    # `3.14\ldots` is a number that only its writer knows; algebra would drop the dots.
    if ("\\ldots" in one) != ("\\ldots" in other):
        return structure.DIFFERENT
    based = _based(one), _based(other)
    if all(based):
        return _decided(based[0] == based[1])
    if any(based) and (_text_values(one) or _text_values(other)):
        return structure.DIFFERENT
    return None


def _based(text: str) -> tuple[str, int] | None:
    """The digits, in lower case, and the base of a numeral like `1A_{16}`; None if the text is none."""
    match = _BASED.fullmatch(text)
    if match is None:
        return None
    digits, base = match.group(1).lower().lstrip("0"), int(match.group(2) or match.group(3))
    # Letters are digits above ten only; `ab_1` is a variable.
    return (digits, base) if digits.isdigit() or all(int(digit, 16) < base for digit in digits) else None


def _compare_clocks(one: str, other: str) -> structure.Comparison | None:
    """Compares clocks and ratios (`12:30`, `3 : 5 : 7`) part by part; None if neither side is one."""
    sides = [text.split(":") for text in (one, other)]
    if len(sides[0]) == len(sides[1]) == 1 or not all(all(part.strip() for part in side) for side in sides):
        return None
    if len(sides[0]) != len(sides[1]):
        is_different = min(map(len, sides)) > 1 or _text_values(one) or _text_values(other)
        return structure.DIFFERENT if is_different else structure.OPEN
    pairs = [(structure.read(a), structure.read(b)) for a, b in zip(*sides, strict=True)]
    outcomes = {compare_leaves(*pair) for pair in pairs}
    return structure.EQUAL if outcomes == {structure.EQUAL} else structure.DIFFERENT


def _compare_values(one: str, other: str) -> structure.Comparison:
    left, right = _text_values(one), _text_values(other)
    if left and right and all(values.is_different(*pair) for pair in itertools.product(left, right)):
        return structure.DIFFERENT
    has_one_reading = len(left) == len(right) == 1
    if has_one_reading and left[0].exact is not None and left[0].exact == right[0].exact:
        return structure.EQUAL
    return structure.OPEN


@functools.lru_cache(maxsize=4096)
def _text_values(text: str) -> tuple[values.Value, ...]:
    """The values of a text, one for each reading; empty if it cannot be read."""
    number = normal.number(text)
    if number is None:
        return arithmetic.readings(text)
    try:
        return (arithmetic.FLOATS.rational(number.value),)
    except values.UnreadableError:
        return ()
