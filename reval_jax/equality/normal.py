r"""Canonical spelling of an answer, and numbers with their units. Every function is linear in its text.

`canonical_latex` replaces the variants of a notation (`\dfrac`, `\left(`, `{,}`, `≤`) by one and removes LaTeX that changes
nothing; `number` reads a rational with its unit; `canonical_text` makes texts that are not numbers comparable.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from reval_jax.equality import quantities, spelling

_TEXT = quantities.TEXT
_INTEGER = r"(?:[1-9][0-9]{0,2}(?:[,\u2009][0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.[0-9]*)?|\.[0-9]+)"
_SIGNED = rf"[+-]?\s*{_DECIMAL}"
_CLOSES = {"(": ")", "{": "}", "[": "]"}
_MAX_SCIENTIFIC = 400  # largest power of ten that is expanded

_SPELLINGS = {
    r"\!": "", r"\$": "＄", "$": "", r"\(": "", r"\)": "", r"\[": "", r"\]": "", r"\left.": "", r"\right.": "",
    r"\left": "", r"\right": "", r"\big": "", r"\Big": "", r"\bigl": "", r"\bigr": "", r"\Bigl": "", r"\Bigr": "",
    r"\displaystyle": "", r"\textstyle": "", r"\limits": "", r"\boxed": "", r"\fbox": "", r"\rm": "",
    r"\bigg": "", r"\Bigg": "", r"\biggl": "", r"\biggr": "", r"\Biggl": "", r"\Biggr": "", r"\middle": "", r"\nolimits": "",
    r"\nicefrac": r"\frac", r"\sfrac": r"\frac", r"\enspace": " ", r"\thinspace": "\u2009", r"\medspace": " ",
    r"\thickspace": " ", r"\space": " ", r"\textdegree": "°", r"\textdollar": "＄", r"\pounds": "£", r"\euro": "€", r"\yen": "¥",
    r"\colon": ":", "{:}": ":", r"\mod": r"\bmod",
    r"\lg": r"\log_{10} ", r"\varepsilon": r"\epsilon", r"\varphi": r"\phi",
    r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\dbinom": r"\binom", r"\tbinom": r"\binom",
    r"\,": "\u2009", r"\;": " ", r"\:": " ", r"\ ": " ", "~": " ", "\u00a0": " ", r"\quad": " ", r"\qquad": " ",
    "\u2212": "-", "\u2013": "-", r"\%": "%", r"^\circ": "°", r"^{\circ}": "°", r"\degree": "°", r"^°": "°",
    r"\lbrace": r"\{", r"\rbrace": r"\}", r"\lbrack": "[", r"\rbrack": "]", r"\langle": "(", r"\rangle": ")",
    r"\lvert": "|", r"\rvert": "|", r"\vert": "|", r"\mid": "|",
    r"\leq": r"\le", r"\leqslant": r"\le", r"\leqq": r"\le", "≤": r"\le ", r"\geq": r"\ge", r"\geqslant": r"\ge",
    r"\geqq": r"\ge", "≥": r"\ge ", r"\lt": "<", r"\gt": ">", r"\ne": r"\neq", "≠": r"\neq ", "≈": r"\approx ",
    r"\simeq": r"\approx", r"\doteq": r"\approx", "∈": r"\in ", "∪": r"\cup ", "∞": r"\infty ", "π": r"\pi ",
    "±": r"\pm ", r"\mathrm{e}": "e", r"\mathrm{i}": "i", r"\times": r"\cdot", r"\ast": r"\cdot", "×": r"\cdot ",
    "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", r"\div": "/", r"\varnothing": r"\emptyset", r"\wedge": " and ",
    r"\vee": " or ", r"\land": " and ", r"\lor": " or ", r"\lnot": r"\neg", r"\dots": r"\ldots", r"\cdots": r"\ldots",
    "（": "(", "）": ")", "，": ", ", "；": "; ", "：": ":", "％": "%",
}  # fmt: skip
_SPELLING = re.compile(
    r"\\\\|"  # a line break, matched first so that its second backslash starts nothing
    + "|".join(
        # A command ends where its letters end: \left must not match in \leftarrow.
        re.escape(spelling) + ("(?![A-Za-z])" if spelling[-1].isalpha() and spelling.isascii() else "")
        for spelling in sorted(_SPELLINGS, key=len, reverse=True)
    )
)
_ALIGNED = re.compile(r"\s*\\begin\{aligned\}((?:(?!\\\\|&|\\begin).)*)\\end\{aligned\}\s*")  # one line
_ESCAPED_COMMAND = re.compile(r"\\\\(?=[A-Za-z{}%$])")
_ROW_DISTANCE = re.compile(r"\\\\\s?\[\s?-?[0-9.]{1,6}\s?(?:pt|em|ex|mm|cm|in|mu|px)\s?\]")
_THOUSANDS = re.compile(r"(?<=[0-9])(?:\{\s*,\s*\}|,\\!)\s*(?=[0-9]{3}(?![0-9]))")
_SPACED_THOUSANDS = re.compile(r"(?<![\w.,/}] )(?<![\w.,/}])[1-9][0-9]{0,2}(?: [0-9]{3})+(?![\w/^_]|,[0-9]| ?[0-9/\\])")
_PRIMES = re.compile(r"\^\s*(?:\{\s*((?:\\prime\s*)+)\}|(\\prime)(?![A-Za-z]))")
_JOINED = re.compile(r"\\(?:text|mathrm|mbox)\s*\{\s*(,?\s*(?:and|or|AND|OR)\s*)\}")


def _part(name: str) -> str:
    r"""Pattern of one argument of \frac: braced, or a single digit."""
    return rf"(?:\{{\s*(?P<{name}>{_SIGNED})\s*\}}|(?P<{name}_digit>[0-9]))"


_NUMBER = re.compile(
    # \frac{a}{b}, \frac12, 3\frac{1}{2}
    rf"(?P<sign>[+-]?)\s*(?:(?P<whole>{_INTEGER})\s*)?\\frac\s*{_part('top')}\s*{_part('bottom')}"
    # 3 1/2
    r"|(?P<mixed_sign>[+-]?)\s*(?P<mixed>[0-9]+)[ \u2009]+(?P<above>[0-9]+)\s*/\s*(?P<below>[0-9]+)"
    # 0.1\overline{6}
    r"|(?P<repeating_sign>[+-]?)\s*(?P<repeating>[0-9]*\.[0-9]*)\\overline\s*\{(?P<period>[0-9]+)\}"
    # 6.02e23, 6.02 \cdot 10^{23}
    rf"|(?P<scaled>{_SIGNED})(?:[eE]|\s*(?:\\cdot|\*)\s*10\s*\^\s*(?P<brace>\{{)?)\s*(?P<power>[+-]?[0-9]{{1,3}})(?(brace)\s*\}})"
    # 3, 3.5, 1,000, 7/2
    rf"|(?P<plain>{_SIGNED})(?:\s*/\s*(?P<divisor>{_SIGNED}))?"
)
_ANGLE = re.compile(r"\\(?:sin|cos|tan|sec|csc|cot)(?![A-Za-z])")
# An amount of money begins with its sign. ＄ stands for `\$`, because a bare `$` delimits formulas.
_MONEY = re.compile(r"\s*([+-]?)\s*([＄€£¥₹])\s*(?![＄€£¥₹])")
_LONE_DOLLAR = re.compile(r"\s*([+-]?)\s*\$(?=\s?[0-9.])([^$]*)")
_LAST_UNIT = re.compile(
    rf"(?<=[\w)}}\]°%＄€£¥₹])\s*(?:(?:{_TEXT}\s*(?:\^\s*[23]|\^\s*\{{\s*-?[1-3]\s*\}})?(?:\s*(?:/|\\cdot)\s*(?={_TEXT}))?\s*)+|[%＄€£¥₹]|°(?:\s*[CF])?)$"
)


class Number(NamedTuple):
    """A rational number with its unit."""

    value: Fraction
    unit: str  # of quantities.Phrase; "" for none


def canonical_latex(answer: str) -> str:
    r"""The answer in canonical LaTeX, without surrounding spaces; `\text{ or }` becomes ` or `."""
    # In a matrix two backslashes end a row; the distance to the next row may follow them.
    if "\\begin" not in answer:
        answer = _ESCAPED_COMMAND.sub(lambda _: "\\", answer)
    answer = _ROW_DISTANCE.sub(lambda _: r"\\ ", answer)
    answer = aligned[1] if (aligned := _ALIGNED.fullmatch(answer)) else answer
    answer = _LONE_DOLLAR.sub(r"\1＄\2", answer) if _LONE_DOLLAR.fullmatch(answer) else answer
    text = _THOUSANDS.sub("", spelling.rewrite(answer))
    text = _SPELLING.sub(lambda match: _SPELLINGS.get(match.group(), match.group()), text)
    text = _PRIMES.sub(lambda match: "'" * match.group().count("prime"), text)
    text = _JOINED.sub(r" \1 ", text).replace(r"\sqrt{}{", r"\sqrt{").replace("**", "^")
    text = _SPACED_THOUSANDS.sub(lambda match: match.group().replace(" ", ""), text)
    text = strip(text)
    while text[-1:] in (",", ";"):  # `5,` as the end of a line in running text
        text = strip(text[:-1])
    whole = re.fullmatch(_TEXT, text)
    return strip(whole.group(1)) if whole else text


def strip(text: str, brackets: str = "{") -> str:
    """Text without surrounding space, final periods and outer brackets; `brackets` holds the opening ones to remove."""
    partner = _partners(text)
    begin, end = 0, len(text)
    while True:
        while begin < end and text[begin].isspace():
            begin += 1
        while begin < end and (text[end - 1].isspace() or text[end - 1] == "."):
            end -= 1
        is_pair = begin < end and text[begin] in brackets and partner.get(begin) == end - 1
        if not is_pair or text[end - 1] != _CLOSES[text[begin]]:
            return text[begin:end]
        begin, end = begin + 1, end - 1


def strip_parens(text: str) -> str:
    """Text without parentheses that directly enclose parentheses: `((1, 2))` becomes `(1, 2)`."""
    if not text.startswith("(("):
        return text
    partner, depth = _partners(text), 0
    while text[depth : depth + 2] == "((" and partner.get(depth) == len(text) - 1 - depth:
        if partner.get(depth + 1) != len(text) - 2 - depth:
            break
        depth += 1
    return text[depth : len(text) - depth]


def encloses(text: str, begin: int = 0) -> bool:
    """Whether the last character closes the bracket at `begin`. The two may be of different kinds: `[0, 1)`."""
    return _partners(text).get(begin) == len(text) - 1


def _partners(text: str) -> dict[int, int]:
    """Maps the index of each opening bracket to that of its closing bracket. The two may be of different kinds: `[0, 1)`."""
    partners, opened = {}, []
    for bracket in re.finditer(r"[(){}\[\]]", text):
        if bracket.group() in _CLOSES:
            opened.append(bracket.start())
        elif opened:
            partners[opened.pop()] = bracket.start()
    return partners


def canonical_text(text: str) -> str:
    r"""Text for comparison: words without `\text`, braced fractions and roots, bare one-character exponents, no extra space."""
    text = plain_words(text)
    text = re.sub(r"\\frac\s*([0-9])\s*([0-9])(?![0-9])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\sqrt\s*([0-9])(?![0-9])", r"\\sqrt{\1}", text)
    text = re.sub(r"([\^_])\{([A-Za-z0-9])\}", r"\1\2", text)
    # A space between two letters or digits separates them: `1 2` is not 12.
    text = re.sub(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])", "", text)
    text = strip(re.sub(r"\s+", " ", text))
    choice = re.fullmatch(r"\(([A-Z])\)", text)
    return choice.group(1) if choice else text


def plain_words(text: str) -> str:
    r"""The text with the words of `\text{...}` and the like as they are, set off by spaces."""
    return re.sub(_TEXT, r" \1 ", text)


def number(text: str) -> Number | None:
    """The rational number, with its unit or noun, that a text in canonical LaTeX consists of; None for any other text.

    Args:
      text: at most a few hundred digits.
    """
    spelled = quantities.spelled(text) if text[:1].isalpha() else None
    if spelled:
        phrase = quantities.read(spelled[1])
        return Number(Fraction(spelled[0] * phrase.multiplier), phrase.unit) if phrase else None
    text, sign = _without_money(text)
    match = _NUMBER.match(text)
    phrase = quantities.read(strip(text[match.end() :]), money=sign) if match else None
    value = _fraction(match) if match and phrase is not None else None
    return None if value is None or phrase is None else Number(value * phrase.multiplier, phrase.unit)


def _without_money(text: str) -> tuple[str, str]:
    """An amount without the sign of money that it begins with, and that sign; "" for none."""
    money = _MONEY.match(text)
    return (money[1] + text[money.end() :], money[2]) if money else (text, "")


def is_same_number(one: Number, other: Number) -> bool:
    """Whether two numbers are equal, in their units: 60 min is 1 hour. A unit may be missing on one side."""
    if not one.unit or not other.unit:
        return one.value == other.value
    is_same_dimension = quantities.is_same_dimension(one.unit, other.unit)
    return is_same_dimension and one.value * quantities.factor(one.unit) == other.value * quantities.factor(other.unit)


def without_unit(text: str) -> tuple[str, str]:
    r"""A text in canonical LaTeX without the unit at its end (`\text{ cm}^2`, `%`, `°`), and that unit; "" for none."""
    body, sign = _without_money(text)
    match = _LAST_UNIT.search(body)
    if sign and not match:
        return body, quantities.money(sign)
    # `5%%` and an amount with a second unit are no quantities.
    inner = _LAST_UNIT.search(body[: match.start()].rstrip()) if match else None
    if match and (sign or (inner and not (inner.group().strip() == "°" and _ANGLE.search(body)))):
        return text, ""
    phrase = quantities.read(strip(text[match.start() :])) if match else None
    is_unit = phrase is not None and phrase.unit and phrase.multiplier == 1
    return (text[: match.start()].strip(), phrase.unit) if match and phrase and is_unit else (text, "")


def _fraction(number: re.Match[str]) -> Fraction | None:
    """The exact value of a match of _NUMBER; None for a zero denominator, or an integer before an improper fraction."""
    parts = number.groupdict()
    if parts["repeating"]:
        fraction = _repeating(parts["repeating"], parts["period"])
        return -fraction if parts["repeating_sign"] == "-" else fraction
    if parts["scaled"]:
        power = int(parts["power"])
        return None if abs(power) > _MAX_SCIENTIFIC else decimal(parts["scaled"]) * Fraction(10) ** power
    if parts["plain"]:
        sign, whole, top, bottom = "", None, parts["plain"], parts["divisor"] or "1"
    elif parts["mixed"]:
        sign, whole, top, bottom = parts["mixed_sign"], parts["mixed"], parts["above"], parts["below"]
    else:
        sign, whole = parts["sign"], parts["whole"]
        top, bottom = parts["top"] or parts["top_digit"], parts["bottom"] or parts["bottom_digit"]
    divisor = decimal(bottom)
    if divisor == 0:
        return None
    value = decimal(top) / divisor
    if whole is not None:
        if not 0 < value < 1:
            return None
        value += decimal(whole)
    return -value if sign == "-" else value


def decimal(text: str) -> Fraction:
    """The exact value of a decimal numeral with an optional sign and thousands separators; `5.` and `.5` are numerals too."""
    digits = re.sub(r"[,\s]", "", text)
    sign = -1 if digits.startswith("-") else 1
    whole, _, fraction = digits.lstrip("+-").partition(".")
    return sign * Fraction(int((whole + fraction) or "0"), 10 ** len(fraction))


def _repeating(before: str, period: str) -> Fraction:
    places = len(before.partition(".")[2])
    return decimal(before) + Fraction(int(period), (10 ** len(period) - 1) * 10**places)
