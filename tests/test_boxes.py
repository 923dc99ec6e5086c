r"""Which boxes of a response are its answer, and the free form without boxes, from both sides."""

from __future__ import annotations

import pytest

from reval_jax import verifier
from reval_jax.equality import symbolic
from reval_jax.verifier import boxes, extraction, free


def graded(response: str, gold: str, answer_format: str = "boxed") -> verifier.Grade:
    grade = verifier.grade(response, gold, answer_format=answer_format)
    return verifier.settle(grade, [symbolic.compare(*pair) for pair in grade.pairs])


@pytest.mark.parametrize(
    ("response", "gold"),
    [
        # boxes without braces, and framed ones
        ("So $\\boxed 5$.", "5"), ("So $\\boxed5$", "5"), ("\\boxed 42", "42"), ("$\\boxed -3$", "-3"), ("\\boxed B", "B"),
        ("$\\boxed \\frac{1}{2}$", "0.5"), ("\\boxed 5, \\boxed 6", "5, 6"), ("The result is $\\fbox{5}$.", "5"),
        ("\\framebox{$5$}", "5"), ("\\boxed{4} and later \\fbox{5}", "4, 5"),
        # parts of one answer
        ("\\boxed{(2,2)} and \\boxed{(6,2)}", "(2,2), (6,2)"), ("\\boxed{-2} \\quad \\text{and} \\quad \\boxed{1}", "1,-2"),
        ("\\boxed{2}~\\boxed{3}", "2, 3"), ("\\boxed{2}\\,,\\;\\boxed{3}", "2, 3"), ("\\boxed{2} \\qquad \\boxed{3}", "3, 2"),
        ("$x=\\boxed{2}$ and $y = \\boxed{3}$", "2, 3"), ("(a) \\boxed{3} (b) \\boxed{5}", "3, 5"),
        ("\\boxed{2} \\\\ \\boxed{3}", "2, 3"), ("$x_1=\\boxed{2}$ \\\\ $x_2=\\boxed{3}$", "2, 3"),
        ("\\boxed{3}\\text{ or }\\boxed{5}", "3, 5"), ("\\boxed{3}, as well as \\boxed{5}", "3, 5"),
        ("The roots are \\boxed{3} and the other root is \\boxed{5}.", "3, 5"),
        # the same answer twice
        ("\\boxed{\\frac12} or equivalently \\boxed{0.5}", "0.5"), ("\\boxed{3}, \\boxed{3}", "3"),
        ("\\[\\boxed{3}\\]\n\n\\[\\boxed{3}\\]", "3"),
        # a box that replaces the one before it, or follows from it
        ("\\boxed{5} or rather \\boxed{4}", "4"), ("\\boxed{2}. Hence, after some work, \\boxed{3}", "3"),
        ("\\boxed{3} so the total is \\boxed{5}", "5"), ("\\boxed{3}, then \\boxed{5}", "5"),
        ("First \\boxed{3}. Then \\boxed{5}.", "5"),
        ("\\boxed{3} and therefore \\boxed{5}", "5"), ("\\boxed{4}. Wait, no. \\boxed{5}", "5"),
        ("**Answer:** \\boxed{3}\n\n**Final answer:** \\boxed{5}", "5"), ("\\boxed{3}, no, \\boxed{5}", "5"),
        # percent signs that are no comments
        ("20% of \\boxed{3} is small. So the answer is \\boxed{5}", "5"),
        ("We get \\boxed{3}, so 20% of it. Hence \\boxed{5}", "5"),
        ("What is $20$% of 25? \\boxed{5}", "5"), ("in %: \\boxed{5}", "5"), ("20% of it:\n \\boxed{5}", "5"),
        ("It is not large. The answer is \\boxed{5}", "5"), ("$x \\neq 3$, so $\\boxed{5}$", "5"),
        # neither denied, hidden nor a part of something longer
        ("\\boxed{5} is not the largest root, but it is the sum", "5"), ("$x = \\boxed{5}$.", "5"), ("- \\boxed{5}", "5"),
        ("**\\boxed{5}**", "5"), ("the answer--\\boxed{5}", "5"), ("\\boxed{5}^\\circ", "5"), ("\\boxed{5}\\text{ cm}", "5"),
        ("$2 + 3 = \\boxed{5}$ - done", "5"), ("$2^4 \\equiv \\boxed{5} \\pmod{11}$", "5"), ("\\boxed{5}/\\text{h}", "5"),
        ("\\boxed{5}, which is not 0", "5"),
        ("<!-- a note --> \\boxed{5}", "5"), ("<div hidden>a</div> \\boxed{5}", "5"), ("\\iffalse a \\fi \\boxed{5}", "5"),
        ("Statement B is false: \\boxed{5}", "5"), ("\\boxed{3}. So the largest possible value is \\boxed{5}", "5"),
        ("\\boxed{3} was a guess. So the answer is \\boxed{5}", "5"), ("\\boxed{3}. It is the sum.\n\n\\boxed{5}", "5"),
    ],
)  # fmt: skip
def test_the_boxes_that_answer_are_read(response: str, gold: str) -> None:
    assert graded(response, gold)[:2] == (1.0, "ok")


@pytest.mark.parametrize(
    "between",
    [
        "", " ", "%", " % ", ", ", "; ", " / ", " or ", " and ", ", \\quad ", " \\quad ", "\\,", "~", "\\\\", "\\;", "\\ ",
        "\n", "\n\n", " (b) ",
        " or maybe ", " or possibly ", " maybe ", ", perhaps ", " or else ", ". Or maybe ", ".\nAlternatively, ", " = ",
        " \\text{ or } ",
        " or, if I am wrong, ", " if n is even, ", " for even n and for odd n ", " rather than ", " instead of ",
        " unless ", " or it could be ",
        "\\iffalse", " \\if0 hidden: ", " <!-- ", " % the real one: ", "\n% ", "\\begin{comment}", " as shown.\n%",
        " \\phantom{", " so \\phantom{",
        " so $\\textcolor{white}{", " Part (b): ", " and/or ", " \\vee ", " \\text{ xor } ", " and also ", ", also ",
        " $\\quad$ $",
        # a sentence that ends behind the hedge
        "\n\nor\n\n", " or \n\n ", " or.\n\n", "!\n\nOr\n\n", " vs. ",
        # nothing but padding, of any length
        " " * 100, "\\quad" * 30, "\\," * 50, "{}" * 50, "-" * 90, "...\n" * 40, "or\n" * 200, " or" + " " * 100,
        # guesses, also in a sentence of their own
        ". It could be ", "; it could be ", ". Another possibility is ", " Guess two: ", ", second guess ", " (but ",
        ". It may also be ", ". It might be ",
    ],
)  # fmt: skip
def test_two_guesses_are_not_one_right_answer(between: str) -> None:
    after = "}" if between.endswith("{") else ""
    for first, second, gold in (
        ("5", "6", "6"),
        ("C", "B", "B"),
        ("\\{3\\}", "\\{1,2\\}", "\\{1,2\\}"),
        ("6", "5", "6"),
    ):
        assert graded(f"It is \\boxed{{{first}}}{between}\\boxed{{{second}}}{after}", gold).reward == 0


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        ("\\boxed{5}, not \\boxed{6}", "no_box"), ("It is not \\boxed{6}", "no_box"), ("$x \\neq \\boxed{6}$", "no_box"),
        ("It isn't \\boxed{6}.", "no_box"), ("\\boxed{6} is wrong", "no_box"), ("$\\boxed{6}$ is not the answer", "no_box"),
        ("\\boxed{6} isn't right", "no_box"), ("\\boxed{6} (wrong)", "no_box"), ("\\boxed{6} can not be correct", "no_box"),
        ("not equal to \\boxed{6}", "no_box"), ("It cannot equal \\boxed{6}", "no_box"), ("not the number \\boxed{6}", "no_box"),
        ("anything except \\boxed{6}", "no_box"), ("It is false that \\boxed{6}", "no_box"), ("$\\lnot\\boxed{6}$", "no_box"),
        ("The wrong answer: \\boxed{6}", "no_box"), ("\\boxed{6}, which is wrong", "no_box"),
        ("<!-- \\boxed{6} -->", "no_box"), ("% \\boxed{6}", "no_box"), ("\\iffalse\\boxed{6}\\fi", "no_box"),
        ("\\begin{comment}\n\\boxed{6}\n\\end{comment}", "no_box"), ("<div hidden>\\boxed{6}</div>", "no_box"),
        ("<p style='display: none'>\\boxed{6}</p>", "no_box"), ("\\phantom{\\boxed{6}}", "no_box"),
        ("$-\\boxed{6}$", "no_box"), ("$2\\boxed{6}$", "no_box"), ("$\\boxed{6}^2$", "no_box"), ("$\\boxed{6}+1$", "no_box"),
        ("$\\sqrt{\\boxed{6}}$", "no_box"), ("$\\frac{1}{\\boxed{6}}$", "no_box"), ("$2 \\cdot \\boxed{6}$", "no_box"),
        ("\\boxed 6+3", "no_box"), ("\\boxed{6} \\boxed 5+3", "no_box"), ("\\boxed 6x", "no_box"), ("\\boxed 6 or 7", "no_box"),
        ("\\boxed", "no_box"), ("write \\boxed", "no_box"), ("\\boxedsomething{6}", "no_box"),
        ("\\boxed{4<|im_start|>2}", "unparsed"), ("\\boxed{<|im_end|>6}", "unparsed"), ("\\boxed{6</s>}", "unparsed"),
        ("\\boxed{6<｜end▁of▁sentence｜>}", "unparsed"), ("\\boxed{6[PAD]}", "unparsed"),
        ("\\boxed{<answer>6</answer>}", "unparsed"),
    ],
)  # fmt: skip
def test_a_box_that_is_denied_unreadable_or_holds_a_special_token_is_no_answer(response: str, kind: str) -> None:
    for gold in ("6", "42", "5"):
        assert graded(response, gold)[:2] == (0.0, kind)


def test_a_special_token_beside_the_box_changes_nothing() -> None:
    assert graded("<|start|>So \\boxed{6}<|end|>", "6").reward == 1
    assert graded("\\boxed{2 < x}", "x > 2").reward == 1
    assert graded("\\boxed{[1, 2]}", "[1, 2]").reward == 1


@pytest.mark.parametrize(
    ("response", "gold"),
    [
        ("Answer: 5", "5"), ("**Answer:** 5", "5"), ("**Answer**: $\\frac{1}{2}$", "0.5"), ("The answer is 5.", "5"),
        ("The answer is $x = 5$.", "5"), ("So the final answer is: **B**", "B"), ("The correct answer is (B).", "B"),
        ("The answer is B) 12.", "B"), ("48/2=24\n#### 72", "72"), ("The answer is 5 because 2+3=5.", "5"),
        ("The answer is 5 apples.", "5"), ("### Final Answer\n5", "5"), ("Final Answer\n\n$$5$$", "5"),
        ("Answer:\n\\[x = 5\\]", "5"),
        ("Answer: 1, 2, 3", "1,2,3"), ("The answer to the question is 5", "5"), ("Answer: 3.5 cm.", "3.5"),
        ("Answer: 1,234.5", "1234.5"),
        ("The answer is 4. Wait, I made a mistake. The answer is 5.", "5"), ("The answer is therefore 5.", "5"),
        ("Answer: $(1, 2)$", "(1,2)"), ("The answer is $\\{1, 2\\}$, as shown.", "\\{1,2\\}"), ("The answer is $5.50.", "5.5"),
        ("**Final Answer: 5**", "5"), ("Thus, the answer is \\( \\frac{3}{4} \\).", "0.75"), ("Answer: 5! ", "120"),
        ("ANSWER: 5", "5"), ("Answer: 5\n\nExplanation: 2+3", "5"), ("Answer: 5\nAnswer: 5.0", "5"), ("Answer = 5", "5"),
        # the last formula
        ("So $x=3$ and $y=4$, hence $z=5$.", "5"), ("We have $x=1$ or $x=2$.", "1, 2"), ("\\(x\\) is \\[7\\]", "7"),
        ("$$2+3=5$$", "5"), ("It is $\\sqrt{8}$", "2\\sqrt{2}"),
        # the last number
        ("It costs $5 and then $6", "6"), ("It costs $5 plus $6, total 11", "11"), ("3 apples and 5 pears, so 8 in total", "8"),
        ("2+3 = 5", "5"), ("1, 2 and 3", "1, 2, 3"),
        # a box comes first
        ("Answer: \\boxed{5}", "5"), ("\\boxed{5}. Answer: 6", "5"),
        # a statement in a statement, and what stands around it
        ("Final Answer: The final answer is $\\frac{3}{4}$. I hope it is correct.", "0.75"), ("Answer: The answer is 5", "5"),
        ("Answer: The answer is\n5", "5"), ("The correct option is C.", "C"), ("The answer is 'yes'", "yes"),
        ("The answer is 5 because 6 is not prime", "5"), ("Answer:\n> 5", "5"), ("The answer is 5. No more is needed.", "5"),
        ("It is not large. The answer is 5.", "5"),
    ],
)  # fmt: skip
def test_the_free_form_reads_a_box_a_statement_a_formula_or_a_number(response: str, gold: str) -> None:
    assert graded(response, gold, "free")[:2] == (1.0, "ok")


@pytest.mark.parametrize(
    ("response", "gold"),
    [
        ("The answer is 5 or 6.", "5"), ("The answer is 5 or 6.", "6"), ("The answer is 5, maybe 6", "5"),
        ("Answer: 5\nAnswer: 6", "6"),
        ("The answer is not 5.", "5"), ("The answer is 5, not 6.", "6"), ("The answer is either 5 or 6", "6"),
        ("Answer: B or C", "B"),
        ("The answer is 5. The answer is 6.", "6"), ("We have $x=1$ or $x=2$.", "2"), ("It is 5 or 6", "6"), ("Answer:", "5"),
        ("Answer: 5. Or maybe the answer is 6", "6"), ("no idea", "5"), ("Answer: 5<|im_start|>", "5"),
        ("5. Answer: none", "5"),
        ("Answer: \\boxed{5} or \\boxed{6}", "6"), ("\\boxed{5", "5"), ("It is $5$, $6$", "6"), ("5, 6", "6"),
        ("Answer: 5 wrong", "5"),
        ("It is not $5$.", "5"), ("It isn't $5$.", "5"), ("It cannot be $5$.", "5"), ("Not 5", "5"), ("never 5", "5"),
        ("The answer isn't 5", "5"), ("I don't think the answer is 5", "5"), ("The wrong answer is 5", "5"),
        ("An incorrect answer is 5", "5"), ("It is false that the answer is 5", "5"), ("The answer is 5, which is wrong", "5"),
        ("The answer is 5 so it is not 5", "5"), ("Answer: 5. Actually, 6.", "5"), ("Answer: 5. Correction: 6.", "5"),
        ("Answer: 5? Maybe 6", "5"), ("The answer is 5. Or maybe 6.", "5"), ("The answer is 5\nor 6", "5"),
        ("The answer is 5... or 6", "5"), ("Answer: A. No, B", "A"), ("Answer: >5", "5"),
        ("The answer is 5 as well as 6", "5"), ("Possible answer: 3\nPossible answer: 5", "5"),
        ("It may be 3, it may be 5", "5"), ("$3$ $\\text{or}$ $5$", "5"), ("Answer: The answer is 5 or 6", "5"),
        ("Answer: 6 or the answer is 5", "5"),
        ("Answer: the opposite of 5", "5"), ("$5$ or $6$", "5"), ("Answer: anything but 5", "5"),
    ],
)  # fmt: skip
def test_the_free_form_refuses_hedges_and_denials(response: str, gold: str) -> None:
    assert graded(response, gold, "free").reward == 0


def test_where_formulas_and_statements_begin_and_end() -> None:
    text = "costs $5 or $6; $a$ then \\[b\nc\\] and $$d. e$$"
    assert [text[begin:end] for begin, end, _, _ in free.formulas(text)] == ["a", "b\nc", "d. e"]
    text = "Answer: $1.5. x$ more. The answer is\n$$2\n3$$\nend"
    assert [text[begin:end] for begin, end, _, _ in free.statements(text)] == ["$1.5. x$ more", "$$2\n3$$"]


def test_nested_boxes_count_as_their_outermost() -> None:
    found = boxes.find("\\boxed{a \\boxed{b}} \\boxed{c")
    assert (found.contents, found.is_open) == ([(7, 18)], True)


@pytest.mark.parametrize(
    "piece",
    [
        "Answer: ",
        "$",
        "$$",
        "\\[",
        "$1$ ",
        "#### ",
        "answer is ",
        "Answer: the ",
        "<a hidden ",
        "~\\,",
        "or ",
        "%\\boxed{1}",
        "\\iffalse\\boxed{1}\\fi ",
        "\n% ",
    ],
)
def test_a_long_text_is_scanned_in_linear_time(piece: str) -> None:
    # The test passes by ending: a quadratic scan of so many characters would take minutes.
    many = piece * (100_000 // len(piece))
    for text in (many, "\\boxed 5" + " " * 100_000 + piece, f"\\boxed{{1}}{many}\\boxed{{2}}"):
        for answer_format in ("boxed", "free"):
            assert extraction.extract(text, answer_format=answer_format, prompt_opens_think=False).answer != "4"
