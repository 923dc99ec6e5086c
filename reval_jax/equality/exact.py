"""The fast path: answers proved equal or different by rational arithmetic, text and structure, without algebra.

What is neither is left open, for `symbolic`. No rule has a tolerance: a decimal is its exact fraction, and a percentage
is a number with a unit.
"""

from __future__ import annotations

import functools
import itertools
import re

from reval_jax.equality import arithmetic, normal, structure, values

_WORD = re.compile("[A-Za-z][A-Za-z ]*")
# `(C) a plane`, in `normal.form`; content that names another choice, or goes on with one, makes it two answers.
_CHOICE_WITH_CONTENT = re.compile(
    r"\(?([A-J])(?:\)|\.|:|\)\.|\):)(?=[^\s),;&/])(?!.*(?<![A-Za-z\\])[A-J](?![A-Za-z])|.*\([a-j]\)).*", re.DOTALL
)
_BASED = re.compile(r"([0-9]+)_(?:([0-9])|\{\s*([0-9]{1,2})\s*\})")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
_POINTS: tuple[arithmetic.Point, ...] = (arithmetic.near_one, lambda name: arithmetic.near_one(name + "'"))
_INFINITY = re.compile(r"[+-]?\\infty")


def compare(prediction: str, gold: str) -> structure.Outcome:
    """Whether two answers within the size limits are equal, different, or not decided here."""
    one, other = read(prediction), read(gold)
    is_alike = (one.kind, one.name) == (other.kind, other.name) and one.text != ""
    if is_alike and normal.form(one.text) == normal.form(other.text):
        return structure.EQUAL
    return compare_nodes(one, other, leaf)


def compare_nodes(one: structure.Node, other: structure.Node, leaf: structure.Leaf) -> structure.Outcome:
    """`structure.compare`, with the readings of a whole answer that no part of one has."""
    choice = _CHOICE_WITH_CONTENT.fullmatch(normal.form(one.text))
    if choice and re.fullmatch(r"\(?[A-J]\)?", other.text):
        return structure.EQUAL if choice.group(1) == other.text.strip("()") else structure.DIFFERENT
    decimals = _decimal_comma(one, other) or _decimal_comma(other, one)
    return structure.EQUAL if decimals else structure.compare(one, other, leaf)


@functools.lru_cache(maxsize=4096)
def read(answer: str) -> structure.Node:
    """The structure of an answer."""
    return structure.read(normal.spelled(answer))


def normal_form(answer: str) -> str:
    """The answer in the spelling that answers are counted by: equal numbers and equal texts are spelled alike."""
    return _written(read(answer))


def _written(node: structure.Node) -> str:
    if node.kind == "scalar":
        number = normal.number(node.text)
        constants = () if number else _constants(node.text)
        exact = number.value if number else constants[0].exact if len(constants) == 1 else None
        return normal.form(node.text) if exact is None else str(exact)
    parts = [_written(item) for item in node.items]
    if node.kind in ("list", "set"):
        return ", ".join(sorted(parts))
    if node.kind == "tuple":
        return node.marks[0] + ", ".join(parts) + node.marks[1]
    return normal.form(node.text)


def _decimal_comma(one: structure.Node, other: structure.Node) -> bool:
    """Whether `1000,99` stands for the other side's 1000.99. A comma before three digits separates thousands."""
    if not _DECIMAL_COMMA.fullmatch(one.text) or normal.number(one.text) or "." not in other.text:
        return False
    first, second = normal.number(one.text.replace(",", ".")), normal.number(other.text)
    return first is not None and second is not None and first.value == second.value


def leaf(prediction: structure.Node, gold: structure.Node) -> structure.Outcome:
    """Whether two scalars are equal; an equation is left open, unless it is a chain of equal numbers."""
    if "relation" in (prediction.kind, gold.kind):
        return _relations(prediction, gold)
    one, other = normal.number(prediction.text), normal.number(gold.text)
    if one and other:
        return _known(one.value == other.value and _is_unit_equal(one.unit, other.unit))
    left, left_unit = normal.without_unit(prediction.text)
    right, right_unit = normal.without_unit(gold.text)
    if not _is_unit_equal(left_unit or (one.unit if one else ""), right_unit or (other.unit if other else "")):
        return structure.DIFFERENT
    if (left_form := normal.form(left)) == (right_form := normal.form(right)):
        return structure.EQUAL
    return _texts(left_form, right_form) or _clocks(left, right) or _values(left, right)


def _known(is_equal: bool) -> structure.Outcome:
    return structure.EQUAL if is_equal else structure.DIFFERENT


def _is_unit_equal(one: str, other: str) -> bool:
    return one == other or not one or not other


def _relations(prediction: structure.Node, gold: structure.Node) -> structure.Outcome:
    if prediction.kind == "relation" == gold.kind:
        if prediction.marks == gold.marks and normal.form(prediction.text) == normal.form(gold.text):
            return structure.EQUAL
        return structure.DIFFERENT if _is_out_of_proportion(prediction, gold) else structure.OPEN
    if gold.kind == "relation" or set(prediction.marks.split()) != {"="}:
        named = prediction if gold.kind == "relation" else gold
        return structure.OPEN if named.name else structure.DIFFERENT
    if gold.name:
        return structure.OPEN
    values = [arithmetic.value(side.text) for side in prediction.items]
    first = values[0].exact if values[0] else None
    # `2 + 3 = 5` answers 5; an equation whose sides are not the same number is no value.
    if first is None or any(value is None or value.exact != first for value in values):
        return structure.DIFFERENT
    return structure.compare(prediction.items[-1], gold, leaf)


def _is_out_of_proportion(prediction: structure.Node, gold: structure.Node) -> bool:
    """Whether the differences of the sides of two relations are surely no multiples of each other."""
    if len(prediction.items) != 2 or len(gold.items) != 2:
        return False
    pairs = []
    for point in _POINTS:
        ends = [[arithmetic.value(side.text, point=point) for side in node.items] for node in (prediction, gold)]
        differences = [values.difference(sides[0], sides[1], values.FLOATS) for sides in ends]
        pairs.append((differences[0], differences[1]))
    return values.ratio_sign(pairs, values.FLOATS, share=0) == 0


def _texts(one: str, other: str) -> structure.Outcome | None:
    """What words, infinities and based numerals decide; None where it is arithmetic."""
    if _WORD.fullmatch(one) and _WORD.fullmatch(other):
        # A letter is a variable or a choice, and has a case; a word has none.
        return _known(min(len(one), len(other)) > 1 and one.lower() == other.lower())
    for text, beside in ((one, other), (other, one)):
        if re.fullmatch("[A-Za-z]{4,}[A-Za-z ]*", text):
            return structure.DIFFERENT
        if _INFINITY.fullmatch(text) and (normal.number(beside) or _INFINITY.fullmatch(beside)):
            return _known(text.lstrip("+") == beside.lstrip("+"))
    based = _BASED.fullmatch(one), _BASED.fullmatch(other)
    if all(based):
        numerals = [(found.group(1).lstrip("0"), found.group(2) or found.group(3)) for found in based if found]
        return _known(numerals[0] == numerals[1])
    if any(based) and (_constants(one) or _constants(other)):
        return structure.DIFFERENT
    return None


def _clocks(one: str, other: str) -> structure.Outcome | None:
    """What `12:30` and `3 : 5 : 7` are: numbers in order, each compared; None where no side is one."""
    sides = [text.split(":") for text in (one, other)]
    if len(sides[0]) == len(sides[1]) == 1 or not all(all(part.strip() for part in side) for side in sides):
        return None
    if len(sides[0]) != len(sides[1]):
        return (
            structure.DIFFERENT if min(map(len, sides)) > 1 or _constants(one) or _constants(other) else structure.OPEN
        )
    pairs = [(structure.read(a), structure.read(b)) for a, b in zip(*sides, strict=True)]
    outcomes = {leaf(*pair) for pair in pairs}
    return structure.EQUAL if outcomes == {structure.EQUAL} else structure.DIFFERENT


def _values(one: str, other: str) -> structure.Outcome:
    left, right = _constants(one), _constants(other)
    if left and right and all(values.is_different(*pair) for pair in itertools.product(left, right)):
        return structure.DIFFERENT
    is_read_in_one_way = len(left) == len(right) == 1
    if is_read_in_one_way and left[0].exact is not None and left[0].exact == right[0].exact:
        return structure.EQUAL
    return structure.OPEN


@functools.lru_cache(maxsize=4096)
def _constants(text: str) -> tuple[values.Value, ...]:
    """The values of a text, one for each way to read it; none where it is not read."""
    number = normal.number(text)
    if number is None:
        return arithmetic.readings(text)
    try:
        return (values.Calculator(values.FLOATS).rational(number.value),)
    except values.UnreadableError:
        return ()
