from __future__ import annotations

import json
import typing
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reval_jax import config, types, verifier
from reval_jax.equality import limits
from reval_jax.verifier import extraction

ANSWER_FORMATS = typing.get_args(config.AnswerFormat)
CASES = Path(__file__).resolve().parents[2] / "shared" / "data" / "verifier_cases.jsonl"

FRAGMENTS = [
    "\\boxed{", "\\boxed", "{", "}", "\\{", "\\}", "\\\\", "\\", "$", "\\frac", "\\dfrac12", "\\text{", "cm", "%",
    "^", "_", "<think>", "</think>", "-", "\u2212", "+", ".", ",", "/", "=", "x", "0", "1", "12", ",345", " ", "\n",
    "\u2009", "\0", "\ud800", "٣", "²", " ||| ", "\\,", "\\!", "(", ")", "[", "nan", "e9", "9^9^9", "\\circ",
]  # fmt: skip


UNHURRIED = settings(deadline=None, derandomize=True, database=None)  # no deadline, because the machine may be busy


def boxed(answer: str, gold: str, **options: bool) -> verifier.Grade:
    return verifier.grade(f"So it is $\\boxed{{{answer}}}$.", gold, answer_format="boxed", **options)


def first_number(text: str, gold: str) -> verifier.Grade:
    return verifier.grade(text, gold, answer_format="first_number")


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("4", "4"), ("+4", "4"), ("-4", "\u22124"), ("4.", "4"), ("4.0", "4"), ("142", "142.0"), ("33", "033"),
        ("-0", "0"), (".5", "\\frac{1}{2}"), ("0.5", "1/2"), ("\\dfrac{1}{2}", "\\tfrac12"), ("\\frac 12", "0.5"),
        ("\\frac1{2}", "2/4"), ("\\frac{-1}{2}", "-\\frac{1}{2}"), ("-\\frac{1}{2}", "\\frac{1}{-2}"),
        ("\\frac{ 1 }{ 2 }", "1 / 2"), ("3\\frac{1}{2}", "7/2"), ("-3 1/2", "-3.5"), ("3\\,\\frac12", "3.5"),
        ("1,234", "1234"), ("1{,}234", "1234"), ("1,\\!234,\\!567.5", "1234567.5"), ("10\\,000", "10000"),
        ("$12$", "\\(12\\)"), ("\\boxed{7}", "7"), ("{{7}}", "7"), ("x=5", "5"), ("5", "x = 5"), ("x_{1} = 5", "5"),
        ("\\text{5}", "5"), ("5\\text{ cm}", "5"), ("5", "5 \\text{ cm}"), ("5\\,\\mathrm{cm}^2", "5\\text{ cm}^{2}"),
        ("12 square inches", "12"), ("\\$3.50", "3.5"), ("28", "28\\%"), ("28\\%", "28 percent"), ("90^\\circ", "90"),
        ("90^{\\circ}", "90 \\text{ degrees}"), ("3", "4 ||| 3.0 ||| x"), ("7", "the number is $\\boxed{7}$"),
        ("\\text{(B)}", "B"), ("\\textbf{(B)}", "B"), ("B.", "B"), ("odd", "\\text{odd}"),
        ("\\left(1, 2\\right)", "(1,2)"), ("\\sqrt2", "\\sqrt{2}"), ("x^{2}+1", "x^2 + 1"),
        ("\\dfrac{\\pi}{2}", "\\frac{\\pi}{2}"), ("2 \\sin b \\cos a", "2\\sin b\\cos a"), ("nan", "nan"),
        ("3^{100}", "3^{100}"),
    ],
)  # fmt: skip
def test_another_spelling_of_the_same_answer_is_right(answer: str, gold: str) -> None:
    assert boxed(answer, gold)[:2] == (1.0, "ok")


@pytest.mark.parametrize(
    ("answer", "gold", "kind"),
    [
        ("43", "42", "wrong"), ("4", "-4", "wrong"), ("0.28", "28\\%", "wrong"), ("28\\%", "0.28", "wrong"),
        ("0.25", "25", "wrong"), ("10000.5", "10000", "wrong"), ("0.3333333333", "1/3", "wrong"),
        ("3.1416", "\\pi", "wrong"), ("y=5", "x=5", "wrong"), ("5\\text{ m}", "5\\text{ cm}", "wrong"),
        ("5\\text{ cm}^2", "5\\text{ cm}^3", "wrong"), ("12", "B", "wrong"), ("A", "B", "wrong"),
        ("5\\text{ million}", "5", "wrong"), ("32, 349", "32349", "wrong"), ("32, 349", "32,349", "wrong"),
        ("(1,234)", "1234", "wrong"), ("1 2", "12", "unparsed"), ("1 1/2", "11/2", "wrong"),
        ("1,2", "12", "wrong"), ("0,111", "111", "wrong"), ("12,34", "1234", "wrong"),
        ("5m", "5", "wrong"), ("5x", "5", "wrong"), ("1/0", "0", "unparsed"), ("1 4/2", "3", "unparsed"),
        ("1 2, 3", "12, 3", "unparsed"), ("1e-400", "0", "wrong"),
        ("2²", "22", "wrong"), ("٣", "3", "unparsed"), ("", "0", "unparsed"), ("$\\,$", "", "unparsed"),
        ("[1,2)", "(1,2)", "wrong"), ("(1,2)", "(2,1)", "wrong"), ("1 or 2", "1", "wrong"),
        ("B or C", "B", "wrong"), ("9^9^9^9", "1", "limit"), ("9**9**9", "1", "limit"),
        ("(10^9)!", "1", "limit"), ("\\leftarrow 5", "arrow 5", "unparsed"),
        ("__import__('os').system('true')", "1", "unparsed"), ("2", "\\boxed{1} or \\boxed{2}", "wrong"),
    ],
)  # fmt: skip
def test_a_different_answer_is_not_right_and_says_why(answer: str, gold: str, kind: str) -> None:
    assert boxed(answer, gold)[:2] == (0.0, kind)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("\\boxed{5} or rather \\boxed{4}", "ok"),
        ("\\boxed{4} or rather \\boxed{5}", "wrong"),
        ("\\boxed {4}", "ok"),
        ("\\\\boxed{4}", "ok"),
        ("{ \\boxed{4}", "ok"),
        ("} \\boxed{4} }", "ok"),
        ("\\boxed{ oh, \\boxed{4}", "ok"),
        ("\\boxed{\\boxed{5}\\boxed{6}}. Now \\boxed{\\boxed{4}}", "ok"),
        ("\\boxed{\\{4\\}}", "wrong"),
        ("\\boxed{\\}4}", "unparsed"),
        ("4", "no_box"),
        ("\\boxed 4", "ok"),
        ("\\boxed{4", "no_box"),
        ("\\boxed{4} but wait, \\boxed{", "no_box"),
        ("", "no_box"),
    ],
)
def test_the_last_box_counts_and_one_left_open_withdraws_it(text: str, kind: str) -> None:
    assert verifier.grade(text, "4", answer_format="boxed").kind == kind


@pytest.mark.parametrize(
    ("text", "prompt_open", "prompt_closed"),
    [
        ("\\boxed{4}", "unclosed_think", "ok"),
        ("hm \\boxed{5}</think>\\boxed{4}", "ok", "ok"),
        ("<think>hm \\boxed{5}</think>\\boxed{4}", "ok", "ok"),
        ("<think>\\boxed{4}</think>", "no_box", "no_box"),
        ("<think>\\boxed{4}", "unclosed_think", "unclosed_think"),
        ("a</think>b</think>\\boxed{4}", "ok", "ok"),
        ("a</think>\\boxed{4}<think>hm", "unclosed_think", "unclosed_think"),
    ],
)
def test_only_what_follows_the_thinking_counts(text: str, prompt_open: str, prompt_closed: str) -> None:
    assert verifier.grade(text, "4", answer_format="boxed", prompt_opens_think=True).kind == prompt_open
    assert verifier.grade(text, "4", answer_format="boxed").kind == prompt_closed


@pytest.mark.parametrize(
    ("text", "extracted"),
    [
        ("4", "4"), (" 4\n2+3=5", "4"), ("25.", "25"), ("is 25, of course", "25"), ("-3", "-3"),
        ("\u22123", "\u22123"), ("2-3", "2"), ("x-3", "3"), ("about .5", ".5"), ("wait...5", "5"),
        ("1,000,000 men", "1,000,000"), ("1,2345", "1"), ("1,2", "1"), ("4,5,6", "4"), ("3.14.15", "3.14"),
        ("1/2 of it", "1/2"), ("$\\frac{1}{2}$", "\\frac{1}{2}"), ("12:30", "12"), ("<think>9</think>4", "4"),
        ("a1b2", "1"),
    ],
)  # fmt: skip
def test_the_first_number_is_the_first_whole_number_expression(text: str, extracted: str) -> None:
    grade = first_number(text, extracted)
    assert (grade.extracted, grade.kind) == (extracted, "ok")


@pytest.mark.parametrize(
    ("text", "extracted"),
    [
        ("4", "4"), ("2+3=5", "5"), ("He pays 3 * $24 = $72.", "72"), ("2-3", "3"), ("9 - -3", "-3"), ("5^2", "2"),
        ("72 clips in 2,500", "2,500"), ("1,2345", "2345"), ("or 1/2", "1/2"), ("8 then $\\frac{1}{2}$", "\\frac{1}{2}"),
        ("<think>9</think>4", "4"), ("4<think>9</think>", None), ("**18**.", "18"), ("3.14.15", "15"),
    ],
)  # fmt: skip
def test_the_last_number_is_the_last_whole_number_expression(text: str, extracted: str | None) -> None:
    grade = verifier.grade(text, extracted or "", answer_format="last_number")
    assert (grade.extracted, grade.kind) == (extracted, "ok" if extracted else "unparsed")


def test_a_text_without_a_number_is_unparsed() -> None:
    for answer_format in ("first_number", "last_number"):
        grade = verifier.grade("no idea", "4", answer_format=answer_format)
        assert grade[:4] == (0.0, "unparsed", None, "the response holds no number")


numbers = st.fractions(max_denominator=10**6)
signs = st.sampled_from(["", "+"])


def spellings(value: Fraction) -> list[str]:
    a, b = abs(value.numerator), value.denominator
    sign = "-" if value < 0 else ""
    texts = [
        f"{sign}{a}/{b}",
        f"{sign}\\frac{{{a}}}{{{b}}}",
        f"\\dfrac{{{sign}{a}}}{{{b}}}",
        f"${sign}{3 * a} / {3 * b}$",
    ]
    texts += [
        f"{sign.replace('-', chr(0x2212))}{a:,}/{b:,}",
        f"x = {sign}{a}/{b}.",
        f"{sign}\\tfrac{{{a}}}{{{b}}}\\text{{ cm}}",
    ]
    if a > b and a % b:
        texts.append(f"{sign}{a // b}\\frac{{{a % b}}}{{{b}}}")
    if b == 1:
        texts += [f"{sign}{a}", f"{sign}{a}.00", f"{sign}00{a}", f"{sign}{a:,}".replace(",", "{,}")]
    return texts


@UNHURRIED
@given(numbers, st.data())
def test_equivalent_spellings_agree_and_a_perturbed_number_does_not(value: Fraction, data: st.DataObject) -> None:
    one = data.draw(st.sampled_from(spellings(value)))
    other = data.draw(st.sampled_from(spellings(value)))
    step = data.draw(st.sampled_from([1, -1, Fraction(1, 10**9), Fraction(-1, 10**9)]))
    perturbed = data.draw(st.sampled_from(spellings(value + step)))
    assert boxed(one, other).kind == "ok"
    assert boxed(one, perturbed).kind == "wrong"


@UNHURRIED
@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9, places=6))
def test_a_decimal_is_its_exact_fraction(value: object) -> None:
    exact = Fraction(str(value))
    assert boxed(f"{value}", f"{exact.numerator}/{exact.denominator}").kind == "ok"
    assert first_number(f"It is {value} or 7", f"{exact.numerator}/{exact.denominator}").kind == "ok"


fuzz = st.lists(st.sampled_from(FRAGMENTS) | st.characters(), max_size=30).map("".join)


@settings(UNHURRIED, max_examples=400)
@given(fuzz, fuzz, st.sampled_from(ANSWER_FORMATS), st.booleans(), st.booleans())
@example("\\frac{}{}", "\\frac{1}{.}", "boxed", True, False)
@example("{{.}}", ".", "boxed", True, False)
def test_no_text_raises_and_the_verdict_is_well_formed(
    text: str, answer: str, answer_format: str, in_box: bool, prompt_opens_think: bool
) -> None:
    grade = verifier.grade(
        f"\\boxed{{{text}}}" if in_box else text,
        answer,
        answer_format=answer_format,
        prompt_opens_think=prompt_opens_think,
    )
    assert grade.kind in types.VERDICTS
    assert grade.reward == float(grade.kind == "ok")
    assert grade.explanation


@UNHURRIED
@given(fuzz)
def test_an_answer_equals_itself(text: str) -> None:
    grade = verifier.grade(f"\\boxed{{{text}}}", text, answer_format="boxed")
    # Excluded: braces that end the box early, and gold answers with several forms or a box.
    if grade.extracted == text and "|||" not in text and "boxed" not in text:
        assert grade.kind == "ok" or grade.explanation == "the answer is empty"


@pytest.mark.parametrize(
    "piece",
    [
        "\\boxed{", "{", "}", "\\", "\\\\boxed", "\\boxed ", "1", "1,", "1,111", "-", ".", "1/", "\\frac{1",
        "<think>", "</think>", " ", "\\text{", "9^", "\\boxed{1}", "\\frac{1}{",
    ],
)  # fmt: skip
@pytest.mark.parametrize("answer_format", ANSWER_FORMATS)
def test_a_megabyte_is_graded_in_linear_time(piece: str, answer_format: str) -> None:
    # The test passes by ending: a quadratic scan of a megabyte would take hours.
    text = piece * (1_000_000 // len(piece))
    for response in (text, f"\\boxed{{{text}}}", f"{text}2"):
        assert verifier.grade(response, "4", answer_format=answer_format).reward == 0


@pytest.mark.parametrize("digits", [601, 5000, 10**6])
def test_digits_beyond_the_limit_are_not_converted(digits: int) -> None:
    long = "1" * digits
    for answer in (long, f"0.{long}", f"1/{long}", f"\\frac{{{long}}}{{2}}"):
        assert boxed(answer, "1").kind == "limit"
        assert boxed(answer, answer).kind == "limit"
    assert first_number(long, "1").kind == "limit"
    assert boxed("1", long).kind == "crash"  # not the response's fault
    assert boxed("1", f"{long} ||| 1").kind == "ok"


def test_digits_up_to_the_limit_are_compared_exactly() -> None:
    long = "7" * limits.MAX_DIGITS
    assert boxed(long, f"{long}.").kind == "ok"
    assert boxed(long[:-1] + "8", long).kind == "wrong"


def test_score_grades_each_text_against_its_own_answer() -> None:
    texts = ["\\boxed{4}", "\\boxed{4}", "4", "<think>", "\\boxed{}", "\\boxed{" + "1" * 999 + "}"]
    with verifier.Grader(config.Config()) as grader:  # none of these needs a worker
        verdicts = grader.score(texts, ["4", "5", "4", "4", "4", "4"])
        assert grader.score([], []).reward.shape == (0,)
    kinds = [types.VERDICTS[kind] for kind in verdicts.kind]
    assert kinds == ["ok", "wrong", "no_box", "unclosed_think", "unparsed", "limit"]
    np.testing.assert_array_equal(verdicts.reward, [1, 0, 0, 0, 0, 0])
    assert (verdicts.reward.dtype, verdicts.kind.dtype) == (np.float32, np.int8)


def test_an_unknown_answer_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="Use one of: boxed, first_number, last_number"):
        verifier.grade("4", "4", answer_format="middle_number")


def test_each_answer_format_of_the_config_has_its_function() -> None:
    assert set(extraction.FORMATS) == set(ANSWER_FORMATS)


@pytest.mark.skipif(not CASES.is_file(), reason=f"no {CASES.parent.name}/{CASES.name} beside the repository")
def test_no_public_case_with_a_box_is_accepted_that_should_not_be() -> None:
    # docs/grading.md argues for one exception outside this claim: `\frac{2}{4}` for `\frac{1}{2}` (bare; the case expects wrong,
    # because it is not reduced).
    cases = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]
    cases = [case for case in cases if case["origin"].endswith("[boxed]")]
    grades = [verifier.grade(case["prediction"], case["gold"], answer_format="boxed") for case in cases]
    accepted = [bool(grade.reward) for grade in grades]
    assert not [case for case, is_right in zip(cases, accepted, strict=True) if is_right and not case["expected"]]
    # At least 56 of the 70 are decided by rationals and text; the others need sets, lists or algebra.
    assert sum(is_right == case["expected"] for case, is_right in zip(cases, accepted, strict=True)) >= 56
