r"""Other spellings of LaTeX mathematics: Unicode characters, commands that only change the look, and older notation.

`rewrite` turns them into the LaTeX that `normal.canonical_latex` reads. It replaces characters and commands by what they print,
never by what they are worth: `√18` becomes `\sqrt{18}`. Where the print is ambiguous (`1\underline{0}`, which looks like 10), the
text stays as it is, and no reader accepts it.
"""

from __future__ import annotations

import re
import unicodedata

_CHARACTERS = {
    "º": "°", "˚": "°", "′": "'", "″": "''", "‴": "'''", "’": "'", "ʼ": "'", "ˆ": "^", "∗": "*", "⁄": "/", "∕": "/", "∣": "|",
    "∶": ":", "…": r"\ldots ", "⋯": r"\ldots ", "⟨": r"\langle ", "⟩": r"\rangle ", "∙": r"\cdot ", "‐": "-", "‑": "-", "‒": "-",
    "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "∩": r"\cap ", "∅": r"\emptyset ", "∉": r"\notin ",
    "∖": r"\setminus ", "⊂": r"\subset ", "⊆": r"\subseteq ", "→": r"\to ", "∑": r"\sum ", "∏": r"\prod ", "∫": r"\int ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "∠": r"\angle ",
    "△": r"\triangle ", "⩽": r"\le ", "⩾": r"\ge ", "≦": r"\le ", "≧": r"\ge ", "∧": r"\wedge ", "∨": r"\vee ", "¬": r"\neg ",
    "µ": r"\mu ", "∆": r"\Delta ", "Ω": r"\Omega ", "。": ".", "、": ", ", "￥": "¥",
    "\u200b": "", "\u2060": "", "\u2061": "", "\u2062": "", "\ufeff": "", "\u00ad": "",
    "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta ", "ε": r"\epsilon ", "ϵ": r"\epsilon ", "ζ": r"\zeta ",
    "η": r"\eta ", "θ": r"\theta ", "κ": r"\kappa ", "λ": r"\lambda ", "μ": r"\mu ", "ν": r"\nu ", "ξ": r"\xi ", "ρ": r"\rho ",
    "σ": r"\sigma ", "τ": r"\tau ", "φ": r"\phi ", "ϕ": r"\phi ", "χ": r"\chi ", "ψ": r"\psi ", "ω": r"\omega ",
    "Γ": r"\Gamma ", "Δ": r"\Delta ", "Θ": r"\Theta ", "Λ": r"\Lambda ", "Σ": r"\Sigma ", "Φ": r"\Phi ", "Ψ": r"\Psi ",
}  # fmt: skip
_CHARACTERS |= dict.fromkeys("\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u200a\u202f\u205f\u3000", " ")
# Full-width ASCII, except the comma and the semicolon, which separate the parts of a list, and the dollar, which is money.
_CHARACTERS |= {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F) if chr(code) not in "，；＄"}
_CHARACTERS |= {
    character: rf"\frac{{{top}}}{{{bottom}}}"
    for character, top, bottom in (
        "½12", "⅓13", "⅔23", "¼14", "¾34", "⅕15", "⅖25", "⅗35", "⅘45", "⅙16", "⅚56", "⅛18", "⅜38", "⅝58", "⅞78", "⅐17", "⅑19",
    )
}  # fmt: skip
_CHARACTERS |= {chr(code): unicodedata.normalize("NFKC", chr(code)) for code in range(0x1D400, 0x1D7CC)}  # 𝑥, 𝐀
_TRANSLATION = str.maketrans(_CHARACTERS)
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱˣʸ⁽⁾", "0123456789+-nixy()", strict=True))
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋ₙₐₓᵢₖₘ₍₎", "0123456789+-naxikm()", strict=True))
_RAISED_RUN = re.compile(f"[{''.join(_RAISED)}]+(?=([0-9])?)")
_LOWERED_RUN = re.compile(f"[{''.join(_LOWERED)}]+(?=([0-9])?)")
_ROOT = re.compile(r"([√∛∜])\s*(?:([0-9]+(?:\.[0-9]+)?|[A-Za-z])|(?=[({\\\[]))")
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}

# Commands that change the look only. After a digit they would join two numbers by an invisible product.
_LOOK = re.compile(
    r"(?<![0-9])(?<![0-9]\s)(?:\\(?:bm|boldsymbol|pmb|underline|emph|texttt|mathtt|textsc|mathop|mathord)(?![A-Za-z])\s*(?=\{)"
    r"|\\(?:textcolor|color|colorbox)\s*(?:\[[A-Za-z]*\])?\s*\{[A-Za-z0-9!, .#]*\}"
    r"|\\(?:bf|it|boldmath|normalsize|large|Large|huge|scriptstyle|mathstrut|strut)(?![A-Za-z])\s*)"
)
_PLAIN_NUMBER = re.compile(
    r"(?<![0-9])(?<![0-9]\s)\\(?:text|textbf|textrm|textit|mathrm|mathbf|mathsf|mathit|mbox)\s*\{\s*(-?[0-9]+(?:[.,][0-9]+)*)\s*\}"
)
_DOUBLE_BRACES = re.compile(r"\{\s*\{([^{}]*)\}\s*\}")
_EMPTY_GROUP = re.compile(r"(?<![A-Za-z\]}^_])\{\s*\}")
_SPACE = re.compile(r"\\(?:[hv]space\*?|[hv]?phantom)\s*\{[^{}]{0,20}\}")
_DEGREE = re.compile(
    r"\^\s*\{\s*\\circ\s*\}|\^\s+\\circ(?![A-Za-z])|(?<=[0-9])\^\s?(?:\{\s?o\s?\}|\\(?:text|mathrm)\{o\}|o(?![A-Za-z]))"
)
_BRACED_ARGUMENTS = re.compile(r"\{\s*\{([^{}]*)\}\s*\\(choose|over)(?![A-Za-z])\s*\{([^{}]*)\}\s*\}")
_BASED = re.compile(r"(?<![\w)}])\(([0-9][0-9A-Fa-f]*)\)(?=_)")
_NOT = re.compile(r"\\not\s*(=|\\in(?![A-Za-z]))")
_INFIX = re.compile(r"\{([^{}]*)\\(choose|over)(?![A-Za-z])([^{}]*)\}")
_WHOLE_INFIX = re.compile(r"\s*\$*([^{}$]*)\\(choose|over)(?![A-Za-z])([^{}$]*?)\$*\s*")
_INFIXES = {"choose": "binom", "over": "frac"}
_DIGIT = r"(?:\{\s*([0-9]+)\s*\}|([0-9]))"
_DOTTED = re.compile(
    rf"(?<![0-9.])([0-9]*\.[0-9]*)\\dot\s*{_DIGIT}(?:([0-9]*)\\dot\s*(?:\{{\s*([0-9])\s*\}}|([0-9])))?"
)
_BARRED = re.compile(rf"(?<![0-9.])([0-9]*\.[0-9]*)\\(?:bar|overline)\s*{_DIGIT}")
_PARENTHESISED = re.compile(r"(?<![0-9.])([0-9]+\.)\(([0-9]{1,50})\)")
_CONTINUED = re.compile(
    r"(?<![0-9.,])([0-9]*\.)([0-9]{1,100})\s*(?:\\[lcd]?dots[cbmio]?(?![A-Za-z])|\.\.\.)\s*(?![0-9,.])"
)
_PERIODS = (
    re.compile(r"()([0-9]{2,})\2+"),  # all decimals are one period, at least twice: 0.1212
    re.compile(r"([0-9]*?)([0-9]+?)\2\2+"),  # the last period stands three times: 0.1666
)


def rewrite(text: str) -> str:
    """The text in ordinary LaTeX. Linear in the text."""
    if not text.isascii():
        text = _rewrite_unicode(text)
    text = _NOT.sub(lambda match: r"\neq " if match.group(1) == "=" else r"\notin ", text)
    text = _LOOK.sub("", text)
    text = _PLAIN_NUMBER.sub(r"{\1}", text)
    text = _DOUBLE_BRACES.sub(r"{\1}", _DOUBLE_BRACES.sub(r"{\1}", text))
    text = _DEGREE.sub("°", _SPACE.sub(" ", _EMPTY_GROUP.sub("", text)))
    text = _BASED.sub(r"\1", _BRACED_ARGUMENTS.sub(_written_first, text))
    whole = _WHOLE_INFIX.fullmatch(text)
    text = _written_first(whole) if whole else _INFIX.sub(_written_first, text)
    text = _DOTTED.sub(
        lambda match: rf"{match[1]}\overline{{{''.join(part or '' for part in match.groups()[1:])}}}", text
    )
    text = _BARRED.sub(lambda match: rf"{match[1]}\overline{{{match[2] or match[3]}}}", text)
    return _CONTINUED.sub(_with_period, _PARENTHESISED.sub(r"\1\\overline{\2}", text))


def _rewrite_unicode(text: str) -> str:
    text = _RAISED_RUN.sub(lambda match: _shifted("^", match, _RAISED), text)
    text = _LOWERED_RUN.sub(lambda match: _shifted("_", match, _LOWERED), text)
    text = text.translate(_TRANSLATION)
    return _ROOT.sub(lambda match: _ROOTS[match[1]] + (f"{{{match[2]}}}" if match[2] else ""), text)


def _shifted(sign: str, match: re.Match[str], characters: dict[str, str]) -> str:
    shifted = "".join(map(characters.__getitem__, match.group()))
    # Braces end the exponent before a digit; without need of them there are none, because a unit may stand in \text.
    return f"{sign}{{{shifted}}}" if len(shifted) > 1 or match[1] else sign + shifted


def _written_first(match: re.Match[str]) -> str:
    r"""`5 \choose 2` as `\binom{5}{2}`."""
    return rf"\{_INFIXES[match[2]]}{{{match[1]}}}{{{match[3]}}}"


def _with_period(match: re.Match[str]) -> str:
    r"""`0.333\ldots` as `0.\overline{3}`; digits without a visible period keep their dots, and are no number."""
    for pattern in _PERIODS:
        period = pattern.fullmatch(match[2])
        if period:
            return rf"{match[1]}{period[1]}\overline{{{period[2]}}}"
    return rf"{match[1]}{match[2]}\ldots "
