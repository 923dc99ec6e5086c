"""Words, units, choices and spellings in answers, from both sides: what is read, and what is refused."""

from __future__ import annotations

import pytest

from reval_jax import verifier
from reval_jax.equality import choices, normal, quantities, spelling, symbolic, vocabulary


def graded(prediction: str, gold: str) -> verifier.Grade:
    grade = verifier.grade(prediction, gold, answer_format="boxed", extracted=True)
    return verifier.settle(grade, [symbolic.compare(*pair) for pair in grade.pairs])


WORDS_THAT_CHANGE_OR_DENY = (
    "false negated fold remainder~three wrong under~par double point~five then~six googol squares ten inverse imaginary "
    "negative tens twentieths exponent elevenths unless~six sqrt grand either~six tripled six~seven~eight reciprocal "
    "modulo~seven twelfths degrees~below~zero not minus~one and~a~half squared cubed halves percentile or~more at~most "
    "approximately less dollars~short apples~minus~two myriad quarters pairs score gross baker's~dozen backwards "
    "in~base~six nonzero complex incorrect maybe times~two steps~back apples~and~oranges per of square per~hour "
    "hours~and~six~minutes opposite conjugate transposed factorial "
)


@pytest.mark.parametrize("words", WORDS_THAT_CHANGE_OR_DENY.split())
@pytest.mark.parametrize("wrapped", ["5\\text{{ {}}}", "5 \\mathrm{{{}}}", "5 {}", "\\text{{5 {}}}"])
def test_a_number_with_a_word_that_is_no_known_unit_or_noun_is_not_that_number(words: str, wrapped: str) -> None:
    assert graded(wrapped.format(words.replace("~", " ")), "5").reward == 0


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [
        # multipliers
        ("5\\text{ million}", "5000000"), ("5 million", "5,000,000"), ("2.5\\text{ million dollars}", "2500000"),
        ("\\$1.2\\text{ billion}", "1200000000"), ("3\\text{ dozen}", "36"), ("3\\text{ dozen eggs}", "36\\text{ eggs}"),
        ("5\\text{ thousand}", "5000"), ("4\\text{ hundred}", "400"), ("5\\text{ hundred thousand}", "500000"),
        ("7\\text{ trillion}", "7 \\cdot 10^{12}"), ("\\frac{1}{2}\\text{ million}", "500000"),
        ("5\\text{ quadrillion}", "5 \\cdot 10^{15}"), ("2\\text{ Million}", "2000000"),
        # spelled numbers
        ("\\text{five}", "5"), ("\\text{twenty-one apples}", "21"), ("\\text{four dozen}", "48"),
        ("\\text{two thousand and five}", "2005"),
        ("\\text{one hundred and twenty}", "120"), ("1", "\\text{one}"),
        ("\\text{three million four hundred thousand}", "3400000"),
        # units of another size, compound units
        ("60\\text{ min}", "1\\text{ hour}"), ("5000\\text{ m}", "5\\text{ km}"), ("100\\text{ cm}", "1\\text{ meter}"),
        ("5\\text{ m/s}", "18\\text{ km/h}"), ("5\\text{ m}/\\text{s}", "18\\text{ km/h}"), ("2\\text{ feet}", "24\\text{ in}"),
        ("5\\ \\text{kg}\\cdot\\text{m/s}^2", "5\\text{ N}"), ("5\\text{ miles per hour}", "5\\text{ mph}"),
        ("150\\text{ cents}", "\\text{1.5 dollars}"), ("10000\\text{ cm}^2", "1\\text{ square meter}"),
        ("2\\text{ weeks}", "14\\text{ days}"),
        ("5\\text{ meters squared}", "5\\text{ m}^2"), ("5^{\\circ}\\text{C}", "5"), ("20°C", "20\\text{ degrees Celsius}"),
        # nouns, their plurals and what is said of them
        ("5 apples", "5"), ("5\\text{ red apples}", "5"), ("5\\text{ different ways}", "5\\text{ ways}"),
        ("3\\text{ children}", "3"),
        ("1\\text{ person}", "1\\text{ people}"), ("6\\text{ boxes}", "6\\text{ box}"),
        ("2\\text{ pennies}", "2\\text{ penny}"),
        ("9\\text{ soccer balls}", "9"), ("5\\text{ cups of flour}", "5"), ("5\\text{ dollars per ticket}", "5"),
        ("40\\text{ ordered triples}", "40\\text{ ordered triples}"), ("6\\sqrt{3}\\text{ cm}^2", "6\\sqrt{3}"),
        ("9\\text{ divisors}", "9"),
        ("9\\text{ subsets}", "9"), ("4\\text{ zeros}", "4"), ("4\\text{ primes}", "4"),
        ("5\\text{ ordered pairs}", "5"), ("5\\text{ complex numbers}", "5"), ("3\\text{ dimes}", "3"),
        ("6\\text{ committees}", "6"), ("12\\text{ bacteria}", "12"), ("5\\text{ kg m s}^{-2}", "5\\text{ N}"),
        # signs of money
        ("\\$5", "5"), ("5", "\\$5"), ("\\$5", "500\\text{ cents}"), ("\\$5\\text{ dollars}", "5"), ("$5", "5\\text{ dollars}"),
        ("-\\$5", "-5"),
        ("\\$12, \\$13", "12, 13"), ("x=\\$5", "5"), ("\\$\\frac34", "0.75"), ("\\$2x+3", "2x+3"),
        ("5€", "€5"),
        ("\\$5\\text{ per hour}", "5"),
        # names of quantities
        ("\\text{Area} = 5", "5"), ("\\text{total area}=5", "5"), ("\\text{AB} = 5", "5"), ("\\text{minimum} = 5", "5"),
        ("\\text{number of ways} = 5", "5"), ("\\text{not} = 5", "\\text{not} = 5"),
    ],
)  # fmt: skip
def test_known_words_are_read(prediction: str, gold: str) -> None:
    assert graded(prediction, gold)[:2] == (1.0, "ok")


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [
        ("5\\text{ million}", "5"), ("5", "5\\text{ million}"), ("\\text{six seven}", "6"), ("\\text{five or six}", "5"),
        ("\\text{five halves}", "5"),
        ("\\text{minus five}", "5"), ("\\text{five point five}", "5"), ("\\text{one and two}", "3"),
        ("\\text{five wrong}", "5"),
        ("\\text{twenty eleven}", "31"), ("\\text{one or more}", "1"), ("5\\text{ million}", "5000"), ("3\\text{ dozen}", "3"),
        ("60\\text{ min}", "60\\text{ hours}"), ("5\\text{ km}", "5\\text{ m}"), ("5\\text{ km}", "5000"), ("20°C", "20°F"),
        ("5\\text{ m}", "5\\text{ m}^2"), ("5\\text{ s}", "5\\text{ m}"), ("5\\text{ m/s}", "5\\text{ m s}"),
        ("5\\text{ red balls}", "5\\text{ blue balls}"), ("4000\\text{ bananas}", "4000\\text{ ml}"), ("5\\text{ MM}", "5"),
        ("5\\text{ K}", "5"), ("5\\text{ M}", "5"), ("3\\text{ of } 5", "3"), ("5\\text{ in}^4", "5"), ("5m", "5"),
        ("\\text{not} = 5", "5"), ("\\text{wrong}=5", "5"), ("not = 5", "5"), ("\\not = 5", "5"), ("\\neg = 5", "5"),
        ("\\text{not area} = 5", "5"), ("\\text{opposite} = 5", "5"), ("\\text{nothing} = 5", "5"),
        ("\\text{not} \\approx 5", "5"), ("5\\text{ pairs}", "5"), ("5\\text{ zero}", "5"), ("5\\text{ complex}", "5"),
        # signs of money are units
        ("\\$5", "5\\text{ cents}"), ("5\\text{ cents}", "\\$5"), ("5\\%", "\\$5"),
        ("\\$5", "5\\%"), ("\\$5", "5\\text{ cm}"),
        ("\\$5", "5\\text{ euros}"), ("€5", "$5"), ("€5", "\\$5"), ("\\pounds 5", "¥5"),
        ("\\$5\\text{ cents}", "5"), ("\\$\\$5", "5"),
        # units that do not multiply
        ("5\\%\\%", "5"), ("5^\\circ^\\circ", "5"), ("5^\\circ\\%", "5"), ("5\\text{ percent percent}", "5"),
        ("5\\text{ hours minutes}", "5"), ("5\\text{ m s kg}", "5"), ("5\\text{ dollars cents}", "5"),
        ("5\\text{ cm}\\%", "5"),
        ("5\\text{ boys girls}", "5"), ("x^2\\%\\%", "x^2"), ("5 \\mod 7", "5"), ("5 \\mod 7", "5 \\mod 8"),
    ],
)  # fmt: skip
def test_a_unit_a_multiplier_or_a_name_of_another_meaning_is_refused(prediction: str, gold: str) -> None:
    assert graded(prediction, gold).reward == 0


def test_every_word_of_the_vocabulary_is_read_and_no_word_that_changes_a_number_is_in_it() -> None:
    for noun in vocabulary.NOUNS:
        assert quantities.read(f"\\text{{ {noun}}}") is not None
    alone = [words for words in WORDS_THAT_CHANGE_OR_DENY.split() if "~" not in words]
    assert not [word for word in alone if vocabulary.noun(word) or vocabulary.unit(word) or vocabulary.multiplier(word)]


@pytest.mark.parametrize(
    ("unit", "meaning"),
    [
        ("\\text{ cm}", "1/100 m^1"), ("\\text{ km/h}", "5/18 m^1 s^-1"), (" dogs", "1 dog^1"), ("", ""),
        ("\\text{ m/s/s}", "1 m^1 s^-2"),
        ("\\text{ square feet}", "145161/1562500 m^2"), ("\\text{ J}", "1000 g^1 m^2 s^-2"), ("\\%", None), ("%", "1 %^1"),
        ("\\text{ m per}", None), ("\\text{ / m}", None), ("\\text{ dog cats}", "1 dog_cat^1"),
        ("\\text{ dogs cats}", None), ("\\text{ m dogs}", None),
    ],
)  # fmt: skip
def test_the_unit_of_a_phrase(unit: str, meaning: str | None) -> None:
    phrase = quantities.read(unit)
    assert (phrase and phrase.unit) == meaning


@pytest.mark.parametrize(
    "answer",
    [
        "B", "(B)", "B.", "\\textbf{(B)}", "\\text{Option B}", "\\text{The correct answer is (B)}", "B. 12", "(B) 12",
        "B) 14", "(B): 12",
        "\\textbf{(B)}\\ \\text{Plane}", "(B) triangle ABC", "B. x^2+1", "B. 5\\text{ cm}", "B. \\$12", "B. 12\\%", "B. (1,2)",
        "B. \\frac{a}{b}", "(B) the red circle", "B. \\triangle ABC", "B. 3!", "\\mathrm{(B)}\\ 3:4", "B.~12",
        "(B)\\quad 12", "B) north",
    ],
)  # fmt: skip
def test_a_letter_alone_or_with_its_options_text_is_that_choice(answer: str) -> None:
    assert graded(answer, "B")[:2] == (1.0, "ok")
    assert graded(answer, "\\text{(B)}").reward == 1
    assert graded(answer, "C").reward == 0


@pytest.mark.parametrize(
    "answer",
    [
        "B: all of the above", "B.orC", "B. \\text{orC}", "B. is wrong", "B1", "B12", "B or C", "B: none of these", "B:maybe c",
        "B: see \\text{C}", "B. c", "B. C", "B) C)", "B: every option", "B. AC", "B: not 12", "B. 12 or 13", "(B)(c)", "B?",
        "\\text{choice B or C}", "B, C", "B/C", "\\neg B", "\\text{not } B", "B. \\neg 12", "B. x \\neq 12", "B. unlikely",
        "B: 12?",
        "B. 12; C. 13", "B. 12 % C", "B. (c) 12", "B. c: 12", "B \\to C", "A = B", "B. false", "B. no", "B - C",
        "B \\text{ is not it}",
        "B: a or b", "B: 1 \\lor 2", "B^2", "2B", "B!", "B'", "B. \\text{ I think}", "(B) \\text{ or } (C)", "not B", "B. &C",
    ],
)  # fmt: skip
def test_a_letter_with_anything_else_is_no_choice(answer: str) -> None:
    assert graded(answer, "B").reward == 0


def test_a_gold_answer_may_hold_its_options_text() -> None:
    assert graded("C", "\\textbf{(C)}\\ 12").reward == 1
    assert graded("(C)", "C. \\text{Plane}").reward == 1
    assert graded("D", "\\textbf{(C)}\\ 12").reward == 0
    assert graded("C or D", "\\textbf{(C)}\\ 12").reward == 0
    assert choices.letter("5") == ""


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [
        # Unicode
        ("√18", "3\\sqrt{2}"), ("3√2", "3\\sqrt{2}"), ("√(x+1)", "\\sqrt{x+1}"), ("∛8", "2"), ("x²+1", "x^2+1"),
        ("½", "\\frac{1}{2}"),
        ("3½", "3.5"), ("x₁+x₂", "x_1+x_2"), ("x₁₂", "x_{12}"), ("2ˆ3", "8"), ("90º", "90"), ("１２", "12"),
        ("（１，２）", "(1,2)"),
        ("x′", "x'"), ("2³4", "32"), ("10⁻³", "0.001"), ("𝑥+1", "x+1"), ("θ/2", "\\frac{\\theta}{2}"),
        ("5\\text{ cm²}", "5\\text{ cm}^2"),
        ("⌊7.9⌋", "7"), ("2⋅3", "6"), ("3⁄4", "0.75"), ("x ∈ [0, ∞)", "[0, \\infty)"), ("4\u200b2", "42"), ("€5", "5"),
        # LaTeX
        ("{5 \\choose 2}", "10"), ("5 \\choose 2", "10"), ("{{n} \\choose {k}}", "\\binom{n}{k}"), ("5^{o}", "5"),
        ("(101)_2", "101_2"), ("{1 \\over 2}", "0.5"), ("\\lg 100", "2"),
        ("\\textcolor{red}{5}", "5"),
        ("\\color{red}5", "5"), ("{\\color{blue}5}", "5"), ("\\underline{5}", "5"), ("\\underline{\\underline{5}}", "5"),
        ("5,", "5"), ("10:30", "10{:}30"),
        ("\\begin{aligned} 5 \\end{aligned}", "5"), ("5 \\mod 7", "5 \\bmod 7"),
        ("5;", "5"), ("\\bm{5}", "5"), ("\\boldsymbol{x}", "x"), ("x=\\mathbf{5}", "5"), ("5{}^\\circ", "5"),
        ("\\nicefrac{1}{2}", "0.5"),
        ("\\textbf{\\underline{5}}", "5"), ("\\frac{\\textcolor{blue}{1}}{2}", "0.5"), ("5\\hspace{1cm}", "5"),
        ("\\bigg(1,2\\bigg)", "(1,2)"),
        # repeating decimals, groups of digits, bases
        ("0.\\dot{3}", "\\frac13"), ("0.\\dot{1}\\dot{2}", "\\frac{4}{33}"), ("0.\\dot{1}4285\\dot{7}", "\\frac17"),
        ("0.1\\dot6", "\\frac16"),
        ("0.\\bar{3}", "\\frac13"), ("0.(3)", "\\frac13"), ("0.333\\ldots", "\\frac13"), ("0.333...", "\\frac13"),
        ("0.333…", "\\frac13"),
        ("0.1666\\ldots", "\\frac16"), ("0.1212\\dots", "\\frac{4}{33}"), ("0.999\\ldots", "1"), ("1 000 000", "1000000"),
        ("12 345", "12345"),
        ("x=1 000", "1000"), ("(1 000, 2)", "(1000, 2)"), ("1A_{16}", "1a_{16}"), ("ff_{16}", "FF_{16}"),
        ("\\text{1A}_{16}", "1A_{16}"),
    ],
)  # fmt: skip
def test_another_spelling_is_read(prediction: str, gold: str) -> None:
    assert graded(prediction, gold)[:2] == (1.0, "ok")


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [
        ("x²+1", "x^2+2"), ("½", "2"), ("2²", "22"), ("x₁", "x_2"), ("√2", "2"), ("√18", "18"), ("１２", "13"), ("x′", "x"),
        ("1\\underline{0}", "10"), ("1\\underline{0}", "0"), ("2\\bm{3}", "6"), ("2\\bm{3}", "23"), ("1\\textbf{0}", "10"),
        ("0.33\\ldots", "\\frac13"), ("3.14\\ldots", "3.14"), ("3.14...", "3.14"), ("3.14...", "\\pi"),
        ("2.718281828\\ldots", "e"),
        ("0.333\\ldots", "0.333"), ("0.333", "\\frac13"), ("12 34", "1234"), ("1 2", "12"), ("100 20", "10020"),
        ("1A_{16}", "1A_{12}"), ("1A_{16}", "26"), ("a_{16}", "A_{16}"), ("AB_{2}", "ab_{2}"),
        ("{5 \\choose 2}", "{5 \\choose 1}"),
        ("\\phantom{5}", "5"), ("5\\phantom{6}", "56"), ("\\lg 100", "\\ln 100"), ("9⁹⁹⁹⁹⁹", "9"), ("\\cancel{5}", "5"),
        (",", "5"),
    ],
)  # fmt: skip
def test_another_spelling_of_another_value_is_refused(prediction: str, gold: str) -> None:
    assert graded(prediction, gold).reward == 0


def test_ordinary_latex_is_not_rewritten() -> None:
    for text in (
        "\\frac{1}{2}",
        "x_{1}+x_2",
        "\\overline{AB}",
        "\\{1, 2\\}",
        "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}",
        "1.5",
        "1,234",
    ):
        assert spelling.rewrite(text) == text


def test_a_number_and_its_unit_are_read_together() -> None:
    number = normal.number("2.5\\text{ million km}")
    assert number is not None
    assert (number.value, number.unit) == (2500000, "1000 m^1")
