"""Data sets of the reasoning-gym library: questions, scores, and scorers that cannot execute an answer."""

from __future__ import annotations

import json
import sys

import pytest

from reval_jax import config, procedural, verifier
from reval_jax.procedural import gym, naming
from reval_jax.sandbox import frames
from reval_jax.verifier import checkers


def test_without_the_library_its_data_sets_are_refused_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    gym._generate.cache_clear()
    with pytest.raises(ValueError, match=r"pip install 'reval-jax\[reasoning-gym\]'"):
        procedural.rows("procedural:reasoning_gym,dataset=chain_sum,size=3")


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("reasoning_gym", reason="the extra reasoning-gym is not installed")


def test_the_library_scores_the_answer_to_the_recorded_question(library):
    for dataset in ("chain_sum", "number_sorting", "countdown", "word_ladder"):
        for question, answer in procedural.rows(f"procedural:reasoning_gym,dataset={dataset},size=4,seed=2"):
            name, payload = checkers.parse_gold(answer)
            recipe = json.loads(payload)
            generated = library.create_dataset(dataset, seed=recipe["seed"], size=recipe["size"])
            item = generated[recipe["index"]]
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
    assert len(first & second) < 5, (
        "the library generates item i from seed + i, but adjacent seeds must give different data sets"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("dataset=chain_sums", r"unknown dataset 'chain_sums'. Did you mean 'chain_sum'\?"),
        ("dataset=chain_sum,max_term=2", r"unknown key 'max_term'. Did you mean 'max_terms'\?"),
        ("dataset=chain_sum,max_terms=1", "max_terms must be >= min_terms"),
        ("dataset=chain_sum,min_terms=2,max_terms=2,max_digits=1,size=2000", "Use size="),
    ],
)
def test_settings_that_the_library_refuses_are_refused(library, settings, message):
    with pytest.raises(ValueError, match=message):
        procedural.rows(f"procedural:reasoning_gym,{settings}")


def test_an_item_that_another_version_generates_differently_is_not_scored(library):
    _, answer = procedural.rows("procedural:reasoning_gym,dataset=chain_sum,size=1")[0]
    payload = json.loads(checkers.parse_gold(answer)[1]) | {"digest": "0" * 16}
    with pytest.raises(ValueError, match="another question"):
        procedural.reasoning_gym_score(json.dumps(payload), "1")


def gold_of(dataset: str) -> tuple[str, str]:
    """A gold answer for the grader, and the library's answer to its question."""
    ((_, answer),) = procedural.rows(f"procedural:reasoning_gym,dataset={dataset},size=1")
    recipe = json.loads(checkers.parse_gold(answer)[1])
    generated = gym._generate(
        json.dumps({key: value for key, value in recipe.items() if key not in ("index", "digest")})
    )
    item = generated[recipe["index"]]
    return answer, item["metadata"]["expression"] if dataset == "countdown" else item["answer"]


def grades_of(dataset: str, *texts: str) -> list[verifier.Grade]:
    """The grades of several answers to one question; the first answer is the library's."""
    answer, own = gold_of(dataset)
    with verifier.Grader(config.Config(verifier=config.Verifier(workers=1))) as grader:
        return grader.grades([(text, answer) for text in (own, *texts)], extracted=True)


def forged(descriptor: int) -> str:
    """An answer that would write a reply with reward 1, if `descriptor` were the pipe for the worker's replies."""
    reply = frames.encode({"kind": "done", "value": 1.0, "peak": 0, "is_last": False})
    return f"[__import__('os').write({descriptor}, {reply!r}), __import__('time').sleep(1)]"


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["string_insertion", "n_queens", "countdown"])
def test_an_answer_that_is_code_gets_no_reward_from_a_scorer_that_evaluates_answers(library, dataset):
    texts = ["[oracle_answer]", "[entry['answer']]", "oracle_answer", "valid_solutions[0]"]
    texts += [forged(descriptor) for descriptor in range(3, 13)]
    texts += ["eval('1')", "Add('1')", "[].__class__", "sympify('1')"]
    right, *wrong = grades_of(dataset, *texts)
    assert right[:2] == (1.0, "ok")
    assert max(grade.reward for grade in wrong) <= 0.05  # the library gives this much for any text
    assert {grade.kind for grade in wrong} == {"wrong"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "dataset", ["simple_integration", "bitwise_arithmetic", "basic_arithmetic", "bf", "polynomial_equations"]
)
def test_a_scorer_may_still_evaluate_its_own_expressions(library, dataset):
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


def test_the_librarys_functions_are_restored_after_a_score(library):
    import sympy

    generated = library.create_dataset("countdown", seed=1, size=1)
    scope = type(generated).score_answer.__globals__
    before = sympy.parse_expr, scope["parse_expr"], scope.get("eval")
    test_the_library_scores_the_answer_to_the_recorded_question(library)
    assert (sympy.parse_expr, scope["parse_expr"], scope.get("eval")) == before


def test_another_function_named_parse_expr_is_not_replaced(library):
    scope = type(library.create_dataset("propositional_logic", seed=1, size=1)).score_answer.__globals__
    own = scope["parse_expr"]
    with gym._without_evaluation(scope):
        assert scope["parse_expr"] is own
        assert scope["eval"]("[1 + 1]") == [2]


def test_no_answer_pays_for_the_import_of_the_library_and_each_has_its_own_process(library):
    """The import alone takes more than a second of CPU time."""
    answer, own = gold_of("chain_sum")
    settings = config.Verifier(workers=1, cpu_limit=0.3)
    with verifier.Grader(config.Config(verifier=settings)) as grader:
        assert [grader.grade(text, answer, extracted=True).reward for text in (own, f" {own}")] == [1, 1]
        assert [each._settings.tasks_per_child for each in grader._pools.values()] == [1]
