"""Graders with worker processes: verdicts, the user's own rewards, and answers that attack the grader."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support import fuzzed_answers, hostile_answers

from benchmarks import stress
from reval_jax import config, config_checks, rollout, train, types, verifier
from reval_jax.verifier import grading

TESTS = Path(__file__).resolve().parent
SUPPORT = TESTS / "support"


def grader_of(**verifier_settings: object) -> verifier.Grader:
    settings = config.Verifier(**{"function_path": str(SUPPORT), "workers": 1, **verifier_settings})
    return verifier.Grader(config.Config(verifier=settings))


@pytest.fixture(scope="module")
def grader() -> Iterator[verifier.Grader]:
    """A grader whose algebra worker stays warm between tests."""
    with verifier.Grader(config.Config(verifier=config.Verifier(workers=1))) as shared:
        yield shared


# --- the grader


def test_numbers_start_no_process(grader):
    with verifier.Grader(config.Config()) as fresh:
        verdicts = fresh.score(["\\boxed{4}", "\\boxed{5}", "4"], ["4"] * 3)
        assert fresh.pools == ()
    assert verdicts.reward.tolist() == [1, 0, 0]
    assert [types.VERDICTS[kind] for kind in verdicts.kind] == ["ok", "wrong", "no_box"]


def test_algebra_decides_what_exact_comparison_leaves_open(grader):
    assert grader.grade("\\boxed{(x-1)(x+1)}", "x^2-1")[:2] == (1.0, "ok")
    assert grader.grade("\\boxed{(x-1)(x+2)}", "x^2-1")[:2] == (0.0, "wrong")
    assert grader.grade("(x-1)(x+1)", "x^2-1", extracted=True)[:2] == (1.0, "ok")
    assert grader.grade("(x-1)(x+1)", "x^2-1").kind == "no_box"


def test_a_verdict_depends_on_nothing_but_its_own_pair(grader):
    texts = ["\\boxed{(x-1)(x+1)}", "\\boxed{7}", "none", "\\boxed{x(x-1)+x-1}", "\\boxed{(x-1)(x+1)}"]
    answers = ["x^2-1", "7", "1", "x^2-1", "x^2+1"]
    expected = grader.score(texts, answers)
    assert expected.reward.tolist() == [1, 1, 0, 1, 0]
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(5), 3))
    with grader_of(workers=2, tasks_per_worker=1) as other:
        verdicts = other.score([texts[i] for i in order], [answers[i] for i in order])
    np.testing.assert_array_equal(verdicts.reward, expected.reward[order])
    np.testing.assert_array_equal(verdicts.kind, expected.kind[order])
    assert verdicts.answer == tuple(expected.answer[i] for i in order)


def test_equal_pairs_are_graded_once():
    with grader_of(function="hostile_rewards:process_id", tasks_per_worker=1) as own:
        grades = own.grades([("a", "1"), ("b", "1"), ("a", "1")])
    assert grades[0] == grades[2] != grades[1]


def test_an_error_in_our_own_comparison_is_a_crash_and_grading_continues(monkeypatch):
    def fail(text: str, answer: str, **options: object) -> verifier.Grade:
        raise AttributeError("no such thing")

    messages: list[str] = []
    monkeypatch.setattr(grading, "grade", fail)
    with verifier.Grader(config.Config(), log=messages.append) as fresh:
        assert fresh.grade("\\boxed{1}", "1")[:2] == (0.0, "crash")
        fresh.grade("\\boxed{2}", "1")
    assert len(messages) == 1
    assert "AttributeError: no such thing" in messages[0]


def test_unequal_numbers_of_texts_and_answers_are_refused(grader):
    with pytest.raises(ValueError, match="2 texts and 1 answers"):
        grader.score(["a", "b"], ["1"])


def test_a_tasks_own_checker_decides_its_answers(grader):
    gold = "@countdown:24,4,6,1"
    assert grader.grade("\\boxed{4 \\times 6 \\times 1}", gold)[:2] == (1.0, "ok")
    assert grader.grade("\\boxed{24}", gold)[:2] == (0.0, "wrong")
    assert grader.grade("4*6*1", gold).kind == "no_box"
    assert grader.grade("\\boxed{" + "(" * 5000 + "}", gold).kind == "limit"


# --- rewards of the user's own


def test_a_reward_of_the_users_own_is_the_reward_and_only_1_is_ok():
    with grader_of(function="hostile_rewards:constant") as own:
        verdicts = own.score(["", "\\boxed{7}", "x"], ["1", "0.25", "0"])
    assert verdicts.reward.tolist() == [1.0, 0.25, 0.0]
    assert [types.VERDICTS[kind] for kind in verdicts.kind] == ["ok", "wrong", "wrong"]
    assert verdicts.answer == ("", "7", "")


@pytest.mark.parametrize(
    ("function", "answer"), [("constant", "1.5"), ("constant", "-0.1"), ("constant", "nan"), ("text", ""), ("fail", "")]
)
def test_a_reward_that_fails_or_is_no_number_from_0_to_1_is_a_crash_and_reported_once(function: str, answer: str):
    messages: list[str] = []
    settings = config.Verifier(function=f"hostile_rewards:{function}", function_path=str(SUPPORT), workers=1)
    with verifier.Grader(config.Config(verifier=settings), log=messages.append) as own:
        verdicts = own.score(["a", "b"], [answer] * 2)
    assert verdicts.reward.tolist() == [0.0, 0.0]
    assert {types.VERDICTS[kind] for kind in verdicts.kind} == {"crash"}
    assert len(messages) == 1


def test_a_reward_may_be_any_real_number_of_python_or_an_array_library():
    messages: list[str] = []
    settings = config.Verifier(function="number_rewards:kind_of_number", function_path=str(SUPPORT), workers=1)
    with verifier.Grader(config.Config(verifier=settings), log=messages.append) as own:
        numbers = ["bool_", "Decimal", "array", "float16", "int64", "Fraction"]
        verdicts = own.score(numbers, ["1"] * len(numbers))
        assert verdicts.reward.tolist() == [1.0] * len(numbers)
        assert own.score(["Decimal", "array", "float16", "Fraction"], ["0.5"] * 4).reward.tolist() == [0.5] * 4
        assert own.grade("bool_", "0")[:2] == (0.0, "wrong")
        refused = own.grades([(name, "1") for name in ("complex", "vector", "None")])
    assert [grade.explanation for grade in refused] == [
        f"TypeError: the function returned a {name}, not a number" for name in ("complex", "ndarray", "NoneType")
    ]
    assert len(messages) == 1


def test_a_reward_that_no_round_could_call_is_refused_before_a_run_starts(tmp_path: Path):
    for name in ("only_response", "three", "later"):
        with pytest.raises(ValueError, match=rf"verifier\.function=hostile_rewards:{name} cannot be loaded: TypeError"):
            verifier.check(config.Verifier(function=f"hostile_rewards:{name}", function_path=str(SUPPORT)))
    (tmp_path / "random.py").write_text("def score(response, answer):\n    return 1.0\n")
    with pytest.raises(ValueError, match="the standard library has a module random, which is found before yours"):
        verifier.check(config.Verifier(function="random:score", function_path=str(tmp_path)))


@pytest.mark.parametrize("reward", ["hostile_rewards:nothing", "no_such_module:score"])
def test_a_reward_that_does_not_exist_is_refused_before_a_run_starts(reward: str):
    with pytest.raises(ValueError, match=f"verifier.function={reward} cannot be loaded"):
        verifier.check(config.Verifier(function=reward, function_path=str(SUPPORT)))
    verifier.check(config.Verifier(function="hostile_rewards:constant", function_path=str(SUPPORT)))


def test_a_reward_from_a_directory_that_does_not_exist_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"verifier\.function_path=.*is not a directory"):
        verifier.check(config.Verifier(function="hostile_rewards:constant", function_path=str(tmp_path / "nowhere")))


def test_settings_that_cannot_grade_are_refused():
    usable = config.Config(model=config.Model(path="m"), task=config.Task(dataset="d.jsonl"))
    config_checks.check(usable)
    for settings, reason in (
        (config.Verifier(function="module"), "does not name a function"),
        (config.Verifier(function="module:"), "does not name a function"),
        (config.Verifier(cpu_limit=20.0, wall_limit=19.0), "wall clock would decide"),
    ):
        with pytest.raises(ValueError, match=reason):
            config_checks.check(dataclasses.replace(usable, verifier=settings))


# --- when grading fails


def test_failures_up_to_the_share_are_allowed_and_one_more_is_not():
    kinds = np.array(
        [types.VERDICTS.index(kind) for kind in ("ok", "wrong", "limit", "timeout", "crash", "no_box", "wrong", "ok")]
    )
    own = config.Verifier(function="module:score", max_failed_share=3 / 8)
    verifier.check_failures(kinds, own)
    with pytest.raises(
        verifier.UnreliableError, match=r"3 of 8 responses \(1 limit, 1 timeout, 1 crash\).*new --run-dir"
    ):
        verifier.check_failures(kinds, dataclasses.replace(own, max_failed_share=0.37))


def test_answers_too_large_for_the_built_in_grader_never_stop_a_run():
    with verifier.Grader(config.Config()) as grader:
        texts = [
            "\\boxed{" + "x" * 1001 + "}",
            "\\boxed{\\sum_{k=1}^{10^9} k}",
            "\\boxed{" + "1" * 700 + "}",
            "\\boxed{9^{9^{9^9}}}",
        ]
        kinds = grader.score(texts, ["4"] * len(texts)).kind
        long_gold = grader.score(["\\boxed{4}"], ["4" * 700]).kind
    assert {types.VERDICTS[kind] for kind in kinds} == {"limit"}
    verifier.check_failures(kinds, config.Verifier(max_failed_share=0.0))
    with pytest.raises(verifier.UnreliableError, match=r"1 of 1 responses \(0 timeout, 1 crash\)"):
        verifier.check_failures(long_gold, config.Verifier(max_failed_share=0.0))


def test_failed_verdicts_of_greedy_responses_count(monkeypatch: pytest.MonkeyPatch):
    written = []
    monkeypatch.setattr(rollout, "write", lambda *arguments: written.append(arguments))
    crash = types.VERDICTS.index("crash")
    components = SimpleNamespace(config=config.Config())
    whole = SimpleNamespace(
        all=SimpleNamespace(verdict=np.zeros(12, np.int8)), greedy_verdict=np.full(4, crash, np.int8)
    )
    train.check_verdicts(components, whole, 0)  # 4 of 16, a quarter
    failed = SimpleNamespace(all=whole.all, greedy_verdict=np.full(5, crash, np.int8))
    with pytest.raises(verifier.UnreliableError, match="5 of 17 responses"):
        train.check_verdicts(components, failed, 0)
    assert len(written) == 1


def test_a_run_whose_reward_fails_stops_with_a_message_after_writing_its_rollouts(tmp_path: Path, capsys):
    from support import tiny_runs

    from reval_jax import cli

    file = tiny_runs.write_files(tmp_path)
    own = [
        "--verifier.function",
        "hostile_rewards:fail",
        "--verifier.function_path",
        str(SUPPORT),
        "--eval.every",
        "0",
        "--verifier.workers",
        "1",
    ]
    command = ["train", "--config", str(file), "--run-dir", str(tmp_path / "run"), *own]
    import jax

    with jax.numpy_dtype_promotion("standard"):
        assert cli.main(command) == 1
    message = capsys.readouterr().err
    assert "8 of 8 responses (0 limit, 0 timeout, 8 crash)" in message
    assert "KeyError: 'no such thing'" in message
    assert len(tiny_runs.rollouts(tmp_path / "run")["round_000001.jsonl"].splitlines()) == 8


# --- imports


def test_the_verifier_needs_no_jax_and_its_own_process_no_algebra():
    program = "import sys, reval_jax.verifier as v; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=TESTS.parent, capture_output=True, text=True, check=True
    )
    assert not set(loaded.stdout.split()) & {
        "jax",
        "jaxlib",
        "flax",
        "sympy",
        "math_verify",
        "pydantic",
        "transformers",
    }


# --- hostile answers; benchmarks/stress.py grades more


def test_fuzzed_answers_are_a_pure_function_of_the_seed():
    golds = ["1", "\\frac{1}{2}"]
    one, other = (list(fuzzed_answers.fuzzed(0, 50, golds=golds, canary="c")) for _ in range(2))
    assert one == other
    assert len(set(one)) > 45
    assert one != list(fuzzed_answers.fuzzed(1, 50, golds=golds, canary="c"))


def test_the_gold_answers_of_the_stress_test_need_no_file(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(stress, "DATA", tmp_path / "absent")
    assert len(stress.real_golds()) == 300


def test_there_are_two_hundred_answers_written_by_hand():
    assert len(set(hostile_answers.BY_HAND)) >= 200


@pytest.mark.slow
def test_no_answer_written_by_hand_crashes_a_process_or_is_accepted(grader):
    pairs = hostile_answers.by_hand("canary")
    for answer, gold in pairs:
        assert grader.grade(answer, gold, extracted=True).kind not in ("ok", "crash", "timeout"), (answer, gold)
    for response, gold in hostile_answers.responses():
        assert grader.grade(response, gold).kind not in ("ok", "crash", "timeout"), (response[:100], gold)


def test_code_in_an_answer_is_never_executed_though_eval_would_execute_it(tmp_path: Path, grader):
    canary = tmp_path / "canary"
    code = [(answer, gold) for answer, gold in hostile_answers.by_hand(str(canary)) if str(canary) in answer]
    assert len(code) > 40
    grades = grader.grades(code, extracted=True)
    grades += grader.grades([(f"\\boxed{{{answer}}}", gold) for answer, gold in code])
    assert not {"ok", "crash", "timeout"} & {grade.kind for grade in grades}
    assert not canary.exists()
    # Code that evaluates such a text does execute it.
    subprocess.run(
        [sys.executable, "-c", f"eval({hostile_answers.BY_HAND[4].replace(hostile_answers.CANARY, str(canary))!r})"],
        check=True,
    )
    assert canary.exists()
