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
    ("0 \\le \\theta < 2\\pi", "\\theta \\in [0,2\\pi)"), ("(0,5] \\cap (3,9)", "(3,5]"),
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
    ("x=2=2.0000001", "2.0000001"), ("1, 2", "(1,2)"), ("2, 1", "x=1, y=2"), ("\\{1,2\\}", "x=1, y=2"),
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
