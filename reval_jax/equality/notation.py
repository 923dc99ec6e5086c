r"""Notation outside LaTeX, as LaTeX: `pi/2`, `exp(16)`, `(-oo, 3)`, `0.333...`, `5 \choose 2`.

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
_FUNCTIONS = "sqrt cbrt exp abs floor ceil sin cos tan cot sec csc sinh cosh tanh coth arcsin arccos arctan ln log lg"
_COMMANDS = {name: f"\\{name}" for name in f"{_GREEK} {_FUNCTIONS} gcd lcm max min".split()}
_COMMANDS |= dict.fromkeys(("oo", "inf", "infty", "infinity", "Infinity"), "\\infty")
_COMMANDS |= {"asin": "\\arcsin", "acos": "\\arccos", "atan": "\\arctan", "ceiling": "\\ceil"}
_NAME = re.compile(
    rf"\\(?:text[a-z]*|math[a-z]+|mbox|operatorname)\s*\{{[^{{}}]*\}}|(?<![A-Za-z\\])(?P<name>{'|'.join(sorted(_COMMANDS, key=len, reverse=True))})(?![A-Za-z])"
)
_NEEDS_ARGUMENT = frozenset(_FUNCTIONS.split()) | {"gcd", "lcm", "max", "min", "asin", "acos", "atan", "ceiling"}
_ARGUMENT = re.compile(r"\s*(?:[(\[{|_^0-9.\\]|[A-Za-z](?![A-Za-z]))")
_CALL = re.compile(r"(?<![A-Za-z\\])(binom|binomial|comb|factorial)\s*\(([^(),]*)(?:,([^(),]*))?\)")
_BARE_ROOT = re.compile(r"\\sqrt\s*([0-9]{2,})")
_CHOOSE = re.compile(r"\{([^{}]*?)\\choose(?![A-Za-z])([^{}]*)\}|^([^{}]*?)\\choose(?![A-Za-z])([^{}]*)$")
_CUP = re.compile(r"(?<=[)\]}])\s*(?:U|union)\s*(?=[(\[\\])")
_ELLIPSIS = re.compile(r"\.{3,}|…")
_UNENDING = re.compile(r"([0-9]*\.)([0-9]{2,})\s*\\ldots(?![A-Za-z])")


def canonical_latex(answer: str) -> str:
    """Like `normal.canonical_latex`, also of names, calls and decimals that are not LaTeX."""
    # First the ellipsis: periods at the end of an answer count for nothing.
    text = normal.canonical_latex(_ELLIPSIS.sub(r"\\ldots ", answer))
    text = _UNENDING.sub(_repeating, text)
    text = _CALL.sub(_call, text)
    is_plain = "sqrt" in text.replace("\\sqrt", "")
    text = _NAME.sub(_command, text)
    if is_plain:
        text = _BARE_ROOT.sub(r"\\sqrt{\1}", text)  # LaTeX would take the first digit only
    text = _CUP.sub(r" \\cup ", text)
    return _CHOOSE.sub(_binomial, text)


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


def _binomial(match: re.Match[str]) -> str:
    above, below = (match[1], match[2]) if match[1] is not None else (match[3], match[4])
    return f"\\binom{{{above.strip()}}}{{{below.strip()}}}"


def _repeating(match: re.Match[str]) -> str:
    r"""`0.1666\ldots` with its period marked; unchanged if none shows: a digit three times, or a longer block twice."""
    before, digits = match.groups()
    for length in range(1, len(digits) // 2 + 1):
        period, times = digits[-length:], 3 if length == 1 else 2
        if digits.endswith(period * times):
            start = len(digits) - length
            while digits[start - length : start] == period and start >= length:
                start -= length
            return f"{before}{digits[:start]}\\overline{{{period}}}"
    return match.group()
