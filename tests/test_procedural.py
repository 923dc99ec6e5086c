"""Procedural data sets: exact golds, splits that never overlap, checkers that no answer can fool or stall."""

from __future__ import annotations

import ast
import itertools
import json
import operator
import random
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from reval_jax import config, data, procedural, prompts, verifier
from reval_jax.procedural import drawing, gym, naming, tasks
from reval_jax.sandbox import frames
from reval_jax.verifier import checkers

ROOT = Path(__file__).resolve().parent.parent
EVERY_LEVEL = [(task, level) for task, levels in tasks.LEVELS.items() for level in range(1, len(levels) + 1)]
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def rows(task: str, level: int, **keys: object) -> list[tuple[str, str]]:
    settings = "".join(f",{key}={value}" for key, value in keys.items())
    return procedural.rows(f"procedural:{task},level={level}{settings}")


def value_of(expression: str) -> Fraction:
    """The exact value of an expression of ours, by Python's own parser and no evaluation."""

    def walk(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp):
            if isinstance(node.op, ast.Pow):
                return walk(node.left) ** int(walk(node.right))
            return OPERATIONS[type(node.op)](walk(node.left), walk(node.right))
        if isinstance(node, ast.UnaryOp):
            return -walk(node.operand) if isinstance(node.op, ast.USub) else walk(node.operand)
        assert isinstance(node, ast.Constant)
        return Fraction(node.value)

    return walk(ast.parse(expression.strip(), mode="eval").body)


def digit_sum(text: str, base: int) -> int:
    """The value of digits by Horner's rule, most significant first."""
    value = 0
    for symbol in text:
        value = value * base + "0123456789abcdef".index(symbol)
    return value


def oracle_answer(task: str, raw: str) -> str:
    """The gold answer of a raw question of the tasks that have one, read from its text alone."""
    if task == "arithmetic":
        return str(value_of(raw.removesuffix("=")))
    if task == "modular_arithmetic":
        expression, modulus = re.fullmatch(r"(.*) mod (\d+)=", raw).groups()
        if expression.startswith("1/"):
            value = int(expression[2:])
            return str(next(x for x in range(1, int(modulus)) if value * x % int(modulus) == 1))
        return str(value_of(expression.replace("^", "**")) % int(modulus))
    if task == "base_conversion":
        given, source, target = re.fullmatch(r"(\w+) \(base (\d+)\) in base (\d+)=", raw).groups()
        value = digit_sum(given, int(source))
        if int(target) == 10:
            return str(value)
        digits = ""
        while value:
            digits = "0123456789abcdef"[value % int(target)] + digits
            value //= int(target)
        return f"@base_conversion:{target},{digits}"
    assert task == "sorting"
    numbers, order = re.fullmatch(r"(.*) in (\w+) order:", raw).groups()
    wanted = sorted(map(int, numbers.split(",")), key=lambda value: value if order == "ascending" else -value)
    return "@sorting:" + ",".join(map(str, wanted))


def countdown_solution(target: int, numbers: list[int]) -> str | None:
    """An expression with the target as its value, by trying every pair again and again; None if there is none."""
    pools = [[(Fraction(number), str(number)) for number in numbers]]
    while pools:
        pool = pools.pop()
        if len(pool) == 1:
            if pool[0][0] == target:
                return pool[0][1]
            continue
        for (i, (one, left)), (j, (other, right)) in itertools.permutations(enumerate(pool), 2):
            rest = [pool[k] for k in range(len(pool)) if k not in (i, j)]
            made = [(one - other, f"({left}-{right})")]
            if i < j:
                made += [(one + other, f"({left}+{right})"), (one * other, f"({left}*{right})")]
            if other:
                made.append((one / other, f"({left}/{right})"))
            pools += [[*rest, each] for each in made]
    return None


@pytest.mark.parametrize(("task", "level"), [pair for pair in EVERY_LEVEL if pair[0] != "countdown"])
def test_every_gold_is_what_an_oracle_reads_off_the_question(task, level):
    for split in naming.SPLITS:
        size = min(200, len(rows(task, level, split=split)))
        for raw, answer in rows(task, level, split=split, style="raw", size=size, seed=3):
            assert answer == oracle_answer(task, raw), raw


@pytest.mark.parametrize("level", [1, 2])
def test_every_countdown_question_can_be_answered(level):
    for question, answer in rows("countdown", level, size=15, seed=1):
        name, payload = checkers.checked(answer)
        target, *numbers = map(int, payload.split(","))
        asked_target, asked_numbers = re.fullmatch(
            r"Write an expression that equals (\d+)\. Use each of the numbers ([\d, ]+) exactly once.*", question
        ).groups()
        assert (target, numbers) == (int(asked_target), [int(number) for number in asked_numbers.split(",")])
        solution = countdown_solution(target, numbers)
        assert solution is not None
        assert checkers.check(name, payload, solution)
        assert not checkers.check(name, payload, f"{solution}+1")


@pytest.mark.parametrize(("task", "level"), EVERY_LEVEL)
def test_rows_are_a_function_of_the_name_and_no_question_comes_twice(task, level):
    once, again = rows(task, level, size=50, seed=7), rows(task, level, size=50, seed=7)
    assert once == again
    assert len({question for question, _ in once}) == 50
    assert once != rows(task, level, size=50, seed=8)
    assert rows(task, level, size=20, seed=7) == once[:20], "a larger set begins with the smaller one"


def test_rows_stay_what_they_were():
    """Runs name data sets, not files: the same name must mean the same questions in every version and Python.

    Made with: python -c "from reval_jax import procedural; print(procedural.rows('procedural:TASK,level=2,size=1,style=raw'))"
    """
    assert {task: rows(task, 2, size=1, style="raw")[0] for task in tasks.LEVELS} == {
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
            for question, _ in rows(task, level, split=split, seed=seed, style=style, size=15)
        }
        for split in naming.SPLITS
    )
    assert train
    assert test
    assert not train & test


def without_order(node: ast.expr) -> str:
    """An expression's text, the same for those that are one up to the order of sums and products."""
    if not isinstance(node, ast.BinOp):
        return ast.unparse(node)
    parts = [without_order(node.left), without_order(node.right)]
    if isinstance(node.op, ast.Add | ast.Mult):
        parts.sort()
    return f"({parts[0]} {type(node.op).__name__} {parts[1]})"


@pytest.mark.parametrize("level", range(1, len(tasks.LEVELS["arithmetic"]) + 1))
def test_an_expression_and_the_same_turned_round_are_on_one_side(level):
    sides: dict[str, set[str]] = {}
    for split in naming.SPLITS:
        size = len(rows("arithmetic", level, split=split)) if level < 6 else 1000
        for question, _ in rows("arithmetic", level, split=split, style="raw", size=size):
            form = without_order(ast.parse(question.rstrip("="), mode="eval").body)
            sides.setdefault(form, set()).add(split)
    assert {len(of_one) for of_one in sides.values()} == {1}
    assert set.union(*sides.values()) == set(naming.SPLITS)


@pytest.mark.parametrize(("task", "level"), EVERY_LEVEL)
def test_every_number_below_the_total_is_a_problem_or_none(task, level):
    description = tasks.LEVELS[task][level - 1]
    choose = random.Random(0)  # noqa: S311
    numbers = [0, description.total - 1, *(choose.randrange(description.total) for _ in range(200))]
    made = [description.problem(number) for number in numbers]
    assert any(made)
    assert all(problem.raw and problem.sentence and problem.answer for problem in made if problem)


@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_the_order_of_a_level_is_a_permutation(total):
    assert sorted(drawing._order(total, "a")) == list(range(total))
    if total > 2:
        assert len({tuple(drawing._order(total, str(seed))) for seed in range(20)}) > 5


def test_the_order_of_a_level_is_even():
    """Each of the 24 orders of four comes about as often: 2,400 draws, within 5 standard deviations of 100."""
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(2400):
        order = tuple(drawing._order(4, str(seed)))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert max(abs(count - 100) for count in counts.values()) < 5 * (2400 / 24 * 23 / 24) ** 0.5


def plain_golds(task: str) -> list[str]:
    return [answer for level in range(1, len(tasks.LEVELS[task]) + 1) for _, answer in rows(task, level, size=40)]


@pytest.mark.parametrize("task", ["arithmetic", "modular_arithmetic", "base_conversion"])
def test_the_verifier_accepts_every_plain_gold_and_refuses_its_neighbour(task):
    golds = [gold for gold in plain_golds(task) if checkers.checked(gold) is None]
    assert golds
    for gold in golds:
        for answer_format, wrapped in (("boxed", "so \\boxed{%d}"), ("first_number", " %d.\nNext")):
            assert verifier.grade(wrapped % int(gold), gold, answer_format=answer_format).reward == 1
            assert verifier.grade(wrapped % (int(gold) + 1), gold, answer_format=answer_format).reward == 0


@pytest.mark.parametrize("task", ["base_conversion", "sorting"])
def test_a_checker_accepts_its_own_gold_and_refuses_a_changed_one(task):
    checked = [pair for gold in plain_golds(task) if (pair := checkers.checked(gold))]
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
        (r"\frac{7+3*5}{1}", False),  # a 1 that was not given
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
    """Strings over the grammar's signs: right exactly if Python reads the same value from the same numbers."""
    choose, seen = random.Random(0), {True: 0, False: 0}  # noqa: S311
    for _ in range(4000):
        numbers = [choose.randint(1, 4) for _ in range(3)]
        text = "".join(choose.choice(["(", "", "", "-"]) + str(number) + choose.choice(["", "", ")"]) + sign
                       for number, sign in zip(numbers, [*choose.choices("+-*/", k=2), ""], strict=True))  # fmt: skip
        try:
            value = value_of(text)
        except (SyntaxError, ZeroDivisionError):
            value = Fraction(1, 7)  # no target is that
        target = int(value) if choose.random() < 0.7 else choose.randint(-2, 12)
        expected = value == target
        assert checkers.check("countdown", f"{target},{','.join(map(str, numbers))}", text) is expected, text
        seen[expected] += 1
    assert min(seen.values()) > 100


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
def test_a_hostile_answer_is_wrong_and_never_an_error(name):
    payload = {"countdown": "22,3,5,7", "sorting": "1,2,3", "base_conversion": "2,10110"}[name]
    for answer in HOSTILE:
        assert checkers.check(name, payload, answer) is False, answer[:40]


def test_a_random_answer_is_no_error():
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


def test_the_deepest_expression_that_is_read_is_read_and_one_deeper_is_not():
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
def test_sorting_refuses_what_is_not_the_list(answer):
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
    assert checkers.checked("@countdown:22,3,5,7") == ("countdown", "22,3,5,7")
    assert checkers.checked('@reasoning_gym:{"a": ":"}') == ("reasoning_gym", '{"a": ":"}')
    for plain in ("22", "@", "@other:1", "countdown:22,3", "@countdown", "x @countdown:1"):
        assert checkers.checked(plain) is None


def test_the_librarys_scorers_are_refused_in_this_process():
    with pytest.raises(ValueError, match="sandbox"):
        checkers.check("reasoning_gym", "{}", "1")


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
        rows("arithmetic", 1, split=split, size=101)
    largest = int(re.search(r"Use size=(\d+)", str(refused.value)).group(1))
    assert len(rows("arithmetic", 1, split=split, size=largest)) == largest
    with pytest.raises(ValueError, match=f"has {largest} questions"):
        rows("arithmetic", 1, split=split, size=largest + 1)
    assert len(rows("arithmetic", 1, split=split)) == largest, "without a size, all that there are"


def test_both_splits_of_a_level_are_all_of_it():
    both = [question for split in naming.SPLITS for question, _ in rows("arithmetic", 1, split=split, style="raw")]
    assert sorted(both) == sorted(f"{one}+{other}=" for one in range(10) for other in range(10))


def test_metrics_get_a_short_name():
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
def test_a_task_whose_answer_is_no_number_is_refused_where_a_number_is_graded(task, answer_format):
    settings = config.Task(dataset=f"procedural:{task},size=30", template="raw", answer_format=answer_format)
    with pytest.raises(ValueError, match=r"Use task\.answer_format=boxed"):
        prompts.load(settings, None)


def test_a_task_whose_answer_is_a_number_goes_with_either_answer_format():
    for task, levels in (("arithmetic", 6), ("modular_arithmetic", 4), ("base_conversion", 1)):
        for level in range(1, levels + 1):
            assert checkers.needs_whole_answer(answer for _, answer in rows(task, level, size=20)) is None


def test_the_rows_of_a_data_set_are_what_prompts_are_made_of():
    name = "procedural:arithmetic,level=3,size=5,split=test"
    assert [(row.question, row.answer) for row in data.rows.read(name)] == procedural.rows(name)


def test_making_questions_loads_no_framework():
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


def test_without_the_library_its_data_sets_are_refused_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    gym._generate.cache_clear()
    with pytest.raises(ValueError, match=r"pip install 'reval-jax\[reasoning-gym\]'"):
        procedural.rows("procedural:reasoning_gym,dataset=chain_sum,size=3")


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("reasoning_gym", reason="the extra reasoning-gym is not installed")


def test_the_library_scores_the_answer_to_the_question_that_was_asked(library):
    for dataset in ("chain_sum", "number_sorting", "countdown", "word_ladder"):
        for question, answer in procedural.rows(f"procedural:reasoning_gym,dataset={dataset},size=4,seed=2"):
            name, payload = checkers.checked(answer)
            recipe = json.loads(payload)
            made = library.create_dataset(dataset, seed=recipe["seed"], size=recipe["size"])
            item = made[recipe["index"]]
            assert (name, question) == ("reasoning_gym", item["question"])
            gold = item["answer"] if dataset != "countdown" else item["metadata"]["expression"]
            assert procedural.reasoning_gym_score(payload, gold) == 1
            assert procedural.reasoning_gym_score(payload, "no answer") < 0.1


def test_the_librarys_splits_never_overlap_even_for_neighbouring_seeds(library):
    train, test = (
        {
            question
            for seed in range(4)
            for question, _ in procedural.rows(
                f"procedural:reasoning_gym,dataset=chain_sum,min_terms=2,max_terms=2,max_digits=1,size=15,seed={seed},split={split}"
            )
        }
        for split in naming.SPLITS
    )
    assert train
    assert test
    assert not train & test
    first, second = (
        set(procedural.rows(f"procedural:reasoning_gym,dataset=chain_sum,size=50,seed={seed}")) for seed in (0, 1)
    )
    assert len(first & second) < 5, "item i is made from seed + i there: neighbouring seeds must not be one data set"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("dataset=chain_sums", r"unknown dataset 'chain_sums'. Did you mean 'chain_sum'\?"),
        ("dataset=chain_sum,max_term=2", r"unknown key 'max_term'. Did you mean 'max_terms'\?"),
        ("dataset=chain_sum,max_terms=1", "max_terms must be >= min_terms"),
        ("dataset=chain_sum,min_terms=2,max_terms=2,max_digits=1,size=2000", "Use size="),
    ],
)
def test_what_the_library_can_not_make_is_refused(library, settings, message):
    with pytest.raises(ValueError, match=message):
        procedural.rows(f"procedural:reasoning_gym,{settings}")


def test_an_item_that_another_version_makes_differently_is_not_scored(library):
    _, answer = procedural.rows("procedural:reasoning_gym,dataset=chain_sum,size=1")[0]
    payload = json.loads(checkers.checked(answer)[1]) | {"digest": "0" * 16}
    with pytest.raises(ValueError, match="another question"):
        procedural.reasoning_gym_score(json.dumps(payload), "1")


def gold_of(dataset: str) -> tuple[str, str]:
    """A gold answer, as the grader takes it, and the library's own answer to its question."""
    ((_, answer),) = procedural.rows(f"procedural:reasoning_gym,dataset={dataset},size=1")
    recipe = json.loads(checkers.checked(answer)[1])
    made = gym._generate(json.dumps({key: value for key, value in recipe.items() if key not in ("index", "digest")}))
    item = made[recipe["index"]]
    return answer, item["metadata"]["expression"] if dataset == "countdown" else item["answer"]


def grades_of(dataset: str, *texts: str) -> list[verifier.Grade]:
    """The grades of answers to one of its questions, of which the first is the library's own."""
    answer, own = gold_of(dataset)
    with verifier.Grader(config.Config(verifier=config.Verifier(workers=1))) as grader:
        return grader.grades([(text, answer) for text in (own, *texts)], extracted=True)


def forged(descriptor: int) -> str:
    """An answer that writes the reply which says reward 1, where `descriptor` is the end that a process replies through."""
    reply = frames.encode({"kind": "done", "value": 1.0, "peak": 0, "is_last": False})
    return f"[__import__('os').write({descriptor}, {reply!r}), __import__('time').sleep(1)]"


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["string_insertion", "n_queens", "countdown"])
def test_an_answer_that_is_code_gets_nothing_from_a_scorer_that_evaluates_answers(library, dataset):
    texts = ["[oracle_answer]", "[entry['answer']]", "oracle_answer", "valid_solutions[0]"]
    texts += [forged(descriptor) for descriptor in range(3, 13)]
    texts += ["eval('1')", "Add('1')", "[].__class__", "sympify('1')"]
    right, *wrong = grades_of(dataset, *texts)
    assert right[:2] == (1.0, "ok")
    assert max(grade.reward for grade in wrong) <= 0.05  # the library gives so much for any text
    assert {grade.kind for grade in wrong} == {"wrong"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "dataset", ["simple_integration", "bitwise_arithmetic", "basic_arithmetic", "bf", "polynomial_equations"]
)
def test_what_a_scorer_evaluates_of_its_own_is_still_evaluated(library, dataset):
    right, wrong = grades_of(dataset, "no answer")
    assert right[:2] == (1.0, "ok")
    assert wrong.reward < 0.1


@pytest.mark.parametrize(
    "text",
    [
        "3*x**2/2 + C",
        "-(1.5 + x)*2",
        "sin(x)*exp(-x) + sqrt(2)",
        "4! - 2",
        "f(x) + pi",
        "0.1[6]",
        "abs(-2) + max(1, x)",
    ],
)
def test_a_formula_is_read_as_sympy_reads_it(library, text):
    from sympy.parsing import sympy_parser

    assert gym._expression(text) == sympy_parser.parse_expr(text)


def test_the_librarys_own_names_mean_the_same_again_after_a_score(library):
    import sympy

    made = library.create_dataset("countdown", seed=1, size=1)
    scope = type(made).score_answer.__globals__
    before = sympy.parse_expr, scope["parse_expr"], scope.get("eval")
    test_the_library_scores_the_answer_to_the_question_that_was_asked(library)
    assert (sympy.parse_expr, scope["parse_expr"], scope.get("eval")) == before


def test_a_scorers_own_function_of_the_same_name_is_left_alone(library):
    scope = type(library.create_dataset("propositional_logic", seed=1, size=1)).score_answer.__globals__
    own = scope["parse_expr"]
    with gym._without_evaluation(scope):
        assert scope["parse_expr"] is own
        assert scope["eval"]("[1 + 1]") == [2]


def test_no_answer_pays_for_the_import_of_the_library_and_each_has_a_process_of_its_own(library):
    """The import alone takes a second of CPU time and more."""
    answer, own = gold_of("chain_sum")
    settings = config.Verifier(workers=1, cpu_limit=0.3)
    with verifier.Grader(config.Config(verifier=settings)) as grader:
        assert [grader.grade(text, answer, extracted=True).reward for text in (own, f" {own}")] == [1, 1]
        assert [each._settings.tasks_per_child for each in grader._pools.values()] == [1]
