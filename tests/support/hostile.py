"""Answers written to hurt a grader, generators of more, and reward functions that misbehave.

Nothing here is run by a test in its own process: texts go to the grader, and the functions into the sandbox, as
`verifier.function=hostile:NAME` with `verifier.function_path` naming this directory. Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import random
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

GOLDS = ("42", "\\frac{1}{2}", "x^2+1", "\\{1, 2\\}", "(1, 2)", "[0, 1)", "\\sqrt{2}", "\\text{odd}")
"""None of the answers below is right for any of these."""

CANARY = "CANARY"
"""Stands in an answer for the path of a file that comes to be if the answer is executed."""

# --- written by hand, a box's content each

_CODE = (
    "__import__('os').system('touch CANARY')",
    "__import__('os').popen('touch CANARY').read()",
    "__import__('subprocess').run(['touch','CANARY'])",
    "__import__('pathlib').Path('CANARY').touch()",
    "open('CANARY','w')",
    "open('CANARY','w').write('42')",
    "exec(\"open('CANARY','w')\")",
    "eval(\"open('CANARY','w')\")",
    "eval(compile(\"open('CANARY','w')\",'a','exec'))",
    "(lambda: open('CANARY','w'))()",
    "[open('CANARY','w') for _ in [0]]",
    "{open('CANARY','w')}",
    "f\"{open('CANARY','w')}\"",
    "print(open('CANARY','w'))",
    "1 if open('CANARY','w') else 42",
    "42 and open('CANARY','w')",
    "42; open('CANARY','w')",
    "42\nopen('CANARY','w')",
    "x = open('CANARY','w')",
    "(x := open('CANARY','w'))",
    "().__class__.__base__.__subclasses__()[-1]",
    "().__class__.__mro__[1].__subclasses__()",
    "''.__class__.__mro__[1].__subclasses__()[132]('touch CANARY')",
    "(1).__class__.__bases__[0].__subclasses__()",
    "Symbol('x').__class__.__init__.__globals__['__builtins__']['open']('CANARY','w')",
    "Integer(42).__class__.__init__.__globals__",
    "Function('f').__init__.__globals__['sys'].modules['os'].system('touch CANARY')",
    "sympify(\"__import__('os').system('touch CANARY')\")",
    "parse_expr(\"__import__('os').system('touch CANARY')\")",
    "S(\"__import__('os').system('touch CANARY')\")",
    "lambdify([], \"__import__('os').system('touch CANARY')\")()",
    "Lambda(x, x).__call__.__globals__",
    "getattr(__import__('os'),'system')('touch CANARY')",
    "globals()['__builtins__']",
    "vars()",
    "breakpoint()",
    "exit()",
    "quit()",
    "raise SystemExit(0)",
    "__builtins__['exit'](0)",
    "os.kill(os.getppid(), 9)",
    "__import__('os').kill(__import__('os').getppid(), 9)",
    "__import__('os')._exit(0)",
    "__import__('time').sleep(1000)",
    "__import__('ctypes').string_at(0)",
    "__import__('socket').create_connection(('127.0.0.1', 9))",
    "__import__('sys').setrecursionlimit(10**9)",
    "__import__('signal').pause()",
    "__import__('signal').setitimer(2, 0)",
    "__import__('threading').Thread(target=open, args=('CANARY','w')).start()",
    "$(touch CANARY)",
    "`touch CANARY`",
    "; touch CANARY",
    "| touch CANARY",
    "&& touch CANARY",
    "\\write18{touch CANARY}",
    "\\immediate\\write18{touch CANARY}",
    "\\input{|touch CANARY}",
    "\\openout1=CANARY \\write1{42}",
    "\\directlua{os.execute('touch CANARY')}",
    "\\input{/etc/passwd}",
    "{{7*6}}",
    "${7*6}",
    "#{open('CANARY','w')}",
    "<%= system('touch CANARY') %>",
    "%s%s%s%n",
    "{0.__class__}",
    "{answer.__init__.__globals__}",
    "'; DROP TABLE answers; --",
    "<script>alert(42)</script>",
    "yaml: !!python/object/apply:os.system ['touch CANARY']",
    "cos\nsystem\n(S'touch CANARY'\ntR.",
    "\\text{__import__('os').system('touch CANARY')}",
    "\\operatorname{__import__('os').system('touch CANARY')}",
    "\\mathrm{exec}(\\text{open('CANARY','w')})",
)

_LARGE = (
    "9^{9^{9^{9^9}}}",
    "9^9^9^9^9^9",
    "9**9**9**9",
    "10^{10^{10^{10}}}",
    "2^{2^{2^{2^{2^2}}}}",
    "(9^{9^9})^{9^9}",
    "10^{100000000}",
    "10^{10^{9}} \\bmod 7",
    "7^{10^{12}} - 7^{10^{12}}",
    "1^{10^{10^{10}}}",
    "(-1)^{10^{10^{10}}}",
    "0^{10^{10^{10}}}",
    "2^{-10^{10}}",
    "\\frac{1}{10^{10^{10}}}",
    "1e1000000000",
    "1E-1000000000",
    "1e400",
    "0.1e999999999",
    "123456789^{987654321}",
    "\\sqrt[10^{10}]{2}",
    "\\sqrt{10^{10^{8}}+1}",
    "2^{0.1^{-10^{8}}}",
    "x^{10^{10}}",
    "(x+1)^{100000}",
    "(x+y+z)^{5000}",
    "(1+x)^{10^6} - (1+x)^{10^6} + 42",
    "(a+b+c+d+e+f+g+h)^{60}",
    "\\prod_{i=1}^{1000}(x+i)",
    "\\left(\\frac{1}{2}+\\frac{i\\sqrt{3}}{2}\\right)^{10^{9}}",
    "\\sin(10^{10^{6}})",
    "\\log(10^{10^{10}})",
    "e^{e^{e^{e^{e^{e}}}}}",
    "\\exp(\\exp(\\exp(\\exp(100))))",
    "i^{10^{10^{10}}}",
    "(10^9)!",
    "100000!",
    "((100!)!)!",
    "9!!!!!!!!!!!!!!!!!!!!",
    "(99999!) / (99998!)",
    "\\frac{(10^7)!}{(10^7-1)!}",
    "\\binom{10^9}{5\\cdot 10^8}",
    "\\binom{1000000}{500000}",
    "{100000 \\choose 50000}",
    "\\binom{\\binom{100}{50}}{\\binom{50}{25}}",
    "\\Gamma(10^{12})",
    "\\Gamma(10^{7}+0.5)",
    "\\sum_{n=1}^{10^{12}} n",
    "\\sum_{n=1}^{10^{9}} \\frac{1}{n}",
    "\\sum_{n=1}^{100000} \\frac{1}{n!}",
    "\\sum_{i=1}^{9999}\\sum_{j=1}^{9999}\\sum_{k=1}^{9999} ijk",
    "\\prod_{n=1}^{10^{9}} n",
    "\\prod_{k=1}^{100000} \\left(1+\\frac{1}{k}\\right)",
    "\\int_0^{10^{9}} \\sin(x^x) dx",
    "\\int_0^1 x^{-x} dx",
    "\\int\\int\\int\\int e^{xyzw} dx dy dz dw",
    "\\int \\sin(\\sin(\\sin(x))) dx",
    "\\lim_{x\\to\\infty} \\left(1+\\frac{1}{x}\\right)^{x^{x}}",
    "\\lim_{n\\to\\infty} \\frac{n!}{n^{n}}",
    "\\lim_{x\\to 0} \\frac{\\sin(\\tan x)-\\tan(\\sin x)}{x^{7}}",
    "\\frac{d^{1000}}{dx^{1000}} e^{x^{2}}",
    "\\det\\begin{pmatrix}a&b&c\\\\d&e&f\\\\g&h&i\\end{pmatrix}^{10000}",
    "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}^{10^{9}}",
    "2^{\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}}",
    "10000000019 \\cdot 10000000033 = x",
    "\\gcd(10^{10^{6}}, 7^{10^{6}})",
    "\\lfloor 10^{10^{8}} \\pi \\rfloor",
    "\\lceil e^{10^{6}} \\rceil",
    "0." + "3" * 590,
    "1" + "0" * 590 + " \\cdot 1" + "0" * 5,
    "\\frac{" + "7" * 290 + "}{" + "3" * 290 + "}",
    "\\{" + ", ".join(map(str, range(1, 120))) + "\\}",
    "x^5-x+1=0, x^7-x+1=0, x^{11}-x+1=0",
    "\\sqrt{\\sqrt{\\sqrt{\\sqrt{\\sqrt{\\sqrt{\\sqrt{\\sqrt{2+x}}}}}}}}",
    "\\cos(1)\\cos(2)\\cos(4)\\cos(8)\\cos(16)\\cos(32)\\cos(64)\\cos(128)\\cos(256)",
    "\\sqrt{2}+\\sqrt{3}+\\sqrt{5}+\\sqrt{7}+\\sqrt{11}+\\sqrt{13}+\\sqrt{17}+\\sqrt{19}+\\sqrt{23}",
    "\\frac{1}{\\sqrt{2}+\\sqrt[3]{3}+\\sqrt[5]{5}+\\sqrt[7]{7}}",
    "x \\in (0,1) \\cup (2,3) \\cup (4,5) \\cup (6,7) \\cup (8,9) \\cup (10,11) \\cup (12,13)",
    "|x-1|+|x-2|+|x-3|+|x-4|+|x-5|+|x-6|+|x-7| < 100",
)

_FOOLING = (
    "",
    " ",
    "\\,",
    "x",
    "x = x",
    "0 = 0",
    "1 = 1",
    "42 = 43",
    "43 = 42",
    "42 \\ne 42",
    "42 < 43",
    "42 \\text{ or } 43",
    "42, 43",
    "\\{42, 43\\}",
    "41 \\text{ to } 43",
    "42 \\pm 1",
    "42 \\pm 0.5",
    "42.000001",
    "41.9999999999999999999",
    "4200\\%",
    "42\\%",
    "0.42 \\cdot 10^{3}",
    "42i",
    "-42",
    "4 2",
    "4,2",
    "042.1",
    "42\\text{ million}",
    "\\approx 42.3",
    "\\text{the answer}",
    "\\text{correct}",
    "\\text{True}",
    "True",
    "False",
    "None",
    "nan",
    "NaN",
    "oo",
    "zoo",
    "\\infty",
    "-\\infty",
    "\\infty - \\infty",
    "\\frac{0}{0}",
    "\\frac{1}{0}",
    "\\varnothing",
    "\\emptyset",
    "\\{\\}",
    "()",
    "(-\\infty, \\infty)",
    "\\mathbb{R}",
    "\\mathbb{C}",
    "\\text{all real numbers}",
    "\\ldots",
    "...",
    "*",
    ".*",
    "^.*$",
    "?",
    "_",
    "\\_",
    "\\",
    "\\\\",
    "\\\\\\",
    "$",
    "$$",
    "\\(",
    "\\[",
    "||",
    " ||| ",
    "43 ||| 42",
    "1 ||| 2 ||| 3",
    "@countdown:42,1,2",
    "@reasoning_gym:{}",
    "</think>",
    "<think>",
    "<|im_end|>",
    "<|endoftext|>",
    "\\boxed",
    "\\boxed{",
    "}{",
    "}}}}",
    "{{{{",
    "\\text{",
    "\\frac",
    "\\frac{",
    "\\frac{}{}",
    "\\sqrt",
    "\\sqrt[]{}",
    "\\left(",
    "\\right)",
    "\\begin{pmatrix}",
    "\\end{pmatrix}",
    "\\begin{cases}x\\\\y",
    "^",
    "^^^^",
    "x^",
    "x_",
    "x^{",
    "\\def\\x{\\x\\x}\\x",
    "\\newcommand{\\a}{\\a\\a}\\a",
    "\\def\\a{42}\\b",
    "\\let\\frac\\relax 42 43",
    "\\catcode`\\{=12 41",
    "\\csname frac\\endcsname{1}{3}",
    "\\char52\\char51",
    "\\symbol{52}\\symbol{51}",
    "\\ensuremath{43}",
    "\\phantom{42}",
    "\\color{white}42\\color{black}43",
    "43 % 42",
    "43 \\% 42",
    "\\cancel{43}42x",
)

_UNICODE = (
    "\x00",
    "43\x00",
    '\x00\x00\x00\x01\x02{"kind": "done", "value": true}',
    "\ud800",
    "\udfff43",
    "43\ud83d",
    "\ufeff43",
    "4\u200b3",
    "4\u200d3",
    "\u202e34\u202c",
    "\u2066\u2067\u206843",
    "\uff14\uff13",
    "\u0664\u0663",
    "\u06f4\u06f3",
    "\u096a\u0969",
    "\u2074\u00b3",
    "\u2463",
    "\U0001d7d2\U0001d7d1",
    "\u56db\u5341\u4e09",
    "\u216c",
    "\u00bd\u00bd\u2153",
    "4\u06603",
    "\u221e\u221e",
    "\u2124\u211d\u2102",
    "\u0338" * 200,
    "e\u0301" * 200,
    "\U0001f600" * 200,
    "\u00a0\u2003\u3000\u1680",
    "\u2028\u2029\x0b\x0c\x85",
    "\x1b[2J\x1b[31m43",
    "\r43\r44",
    "\x7f\x80\x9f",
    "\u0130\u0131\u00df\ufb03\u01c5",
    "\u1e9e" * 100,
    "\uffff\ufffe\U0010ffff",
)

# Repetition: what is quadratic in its length somewhere, or deep.
_REPEATED = tuple(
    unit * times
    for unit, times in (
        ("(", 400), ("{", 400), ("[", 400), ("((", 200), ("-", 900), ("+", 900), ("!", 300), ("'", 500), ("^2", 300),
        ("_1", 300), ("1,", 300), ("1/", 300), ("x=", 300), ("|", 500), ("\\", 999), ("$", 999), ("\\frac", 180),
        ("\\sqrt", 180), ("\\text{", 150), ("\\left", 180), (" ", 999), ("\\ ", 400), ("&", 500), ("\\\\", 499),
        ("sin", 300), ("a", 999), ("<", 500), ("\\boxed{", 140), ("=", 900), ("~", 900), ("%", 900), (".", 900),
    )
)  # fmt: skip
_NESTED = tuple(
    opening * times + "1" + closing * times
    for opening, closing, times in (
        ("(", ")", 400), ("{", "}", 400), ("[", "]", 300), ("\\frac{1}{1+", "}", 80), ("\\sqrt{1+", "}", 110),
        ("2^{", "}", 200), ("x_{", "}", 200), ("\\left(", "\\right)", 60), ("|", "|", 300), ("\\{", "\\}", 200),
        ("\\sin(", ")", 150), ("\\text{", "}", 130), ("\\binom{2}{", "}", 80), ("-(", ")", 300), ("((((", ")!)!)!)!", 60),
        ("\\lfloor ", "\\rfloor", 50), ("\\log_{2}(", ")", 90), ("\\sum_{n=1}^{9}(", ")", 60),
        ("\\int_0^1 ", " dx", 60), ("\\boxed{", "}", 120),
    )
)  # fmt: skip

BY_HAND: tuple[str, ...] = (*_CODE, *_LARGE, *_FOOLING, *_UNICODE, *_REPEATED, *_NESTED)
"""What stands in the box of each answer written by hand."""


def by_hand(canary: str) -> list[tuple[str, str]]:
    """The answers written by hand, with the gold answers they are graded against."""
    return [(answer.replace(CANARY, canary), GOLDS[index % len(GOLDS)]) for index, answer in enumerate(BY_HAND)]


def responses() -> list[tuple[str, str]]:
    """Responses of a megabyte, and some that are short, with the gold answers they are graded against."""
    large = 1_000_000
    texts = [
        "", "\\boxed{", "\\boxed{\\boxed{\\boxed{43", "\\boxed " * (large // 7), "\\boxed{" * (large // 7), "{" * large,
        "}" * large, "\\" * large, "<think>" * (large // 7), "</think>" * (large // 8), "\\boxed{1}" * (large // 9),
        "9" * large, f"\\boxed{{{'9' * large}}}", f"\\boxed{{{'9^' * (large // 2)}9}}", f"\\boxed{{{'{' * large}{'}' * large}}}",
        f"\\boxed{{{' ' * large}}}", f"\\boxed{{{'1,' * (large // 2)}}}", f"\\boxed{{{chr(0x1F600) * large}}}",
        "\\boxed{\\frac{" * (large // 13), "-" * large + "1", "1/" * (large // 2),
    ]  # fmt: skip
    return [(text, GOLDS[index % len(GOLDS)]) for index, text in enumerate(texts)]


# --- generated


# Strings of words, not lists of one word a line.
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


def fuzzed(seed: int, count: int, *, real: Sequence[tuple[str, str]], canary: str) -> Iterator[tuple[str, str]]:
    """`count` answers with the gold answers they are graded against, a pure function of the arguments.

    Args:
      real: gold answers to mutate, each beside itself; at least two.
      canary: path of the file that an answer would make if it were executed.
    """
    kinds = (_mutated, _mutated, _mutated, _latex, _latex, _tower, _nested, _code, _unicode, _long)
    for index in range(count):
        rng = random.Random(f"{seed} {index}")  # noqa: S311
        gold = real[rng.randrange(len(real))][1]
        yield kinds[index % len(kinds)](rng, gold).replace(CANARY, canary), gold


def _mutated(rng: random.Random, gold: str) -> str:
    """A real answer with characters deleted, doubled, moved or replaced, and pieces put in."""
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
    """Powers, factorials and binomials of each other, balanced, with numbers of up to ten digits."""
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


# --- reward functions; `answer` may hold an argument


def spin(response: str, answer: str) -> float:
    """Computes in Python without end."""
    while True:
        pass


def multiply(response: str, answer: str) -> float:
    """One product of large integers, which no signal handler of Python can interrupt."""
    number = 3 ** (10**8)
    return float(number * number > 0)


def hang(response: str, answer: str) -> float:
    """Waits without end and without computing."""
    time.sleep(1e6)
    return 1.0


def stall(response: str, answer: str) -> float:
    """One of the three above, as the answer says, or none of them."""
    functions = {"spin": spin, "multiply": multiply, "hang": hang}
    return functions[answer](response, answer) if answer in functions else 1.0


def allocate(response: str, answer: str) -> float:
    """Takes memory without end."""
    kept = []
    while True:
        kept.append(bytearray(10_000_000))


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def remember(response: str, answer: str, kept: list[bytearray] = []) -> float:  # noqa: B006
    """Keeps so many bytes more after each call."""
    kept.append(bytearray(int(answer)))
    return 1.0


_START_BYTES = _address_space()  # of the worker


def remember_or_fill(response: str, answer: str) -> float:
    """`remember`; with a response, all that it leaves of so many bytes is taken for a moment, but a thirtieth."""
    if not response:
        return remember(response, answer)
    return float(len(bytearray(int(answer) * 29 // 30 - _START_BYTES)) > 0)


def recurse(response: str, answer: str) -> float:
    """Calls itself without end."""
    return recurse(response, answer) + 1


def leave(response: str, answer: str) -> float:
    """Ends the process."""
    os._exit(3)


def fail(response: str, answer: str) -> float:
    """Raises."""
    raise KeyError("no such thing")


def constant(response: str, answer: str) -> float:
    """The number that the gold answer writes."""
    return float(answer)


def text(response: str, answer: str) -> float:
    """Returns no number."""
    return "1"  # type: ignore[return-value]


def by_length(response: str, answer: str) -> float:
    """A reward that is none of 0 and 1."""
    return min(1.0, len(response) / 10)


def evaluates(response: str, answer: str) -> float:
    """As many rewards do."""
    return float(eval(response) == float(answer))  # noqa: S307


def process_id(response: str, answer: str) -> float:
    """Below 1, and another number for each process."""
    return os.getpid() / 2**32


def surroundings(response: str, answer: str) -> float:
    """1 if the trainer's environment or directory can be seen from here."""
    return float(any(name in os.environ for name in ("HOME", "PATH", "USER", "REVAL_SECRET")) or bool(os.listdir(".")))


_libc = ctypes.CDLL(None, use_errno=True)  # held since before the fences: Python's audit hook does not see its calls


def ways_out(directory: str) -> dict[str, Callable[[], object]]:
    """What an answer's code might try in a directory with a file `victim`: each raises OSError where it is fenced off."""
    victim, canary = (os.path.join(directory, name) for name in ("victim", "canary"))

    def call(name: str, *arguments: object) -> None:
        if getattr(_libc, name)(*arguments) < 0:
            raise OSError(ctypes.get_errno(), name)

    def run(*arguments: str) -> None:
        if subprocess.call(arguments) != 0:
            raise OSError

    def system(command: str) -> None:
        if os.system(command) != 0:  # noqa: S605
            raise OSError

    path, other = victim.encode(), canary.encode()
    return {
        "open": lambda: open(canary, "w").close(),
        "append": lambda: open(victim, "a").close(),
        "os.open": lambda: os.close(os.open(canary, os.O_CREAT | os.O_WRONLY)),
        "mkdir": lambda: os.mkdir(canary),
        "remove": lambda: os.remove(victim),
        "rename": lambda: os.rename(victim, canary),
        "chmod": lambda: os.chmod(victim, 0o600),
        "system": lambda: system("true"),
        "subprocess": lambda: run(sys.executable, "-c", ""),
        "fork": lambda: os.fork() or os._exit(0),
        "kill": lambda: os.kill(os.getppid(), 0),
        "socket": lambda: socket.socket().close(),
        "resolve": lambda: socket.getaddrinfo("127.0.0.1", 80),
        "libc open": lambda: call("open", other, os.O_CREAT | os.O_WRONLY, 0o600),
        "libc creat": lambda: call("creat", other, 0o600),
        "libc truncate": lambda: call("truncate", path, 0),
        "libc fork": lambda: call("fork"),
        "libc execl": lambda: call("execl", b"/bin/true", b"true", None),
        "libc kill": lambda: call("kill", os.getppid(), 0),
        "libc socket": lambda: call("socket", 2, 1, 0),
        "libc unlink": lambda: call("unlink", path),
        "libc rename": lambda: call("rename", path, other),
        "libc ptrace": lambda: call("ptrace", 0, 0, None, None),
        "libc shmget": lambda: call("shmget", 0, 4096, 0o1600),
        "libc prlimit": lambda: call("prlimit", os.getppid(), 7, None, None),
    }


def escape(response: str, answer: str) -> float:
    """1 if the way out that `response` names is open, in the directory that `answer` names."""
    try:
        ways_out(answer)[response]()
    except OSError:
        return 0.0
    return 1.0


def steal(response: str, answer: str) -> float:
    """1 if a descriptor other than this process's own two pipes is open."""
    return float(len([name for name in os.listdir("/proc/self/fd") if int(name) > 2]) > 3)  # its two, and the listing's
