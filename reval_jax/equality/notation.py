r"""Notation outside LaTeX, as LaTeX: `pi/2`, `exp(16)`, `(-oo, 3)`.

Only whole names count, outside \text{...}: `pi` is \pi, `pir` stays a product of letters. `mu`, `nu`, `xi` and `eta` stay
products too, because people write them.
"""

from __future__ import annotations

import re

from reval_jax.equality import normal

_GREEK = (
    "alpha beta gamma delta epsilon zeta theta iota kappa lambda rho sigma tau phi chi psi omega pi "
    "Gamma Delta Theta Lambda Sigma Omega"
)
_FUNCTIONS = "sqrt cbrt exp abs floor ceil sin cos tan cot sec csc sinh cosh tanh coth arcsin arccos arctan ln log"
_COMMANDS = {name: f"\\{name}" for name in f"{_GREEK} {_FUNCTIONS} gcd lcm max min".split()}
_COMMANDS |= dict.fromkeys(("oo", "inf", "infty", "infinity", "Infinity"), "\\infty")
_COMMANDS |= {"asin": "\\arcsin", "acos": "\\arccos", "atan": "\\arctan", "ceiling": "\\ceil"}
_NAMES = "|".join(sorted(_COMMANDS, key=len, reverse=True))
_NAME = re.compile(
    r"\\(?:text[a-z]*|math[a-z]+|mbox|operatorname)\s*\{[^{}]*\}"  # words, which stay
    rf"|(?<![A-Za-z\\])(?P<name>{_NAMES})(?![A-Za-z])"
)
_NEEDS_ARGUMENT = frozenset(_FUNCTIONS.split()) | {"gcd", "lcm", "max", "min", "asin", "acos", "atan", "ceiling"}
_ARGUMENT = re.compile(r"\s*(?:[(\[{|_^0-9.\\]|[A-Za-z](?![A-Za-z]))")
_CALL = re.compile(r"(?<![A-Za-z\\])(binom|binomial|comb|factorial)\s*\(([^(),]*)(?:,([^(),]*))?\)")
_BARE_ROOT = re.compile(r"\\sqrt\s*([0-9]{2,})")
_GOES_ON = re.compile(r"(?<=[,:+])\s*\.{3,}")
_DEGREES = re.compile(r"(?<=[\w)}])\s*\\text\s*\{\s*deg(?:rees?)?\s*\}(?!\s*\\text)")
_CUP = re.compile(r"(?<=[)\]}])\s*(?:U|union)\s*(?=[(\[\\])")


def canonical_latex(answer: str) -> str:
    """Like `normal.canonical_latex`, also of names and calls that are not LaTeX."""
    # Periods at the end of an answer count for nothing, but `1, 2, ...` goes on.
    text = normal.canonical_latex(_GOES_ON.sub(r" \\ldots", answer))
    text = _CALL.sub(_call, text)
    is_plain = "sqrt" in text.replace("\\sqrt", "")
    text = _NAME.sub(_command, text)
    if is_plain:
        text = _BARE_ROOT.sub(r"\\sqrt{\1}", text)  # LaTeX would take the first digit only
    return _CUP.sub(r" \\cup ", _DEGREES.sub("°", text))


def _command(match: re.Match[str]) -> str:
    name = match["name"]
    if not name or (name in _NEEDS_ARGUMENT and not _ARGUMENT.match(match.string, match.end())):
        return match.group()
    return _COMMANDS[name] + ("" if match.end() == len(match.string) else " ")


def _call(match: re.Match[str]) -> str:
    name, first, second = match.groups()
    if (name == "factorial") is (second is not None):
        return match.group()
    return f"({first})!" if second is None else f"\\binom{{{first}}}{{{second}}}"
