r"""What follows a number: a multiplier (`million`), and a unit or a noun that is counted. Linear in the text.

The grammar, in which a plain word needs no `\text`:

    phrase     = {multiplier} [item {["per" | "/" | "\cdot"] item} ["of" things]]
    item       = ["square" | "cubic"] unit ["squared" | "cubed" | "^" power] | things
    things     = {modifier | noun} noun

Every word must be in the vocabulary. So a phrase cannot negate its number, change it or add another answer.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from reval_jax.equality import vocabulary

TEXT = r"\\(?:text|textbf|textit|textrm|textsf|textnormal|mathrm|mathbf|mathit|mathsf|mbox|operatorname)\s*\{([^{}]*)\}"
"""Pattern of words in LaTeX; its group is the words."""

MAX_CHARS = 200  # characters of a phrase; a longer one is no unit

_TOKEN = re.compile(
    rf"\s*(?:{TEXT}|\^\s*(?:([1-3])|\{{\s*([+-]?[1-3])\s*\}})|(\\cdot(?![A-Za-z])|/)|([A-Za-z]+|[%＄€£¥₹]|''?|°(?:\s*[CF](?![A-Za-z]))?)\.?)"
)
_TEXT_TOKEN = re.compile(r"\s*(?:\^\s*\(?([+-]?[1-3])\)?|(/|\\cdot(?![A-Za-z]))|((?:°\s?)?[A-Za-z]+|[%＄€£¥₹]|°)\.?)")

# Two letters without \text are a unit only if no one would mean a product of variables.
_PLAIN_SHORT = frozenset("mm cm dm km in ft yd mg kg lb oz ml mL hr".split())  # noqa: SIM905
_SPELLED = re.compile(r"\s*[A-Za-z]+(?:[ -][A-Za-z]+){0,15}\s*")
_SMALL = {
    word: value
    for value, word in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
        ]
    )
}
_TENS = {
    word: 10 * value
    for value, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2)  # noqa: SIM905
}
_SCALE_WORDS = {"thousand": 1000, "million": 10**6}
_SCALES = {"C": "°C", "celsius": "°C", "centigrade": "°C", "F": "°F", "fahrenheit": "°F"}


class Phrase(NamedTuple):
    """What stands after a number."""

    multiplier: int
    unit: str  # its factor and the powers of basic units and nouns, `1/100 m^1`; "" for none. Equal strings are equal units.


class _Token(NamedTuple):
    kind: str  # word, power or operator
    text: str
    is_in_text: bool


def read(text: str, *, money: str = "") -> Phrase | None:
    """The phrase that a text in canonical LaTeX consists of; None if any of it is unknown. A blank text is no unit.

    Args:
      money: the sign of money before the number, "" for none. It is a unit after the multipliers.
    """
    tokens = _tokens(text) if len(text) <= MAX_CHARS else None
    if tokens is None:
        return None
    multiplier = 1
    while tokens and (times := vocabulary.multiplier(tokens[0].text)):
        multiplier, tokens = multiplier * times, tokens[1:]
    # `$5 dollars` says the same twice.
    if money and not (tokens and vocabulary.unit(tokens[0].text) == vocabulary.UNITS[money]):
        tokens = [_Token("word", money, False), *tokens]
    if not tokens:
        return Phrase(multiplier, "")
    unit = _Reader(tokens).unit()
    return None if unit is None else Phrase(multiplier, unit)


def spelled(text: str) -> tuple[int, str] | None:
    """The number that a text like `twenty-one apples` begins with, and the rest of the text; None if it begins with none."""
    if not _SPELLED.fullmatch(text):
        return None
    words, total, largest = re.split(r"[\s-]+", text.lower().strip()), 0, 10**9
    is_read = False
    while words:
        group, rest = _below_thousand(words)
        if group is None or (is_read and group == 0):
            break
        scale = _SCALE_WORDS.get(rest[0], 1) if rest else 1
        if scale >= largest:
            break
        total, largest, words, is_read = total + group * scale, scale, rest[1:] if scale > 1 else rest, True
        if scale > 1 and words[:1] == ["and"]:
            words = words[1:]
        if scale == 1:
            break
    # A second number after the first is not part of it: `six seven`.
    is_one = is_read and not (words and (words[0] in _SMALL or words[0] in _TENS))
    return (total, " ".join(words)) if is_one else None


def _below_thousand(words: list[str]) -> tuple[int | None, list[str]]:
    """The number below 1,000 that the words begin with, None if there is none, and the words after it."""
    hundreds = 0
    if len(words) > 1 and 0 < _SMALL.get(words[0], 0) < 10 and words[1] == "hundred":
        hundreds, words = 100 * _SMALL[words[0]], words[2:]
        after = words[1:] if words[:1] == ["and"] else words
        if not (after and (after[0] in _SMALL or after[0] in _TENS)):
            return hundreds, words
        words = after
    if words and words[0] in _TENS:
        unit = _SMALL.get(words[1], 0) if len(words) > 1 else 0
        has_unit = 0 < unit < 10
        return hundreds + _TENS[words[0]] + (unit if has_unit else 0), words[1 + has_unit :]
    return (hundreds + _SMALL[words[0]], words[1:]) if words and words[0] in _SMALL else (None, words)


def money(sign: str) -> str:
    """The unit that a sign of money stands for."""
    reader = _Reader([_Token("word", sign, False)])
    reader.measure(1)
    return reader.written()


def factor(unit: str) -> Fraction:
    """The size of a nonempty unit in the basic units of its dimension."""
    return Fraction(unit.partition(" ")[0])


def is_same_dimension(one: str, other: str) -> bool:
    """Whether two nonempty units measure the same: centimeters and feet do, dogs and cats do not."""
    return one.partition(" ")[2] == other.partition(" ")[2]


def _tokens(text: str) -> list[_Token] | None:
    text, tokens, position = text.rstrip(), [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            return None
        words, power, braced_power, operator, plain = match.groups()
        if words is not None:
            inner = _text_tokens(words)
            if inner is None:
                return None
            tokens += inner
        elif power or braced_power:
            tokens.append(_Token("power", power or braced_power, False))
        elif operator:
            tokens.append(_Token("operator", operator, False))
        else:
            tokens.append(_Token("word", plain.replace(" ", ""), False))
        position = match.end()
    return tokens


def _text_tokens(words: str) -> list[_Token] | None:
    words, tokens, position = words.rstrip(), [], 0
    while position < len(words):
        match = _TEXT_TOKEN.match(words, position)
        if match is None:
            return None
        power, slash, word = match.groups()
        kind = "power" if power else "operator" if slash else "word"
        tokens.append(_Token(kind, (power or slash or word).replace(" ", ""), True))
        position = match.end()
    return tokens


class _Reader:
    """Reads the tokens after the multipliers."""

    def __init__(self, tokens: list[_Token]) -> None:
        self.tokens, self.index = tokens, 0
        self.factor, self.powers = Fraction(1), dict[str, int]()

    def word(self) -> str:
        """The next word, "" if there is none."""
        is_word = self.index < len(self.tokens) and self.tokens[self.index].kind == "word"
        return self.tokens[self.index].text if is_word else ""

    def unit(self) -> str | None:
        sign, is_joined, before = 1, True, list[frozenset[str]]()
        while self.index < len(self.tokens):
            known = self.dimension_ahead()
            is_unit = self.measure(sign)
            before = [known] if is_joined else [*before, known]
            if is_unit and len(before) > 1 and not self.may_follow(before):
                return None
            # Units follow each other (`kg m`); things are joined to others by `per` only.
            if not is_unit and not (is_joined and self.things(sign)):
                return None
            if self.index == len(self.tokens):
                break
            sign, token = 1, self.tokens[self.index]
            is_joined = token.kind == "operator" or token.text.lower() == "per"
            if is_joined:
                sign = 1 if token.text == "\\cdot" else -1
            elif token.text.lower() == "of":
                self.index += 1
                return self.written() if self.things(0) and self.index == len(self.tokens) else None
            elif not is_unit:
                return None
            self.index += is_joined
        else:
            return None  # nothing follows the last operator
        return self.written()

    def written(self) -> str:
        powers = " ".join(f"{name}^{power}" for name, power in sorted(self.powers.items()) if power)
        return f"{self.factor} {powers}" if powers else f"{self.factor} 1"

    def measure(self, sign: int) -> bool:
        """Reads one unit with its power."""
        begin, exponent = self.index, vocabulary.UNIT_POWERS.get(self.word().lower(), 1)
        self.index += exponent > 1
        meaning = self.known_unit()
        if meaning is None:
            self.index = begin
            return False
        self.index += 1
        if meaning is vocabulary.UNITS["°"] and (scale := _SCALES.get(self.word()) or _SCALES.get(self.word().lower())):
            meaning, self.index = vocabulary.UNITS[scale], self.index + 1
        if self.index < len(self.tokens) and exponent == 1:
            token = self.tokens[self.index]
            power = int(token.text) if token.kind == "power" else vocabulary.AFTER_POWERS.get(token.text.lower(), 0)
            exponent, self.index = power or 1, self.index + (power != 0)
        self.factor *= meaning.factor ** (sign * exponent)
        for name, power in meaning.dimension.items():
            self.add(name, sign * exponent * power)
        return True

    def dimension_ahead(self) -> frozenset[str]:
        """The basic units of the unit at this position."""
        begin = self.index
        self.index += self.word().lower() in vocabulary.UNIT_POWERS
        meaning, self.index = self.known_unit(), begin
        return frozenset(meaning.dimension if meaning else ())

    def may_follow(self, units: list[frozenset[str]]) -> bool:
        """Whether the last of juxtaposed units may follow: `kg m` is a product, `hours minutes` and `m s kg` are none."""
        has_power = self.tokens[self.index - 1].kind == "power"
        is_alone = any(unit & vocabulary.ALONE for unit in units)
        return not is_alone and units[-1] not in units[:-1] and (len(units) < 3 or has_power)

    def known_unit(self) -> vocabulary.Unit | None:
        word = self.word()
        if not word:
            return None
        if word in ("'", "''"):
            return vocabulary.Unit(Fraction(1), {word: 1})
        is_readable = self.tokens[self.index].is_in_text or not word.isalpha() or len(word) > 2 or word in _PLAIN_SHORT
        return vocabulary.unit(word) if is_readable else None

    def things(self, sign: int) -> bool:
        """Reads modifiers and the noun that they end with; with a `sign` of 0 after `of`, where a substance may stand."""
        names, last, is_plural = list[str](), "", False
        while word := self.word():
            token, lower = self.tokens[self.index], word.lower()
            singular = vocabulary.noun(word) if token.is_in_text or len(word) > 2 else None
            if names[-1:] in (["ordered"], ["unordered"]) and vocabulary.singular(lower) in vocabulary.ORDERED:
                singular = vocabulary.singular(lower)
            is_modifier = lower in vocabulary.MODIFIERS or lower in vocabulary.DROPPED_MODIFIERS
            if singular is None and not is_modifier and not (sign == 0 and lower in vocabulary.SUBSTANCES):
                break
            if last and is_plural:
                return False  # `boys girls`: only the last noun of a compound is a plural
            is_plural = singular is not None and singular != lower and not is_modifier
            last = singular or (lower if lower in vocabulary.SUBSTANCES else "")
            if lower not in vocabulary.DROPPED_MODIFIERS:
                names.append(singular or lower)
            self.index += 1
        if not last:
            return False
        self.add("_".join(names), sign or 1)
        return True

    def add(self, name: str, power: int) -> None:
        self.powers[name] = self.powers.get(name, 0) + power
