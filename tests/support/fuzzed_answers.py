"""Random answers that may harm a grader, reproducible from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from support import hostile_answers

# Split from one string, because a formatter would put each word on its own line.
_PIECES = (
    *r"""\frac \dfrac{ \sqrt \sqrt[3] \left \right ( ) [ ] \{ \} { } ^ _ ! + - * / \cdot \times \div = < \le \ne \in \cup
    \pi e i x y n \theta \sin \cos \log \ln \exp \int \sum_{n=1}^{ \prod \lim_{x\to \infty \binom \text{ \mathrm{
    \begin{pmatrix} \end{pmatrix} & \\ , ; . | % \% ° ^\circ $ \, 0 1 2 7 12 345 0.5 1,000 10^{10} 99999 \boxed{ \pm
    \mod \equiv \forall ' ~ \vec""".split(),  # noqa: SIM905
    " ",
)
_CODE_PIECES = (
    *r"""__import__('os') .system( ) eval( exec( open('CANARY','w') [ ] range(10**9) .__class__ .__mro__ [1]
    .__subclasses__() getattr( , globals() print( x 1 + ** ; os.fork() Symbol('x') sympify( S( " ' { } f'{ }' yield
    await""".split(),  # noqa: SIM905
    "'touch CANARY'",
    "lambda x:",
    "for x in",
    "while True:",
    "import os",
    "\n",
)
_CHARACTERS = (
    "0123456789abcxyz+-*/^_{}()[]\\$ .,=<>|!%&~'\"\n\t\x00\x1b\u00b2\u00bd\u0301\u0660\u200b\u202e\u2028"
    "\u2212\u2192\u221a\u221e\u4e2d\ud800\uff11\U0001f600"
)


def fuzzed(seed: int, count: int, *, golds: Sequence[str], canary: str) -> Iterator[tuple[str, str]]:
    """Yields `count` answers, each with a gold answer; a pure function of the arguments.

    Args:
      golds: gold answers to mutate.
      canary: path of the file that an answer would create if it were executed.
    """
    kinds = (_mutated, _mutated, _mutated, _latex, _latex, _tower, _nested, _code, _unicode, _long)
    for index in range(count):
        rng = random.Random(f"{seed} {index}")  # noqa: S311
        gold = golds[rng.randrange(len(golds))]
        yield kinds[index % len(kinds)](rng, gold).replace(hostile_answers.CANARY, canary), gold


def _mutated(rng: random.Random, gold: str) -> str:
    """A real answer with characters deleted, repeated, moved or replaced, and pieces inserted."""
    symbols = list(gold[:2000]) or ["1"]
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(symbols))
        match rng.randrange(6):
            case 0 if len(symbols) > 1:
                del symbols[at]
            case 1:
                symbols[at] *= rng.choice((2, 3, 50))
            case 2:
                symbols.insert(at, rng.choice(_PIECES))
            case 3:
                symbols[at] = rng.choice(_CHARACTERS)
            case 4:
                other = rng.randrange(len(symbols))
                symbols[at], symbols[other] = symbols[other], symbols[at]
            case _:
                symbols = [*symbols, rng.choice(("^", "/", "+", "=", ",", "!", "^{9}")), *symbols][:2000]
    return "".join(symbols)


def _latex(rng: random.Random, gold: str) -> str:
    return "".join(rng.choices(_PIECES, k=rng.randint(1, 60)))


def _tower(rng: random.Random, gold: str) -> str:
    """Nested powers, factorials and binomials with balanced brackets and numbers of up to ten digits."""
    text = str(rng.randint(2, 10 ** rng.randint(1, 10)))
    for _ in range(rng.randint(1, 8)):
        number = rng.randint(2, 10 ** rng.randint(1, 6))
        form = rng.choice(
            ("{a}^{{{t}}}", "({t})^{{{a}}}", "({t})!", "\\binom{{{t}}}{{{a}}}", "\\sum_{{n=1}}^{{{t}}} n^{{{a}}}",
             "\\sqrt[{a}]{{{t}}}", "(x+{a})^{{{t}}}", "\\prod_{{k=1}}^{{{t}}} (k+{a})", "e^{{{t}}}", "\\sin({t})",
             "\\log_{{{a}}}({t})", "\\frac{{{a}}}{{{t}}}")
        )  # fmt: skip
        text = form.format(t=text, a=number)
    return text


def _nested(rng: random.Random, gold: str) -> str:
    shapes = ("({})", "{{{}}}", "\\frac{{1}}{{1+{}}}", "\\sqrt{{{}}}", "[{}]", "\\left({}\\right)", "|{}|", "-{}", "\\text{{{}}}",
              "\\{{{}\\}}", "x_{{{}}}", "\\sin({})", "\\begin{{pmatrix}}{}\\end{{pmatrix}}")  # fmt: skip
    chosen = rng.sample(shapes, k=rng.randint(1, 3))
    text = gold[:50] if rng.random() < 0.5 else "1"
    for depth in range(rng.choice((5, 20, 60, 200, 3000))):
        text = chosen[depth % len(chosen)].format(text)
        if len(text) > 50_000:
            break
    return text


def _code(rng: random.Random, gold: str) -> str:
    return "".join(rng.choices(_CODE_PIECES, k=rng.randint(1, 20)))


def _unicode(rng: random.Random, gold: str) -> str:
    if rng.random() < 0.5:
        return "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randint(1, 60)))
    return "".join(rng.choices(_CHARACTERS, k=rng.randint(1, 200)))


def _long(rng: random.Random, gold: str) -> str:
    """Up to a megabyte, most of it shorter."""
    size = 10 ** rng.choice((3, 3, 4, 4, 5, 6))
    unit = rng.choice((*_PIECES, *_CHARACTERS, gold[:40] or "1", "1+", "x^", "(1+", "\\frac{1}{", "9"))
    return (unit * (size // len(unit) + 1))[:size]
