"""Structure: chains, named values, tuples and sets of real numbers.

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
    ("x=2+3=5", "5"), ("x = 5", "5"), ("x=y=5", "5"), ("S = \\frac{10\\cdot 11}{2} = 55", "55"), ("2+3=5", "5"),
    ("\\frac{1}{2} = 0.5", "\\frac12"), ("x = 2\\sqrt{30} \\approx 10.95", "2\\sqrt{30}"),
    ("2\\sqrt{30} \\approx 10.954", "2\\sqrt{30}"), ("x = \\frac{1}{3} \\approx 0.33", "\\frac13"),
    ("\\pi \\approx 3.14", "\\pi"), ("P = (1+1, 3) = (2,3)", "(2,3)"),
    ("A = \\{1\\} \\cup \\{2\\}", "A = \\{1\\}\\cup\\{2\\}"), ("f(2) = 7", "7"), ("\\text{Area} = 12", "12"),
    ("\\sqrt{4} = 2", "2"), ("x_1 = 2, x_2 = 3", "2, 3"), ("x_1 = 2, x_2 = 3", "x = 2, x = 3"),
    ("x = 2 \\text{ or } x = 3", "3, 2"), ("x=2, y=3", "(2,3)"), ("x=2, y=3", "(x,y)=(2,3)"), ("V_1:V_2 = 11:21", "11:21"),
    ("a:b:c = 1:2:3", "1:2:3"), ("\\frac{x}{y} = \\frac{2}{3}", "\\frac23"), ("\\frac{AB}{CD} = 2", "2"),
    ("[0,1] \\cup [1,2]", "[0,2]"), ("(0,2)\\cup[1,3]", "(0,3]"),
    ("(-\\infty,2)\\cup(2,\\infty)", "\\mathbb{R}\\setminus\\{2\\}"), ("x \\neq 2", "(-\\infty,2)\\cup(2,\\infty)"),
    ("x \\ne 2", "\\mathbb{R} \\setminus \\{2\\}"), ("x \\neq 2, 3", "(-\\infty,2)\\cup(2,3)\\cup(3,\\infty)"),
    ("x \\neq 2 \\text{ and } x \\neq 3", "\\mathbb{R}\\setminus\\{2,3\\}"),
    ("x\\in\\mathbb{R}, x \\neq 0", "(-\\infty,0)\\cup(0,\\infty)"),
    ("\\mathbb{R} - \\{0\\}", "(-\\infty,0)\\cup(0,\\infty)"), ("\\mathbb{R}\\backslash\\{0\\}", "x \\ne 0"),
    ("|x|<2", "-2<x<2"), ("|x| \\le 2", "[-2,2]"), ("|x|>2", "(-\\infty,-2)\\cup(2,\\infty)"),
    ("|x| \\ge 2", "x \\le -2 \\text{ or } x \\ge 2"), ("1<|z|<3", "(-3,-1)\\cup(1,3)"), ("|x-1| \\le 3", "[-2,4]"),
    ("|x+2| \\le \\frac12", "[-\\frac52, -\\frac32]"), ("2 > |x|", "|x| < 2"), ("\\{x \\mid x>2\\}", "x > 2"),
    ("\\{x : x \\ge 2\\}", "[2,\\infty)"), ("\\{x \\in \\mathbb{R} : -1 < x \\le 1\\}", "(-1,1]"),
    ("\\{x \\mid x \\neq 3\\}", "(-\\infty,3)\\cup(3,\\infty)"), ("\\{x : 2<x<102, x \\neq 12\\}", "(2,12)\\cup(12,102)"),
    ("x > 2 \\text{ and } x \\le 5", "(2,5]"), ("x<-1 \\lor x>1", "(-\\infty,-1)\\cup(1,\\infty)"), ("x<-1 or x>1", "|x|>1"),
    ("(-\\infty,\\infty)", "\\mathbb{R}"), ("x \\in \\mathbb{R}", "(-\\infty,\\infty)"),
    ("\\text{all real numbers}", "\\mathbb{R}"), ("\\emptyset", "\\{\\}"), ("\\varnothing", "\\emptyset"),
    ("(-oo, 2) U (3, oo)", "(-\\infty,2)\\cup(3,\\infty)"), ("\\{1,2\\}\\cup(3,4)", "(3,4)\\cup\\{1,2\\}"),
    ("[1,2)\\cup\\{2\\}", "[1,2]"), ("(0,\\infty)", "\\mathbb{R}^+"), ("x \\in (2,3) \\cup (3,4)", "(3,4) \\cup (2,3)"),
    ("x<3, x>5", "(-\\infty,3)\\cup(5,\\infty)"), ("\\frac{1}{2}<x", "(\\frac12,\\infty)"),
    ("-\\sqrt{2} \\le x \\le \\sqrt{2}", "|x| \\le \\sqrt2"), ("m+n = 17", "m+n=17"), ("\\angle ABC = 30^\\circ", "30"),
    ("0 \\le \\theta < 2\\pi", "\\theta \\in [0,2\\pi)"), ("(x,y) = (1,2)", "(1,2)"), ("(a,b,c) = (1,2,3)", "(1,2,3)"),
    ("x=1, y=2, z=3", "(1,2,3)"), ("x = 4 \\text{ or } x=-4", "\\pm 4"), ("x = \\pm 4", "\\{4,-4\\}"), ("x=4, x=-4", "4, -4"),
    ("n = 2, 3, 4", "2,3,4"), ("\\{x : x \\le -1 \\text{ or } x \\ge 1\\}", "|x| \\ge 1"),
    ("\\{x\\mid -1\\le x\\le 1\\}", "[-1,1]"), ("\\left\\{x \\,\\middle|\\, x > 0\\right\\}", "(0,\\infty)"),
    ("-1 \\leq x \\leq 1", "x\\in[-1,1]"), ("x \\geq -1 \\text{ and } x \\leq 1", "[-1,1]"),
    ("x \\in (-\\infty, -1] \\cup [1, \\infty)", "|x|\\ge1"),
    ("(-\\infty,-1]\\cup[1,\\infty)", "\\mathbb{R}\\setminus(-1,1)"), ("y \\ge 0", "[0,\\infty)"),
    ("\\{y \\mid y \\ge 0\\}", "[0,\\infty)"), ("(0,1)\\cup\\{1\\}", "(0,1]"), ("(-\\infty, 3)\\cup(3,\\infty)", "x\\neq3"),
    ("\\mathbb{R}\\setminus\\{0\\}", "(-\\infty,0)\\cup(0,\\infty)"),
    ("\\mathbb{R}\\setminus\\{-1,1\\}", "(-\\infty,-1)\\cup(-1,1)\\cup(1,\\infty)"),
    ("x \\neq \\pm 1", "\\mathbb{R}\\setminus\\{-1,1\\}"), ("[2,3]\\cup[3,4]\\cup[5,6]", "[5,6]\\cup[2,4]"),
    ("[1, \\sqrt{2}]\\cup[\\sqrt2, 2]", "[1,2]"), ("\\frac{V_1}{V_2} = \\frac{3}{4}", "\\frac34"), ("x:y:z = 3:4:5", "3:4:5"),
    ("AB = \\sqrt{3^2+4^2} = 5", "5"), ("\\angle A = 180^\\circ - 65^\\circ = 115^\\circ", "115^\\circ"),
    ("P(A) = \\frac{3}{6} = \\frac12", "\\frac12"), ("S = 1+2+3+4 = 10", "10"), ("f(3) = 2\\cdot3+1 = 7", "7"),
    ("x = \\frac{6}{4} = \\frac{3}{2} = 1.5", "1.5"), ("\\frac{10}{4} = 2.5", "2.5"),
    ("V = \\frac{4}{3}\\pi r^3 = 36\\pi", "V = \\frac43\\pi r^3=36\\pi"), ("x = \\sqrt{2} \\approx 1.414", "\\sqrt2"),
    ("\\frac{\\pi}{4} \\approx 0.785", "\\frac{\\pi}{4}"), ("e \\approx 2.718", "e"), ("x_1 = 1, x_2 = 2", "x_1=1, x_2=2"),
    ("x_1 = 1, x_2 = 2", "x_2=2,x_1=1"), ("\\{(1,2),(3,4)\\}", "\\{(3,4),(1,2)\\}"), ("(1,2), (3,4)", "(3,4),(1,2)"),
    ("a=-2 \\text{ or } a=1", "1, -2"), ("k = 0 \\text{ or } k = 1", "\\{0, 1\\}"), ("\\text{Area} = 6\\pi", "6\\pi"),
    ("A = \\pi r^2", "\\pi r^2"), ("2:3", "2 : 3"), ("1 < x < 3", "3 > x > 1"), ("x \\in [1,3]", "1 \\le x \\le 3"),
    ("x<5", "5>x"), ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{bmatrix}1\\\\2\\end{bmatrix}"),
    ("(0,5] \\cap (3,9)", "(3,5]"),
]  # fmt: skip
# These hold in one direction only: the gold answer says more.
RIGHT = [
    ("1,2", "\\{1,2,2\\}"), ("\\{1,2\\}", "\\{1,2,2\\}"), ("1, 2", "x=1, y=2"),
    ("\\{(x,y) \\mid x>2\\}", "\\{(x,y) \\mid x>2\\}"), ("5", "x = 2+2 = 5"), ("(0,1)", "0<x<1"), ("x\\in(0,1)", "(0,1)"),
    ("m=3,n=8", "(3,8)"), ("-2, 7", "x_1=-2, x_2=7"), ("A \\cap B = \\{1\\}", "A \\cap B = \\{1\\}"),
    ("x=1, y=2", "y=2, x=1"),
]  # fmt: skip
DIFFERENT = [
    ("x=5=6", "6"), ("x=5=6", "5"), ("x = 7 = 5", "5"), ("x=y=6=5", "5"), ("5 \\approx 6", "5"), ("5 \\approx 6", "6"),
    ("x=5\\approx 6", "5"), ("2\\sqrt{30} \\approx 11.95", "2\\sqrt{30}"), ("\\pi \\approx 3.15", "\\pi"),
    ("\\pi \\approx 3.14", "3.14"), ("\\frac13 \\approx 0.33", "0.33"), ("A=\\{3\\}=\\{1,2\\}", "\\{1, 2\\}"),
    ("P=(2,1)=(1,2)", "(1, 2)"), ("(2,1)=(1,2)", "(1,2)"), ("[0,1]=[0,2]", "[0,2]"), ("a=0, b=1", "[0,1)"),
    ("a=0, b=1", "(0,1]"), ("a=0, b=1", "[0,1]"), ("a=0, b=1", "0<x<1"), ("a=0, b=1", "x \\in (0,1)"),
    ("a=-\\infty, b=3", "(-\\infty,3)"), ("a=-\\infty, b=3", "(-\\infty,3]"), ("a=3, b=\\infty", "x > 3"),
    ("a=3,b=\\infty", "(3,\\infty)"), ("a=1, b=2", "2, 1"), ("x=1 \\text{ or } y=2", "\\{1,2\\}"), ("x=1, y=2", "1, 2"),
    ("y=1,x=2", "(1,2)"), ("x=2,y=3", "(x,y)=(3,2)"), ("\\text{not}=5", "5"), ("not = 5", "5"), ("\\text{wrong} = 5", "5"),
    ("1<x<2", "(1, 2)"), ("(0,1)\\cup(1,2)", "(0,2)"), ("(-\\infty,\\infty)", "(-\\infty,2)\\cup(2,\\infty)"),
    ("x > 2, x < 5", "\\mathbb{R}"), ("x > 2, x < 5", "(-\\infty,\\infty)"),
    ("x<-2 \\text{ and } x > 2", "(-\\infty,-2)\\cup(2,\\infty)"), ("x>2 \\text{ or } x < 5", "[2,5]"), ("|x|<2", "(-2,2]"),
    ("|x|\\le 2", "-2<x<2"), ("|x|<2", "|x|>2"), ("|x|<2", "|y|<2"), ("|x|<2", "(0,2)"), ("|x|<2", "(-\\infty,2)"),
    ("x \\neq 2", "\\mathbb{R}"), ("x \\neq 2", "x \\neq 3"), ("x \\neq 2", "x = 2"), ("\\neq 2", "2"),
    ("\\mathbb{R}\\setminus\\{2\\}", "\\mathbb{R}"), ("\\mathbb{R}\\setminus\\{2\\}", "\\{2\\}"),
    ("\\{x \\mid x>2\\}", "[2,\\infty)"), ("\\{x \\mid y>2\\}", "x>2"), ("\\{x \\mid x>2\\}", "\\{2\\}"),
    ("\\emptyset", "\\{0\\}"), ("\\emptyset", "0"), ("\\{\\emptyset\\}", "\\emptyset"), ("\\{1,2,3\\}", "\\{1,2,2\\}"),
    ("1, 1, 2", "1, 2, 2"), ("1<|z|<3", "(1,3)"), ("(0,5)\\cap(3,9)", "(0,9)"), ("[1,2)\\cup\\{2\\}", "[1,2)"),
    ("(0,\\infty)", "\\mathbb{R}"), ("[0,\\infty)", "\\mathbb{R}^+"), ("V_1:V_2 = 11:21", "21:11"),
    ("V_2:V_1 = 11:21", "V_1:V_2=11:21"), ("x+y = 5", "5"), ("2x+3y=5", "5"), ("x^2 = 4", "4"),
    ("x_1 = 2, x_2=3", "x_1=3, x_2=2"), ("3, 2", "x=2, y=3"), ("x=1, x=2", "x_1=1, y=2"),
    ("\\frac{x}{y}=2", "\\frac{y}{x}=2"), ("f(2)=5", "f(3)=5"), ("5", "x \\neq 5"), ("x \\le 5", "5"),
    ("\\forall x>0,\\ f(x) = 0", "f(x) = 1"), ("x = 5 \\text{ or } 6", "5"), ("x<5=6", "6"), ("2<x=5", "5"), ("x=5<6", "5"),
    ("5=5=6", "6"), ("0=0", "5"), ("5 = x = 6", "6"), ("6 = x = 5", "5"), ("5, 5", "5"), ("1/2=0.5=0.6", "0.6"),
    ("x=2=2.0000001", "2.0000001"), ("1, 2", "(1,2)"), ("2, 1", "x=1, y=2"), ("\\{1,2\\}", "x=1, y=2"), ("x=5=6=5", "5"),
    ("5=6=5", "5"), ("x = 5, 6", "5"), ("x = \\{5\\}", "5=5"), ("5 \\approx 5.4", "5.4"), ("5.4 \\approx 5", "5"),
    ("\\frac{1}{3} \\approx 0.34", "\\frac13"), ("x \\approx 5 \\approx 6", "6"), ("\\approx 5", "5.2"),
    ("1000 \\approx 1000.4", "1000.4"), ("A = 3 = \\{1\\}", "3"), ("y = x = 5 = 4", "4"), ("x_1=1, x_2=2", "(2,1)"),
    ("a=1,b=2,c=3", "3,2,1"), ("a=1,b=2,c=3", "[1,2,3]"), ("x=0,y=1", "[0,1]"), ("u=-\\infty, v=\\infty", "\\mathbb{R}"),
    ("l=2, r=5", "2 \\le x < 5"), ("l=2, r=5", "(2,5]"), ("l=2, r=5", "(2,5)\\cup(6,7)"),
    ("a=0,b=1,a=2,b=3", "(0,1)\\cup(2,3)"), ("a=1", "\\{1\\}\\cup\\{2\\}"), ("0<x<1", "[0,1]"), ("0 \\le x<1", "(0,1)"),
    ("0<x<1 \\text{ or } 1<x<2", "(0,2)"), ("x > 0 \\text{ or } x < 1", "(0,1)"), ("x>0,x<1", "(0,1)\\cup(2,3)"),
    ("x \\in \\{0,1\\}", "[0,1]"), ("x \\in \\{0,1\\}", "(0,1)"), ("x \\in \\mathbb{Z}", "\\mathbb{R}"),
    ("\\mathbb{Q}", "\\mathbb{R}"), ("\\mathbb{R}^2", "\\mathbb{R}"),
    ("\\mathbb{R}\\setminus\\{1,2\\}", "\\mathbb{R}\\setminus\\{1\\}"), ("x\\ne 1, 2", "x \\ne 1"),
    ("\\{x \\mid x \\in \\mathbb{Z}, x>2\\}", "(2,\\infty)"), ("\\{x \\in \\mathbb{Z} \\mid x>2\\}", "(2,\\infty)"),
    ("\\{x \\in \\mathbb{N} : x<5\\}", "(-\\infty,5)"), ("\\{x \\mid 0<x<1, x \\in \\mathbb{Q}\\}", "0<x<1"),
    ("\\{2x \\mid x>2\\}", "(2,\\infty)"), ("\\{x^2 : x > 2\\}", "(2,\\infty)"), ("\\{x \\mid x^2>4\\}", "x>2"),
    ("|x|<-2", "\\emptyset"), ("|x|>-2", "(2,\\infty)"), ("|x-1|<2", "(-2,2)"), ("|x+1|<2", "(-1,3)"), ("|2x|<2", "(-2,2)"),
    ("|2x-1|<3", "(-2,4)"), ("|x^2|<4", "(-2,2)"), ("|x| \\neq 2", "x \\neq 2"),
    ("x \\neq 2 \\text{ or } x \\neq 3", "\\mathbb{R}\\setminus\\{2,3\\}"), ("(1,2)\\setminus\\{1.5\\}", "(1,2)"),
    ("[0,1]\\cup[2,3]", "[0,3]"), ("[0,1)\\cup(1,2]", "[0,2]"), ("(0,1)\\cup(2,3)", "(0,1), (2,3)"),
    ("(0,1)\\cup(0.5,3)", "(0,1)"), ("(-\\infty,0)\\cup[0,\\infty)", "(-\\infty,0)\\cup(0,\\infty)"),
    ("x \\le 2 \\text{ and } x \\ge 2", "\\emptyset"), ("x\\in(0,1)", "y\\in(0,1)"), ("0 < \\theta < \\pi", "0 < x < \\pi"),
    ("\\{1,2\\}\\cup\\{3\\}", "\\{1,2\\}"), ("\\{1,1\\}", "\\{1,2\\}"), ("\\{1,2,3\\}", "1,2"), ("\\{\\}", "0"),
    ("\\emptyset", "\\{\\emptyset\\}"), ("1:2", "\\frac12"), ("a:b = 1:2", "b:a = 1:2"), ("a:b=1:2", "1:3"),
    ("a/b = 2", "b/a=2"), ("m+n=5", "5"), ("\\frac{m}{n} = 5", "m=5"), ("5 = n+2", "5"), ("f(x)=5", "g(x)=5"),
    ("f(1)=5", "1"), ("5n=5", "5"), ("n=5k", "5"), ("xy=5", "x=5"), ("P(A)=\\frac12=\\frac13", "\\frac13"),
    ("\\{x=1\\}", "\\{y=1\\}"), ("(x=1,y=2)", "(2,1)"), ("(1,2) = (x,y)", "(2,1)"), ("x=1;y=2", "(2,1)"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix} = \\begin{pmatrix}2\\\\1\\end{pmatrix}", "\\begin{pmatrix}2\\\\1\\end{pmatrix}"),
    ("\\text{no} = 5", "5"), ("\\overline{5}", "5"), ("x\\overline{=}5", "5"), ("5 \\ne 5", "5"), ("5 < 6", "6"),
    ("5 > x = 6", "6"), ("x \\equiv 5 \\pmod 7", "5"), ("5 \\pmod 7", "5"), ("-5", "|{-5}|"), ("5!", "5"), ("5!!", "15"),
    ("\\pm 2", "2"), ("\\pm 2", "-2, 2, 3"), ("2\\pm\\sqrt3", "2+\\sqrt3"), ("2 \\mp \\sqrt3", "2-\\sqrt3"),
    ("a \\pm b", "a+b"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_two_spellings_of_one_structure_are_equal_in_either_order(one: str, other: str) -> None:
    assert (verdict(one, other), verdict(other, one)) == ("ok", "ok")


@pytest.mark.parametrize(("prediction", "gold"), DIFFERENT)
def test_an_answer_of_another_structure_is_never_right(prediction: str, gold: str) -> None:
    assert verdict(prediction, gold) != "ok"


@pytest.mark.parametrize(("prediction", "gold"), RIGHT)
def test_an_answer_that_says_what_the_gold_answer_says_is_right(prediction: str, gold: str) -> None:
    assert verdict(prediction, gold) == "ok"
