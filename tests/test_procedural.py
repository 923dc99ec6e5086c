"""Procedural data sets: exact gold answers, splits that never overlap, names."""

from __future__ import annotations

import ast
import itertools
import random
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from support import procedural_rows

from reval_jax import config, data, procedural, prompts, verifier
from reval_jax.procedural import naming, selection, tasks
from reval_jax.verifier import checkers

ROOT = Path(__file__).resolve().parent.parent
EVERY_LEVEL = [(task, level) for task, levels in tasks.LEVELS.items() for level in range(1, len(levels) + 1)]


def digit_sum(text: str, base: int) -> int:
    """The value of digits in a base, most significant first, by Horner's rule."""
    value = 0
    for symbol in text:
        value = value * base + "0123456789abcdef".index(symbol)
    return value


def oracle_answer(task: str, raw: str) -> str:
    """The gold answer to a raw question, computed from its text alone; not for countdown."""
    if task == "arithmetic":
        return str(procedural_rows.value_of(raw.removesuffix("=")))
    if task == "modular_arithmetic":
        expression, modulus = re.fullmatch(r"(.*) mod (\d+)=", raw).groups()
        if expression.startswith("1/"):
            value = int(expression[2:])
            return str(next(x for x in range(1, int(modulus)) if value * x % int(modulus) == 1))
        return str(procedural_rows.value_of(expression.replace("^", "**")) % int(modulus))
    if task == "base_conversion":
        digits, source, target = re.fullmatch(r"(\w+) \(base (\d+)\) in base (\d+)=", raw).groups()
        value = digit_sum(digits, int(source))
        if int(target) == 10:
            return str(value)
        converted = ""
        while value:
            converted = "0123456789abcdef"[value % int(target)] + converted
            value //= int(target)
        return f"@base_conversion:{target},{converted}"
    assert task == "sorting"
    numbers, order = re.fullmatch(r"(.*) in (\w+) order:", raw).groups()
    in_order = sorted(map(int, numbers.split(",")), key=lambda value: value if order == "ascending" else -value)
    return "@sorting:" + ",".join(map(str, in_order))


def countdown_solution(target: int, numbers: list[int]) -> str | None:
    """An expression whose value is the target, by exhaustive search over pairs; None if there is none."""
    pools = [[(Fraction(number), str(number)) for number in numbers]]
    while pools:
        pool = pools.pop()
        if len(pool) == 1:
            if pool[0][0] == target:
                return pool[0][1]
            continue
        for (i, (one, left)), (j, (other, right)) in itertools.permutations(enumerate(pool), 2):
            rest = [pool[k] for k in range(len(pool)) if k not in (i, j)]
            results = [(one - other, f"({left}-{right})")]
            if i < j:
                results += [(one + other, f"({left}+{right})"), (one * other, f"({left}*{right})")]
            if other:
                results.append((one / other, f"({left}/{right})"))
            pools += [[*rest, each] for each in results]
    return None


@pytest.mark.parametrize(("task", "level"), [pair for pair in EVERY_LEVEL if pair[0] != "countdown"])
def test_every_gold_equals_an_oracles_answer_to_the_question(task, level):
    for split in naming.SPLITS:
        size = min(200, len(procedural_rows.rows(task, level, split=split)))
        for raw, answer in procedural_rows.rows(task, level, split=split, style="raw", size=size, seed=3):
            assert answer == oracle_answer(task, raw), raw


@pytest.mark.parametrize("level", [1, 2])
def test_every_countdown_question_can_be_answered(level):
    for question, answer in procedural_rows.rows("countdown", level, size=15, seed=1):
        name, payload = checkers.parse_gold(answer)
        target, *numbers = map(int, payload.split(","))
        stated_target, stated_numbers = re.fullmatch(
            r"Write an expression that equals (\d+)\. Use each of the numbers ([\d, ]+) exactly once.*", question
        ).groups()
        assert (target, numbers) == (int(stated_target), [int(number) for number in stated_numbers.split(",")])
        solution = countdown_solution(target, numbers)
        assert solution is not None
        assert checkers.check(name, payload, solution)
        assert not checkers.check(name, payload, f"{solution}+1")


@pytest.mark.parametrize(("task", "level"), EVERY_LEVEL)
def test_rows_are_a_function_of_the_name_and_no_question_comes_twice(task, level):
    once, again = procedural_rows.rows(task, level, size=50, seed=7), procedural_rows.rows(task, level, size=50, seed=7)
    assert once == again
    assert len({question for question, _ in once}) == 50
    assert once != procedural_rows.rows(task, level, size=50, seed=8)
    assert procedural_rows.rows(task, level, size=20, seed=7) == once[:20], "a larger set begins with the smaller one"


def test_rows_are_the_same_in_every_version():
    """A run names its data set, so a name must give the same questions in every version and with every Python.

    Command: python -c "from reval_jax import procedural; print(procedural.rows('procedural:TASK,level=2,size=1,style=raw'))"
    """
    assert {task: procedural_rows.rows(task, 2, size=1, style="raw")[0] for task in tasks.LEVELS} == {
        "arithmetic": ("45-8=", "37"),
        "base_conversion": ("310 (base 8) in base 10=", "200"),
        "countdown": ("19 from 9, 11, 22, 23 with + - * /:", "@countdown:19,9,11,22,23"),
        "modular_arithmetic": ("(36*55) mod 18=", "0"),
        "sorting": ("37, 16, 28, 76, 33 in ascending order:", "@sorting:16,28,33,37,76"),
    }


@pytest.mark.parametrize("style", naming.STYLES)
@pytest.mark.parametrize("task", tasks.LEVELS)
def test_train_and_test_never_overlap_whatever_the_seed_level_or_wording(task, style):
    train, test = (
        {
            question
            for seed in range(12)
            for level in range(1, len(tasks.LEVELS[task]) + 1)
            for question, _ in procedural_rows.rows(task, level, split=split, seed=seed, style=style, size=15)
        }
        for split in naming.SPLITS
    )
    assert train
    assert test
    assert not train & test


def without_order(node: ast.expr) -> str:
    """The text of an expression, equal for expressions that differ only in the order of sums and products."""
    if not isinstance(node, ast.BinOp):
        return ast.unparse(node)
    parts = [without_order(node.left), without_order(node.right)]
    if isinstance(node.op, ast.Add | ast.Mult):
        parts.sort()
    return f"({parts[0]} {type(node.op).__name__} {parts[1]})"


@pytest.mark.parametrize("level", range(1, len(tasks.LEVELS["arithmetic"]) + 1))
def test_expressions_that_differ_only_in_order_are_in_one_split(level):
    splits: dict[str, set[str]] = {}
    for split in naming.SPLITS:
        size = len(procedural_rows.rows("arithmetic", level, split=split)) if level < 6 else 1000
        for question, _ in procedural_rows.rows("arithmetic", level, split=split, style="raw", size=size):
            form = without_order(ast.parse(question.rstrip("="), mode="eval").body)
            splits.setdefault(form, set()).add(split)
    assert {len(each) for each in splits.values()} == {1}
    assert set.union(*splits.values()) == set(naming.SPLITS)


@pytest.mark.parametrize(("task", "level"), EVERY_LEVEL)
def test_every_number_below_the_total_is_a_problem_or_none(task, level):
    description = tasks.LEVELS[task][level - 1]
    choose = random.Random(0)  # noqa: S311
    numbers = [0, description.total - 1, *(choose.randrange(description.total) for _ in range(200))]
    problems = [description.problem(number) for number in numbers]
    assert any(problems)
    assert all(problem.raw and problem.sentence and problem.answer for problem in problems if problem)


@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_the_order_of_a_level_is_a_permutation(total):
    assert sorted(selection._order(total, "a")) == list(range(total))
    if total > 2:
        assert len({tuple(selection._order(total, str(seed))) for seed in range(20)}) > 5


def test_the_order_of_a_level_is_even():
    """2,400 draws give each of the 24 orders of four about 100 times, within 5 standard deviations."""
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(2400):
        order = tuple(selection._order(4, str(seed)))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert max(abs(count - 100) for count in counts.values()) < 5 * (2400 / 24 * 23 / 24) ** 0.5


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("arithmetic", "does not begin with 'procedural:'"),
        ("procedural:arithmetik", r"unknown task 'arithmetik'. Did you mean 'arithmetic'\?"),
        ("procedural:", "unknown task ''"),
        ("procedural:countdown,sizes=3", r"unknown key 'sizes'. Did you mean 'size'\?"),
        ("procedural:countdown,split=tests", r"unknown split 'tests'. Did you mean 'test'\?"),
        ("procedural:countdown,style=rew", r"unknown style 'rew'. Did you mean 'raw'\?"),
        ("procedural:countdown,level=0", "level=0 is not a whole number from 1 to 4"),
        ("procedural:countdown,level=5", "level=5 is not a whole number from 1 to 4"),
        ("procedural:countdown,size=0", "size=0 is not a whole number from 1"),
        ("procedural:countdown,size=1_0", "size=1_0 is not a whole number"),
        ("procedural:countdown,size=٣", "is not a whole number"),
        ("procedural:countdown,size=" + "9" * 5000, "is not a whole number"),
        ("procedural:countdown,seed=-1", "seed=-1 is not a whole number"),
        ("procedural:countdown,level", "'level' is not KEY=VALUE"),
        ("procedural:countdown,level=", "'level=' is not KEY=VALUE"),
        ("procedural:countdown,,level=1", "'' is not KEY=VALUE"),
        ("procedural:countdown,level=1,level=2", "level appears twice"),
        ("procedural:reasoning_gym,size=3", "does not name one of the library's data sets"),
    ],
)
def test_a_bad_name_is_refused_with_the_nearest_good_one(dataset, message):
    with pytest.raises(ValueError, match=message):
        procedural.rows(dataset)


@pytest.mark.parametrize("split", naming.SPLITS)
def test_a_size_beyond_the_level_is_refused_with_the_size_it_has(split):
    with pytest.raises(ValueError, match="Use size=") as refused:
        procedural_rows.rows("arithmetic", 1, split=split, size=101)
    largest = int(re.search(r"Use size=(\d+)", str(refused.value)).group(1))
    assert len(procedural_rows.rows("arithmetic", 1, split=split, size=largest)) == largest
    with pytest.raises(ValueError, match=f"has {largest} questions"):
        procedural_rows.rows("arithmetic", 1, split=split, size=largest + 1)
    assert len(procedural_rows.rows("arithmetic", 1, split=split)) == largest, "without a size, the whole level"


def test_both_splits_together_are_the_whole_level():
    both = [
        question
        for split in naming.SPLITS
        for question, _ in procedural_rows.rows("arithmetic", 1, split=split, style="raw")
    ]
    assert sorted(both) == sorted(f"{one}+{other}=" for one in range(10) for other in range(10))


def test_metrics_have_a_short_name():
    assert (
        procedural.label("procedural:arithmetic,level=2,seed=0,split=test,style=sentence") == "arithmetic_level_2_test"
    )
    assert (
        procedural.label("procedural:arithmetic,level=2,style=qa,split=test,seed=3,size=64")
        == "arithmetic_level_2_test_size_64_seed_3_style_qa"
    )
    assert (
        procedural.label("procedural:reasoning_gym,dataset=chain_sum,max_terms=3,size=9,note=a/b c")
        == "chain_sum_train_size_9_max_terms_3_note_a_b_c"
    )
    assert procedural.label("procedural:reasoning_gym,dataset=chain_sum") == "chain_sum_train"


def test_the_page_describes_every_level():
    page = (ROOT / "docs" / "procedural.md").read_text(encoding="utf-8")
    for task, levels in tasks.LEVELS.items():
        for number, level in enumerate(levels, start=1):
            assert f"| `{task}` | {number} | {level.about} |" in page


@pytest.mark.parametrize("answer_format", ["first_number", "last_number"])
@pytest.mark.parametrize("task", ["countdown", "sorting", "base_conversion,level=2"])
def test_a_task_whose_answer_is_not_a_number_is_refused_if_only_a_number_is_graded(task, answer_format):
    settings = config.Task(dataset=f"procedural:{task},size=30", template="raw", answer_format=answer_format)
    with pytest.raises(ValueError, match=r"Use task\.answer_format=boxed"):
        prompts.load(settings, None)


def test_the_free_form_reads_whole_answers_too():
    with verifier.Grader(config.Config(task=config.Task(answer_format="free"))) as grader:
        assert grader.grade("So the answer is (3 + 4) * 2.", "@countdown:14,3,4,2").reward == 1
        assert grader.grade("So the answer is (3 + 4) * 3.", "@countdown:14,3,4,2").reward == 0


def test_a_task_whose_answer_is_a_number_is_allowed_with_every_answer_format():
    for task, levels in (("arithmetic", 6), ("modular_arithmetic", 4), ("base_conversion", 1)):
        for level in range(1, levels + 1):
            assert (
                checkers.needs_whole_answer(answer for _, answer in procedural_rows.rows(task, level, size=20)) is None
            )


def test_the_reader_of_data_sets_returns_the_same_rows():
    name = "procedural:arithmetic,level=3,size=5,split=test"
    assert [(row.question, row.answer) for row in data.rows.read(name)] == procedural.rows(name)


def test_generating_questions_imports_no_framework():
    program = (
        "import sys\nfrom reval_jax import procedural\nprocedural.rows('procedural:countdown,size=5')\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(result.stdout.split()) & {
        "jax",
        "numpy",
        "sympy",
        "transformers",
        "reasoning_gym",
        "tensorflow",
        "torch",
    }
