r"""The boxes of a text, and which of them are parts of one answer. Every scan is linear in the text.

A box is `\boxed{…}` or `\fbox{…}`, or `\boxed` before one number or letter that ends its formula or sentence. The last box is the
answer, with the boxes before it that the text joins to it, so that two guesses are not one right answer.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_PARTS = 40  # parts of one answer; what stands before them is not looked at
MAX_BETWEEN = 80  # characters between two parts of one answer; in a response, of words that say something, and numbers

_BOX = r"\\{1,2}(?:boxed|fbox|framebox)(?![A-Za-z])"
_ENDS = r"(?=[^\S\n]{0,20}[.,;]?[^\S\n]{0,20}(?:\$|\\[)\]]|\n|\Z|\\{1,2}f?box)|[.]\s)"
# Two backslashes are accepted too, for responses that escape as in a string literal. Each alternative is bounded or consumes
# the text that it scans, so the search is linear.
_BOX_OR_BRACE = re.compile(
    rf"(?P<box>{_BOX}\s*\{{)"
    rf"|{_BOX}\s*(?P<bare>[-+]?(?:\\[dt]?frac\{{[0-9]{{1,50}}\}}\{{[0-9]{{1,50}}\}}|[0-9][0-9,./]{{0,100}}(?<![,./])|[A-Za-z](?![A-Za-z]))){_ENDS}"
    rf"|(?P<unreadable>{_BOX}\s*(?=[-+]?[0-9]|[A-Za-z](?![A-Za-z])|\\[dt]?frac|\\sqrt))"
    r"|\\.|[{}]",
    re.DOTALL,
)


class Boxes(NamedTuple):
    """The boxes of a text."""

    contents: list[tuple[int, int]]  # begin and end of each outermost box's content, in order
    outsides: list[tuple[int, int]]  # begin and end with the command and the braces
    is_open: bool  # a later box is never closed, or cannot be read


def find(text: str) -> Boxes:
    """The outermost boxes whose braces are balanced."""
    braces: list[
        tuple[int, int, bool]
    ] = []  # open braces: start of the content, of the command; whether the brace opens a box
    found: list[tuple[int, int, int, int]] = []
    last_unreadable = -1
    for token in _BOX_OR_BRACE.finditer(text):
        symbol = token.group()
        if token["bare"]:
            found.append((*token.span("bare"), token.start(), token.end()))
        elif token["unreadable"]:
            last_unreadable = token.start()
        elif symbol == "}":
            begin, command, is_box = braces.pop() if braces else (0, 0, False)
            if is_box:
                while found and found[-1][0] > begin:
                    found.pop()
                found.append((begin, token.start(), command, token.end()))
        elif token["box"] or symbol == "{":
            braces.append((token.end(), token.start(), token["box"] is not None))
    last_open = max((begin for begin, _, is_box in braces if is_box), default=-1)
    last = found[-1][0] if found else -1
    return Boxes([box[:2] for box in found], [box[2:] for box in found], last_open > last or last_unreadable > last)


_SPACES = re.compile(
    r"\\(?:q?quad|[,;:! \\]|enspace|thinspace|hspace\*?\{[^{}]*\}|newline|par|hfill)(?![A-Za-z])|[~&\u00a0]"
)
_DELIMITERS = re.compile(
    r"\$|\\[()\[\]]|[*_`{}]|\\(?:text|textbf|mathrm|mbox|textit|left|right|displaystyle)(?![A-Za-z])|\\(?:begin|end)\s*\{[a-z]*\*?\}"
)
# The name of the next part, `y_2 =`, or its label, `(b)`.
_PART_NAME = re.compile(
    r"(?<![A-Za-z])(?:[A-Za-z](?:_?\{?[A-Za-z0-9]{1,3}\}?)?'*(?:\([a-z]\))?\s*(?:=|\\approx|\\in(?![A-Za-z]))|\(?(?:[a-hA-H]|i{1,3}|iv|v)\s*[).])"
)
_COMMAND = re.compile(r"\\[A-Za-z]+")
_SENTENCE_END = re.compile(r"[.!?](?=\s)|\n\s*\n")
_HEDGES = frozenset(
    """or either maybe perhaps possibly alternatively otherwise else nor unless if versus vs xor not
    never guess""".split()  # noqa: SIM905
)
_CORRECTIONS = frozenset("rather actually instead wait no correction sorry corrected precisely".split())  # noqa: SIM905
_FILLERS = frozenset(
    """and but also both the an other another second third next with as well plus part case question problem respectively solution
    solutions value values root roots together""".split()  # noqa: SIM905
)
_UNCOUNTED = _HEDGES | _FILLERS
_CONCLUSIONS = frozenset(
    """so thus hence therefore then finally final which gives giving total sum answer equals makes implies yields result
    means meaning simplifies becomes get obtain""".split()  # noqa: SIM905
)
_REPLACES_NOTHING = re.compile(r"\b(?:rather\s+than|instead\s+of)\b")
# `The largest possible value` is no guess.
_GUESS = re.compile(
    r"\b(?:(?:could|may|might)(?:\s+also)?\s+(?:be|equal)|possibility|(?:another|other|is)\s+(?:also\s+)?possible|possible\s+answer)\b|\bpossible\s*\Z"
)
# Text that LaTeX or a browser does not show: how it begins and ends.
_HIDING = (("\\iffalse", "\\fi"), ("\\if0", "\\fi"), ("<!--", "-->"), ("\\begin{comment}", "\\end{comment}"))
_HIDDEN_TAG = re.compile(r"<(?P<name>[a-z]{1,20})\s[^<>]{0,200}?(?:\bhidden\b|display:\s?none)[^<>]{0,200}>")
_INVISIBLE = re.compile(r"(?:\\[hv]?phantom|\\(?:text)?color\s?\{white\})\s?\{?[\s$]{0,5}\Z")
# A percent sign begins a comment unless a number or a word stands before it.
_COMMENT = re.compile(r"(?<![\\0-9A-Za-z)])(?<![0-9][ $])(?<![0-9] \$)(?<![0-9]\$ )%")


def join(text: str, boxes: Boxes) -> list[str]:
    """The contents of the last box and of the boxes before it that are parts of the same answer, in order."""
    parts = [text[slice(*boxes.contents[-1])]]
    for index in range(len(boxes.contents) - 2, max(-1, len(boxes.contents) - 1 - MAX_PARTS), -1):
        if not joins(text[boxes.outsides[index][1] : boxes.outsides[index + 1][0]]):
            break
        parts.append(text[slice(*boxes.contents[index])])
    return parts[::-1]


def joins(between: str, *, needs_separator: bool = False) -> bool:
    """Whether the text between two statements makes them one answer in parts, or two guesses.

    It does if it has no words; if it is one sentence with a word like `or`, `maybe` or `not` that corrects nothing (`or rather`),
    or with `and` or a comma at its end that concludes nothing; if its last sentence is no more than `Or maybe`, or is a guess
    (`it could be`); or if it hides the second statement (a comment in LaTeX).

    Args:
      needs_separator: without words, only a comma or a semicolon joins.
    """
    if _is_hidden(between):
        return True
    plain = _PART_NAME.sub(" ", _DELIMITERS.sub(" ", _SPACES.sub(" ", between)))
    plain = _REPLACES_NOTHING.sub("or", _COMMAND.sub(" ", plain).lower())
    plain = _GUESS.sub("guess", plain)
    # Words that say nothing, spaces and signs are not counted, so that none of them can push two guesses apart.
    if len(" ".join(word for word in re.findall(r"\w+", plain) if word not in _UNCOUNTED)) > MAX_BETWEEN:
        return False
    pieces = [re.findall("[a-z]{2,}", piece) for piece in _SENTENCE_END.split(plain)]
    words = {word for piece in pieces for word in piece}
    if not words:
        return not needs_separator or re.search("[,;]", between) is not None
    if words <= _FILLERS:
        return True
    if len(pieces) > 1:
        last = set(next(piece for piece in reversed(pieces) if piece))
        if "guess" in last:
            return not last & (_CORRECTIONS | _CONCLUSIONS)
        return bool(last & (_HEDGES | {"and"})) and last <= _HEDGES | _FILLERS
    if words & _HEDGES:
        return not words & _CORRECTIONS
    is_listed = "and" in words or re.search(r"[,;]\s*\Z", plain) is not None
    return is_listed and not words & (_CORRECTIONS | _CONCLUSIONS)


def _is_hidden(between: str) -> bool:
    """Whether what follows the text would not be shown."""
    return _is_enclosed(between) or bool(_COMMENT.search(between[between.rfind("\n") + 1 :]))


def _is_enclosed(before: str) -> bool:
    is_open = any(before.rfind(opener) > before.rfind(closer) for opener, closer in _HIDING)
    if is_open or _INVISIBLE.search(before[-30:]):
        return True
    tags = list(_HIDDEN_TAG.finditer(before))
    return bool(tags) and f"</{tags[-1]['name']}" not in before[tags[-1].end() :]


_RIGHT = (
    r"(?:right|correct|true|it|(?:the|my)\s+(?:(?:right|correct|final|actual)\s+)?(?:answer|solution|result|one))\b"
)
_DENIED_BEFORE = re.compile(
    r"(?:(?<![A-Za-z])(?:not|never|cannot|anything\s+(?:but|except)|(?:false|wrong|incorrect)\s+that"
    r"|(?:wrong|incorrect)\s+(?:answer|result)(?:\s+is)?)"
    r"|n['’]t|\\neq?|≠|\\not\s*=?|!=|\\lnot|\\neg)"
    r"(?:\s+(?:be|equal(?:\s+to)?|think|believe|say)(?:\s+that)?)?(?:\s+the(?:\s+(?:number|value|answer(?:\s+is)?))?)?"
    r"(?:\\?[\s$(\[{:*]|\\text\{)*\Z",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"(?:[\s$()\]}*]|\\[)\]]|\\text\s*\{)*(?:[.,;]?\s*(?:so\s+|because\s+|since\s+|as\s+|but\s+)?(?:which|that|this|it)\s+)?"
    rf"(?:(?:(?:is|was|would\s+be)\s+)?(?:wrong|incorrect|false|not\s+{_RIGHT})\b|(?<=so it )is\s+not\s+[$\\]?[0-9]"
    rf"|(?:(?:is|was|could|would|ca)n['’]t|(?:can|could|would)\s*not)\s+(?:be\s+)?{_RIGHT})"
)
_NEAR = 60  # characters
# A sign or digit that touches the box makes it a part of something longer: `-\boxed{5}`, `\boxed{5}^2`. A list's bullet, a
# double dash, emphasis and a degree sign do not.
_OPERATOR_BEFORE = re.compile(
    r"(?:(?<!-)[-\u2212]|[+/^0-9]|\^\{|\\(?:times|cdot|div|pm|mp)\s*|\\sqrt\s*(?:\[[0-9]{1,9}\])?\{?"
    r"|\\[dtc]?frac\s*(?:\{[^{}]{0,20}\}\s*)?\{)\Z"
)
_OPERATOR_AFTER = re.compile(
    r"\s?\^(?!\s?\{?\s?\\(?:circ|degree))|[0-9]|[-+/\u2212][^\S\n]?(?:[0-9(]|\\(?!text|mathrm|mbox)|[A-Za-z](?![A-Za-z]))|\s?\\(?:times|cdot|div|pm|mp)(?![a-z])"
)


def is_withdrawn(text: str, boxes: Boxes) -> bool:
    r"""Whether the last box is denied, hidden or a part of a longer formula: `not \boxed{5}`, `<!-- \boxed{5}`, `-\boxed{5}`."""
    begin, end = boxes.outsides[-1]
    near = text[max(0, begin - _NEAR) : begin]
    return (
        is_denied(text, begin, end)
        or _OPERATOR_BEFORE.search(near) is not None
        or _OPERATOR_AFTER.match(text[end : end + _NEAR]) is not None
        # Elsewhere in a line a percent sign may be one of prose: `in %: \boxed{5}`.
        or text[text.rfind("\n", 0, begin) + 1 : begin].lstrip().startswith("%")
        or _is_enclosed(text[:begin])
    )


def is_denied(text: str, begin: int, end: int) -> bool:
    r"""Whether the words next to a part of the text deny it: `not \boxed{5}`, `\boxed{5} is wrong`."""
    return bool(
        _DENIED_BEFORE.search(text[max(0, begin - _NEAR) : begin]) or _DENIED_AFTER.match(text[end : end + _NEAR])
    )
