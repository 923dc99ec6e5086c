r"""The boxes of a text, and which of them are parts of one answer. Every scan is linear in the text.

A box is `\boxed{…}` or `\fbox{…}`, or `\boxed` before one number or letter that ends its formula or sentence. The last box is the
answer, with the boxes before it that the text joins to it, so that two guesses are not one right answer.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_PARTS = 40  # parts of one answer; what stands before them is not looked at
MAX_BETWEEN = 80  # characters between two parts of one answer

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
    never""".split()  # noqa: SIM905
)
_CORRECTIONS = frozenset("rather actually instead wait no correction sorry corrected precisely".split())  # noqa: SIM905
_FILLERS = frozenset(
    """and also both the an other another second third next with as well plus part case question problem respectively solution
    solutions value values root roots together""".split()  # noqa: SIM905
)
_CONCLUSIONS = frozenset(
    """so thus hence therefore then finally final which gives giving total sum answer equals makes implies yields result
    means meaning simplifies becomes get obtain""".split()  # noqa: SIM905
)
_REPLACES_NOTHING = re.compile(r"\b(?:rather\s+than|instead\s+of)\b")
# Text that LaTeX or a browser does not show: how it begins and ends.
_HIDING = (("\\iffalse", "\\fi"), ("\\if0", "\\fi"), ("<!--", "-->"), ("\\begin{comment}", "\\end{comment}"))
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
    or with `and` or a comma at its end that concludes nothing; if it is no more than `Or maybe` in a sentence of its own; or if
    it hides the second statement (a comment in LaTeX).

    Args:
      needs_separator: without words, only a comma or a semicolon joins.
    """
    if _is_hidden(between):
        return True
    if len(between) > MAX_BETWEEN:
        return False
    plain = _PART_NAME.sub(" ", _DELIMITERS.sub(" ", _SPACES.sub(" ", between)))
    plain = _REPLACES_NOTHING.sub("or", _COMMAND.sub(" ", plain).lower())
    pieces = [re.findall("[a-z]{2,}", piece) for piece in _SENTENCE_END.split(plain)]
    words = {word for piece in pieces for word in piece}
    if not words:
        return not needs_separator or re.search("[,;]", between) is not None
    if words <= _FILLERS:
        return True
    if len(pieces) > 1:
        last = set(pieces[-1])
        return bool(last & (_HEDGES | {"and"})) and last <= _HEDGES | _FILLERS
    if words & _HEDGES:
        return not words & _CORRECTIONS
    is_listed = "and" in words or re.search(r"[,;]\s*\Z", plain) is not None
    return is_listed and not words & (_CORRECTIONS | _CONCLUSIONS)


def _is_hidden(between: str) -> bool:
    """Whether what follows the text would not be shown."""
    is_open = any(between.rfind(opener) > between.rfind(closer) for opener, closer in _HIDING)
    return is_open or bool(_INVISIBLE.search(between[-30:]) or _COMMENT.search(between[between.rfind("\n") + 1 :]))


_DENIED_BEFORE = re.compile(
    r"(?:(?<![A-Za-z])(?:not|never)|n['’]t|\\neq?|≠|\\not\s*=?|!=)(?:\s+be)?(?:\\?[\s$(\[{:*]|\\text\{)*\Z"
)
_DENIED_AFTER = re.compile(
    r"(?:[\s$)\]}*]|\\[)\]]|\\text\s*\{)*(?:(?:is|was|would\s+be)\s+)?(?:wrong|incorrect|false|not\s+(?:the|right|correct|it))\b"
)
_NEAR = 40  # characters


def is_denied(text: str, boxes: Boxes) -> bool:
    r"""Whether the words next to the last box deny it: `not \boxed{5}`, `\boxed{5} is wrong`."""
    begin, end = boxes.outsides[-1]
    return bool(
        _DENIED_BEFORE.search(text[max(0, begin - _NEAR) : begin]) or _DENIED_AFTER.match(text[end : end + _NEAR])
    )
