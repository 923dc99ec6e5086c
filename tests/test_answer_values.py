"""Values: equality is proved, however close two numbers are; readings depend on tokens, never on values.

Algebra runs in this process, because no answer here is hostile.
"""

from __future__ import annotations

import pytest

from reval_jax import verifier
from reval_jax.equality import symbolic


def verdict(prediction: str, gold: str) -> str:
    grade = verifier.grade(prediction, gold, answer_format="boxed", extracted=True)
    return verifier.settle(grade, [symbolic.compare(*pair) for pair in grade.pairs]).kind


EQUAL = [
    ("2^{2024}-1", "2^{2024}-1+0"), ("\\sqrt{2}+\\sqrt{3}", "\\sqrt{5+2\\sqrt{6}}"),
    ("\\sqrt[3]{2+\\sqrt{5}}+\\sqrt[3]{2-\\sqrt5}", "1"), ("\\cos 36^\\circ", "\\frac{1+\\sqrt5}{4}"),
    ("\\cos\\frac{\\pi}{5}", "\\frac{1+\\sqrt5}{4}"), ("\\tan 75^\\circ", "2+\\sqrt3"), ("\\sin(30^\\circ)", "1/2"),
    ("\\cos 60^{\\circ}", "\\sin 30^\\circ"), ("\\sin^2 30^\\circ", "1/4"), ("\\sin x^\\circ", "\\sin\\frac{\\pi x}{180}"),
    ("10\\sin 50^\\circ", "10\\cos 40^\\circ"), ("\\arctan 1", "\\frac{\\pi}{4}"), ("\\frac{\\ln 8}{\\ln 2}", "3"),
    ("\\log_{10} 1000", "3"), ("\\lg 100", "2"), ("e^{\\ln 3}", "3"), ("\\ln(e^2)", "2"),
    ("2\\frac{n}{n+1}", "\\frac{2n}{n+1}"), ("2\\frac1n", "\\frac2n"), ("2\\frac{1}{n}", "\\frac2n"),
    ("3\\frac{1}{2}", "7/2"), ("2\\frac{a}{2b}", "\\frac{a}{b}"), ("2\\frac{1}{\\sqrt{3}}", "\\frac{2}{\\sqrt3}"),
    ("3\\frac{n(n-1)}{2}", "\\frac{3n(n-1)}{2}"), ("pi/2", "\\frac{\\pi}{2}"), ("-2*pi", "-2\\pi"),
    ("3pi/4", "\\frac{3\\pi}{4}"), ("theta/2", "\\frac{\\theta}{2}"), ("alpha + beta", "\\beta+\\alpha"),
    ("cbrt(2)", "\\sqrt[3]{2}"), ("floor(7/2)", "3"), ("ceil(7/2)", "4"), ("exp(2x)", "e^{2x}"), ("sqrt(35)", "\\sqrt{35}"),
    ("sqrt35", "\\sqrt{35}"), ("sin(x)cos(x)", "\\frac12 \\sin(2x)"), ("abs(x-1)", "|1-x|"), ("(-oo, 3]", "(-\\infty, 3]"),
    ("(-inf, oo)", "(-\\infty,\\infty)"), ("infinity", "\\infty"), ("binom(5,2)", "10"),
    ("{n \\choose 2}", "\\frac{n(n-1)}{2}"), ("\\frac{n!}{(n-2)!}", "n(n-1)"), ("\\sqrt[3]{-8}", "-2"),
    ("\\sqrt[5]{-32}", "-2"), ("\\sqrt[3]{-2}", "-\\sqrt[3]{2}"), ("0.333\\ldots", "\\frac13"), ("0.1666...", "\\frac16"),
    ("0.142857142857\\dots", "\\frac17"), ("2.1818...", "\\frac{24}{11}"), ("\\tanh(0)", "0"),
    ("\\sinh x", "\\frac{e^x-e^{-x}}{2}"), ("\\frac{\\sqrt{6}+\\sqrt{2}}{4}", "\\cos 15^\\circ"),
    ("\\sqrt{7+4\\sqrt3}", "2+\\sqrt3"), ("2^{\\frac{1}{2}}", "\\sqrt2"),
    ("\\frac{1}{1+\\sqrt[3]{2}+\\sqrt[3]{4}}", "\\sqrt[3]{2}-1"), ("\\frac{3^{2023}+1}{2}", "\\frac{1+3^{2023}}{2}"),
    ("2024! - 1", "2024\\cdot 2023!-1"), ("\\binom{2024}{1012}", "\\frac{2024!}{1012!^2}"),
    ("(1+\\sqrt2)^{100}", "(3+2\\sqrt2)^{50}"), ("e^{i\\pi}", "-1"), ("\\frac{1}{2}+\\frac{\\sqrt3}{2}i", "e^{i\\pi/3}"),
    ("|3+4i|", "5"), ("|1+i|", "\\sqrt2"), ("x+2^{2024}", "2^{2024}+x"), ("\\sum_{k=1}^{\\infty} \\frac{1}{2^k}", "1"),
    ("\\int_0^1 x^2 dx", "\\frac13"), ("\\lim_{x\\to\\infty} \\frac{1}{x}", "0"),
    ("\\sum_{n=1}^{\\infty}\\frac{1}{n^2}", "\\frac{\\pi^2}{6}"), ("\\int_0^\\infty e^{-x} dx", "1"),
    ("y=\\sqrt{2}x", "\\sqrt{2}y=2x"), ("\\pi r^2 h", "r^2h\\pi"), ("\\cos^{-1}\\frac12", "\\frac{\\pi}{3}"),
    ("\\sqrt{x^2+2x+1}\\sqrt{x^2+2x+1}", "(x+1)^2"), ("\\log_2 3 \\cdot \\log_3 4", "2"),
    ("\\sin\\frac{\\pi}{10}", "\\frac{\\sqrt5-1}{4}"), ("\\sin 18^\\circ", "\\frac{\\sqrt5-1}{4}"),
    ("\\tan 20^\\circ \\tan 40^\\circ \\tan 80^\\circ", "\\sqrt3"),
    ("\\cos 20^\\circ\\cos 40^\\circ\\cos 80^\\circ", "\\frac18"),
]  # fmt: skip
DIFFERENT = [
    ("2^{2024}", "2^{2024}-1"), ("2^{2024}+1", "2^{2024}-1"), ("2023!-1", "2023!"),
    ("\\binom{2024}{1012}-1", "\\binom{2024}{1012}"), ("1-\\frac{1}{2^{2023}}", "1"), ("[1-2^{-2023},1)", "[1,1)"),
    ("x+2^{2024}", "2^{2024}"), ("7^{2020}", "7^{2020}-3^{2020}"), ("\\sqrt{2}+10^{-80}", "\\sqrt{2}"),
    ("\\sqrt{2}+10^{-9999}", "\\sqrt{2}"), ("\\tanh(9999)", "1"), ("\\tanh(99)", "1"), ("\\cos(10^{-60})", "1"),
    ("\\pi+10^{-200}", "\\pi"), ("\\pi+e^{-9999}", "\\pi"), ("\\frac{\\sinh 500}{\\cosh 500}", "1"),
    ("\\arctan(10^{90})", "\\frac{\\pi}{2}"), ("\\frac{1}{\\infty}", "0"), ("\\sqrt{2+10^{-100}}", "\\sqrt2"),
    ("(1+10^{-99})^{1/2}", "1"), ("x+10^{-90}", "x"), ("x\\sqrt{2}+10^{-90}", "\\sqrt2 x"), ("y=2x+10^{-90}", "y=2x"),
    ("y=\\sqrt2x+10^{-90}", "y=\\sqrt{2}x"), ("\\ln(1+e^{-9999})", "0"),
    ("1.0000000000000000000000000000000000000000000000000000000000000001", "1"),
    ("\\begin{pmatrix} 1+10^{-99}\\sqrt2 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
    ("(x, 2^{2024})", "(x, 2^{2024}+1)"), ("\\int 2x dx+1", "x^2+1"), ("\\int 2x dx", "x^2"), ("\\cos 60", "\\frac12"),
    ("\\cos 60^\\circ", "\\cos 60"), ("\\tan 15", "\\tan 15^\\circ"), ("\\log 50\\%", "\\log 50"),
    ("2^{30^\\circ}", "2^{30}"), ("\\sin 90", "1"), ("3\\frac{1}{2}", "\\frac32"), ("0.12...", "0.12"), ("0.33...", "0.33"),
    ("3.14159...", "\\pi"), ("0.333...", "0.333"), ("1,2,3,...", "1,2,3"), ("pi", "3.14"), ("mu", "\\mu"),
    ("e^{\\pi\\sqrt{163}}", "262537412640768744"), ("\\sqrt[3]{2}", "\\sqrt{2}"), ("(-8)^{1/3}", "2"),
    ("\\lfloor 3-10^{-50} \\rfloor", "3"), ("\\sum_{k=1}^{100} \\frac{1}{10^{k}}", "\\frac19"),
    ("\\frac{1}{9}-\\frac{1}{9\\cdot10^{100}}", "\\frac19"), ("2^{2024}x", "(2^{2024}+1)x"),
    ("\\sqrt{x^2+10^{-100}}", "\\sqrt{x^2}"), ("\\frac{\\infty}{\\infty}", "1"), ("\\infty-\\infty", "0"),
    ("5\\infty", "\\infty"), ("1^{\\infty}", "1"), ("\\int_0^1 x dx + \\int 0 dx", "\\frac12"), ("i^{10^{-99}}", "1"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_two_spellings_of_one_value_are_equal_in_either_order(one: str, other: str) -> None:
    assert (verdict(one, other), verdict(other, one)) == ("ok", "ok")


@pytest.mark.parametrize(("prediction", "gold"), DIFFERENT)
def test_a_value_that_differs_is_never_right(prediction: str, gold: str) -> None:
    assert verdict(prediction, gold) != "ok"
