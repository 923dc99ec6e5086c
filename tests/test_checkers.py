"""Checkers of procedural answers: by hand, against Python's parser, and against hostile answers."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from support import procedural_rows

from reval_jax import verifier
from reval_jax.procedural import tasks
from reval_jax.verifier import checkers


def gold_answers(task: str) -> list[str]:
    """Gold answers of every level of a task."""
    return [
        answer
        for level in range(1, len(tasks.LEVELS[task]) + 1)
        for _, answer in procedural_rows.rows(task, level, size=40)
    ]


@pytest.mark.parametrize("task", ["arithmetic", "modular_arithmetic", "base_conversion"])
def test_the_verifier_accepts_every_plain_gold_and_refuses_its_neighbour(task):
    golds = [gold for gold in gold_answers(task) if checkers.parse_gold(gold) is None]
    assert golds
    for gold in golds:
        for answer_format, wrapped in (("boxed", "so \\boxed{%d}"), ("first_number", " %d.\nNext")):
            assert verifier.grade(wrapped % int(gold), gold, answer_format=answer_format).reward == 1
            assert verifier.grade(wrapped % (int(gold) + 1), gold, answer_format=answer_format).reward == 0


@pytest.mark.parametrize("task", ["base_conversion", "sorting"])
def test_a_checker_accepts_its_own_gold_and_refuses_a_changed_one(task):
    checked = [pair for gold in gold_answers(task) if (pair := checkers.parse_gold(gold))]
    assert checked
    for name, payload in checked:
        gold = payload.split(",", 1)[1] if task == "base_conversion" else payload
        assert checkers.check(name, payload, gold)
        assert not checkers.check(name, payload, gold + "1")
        assert not checkers.check(name, payload, gold[:-1] + ("1" if gold[-1] == "0" else "0"))


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ("3*5+7", True),
        ("7 + 5 * 3 = 22", True),
        (r"7+3\times5", True),
        (r"$\left(7 + 3 \cdot 5\right)$.", True),
        ("[7+(3×5)]", True),
        ("-(-7-3*5)", True),
        (r"\frac{7+3*5}{1}", False),  # uses a 1 that is not among the numbers
        ("22", False),
        ("3*5+7=23", False),
        ("3*5+7=22=22", False),
        ("3*5", False),
        ("3*5+7+0", False),
        ("3*5+7*7/7", False),
        ("35-13", False),
        ("3*5+07.0", False),
        ("(3)(5)+7", False),
        ("3**5+7", False),
        ("3*5+7)", False),
        ("((3*5+7)", False),
        ("3*5+", False),
        ("3//5+7", False),
        ("3*5+7 # 22", False),
        ("", False),
        ("=22", False),
        ("３*5+7", False),
        ("__import__('os').system('true')", False),
    ],
)
def test_countdown_by_hand(answer, is_right):
    assert checkers.check("countdown", "22,3,5,7", answer) is is_right


def test_countdown_passes_through_exact_fractions():
    assert checkers.check("countdown", "24,1,3,4,6", "6/(1-3/4)")
    assert checkers.check("countdown", "24,1,3,4,6", r"\dfrac{6}{1-\frac{3}{4}}")
    assert checkers.check("countdown", "24,3,3,8,8", "8 ÷ (3 − 8 ÷ 3)")
    assert not checkers.check("countdown", "24,1,3,4,6", "6/(1-4/4)")
    assert not checkers.check("countdown", "1,2,2", "1/(2-2)")


def test_countdown_agrees_with_pythons_parser_on_random_expressions():
    """Random strings of the grammar's symbols: right exactly if Python computes the target from the same numbers."""
    choose, counts = random.Random(0), {True: 0, False: 0}  # noqa: S311
    for _ in range(4000):
        numbers = [choose.randint(1, 4) for _ in range(3)]
        text = "".join(choose.choice(["(", "", "", "-"]) + str(number) + choose.choice(["", "", ")"]) + sign
                       for number, sign in zip(numbers, [*choose.choices("+-*/", k=2), ""], strict=True))  # fmt: skip
        try:
            value = procedural_rows.value_of(text)
        except (SyntaxError, ZeroDivisionError):
            value = Fraction(1, 7)  # differs from every target
        target = int(value) if choose.random() < 0.7 else choose.randint(-2, 12)
        expected = value == target
        assert checkers.check("countdown", f"{target},{','.join(map(str, numbers))}", text) is expected, text
        counts[expected] += 1
    assert min(counts.values()) > 100


HOSTILE = [
    "(" * 400 + "3*5+7" + ")" * 400,
    "(" * 60 + "3*5+7" + ")" * 60,
    "-" * 499 + "7",
    "9" * 499,
    "9" * 10**6,
    "(" * 10**6,
    "\\frac{" * 80,
    "{" * 300 + "}" * 200,
    "3" + "**9" * 160,
    "3*5+7" + " " * 10**6,
    "3*5+7\0",
    "\ud800",
    "3*5+7\n" * 80,
    "$" * 500,
    "\\left" * 100,
    "1," * 250,
    ", " * 250,
    " " * 250 + "," + " " * 249,
    "\\text{" * 80,
    "0x" * 250,
    "٣*٥+٧",
]


@pytest.mark.parametrize("name", checkers.CHECKERS)
def test_a_hostile_answer_is_wrong_and_raises_nothing(name):
    payload = {"countdown": "22,3,5,7", "sorting": "1,2,3", "base_conversion": "2,10110"}[name]
    for answer in HOSTILE:
        assert checkers.check(name, payload, answer) is False, answer[:40]


def test_a_random_answer_raises_nothing():
    choose = random.Random(1)  # noqa: S311
    pieces = [
        "3",
        "5",
        "7",
        "22",
        "(",
        ")",
        "{",
        "}",
        "\\frac",
        "+",
        "-",
        "*",
        "/",
        "=",
        " ",
        "\\times",
        "[",
        "]",
        ",",
        ".",
        "x",
    ]
    for _ in range(3000):
        answer = "".join(choose.choices(pieces, k=choose.randint(0, 60)))
        for name, payload in (("countdown", "22,3,5,7"), ("sorting", "3,5,7"), ("base_conversion", "16,3a")):
            assert checkers.check(name, payload, answer) in (True, False)


def test_brackets_are_read_up_to_the_maximum_depth():
    deep = checkers.MAX_DEPTH
    assert checkers.check("countdown", "22,3,5,7", "(" * deep + "3*5+7" + ")" * deep)
    assert not checkers.check("countdown", "22,3,5,7", "(" * (deep + 1) + "3*5+7" + ")" * (deep + 1))


@pytest.mark.parametrize(
    "answer", ["1, 2, 30", "1,2,30", "[1, 2, 30]", "1 2 30", "(1; 2; 30).", r"$1,\ 2,\ 30$", r"\{1,2,30\}"]
)
def test_sorting_reads_lists(answer):
    assert checkers.check("sorting", "1,2,30", answer)
    assert not checkers.check("sorting", "1,30,2", answer)


@pytest.mark.parametrize(
    "answer", ["", "1,2", "1,2,30,30", "2,1,30", "1,2,3,0", "1.0,2,30", "1,,2,30", "one, 2, 30", "1 < 2 < 30"]
)
def test_sorting_refuses_every_other_list(answer):
    assert not checkers.check("sorting", "1,2,30", answer)


@pytest.mark.parametrize(
    ("payload", "answer", "is_right"),
    [
        ("16,1ff", "1FF", True),
        ("16,1ff", "0x1ff", True),
        ("16,1ff", r"\text{1FF}_{16}", True),
        ("16,1ff", "1ff_8", False),
        ("16,1e3", "1000", False),
        ("2,10110", "10110_2", True),
        ("2,10110", "0b10110", True),
        ("2,10110", "1 0110", True),
        ("2,10110", "0010110", True),
        ("2,10110", "(10110)_2", True),
        ("2,10110", "22", False),
        ("2,10110", "10110.0", False),
        ("2,10110", "1_0110", False),
        ("12,b1", "0b1", True),
        ("8,17", "0b17", False),
        ("8,17", "", False),
    ],
)
def test_base_conversion_by_hand(payload, answer, is_right):
    assert checkers.check("base_conversion", payload, answer) is is_right


def test_a_gold_answer_names_its_checker():
    assert checkers.parse_gold("@countdown:22,3,5,7") == ("countdown", "22,3,5,7")
    assert checkers.parse_gold('@reasoning_gym:{"a": ":"}') == ("reasoning_gym", '{"a": ":"}')
    for plain in ("22", "@", "@other:1", "countdown:22,3", "@countdown", "x @countdown:1"):
        assert checkers.parse_gold(plain) is None


def test_the_librarys_scorers_are_refused_in_this_process():
    with pytest.raises(ValueError, match="sandbox"):
        checkers.check("reasoning_gym", "{}", "1")
