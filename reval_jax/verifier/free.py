r"""Free-form answers, for models that use no box: the last statement, else the last formula. Every scan is linear in the text."""

from __future__ import annotations

import re

from reval_jax.verifier import boxes

MAX_STATEMENT = 1500  # characters of a statement that are read; more than an answer may have

_STATEMENT = re.compile(
    r"(?<![A-Za-z])(?:answer|(?:correct|right) (?:option|choice))"
    r"[*_]{0,3}(?:\s(?:to|for|of)\s[^.:\n]{1,60}?)?[*_\s]{0,4}(?:(?<=[\s*_])is(?![A-Za-z])[*_\s]{0,4}:?|[:=])"
    r"|^\s{0,3}####(?!#)|^[#*_ ]{0,6}(?:final[ ])?answer[*_ ]{0,4}$",
    re.IGNORECASE | re.MULTILINE,
)
# What may stand between `is` and the answer itself.
_LEAD = re.compile(
    r"(?:[\s*_}]|(?<=\n)>|:(?!\))|(?:therefore|thus|simply|just|indeed|clearly|hence|given\s+by|equal\s+to)(?![A-Za-z]),?)*",
    re.IGNORECASE,
)
_DELIMITER = re.compile(
    r"\\.|\$\$?|\n|[.?](?=\s|\Z|[*_]+(?:\s|\Z))|[,;]?\s(?=(?:because|since|which|where|so|as(?!\swell\s))\s)", re.DOTALL
)
# What may stand between a statement and one inside it, which then is the one that counts: `Final answer: The answer is 5`.
_REPEATED = re.compile(r"(?:[\s*_:]|(?:so|thus|therefore|the|my|final|correct)(?![A-Za-z]),?)*", re.IGNORECASE)
_REPLACED = re.compile(
    r"[.?!…,;]*[\s*_$)]*(?:(?:or(?!\s+equivalently)|maybe|perhaps|actually|correction|wait)(?![A-Za-z])|no[,.:;!])",
    re.IGNORECASE,
)
# A formula that is only a word between two others.
_CONJUNCTION = re.compile(r"\s*\\(?:text|textbf|mbox|mathrm)\s*\{\s*(?:or|and|and/or|maybe|vs\.?)\s*\}\s*")
_CLOSERS = {"$": "$", "$$": "$$", "\\(": "\\)", "\\[": "\\]"}


def statements(text: str) -> list[tuple[int, int, int, int]]:
    """Each statement `the answer is …`, `Answer: …` or `#### …`, in order: begin and end of its answer, and of the whole."""
    found: list[tuple[int, int, int, int]] = []
    for match in _STATEMENT.finditer(text):
        start, known_end = match.start(), 0
        if found and start < found[-1][3]:
            if not _REPEATED.fullmatch(text, found[-1][0], start):
                continue
            _, known_end, start, _ = found.pop()
        lead = _LEAD.match(text, match.end(), match.end() + MAX_STATEMENT)
        begin = lead.end() if lead else match.end()
        end = known_end if begin < known_end else _end_of_statement(text, begin)
        found.append((begin, end, start, end))
    return found


def _end_of_statement(text: str, begin: int) -> int:
    """Where the sentence or line that begins at `begin` ends. Formulas may hold line breaks and full stops."""
    limit, closer = min(len(text), begin + MAX_STATEMENT), ""
    for token in _DELIMITER.finditer(text, begin, limit):
        symbol = token.group()
        if closer:
            closer = "" if symbol == closer else closer
        elif symbol in _CLOSERS and not _is_currency(text, token):
            closer = _CLOSERS[symbol]
        elif symbol[0] not in "\\$":
            return token.start()
    return limit


def formulas(text: str) -> list[tuple[int, int, int, int]]:
    r"""Each formula in `$…$`, `$$…$$`, `\(…\)` or `\[…\]`, in order: begin and end of its content, and of the whole."""
    found: list[tuple[int, int, int, int]] = []
    opener: re.Match[str] | None = None
    for token in re.finditer(r"\\.|\$\$?", text, re.DOTALL):
        symbol = token.group()
        if opener is not None and symbol == _CLOSERS[opener.group()]:
            # As in Pandoc, a dollar sign after a space or before a digit is an amount of money.
            if symbol != "$" or not _is_amount(text, token):
                found.append((opener.end(), token.start(), opener.start(), token.end()))
                opener = None
            elif not _is_currency(text, token):
                opener = token
        elif symbol in _CLOSERS and (opener is None or symbol != "$") and not _is_currency(text, token):
            opener = token
    return [span for span in found if text[span[0] : span[1]].strip() and not _CONJUNCTION.fullmatch(text, *span[:2])]


def _is_currency(text: str, token: re.Match[str]) -> bool:
    """Whether a `$` cannot open a formula, because a space follows it."""
    return token.group() == "$" and text[token.end() : token.end() + 1].strip() == ""


def _is_amount(text: str, token: re.Match[str]) -> bool:
    return text[token.start() - 1].isspace() or text[token.end() : token.end() + 1].isdigit()


def join(text: str, spans: list[tuple[int, int, int, int]], *, needs_separator: bool) -> list[str]:
    """The last of the spans, with those before it that the text joins to it, in order."""
    parts = [text[spans[-1][0] : spans[-1][1]]]
    spans = spans[-boxes.MAX_PARTS :]
    for one, other in zip(spans[-2::-1], spans[:0:-1], strict=True):
        if not boxes.joins(text[one[3] : other[2]], needs_separator=needs_separator):
            break
        parts.append(text[one[0] : one[1]])
    return parts[::-1]


def clean(answer: str) -> str:
    """A statement's answer without emphasis, code quotes and the punctuation around it."""
    plain = re.sub(r"\*\*|__|`", "", answer).strip().strip("*_ \t\n").removesuffix(".").strip()
    quoted = re.fullmatch(r"'([^']*)'|\"([^\"]*)\"|[“‘]([^”’]*)[”’]", plain)
    return quoted[quoted.lastindex or 0] if quoted else plain


def is_replaced(text: str, end: int) -> bool:
    """Whether the words after an answer begin another one: `Answer: 5. Or maybe 6`."""
    return _REPLACED.match(text, end) is not None
