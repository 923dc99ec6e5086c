"""Tasks and their levels of difficulty, each a numbered set of problems.

A level is a function from a number to a problem, so a data set is a sequence of numbers and no problem is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

DIGITS = "0123456789abcdef"
"""Digits of bases up to 16."""


class Problem(NamedTuple):
    """One problem, in every wording."""

    key: str  # identifies the problem: problems that differ only in order (`2+3`, `3+2`) share it, and so their split
    raw: str  # a prompt to be continued, such as `2+3=`
    sentence: str  # a question for a chat
    answer: str  # gold answer, or `@NAME:payload` where a checker decides
    expression: str = ""  # the expression to evaluate, if that is the whole problem


class Level(NamedTuple):
    """Problems of one difficulty."""

    about: str  # description for people
    total: int  # `problem` accepts the numbers 0 .. total - 1
    problem: Callable[[int], Problem | None]  # returns None for a number without a problem


def _digits(number: int, *sizes: int) -> list[int]:
    """The number in mixed radix: one digit below each of `sizes`; the last digit varies fastest."""
    digits = []
    for size in reversed(sizes):
        number, digit = divmod(number, size)
        digits.append(digit)
    return digits[::-1]


def _evaluation(expression: str, answer: int, *, key: str = "") -> Problem:
    """The problem of evaluating an expression, which is written with single spaces."""
    return Problem(
        key=key or expression,
        raw=expression.replace(" ", "") + "=",
        sentence=f"What is {expression}?",
        answer=str(answer),
        expression=expression,
    )


def _sum(one: int, other: int) -> Problem:
    return _evaluation(f"{one} + {other}", one + other, key=f"{min(one, other)} + {max(one, other)}")


def _product(one: int, other: int) -> Problem:
    return _evaluation(f"{one} * {other}", one * other, key=f"{min(one, other)} * {max(one, other)}")


def _sum_or_difference(number: int, ones: range, others: range) -> Problem | None:
    is_sum, i, j = _digits(number, 2, len(ones), len(others))
    one, other = ones[i], others[j]
    if is_sum:
        return _sum(one, other)
    return _evaluation(f"{one} - {other}", one - other) if one >= other else None


def _product_or_quotient(number: int) -> Problem:
    is_product, one, other = _digits(number, 2, 98, 11)
    one, other = one + 2, other + 2
    return _product(one, other) if is_product else _evaluation(f"{one * other} / {other}", one)


def _three_terms(number: int) -> Problem | None:
    form, a, b, c = _digits(number, 4, 19, 19, 8)
    a, b, c = a + 2, b + 2, c + 2
    if form == 0:
        return _evaluation(f"{a} + {b} * {c}", a + b * c, key=f"{a} + {min(b, c)} * {max(b, c)}")
    if form == 1:
        return _evaluation(f"({a} + {b}) * {c}", (a + b) * c, key=f"({min(a, b)} + {max(a, b)}) * {c}")
    if form == 2:
        key = f"{min(a, c)} * {max(a, c)} - {b}"
        return _evaluation(f"{a} * {c} - {b}", a * c - b, key=key) if a * c >= b else None
    return _evaluation(f"({a} - {b}) * {c}", (a - b) * c) if a >= b else None


def _long_terms(number: int) -> Problem | None:
    form, a, b, c = _digits(number, 3, 900, 90, 90)
    a, b, c = a + 100, b + 10, c + 10
    if form == 0:
        return _evaluation(f"{a} * {b} + {c}", a * b + c)
    if form == 1:
        return _evaluation(f"({a} - {b}) * {c}", (a - b) * c)
    return _evaluation(f"{a} * ({b} - {c})", a * (b - c)) if b > c else None


ARITHMETIC = (
    Level("sums of two one-digit numbers", 100, lambda number: _sum(*_digits(number, 10, 10))),
    Level(
        "a two-digit number plus or minus a one-digit one",
        2 * 90 * 9,
        lambda number: _sum_or_difference(number, range(10, 100), range(1, 10)),
    ),
    Level(
        "sums and differences of two two-digit numbers, not below 0",
        2 * 90 * 90,
        lambda number: _sum_or_difference(number, range(10, 100), range(10, 100)),
    ),
    Level("products of 2 to 99 with 2 to 12, and the quotients back", 2 * 98 * 11, _product_or_quotient),
    Level("three numbers, two operations, parentheses", 4 * 19 * 19 * 8, _three_terms),
    Level("a three-digit and two two-digit numbers, one of the operations a product", 3 * 900 * 90 * 90, _long_terms),
)


def in_base(value: int, base: int) -> str:
    """A whole number of at least 0 written in a base from 2 to 16, in lower case."""
    text = DIGITS[value % base]
    while value >= base:
        value //= base
        text = DIGITS[value % base] + text
    return text


def _conversion(number: int, bases: tuple[tuple[int, int], ...], values: range) -> Problem:
    pair, index = _digits(number, len(bases), len(values))
    (source, target), value = bases[pair], values[index]
    digits, converted = in_base(value, source), in_base(value, target)
    return Problem(
        key=f"{digits} {source} {target}",
        raw=f"{digits} (base {source}) in base {target}=",
        sentence=f"The number {digits} is written in base {source}. Write it in base {target}.",
        # The checker knows that ff, FF and 0xff are equal, and that 1e3 in base 16 is not a power of ten.
        answer=converted if target == 10 else f"@base_conversion:{target},{converted}",
    )


_DECIMAL_PAIRS = tuple(pair for base in (2, 8, 16) for pair in ((10, base), (base, 10)))
_ALL_PAIRS = tuple((source, target) for source in range(2, 17) for target in range(2, 17) if source != target)

BASE_CONVERSION = (
    Level("2 to 63, base 10 to 2 and back", 2 * 62, lambda n: _conversion(n, ((10, 2), (2, 10)), range(2, 64))),
    Level(
        "16 to 1023, base 10 to 2, 8 or 16 and back",
        len(_DECIMAL_PAIRS) * 1008,
        lambda n: _conversion(n, _DECIMAL_PAIRS, range(16, 1024)),
    ),
    Level(
        "256 to 65535, any two of the bases 2 to 16",
        len(_ALL_PAIRS) * 65280,
        lambda n: _conversion(n, _ALL_PAIRS, range(256, 65536)),
    ),
)


def _remainder(number: int) -> Problem:
    value, modulus = _digits(number, 90, 8)
    return _modular(f"{value + 10}", value + 10, modulus + 2)


def _remainder_of_two(number: int) -> Problem:
    is_sum, i, j, modulus = _digits(number, 2, 90, 90, 16)
    low, high = sorted((i + 10, j + 10))
    one, other, modulus = i + 10, j + 10, modulus + 5
    if is_sum:
        return _modular(f"({one} + {other})", one + other, modulus, key=f"({low} + {high}) mod {modulus}")
    return _modular(f"({one} * {other})", one * other, modulus, key=f"({low} * {high}) mod {modulus}")


def _power_remainder(number: int) -> Problem:
    base, exponent, modulus = _digits(number, 98, 98, 90)
    base, exponent, modulus = base + 2, exponent + 2, modulus + 11
    return _modular(f"{base}^{exponent}", pow(base, exponent, modulus), modulus)


def _modular(expression: str, value: int, modulus: int, *, key: str = "") -> Problem:
    return Problem(
        key=key or f"{expression} mod {modulus}",
        raw=f"{expression.replace(' ', '')} mod {modulus}=",
        sentence=f"What is the remainder when {expression.strip('()')} is divided by {modulus}?",
        answer=str(value % modulus),
    )


def _inverse(number: int) -> Problem | None:
    value, modulus = _digits(number, 398, 390)
    value, modulus = value + 2, modulus + 11
    try:
        inverse = pow(value, -1, modulus)
    except ValueError:  # value and modulus have a common divisor
        return None
    if value >= modulus:
        return None
    return Problem(
        key=f"1/{value} mod {modulus}",
        raw=f"1/{value} mod {modulus}=",
        sentence=f"Which whole number x from 1 to {modulus - 1} makes {value} * x leave remainder 1 when divided by {modulus}?",
        answer=str(inverse),
    )


MODULAR_ARITHMETIC = (
    Level("a two-digit number modulo 2 to 9", 90 * 8, _remainder),
    Level("the sum or product of two two-digit numbers modulo 5 to 20", 2 * 90 * 90 * 16, _remainder_of_two),
    Level("a power with exponent 2 to 99 modulo 11 to 100", 98 * 98 * 90, _power_remainder),
    Level("the inverse of a number modulo 12 to 400", 398 * 390, _inverse),
)


def _sorting(number: int, count: int, values: range) -> Problem | None:
    is_descending, *indices = _digits(number, 2, *[len(values)] * count)
    unsorted = [values[index] for index in indices]
    in_order = sorted(unsorted, reverse=bool(is_descending))
    if len(set(unsorted)) < count or unsorted == in_order:
        return None
    order = "descending" if is_descending else "ascending"
    numbers = ", ".join(map(str, unsorted))
    return Problem(
        key=" ".join(map(str, sorted(unsorted))),
        raw=f"{numbers} in {order} order:",
        sentence=f"Sort these numbers in {order} order, separated by commas: {numbers}",
        answer="@sorting:" + ",".join(map(str, in_order)),
    )


SORTING = (
    Level("3 one-digit numbers", 2 * 10**3, lambda number: _sorting(number, 3, range(10))),
    Level("5 two-digit numbers", 2 * 90**5, lambda number: _sorting(number, 5, range(10, 100))),
    Level("10 numbers from -999 to 999", 2 * 1999**10, lambda number: _sorting(number, 10, range(-999, 1000))),
)


def _countdown(number: int, count: int, values: range, targets: range) -> Problem | None:
    """Numbers, and as target the result of combining them two at a time with positive whole results: so a solution exists."""
    choices = [size for left in range(count, 1, -1) for size in (left * (left - 1) // 2, 4)]
    digits = _digits(number, *choices, *[len(values)] * count)
    numbers = [values[index] for index in digits[len(choices) :]]
    rest = list(numbers)
    for pair, operation in zip(digits[: len(choices) : 2], digits[1 : len(choices) : 2], strict=True):
        i, j = [(i, j) for j in range(len(rest)) for i in range(j)][pair]
        high, low = max(rest[i], rest[j]), min(rest[i], rest[j])
        if operation == 3 and high % low:
            return None
        result = (high + low, high - low, high * low, high // low)[operation]
        if result == 0:
            return None
        rest = [value for index, value in enumerate(rest) if index not in (i, j)] + [result]
    (target,) = rest
    if target not in targets or target in numbers:
        return None
    numbers.sort()
    listed = ", ".join(map(str, numbers))
    return Problem(
        key=f"{listed} to {target}",
        raw=f"{target} from {listed} with + - * /:",
        sentence=f"Write an expression that equals {target}. Use each of the numbers {listed} exactly once, with +, -, *, / "
        "and parentheses.",
        answer=f"@countdown:{target},{','.join(map(str, numbers))}",
    )


def _countdown_level(count: int, values: range, targets: range) -> Level:
    total = len(values) ** count
    for left in range(count, 1, -1):
        total *= left * (left - 1) // 2 * 4
    return Level(
        f"{count} numbers from {values[0]} to {values[-1]}, targets {targets[0]} to {targets[-1]}",
        total,
        lambda number: _countdown(number, count, values, targets),
    )


COUNTDOWN = (
    _countdown_level(3, range(1, 10), range(1, 51)),
    _countdown_level(4, range(1, 26), range(10, 101)),
    _countdown_level(5, range(1, 51), range(10, 1000)),
    _countdown_level(6, range(1, 101), range(100, 1000)),
)

LEVELS: dict[str, tuple[Level, ...]] = {
    "arithmetic": ARITHMETIC,
    "base_conversion": BASE_CONVERSION,
    "countdown": COUNTDOWN,
    "modular_arithmetic": MODULAR_ARITHMETIC,
    "sorting": SORTING,
}
"""The levels of every task, from the easiest: level 1 is entry 0."""
