r"""Multiple-choice answers: one letter, alone or with the text of its option.

The verifier does not know the options, so it cannot check the text beside a letter. It reads the text only to make sure that it
says nothing else: every word must be a counted noun, a unit, a shape's modifier or a name of a quantity (`vocabulary`), and
nothing in it may name, join or negate a choice. So `(C) \frac{1}{2}` answers C, but `B: all of the above` and `B. or C` answer
nothing.
"""

from __future__ import annotations

import re

from reval_jax.equality import normal, vocabulary

# `(C)`, `C)`, `C.`, `C:`; then the option's text.
_WITH_CONTENT = re.compile(r"(?:\(\s*([A-J])\s*\)\s*[.:]?|([A-J])\s*(?:\)\s*[.:]?|[.:]))\s*(\S.*)", re.DOTALL)
_ALONE = re.compile(r"(?:\(\s*([A-J])\s*\)|([A-J])\s*\)?)\s*[.:]?")
_INTRODUCTION = re.compile(
    r"\s*(?:the\s+)?(?:(?:final|correct|right|best)\s+)?(?:answer|option|choice)(?:\s+is)?\s*:?\s*(?![A-Za-z]{2})",
    re.IGNORECASE,
)
# Commands of an option's own mathematics; every other command makes the text unreadable.
_CONTENT = frozenset(
    r"""\frac \sqrt \pi \infty \sin \cos \tan \cot \sec \csc \ln \log \exp \binom \alpha \beta \gamma \delta \theta \lambda \mu
    \rho \sigma \phi \omega \mathbb \emptyset \arcsin \arccos \arctan \sum \int""".split()  # noqa: SIM905
)
_NEUTRAL = frozenset(
    r"""\cdot \pm \le \ge \circ \angle \triangle \in \cup \cap \overline \approx \begin \end \{ \} \\ \ldots \vec \lfloor \rfloor
    \lceil \rceil \perp \parallel \sim \cong""".split()  # noqa: SIM905
)
_SHAPES = frozenset(
    r"""\triangle \angle \overline \vec triangle triangles line lines segment segments ray angle angles point points circle plane
    quadrilateral square rectangle parallelogram trapezoid arc side polygon""".split()  # noqa: SIM905
)
# Words that often stand for a whole option, beside nouns, units and the names of quantities.
_OPTION_WORDS = frozenset(
    """a an the of increases decreases hyperbola parabola ellipse square cube kite even odd zero one two three four five six seven
    eight nine ten eleven twelve north south east west monday tuesday wednesday thursday friday saturday sunday january february
    march april may june july august september october november december heads tails pmatrix bmatrix matrix array""".split()  # noqa: SIM905
)
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|[A-Za-z]+", re.DOTALL)
# A small letter that may be another choice: `(c)`, `c.`, `c: `.
_SMALL_CHOICE = re.compile(r"(?<![A-Za-z\\])[a-j]\s*[.:)](?![0-9])")


def letter(answer: str) -> str:
    """The only choice that an answer in canonical LaTeX names; "" if it names none, or says anything more."""
    text = _INTRODUCTION.sub("", normal.plain_words(answer), count=1).strip()
    alone = _ALONE.fullmatch(text)
    match = alone or _WITH_CONTENT.fullmatch(text)
    if match is None or not (alone or _is_option_text(match.group(3))):
        return ""
    return match.group(1) or match.group(2)


def is_letter(answer: str) -> bool:
    """Whether an answer in canonical LaTeX is one choice without any other text."""
    return _ALONE.fullmatch(normal.plain_words(answer).strip()) is not None


def _is_option_text(text: str) -> bool:
    """Whether a text can only be an option's own: mathematics, or known words."""
    if _SMALL_CHOICE.search(text) or re.search(r"[?#@~&;]|%\s*[A-Za-z\\]|!\s*[A-Za-z=]", text):
        return False
    has_content, before = re.search("[0-9]", text) is not None, ""
    for symbol in _TOKEN.findall(text):
        if symbol[0] == "\\":
            if symbol not in _CONTENT and symbol not in _NEUTRAL:
                return False
            has_content |= symbol in _CONTENT
        elif re.fullmatch("[A-Z]+", symbol):
            # Capital letters may be other choices, unless they name the points of a shape: `triangle ABC`.
            if before not in _SHAPES or len(symbol) == 1:
                return False
            has_content = True
        elif len(symbol) > 1:
            if not _is_known(symbol):
                return False
            has_content = True
        else:
            # The small letters up to j alone may be choices too: `B. c`.
            has_content |= symbol > "j"
        before = symbol.lower()
    return has_content


def _is_known(word: str) -> bool:
    lower = word.lower()
    is_listed = lower in _OPTION_WORDS or lower in vocabulary.MODIFIERS or lower in vocabulary.LABELS
    return is_listed or vocabulary.noun(word) is not None or vocabulary.unit(word) is not None
