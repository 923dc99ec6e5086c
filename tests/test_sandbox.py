"""No answer stalls, stops or uses the process that trains: what workers do with functions and texts that are meant to."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support import hostile

from reval_jax import config, config_checks, types, verifier
from reval_jax.sandbox import confinement, frames, pool, worker
from reval_jax.verifier import grading

TESTS = Path(__file__).resolve().parent
SUPPORT = TESTS / "support"
HAS_FILTER = confinement.has_call_filter()

# A limit is short, for a test that waits for it; the wall clock is long, for one that must not.
CPU_LIMIT, WALL_LIMIT, MEMORY_LIMIT = 0.2, 60.0, 384 << 20


def settings_for(function: str, **changes: object) -> worker.WorkerSettings:
    chosen = worker.WorkerSettings(f"hostile:{function}", True, CPU_LIMIT, WALL_LIMIT, MEMORY_LIMIT, 100, [])
    return chosen._replace(**changes)


def pool_of(function: str, *, num_workers: int = 1, **changes: object) -> pool.Pool:
    return pool.Pool(settings_for(function, **changes), num_workers=num_workers, path=[SUPPORT])


def outcomes_of(function: str, tasks: list[tuple[str, str]], **changes: object) -> list[pool.TaskOutcome]:
    with pool_of(function, **changes) as workers:
        return workers.run(tasks)


def grader_of(**verifier_settings: object) -> verifier.Grader:
    settings = config.Verifier(**{"function_path": str(SUPPORT), "workers": 1, **verifier_settings})
    return verifier.Grader(config.Config(verifier=settings))


@pytest.fixture(scope="module")
def grader() -> Iterator[verifier.Grader]:
    """One whose algebra is warm."""
    with verifier.Grader(config.Config(verifier=config.Verifier(workers=1))) as shared:
        yield shared


# --- limits


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        ("spin", "limit"), ("multiply", "limit"), ("recurse", "limit"), ("allocate", "limit"), ("leave", "crash"),
        ("fail", "crash"), ("text", "done"), ("by_length", "done"),
    ],
)  # fmt: skip
def test_each_way_to_misbehave_has_its_verdict_and_leaves_the_next_task_alone(function: str, kind: str):
    with pool_of(function, cpu_limit=2.0 if function == "allocate" else CPU_LIMIT) as workers:
        assert [outcome.kind for outcome in workers.run([("", "1")] * 2)] == [kind] * 2
        assert (workers.capacity, workers.num_replaced) == (1, 0)
        assert workers.peak_bytes <= MEMORY_LIMIT


def test_a_task_that_waits_without_computing_is_rescued_by_the_wall_clock_and_counted_apart():
    (outcome,) = outcomes_of("hang", [("", "")], wall_limit=0.3)
    assert outcome.kind == "timeout"
    assert outcome.seconds >= 0.3


def test_the_wall_clock_does_not_decide_about_a_task_that_computes():
    """The whole worker is stopped for longer than both limits."""
    with pool_of("spin", cpu_limit=0.5, wall_limit=1.0) as workers:
        workers.start()
        session = workers._workers[0]._process.pid
        command = f"sleep 0.1; kill -STOP -{session}; sleep 1.5; kill -CONT -{session}"
        with subprocess.Popen(["/bin/sh", "-c", command]):
            (outcome,) = workers.run([("", "")])
    assert outcome.kind == "limit"
    assert outcome.seconds > 1.5


def test_memory_that_earlier_tasks_have_kept_does_not_decide_a_later_one():
    """Each takes two fifths of the limit: two of them fit into one process, three do not."""
    size = str(MEMORY_LIMIT * 2 // 5)
    assert [outcome.kind for outcome in outcomes_of("remember", [("", size)] * 6, cpu_limit=5.0)] == ["done"] * 6


def test_a_task_that_finds_too_little_memory_in_a_used_process_is_tried_in_a_fresh_one():
    """The first task keeps a twentieth of the limit, with which the process goes on; the second has room for no more."""
    tasks = [("", str(MEMORY_LIMIT // 20)), ("fill", str(MEMORY_LIMIT)), ("fill", str(MEMORY_LIMIT * 2))]
    kinds = [outcome.kind for outcome in outcomes_of("remember_or_fill", tasks, cpu_limit=5.0)]
    assert kinds == ["done", "done", "limit"]


def test_a_process_is_replaced_after_the_tasks_it_may_do():
    values = [
        outcome.value for outcome in outcomes_of("process_id", [("", str(n)) for n in range(7)], tasks_per_child=3)
    ]
    assert [len(set(values[start : start + 3])) for start in (0, 3, 6)] == [1, 1, 1]
    assert len(set(values)) == 3


# --- fences


def tempting(directory: Path) -> Path:
    directory.mkdir()
    (directory / "victim").write_text("kept")
    return directory


@pytest.mark.parametrize("name", hostile.ways_out("."))
def test_every_way_out_is_closed(name: str, tmp_path: Path):
    if name.startswith("libc") and not HAS_FILTER:
        pytest.skip("this system has no filter of system calls that is known here")
    inside, outside = tempting(tmp_path / "inside"), tempting(tmp_path / "outside")
    # The attempt is one: where nothing fences it in, it succeeds.
    program = f"import hostile; hostile.ways_out({str(outside)!r})[{name!r}]()"
    subprocess.run([sys.executable, "-c", program], cwd=SUPPORT, check=True, stdout=subprocess.DEVNULL)

    (outcome,) = outcomes_of("escape", [(name, str(inside))], cpu_limit=5.0)
    assert (outcome.kind, outcome.value) == ("done", 0.0), outcome.message
    assert [file.name for file in inside.iterdir()] == ["victim"]
    assert (inside / "victim").read_text() == "kept"


def test_a_worker_sees_neither_the_environment_nor_the_directory_nor_the_files_of_the_trainer(monkeypatch, tmp_path):
    monkeypatch.setenv("REVAL_SECRET", "token")
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        assert [outcomes_of(name, [("", "")])[0].value for name in ("surroundings", "steal")] == [0.0, 0.0]


def test_code_in_an_answer_is_never_executed_and_would_be_where_it_is_evaluated(tmp_path: Path, grader):
    canary = tmp_path / "canary"
    code = [(answer, gold) for answer, gold in hostile.by_hand(str(canary)) if str(canary) in answer]
    assert len(code) > 40
    grades = grader.grades(code, extracted=True)
    grades += grader.grades([(f"\\boxed{{{answer}}}", gold) for answer, gold in code])
    assert not {"ok", "crash", "timeout"} & {grade.kind for grade in grades}
    assert not canary.exists()
    # The same texts harm whoever evaluates them.
    subprocess.run(
        [sys.executable, "-c", f"eval({hostile.BY_HAND[4].replace(hostile.CANARY, str(canary))!r})"], check=True
    )
    assert canary.exists()


def test_a_process_that_compares_answers_compiles_nothing():
    assert outcomes_of("evaluates", [("1+1", "2")], may_compile=True)[0].value == 1.0
    (refused,) = outcomes_of("evaluates", [("1+1", "2")], may_compile=False)
    assert refused.kind == "crash"
    assert "may not compile" in refused.message


# --- the pool


def test_no_process_starts_without_a_task_and_none_outlives_the_pool():
    with pool_of("by_length", num_workers=2) as workers:
        assert workers.run([]) == []
        assert workers.capacity == 0
        workers.run([("", "")] * 3)
        processes = [each._process for each in workers._workers]
        assert workers.capacity == len(processes) == 2
    assert all(process.returncode is not None for process in processes)


def test_outcomes_come_in_the_order_of_the_tasks_whatever_the_number_of_workers():
    tasks = [("", str(n / 100)) for n in range(60)]
    for num_workers in (1, 3):
        found = outcomes_of("constant", tasks, num_workers=num_workers, tasks_per_child=7)
        assert [outcome.value for outcome in found] == [n / 100 for n in range(60)]


def test_texts_arrive_as_they_are_sent():
    texts = ["", "\x00", "\ud800", "\U0001f600", "x" * 3_000_000]
    found = outcomes_of("by_length", [(text, "") for text in texts], cpu_limit=5.0)
    assert [outcome.value for outcome in found] == [min(1.0, len(text) / 10) for text in texts]


def test_a_worker_that_is_killed_is_replaced_and_its_task_repeated():
    with pool_of("by_length", num_workers=2) as workers:
        workers.run([("", "")] * 2)
        for each in workers._workers:
            os.killpg(each._process.pid, signal.SIGKILL)
        assert [outcome.kind for outcome in workers.run([("", str(n)) for n in range(5)])] == ["done"] * 5
        assert (workers.capacity, workers.num_replaced) == (2, 2)


def test_a_signal_to_stop_the_whole_group_stops_no_worker():
    with pool_of("by_length") as workers:
        workers.run([("", "")])
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.killpg(workers._workers[0]._process.pid, signum)
        assert workers.run([("0123456789", "")])[0].value == 1.0
        assert workers.num_replaced == 0


def test_a_trainer_that_is_killed_leaves_no_process_behind(tmp_path: Path):
    program = """
import hostile, test_sandbox
with test_sandbox.pool_of("hang", num_workers=2) as workers:
    workers.start(2)
    print(*[each._process.pid for each in workers._workers], flush=True)
    workers.run([("", "")] * 2)
"""
    trainer = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=TESTS,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(TESTS), str(SUPPORT), str(TESTS.parent)))},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert trainer.stdout is not None
    sessions = [int(number) for number in trainer.stdout.readline().split()]
    assert len(sessions) == 2
    directories = [Path(os.readlink(f"/proc/{session}/cwd")) for session in sessions]
    time.sleep(0.5)  # until their children hang
    trainer.kill()
    trainer.communicate()
    deadline = time.monotonic() + 10
    while any(is_alive(session) for session in sessions) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_alive(session) for session in sessions)
    assert not any(directory.exists() for directory in directories)


def is_alive(session: int) -> bool:
    """Whether a process of the group runs; one that is dead and waits to be buried does not."""
    found = subprocess.run(["ps", "-e", "-o", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    return any(
        int(group) == session and not state.startswith("Z") for group, state in map(str.split, found.splitlines())
    )


def test_a_memory_limit_that_leaves_nothing_is_refused_at_the_start():
    refusal = pytest.raises(pool.RefusedError, match=r"memory_limit is too small: \d+ MiB are in use")
    with pool_of("by_length", memory_limit=30 << 20) as workers, refusal:
        workers.run([("", "")])


def test_a_function_that_cannot_be_loaded_is_refused_with_its_reason():
    for target, reason in (
        ("hostile:nothing", "nothing"),
        ("no_such_module:score", "no_such_module"),
        ("hostile:GOLDS", "tuple"),
    ):
        with pool_of("", target=target) as workers, pytest.raises(pool.RefusedError, match=reason):
            workers.run([("", "")])


@pytest.mark.parametrize("answer", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x02{]", b"\x00\x00\x00\x02{}{}"])
def test_a_malformed_message_from_below_is_refused(answer: bytes):
    with pytest.raises(ValueError, match=r"longer|Expecting"):
        frames.decode(answer)


def test_a_message_is_read_however_it_is_cut():
    message = frames.encode({"kind": "done", "value": "\ud800"})
    assert [frames.decode(message[:end]) for end in range(len(message))] == [None] * len(message)
    assert frames.decode(message) == {"kind": "done", "value": "\ud800"}


# --- the grader


def test_numbers_start_no_process(grader):
    with verifier.Grader(config.Config()) as fresh:
        found = fresh.score(["\\boxed{4}", "\\boxed{5}", "4"], ["4"] * 3)
        assert fresh.pools == ()
    assert found.reward.tolist() == [1, 0, 0]
    assert [types.VERDICTS[kind] for kind in found.kind] == ["ok", "wrong", "no_box"]


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
        found = other.score([texts[i] for i in order], [answers[i] for i in order])
    np.testing.assert_array_equal(found.reward, expected.reward[order])
    np.testing.assert_array_equal(found.kind, expected.kind[order])
    assert found.answer == tuple(expected.answer[i] for i in order)


def test_equal_pairs_are_graded_once():
    with grader_of(function="hostile:process_id", tasks_per_worker=1) as own:
        grades = own.grades([("a", "1"), ("b", "1"), ("a", "1")])
    assert grades[0] == grades[2] != grades[1]


def test_a_text_that_finds_a_fault_in_our_own_comparison_is_a_crash_and_not_the_end(monkeypatch):
    def fail(text: str, answer: str, **options: object) -> verifier.Grade:
        raise AttributeError("no such thing")

    said: list[str] = []
    monkeypatch.setattr(grading, "grade", fail)
    with verifier.Grader(config.Config(), log=said.append) as fresh:
        assert fresh.grade("\\boxed{1}", "1")[:2] == (0.0, "crash")
        fresh.grade("\\boxed{2}", "1")
    assert len(said) == 1
    assert "AttributeError: no such thing" in said[0]


def test_as_many_texts_as_answers(grader):
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
    with grader_of(function="hostile:constant") as own:
        found = own.score(["", "\\boxed{7}", "x"], ["1", "0.25", "0"])
    assert found.reward.tolist() == [1.0, 0.25, 0.0]
    assert [types.VERDICTS[kind] for kind in found.kind] == ["ok", "wrong", "wrong"]
    assert found.answer == ("", "7", "")


@pytest.mark.parametrize(
    ("function", "answer"), [("constant", "1.5"), ("constant", "-0.1"), ("constant", "nan"), ("text", ""), ("fail", "")]
)
def test_a_reward_that_fails_or_is_no_number_from_0_to_1_is_a_crash_and_said_once(function: str, answer: str):
    said: list[str] = []
    settings = config.Verifier(function=f"hostile:{function}", function_path=str(SUPPORT), workers=1)
    with verifier.Grader(config.Config(verifier=settings), log=said.append) as own:
        found = own.score(["a", "b"], [answer] * 2)
    assert found.reward.tolist() == [0.0, 0.0]
    assert {types.VERDICTS[kind] for kind in found.kind} == {"crash"}
    assert len(said) == 1


@pytest.mark.parametrize("reward", ["hostile:nothing", "no_such_module:score"])
def test_a_reward_that_does_not_exist_is_refused_before_a_run_starts(reward: str):
    with pytest.raises(ValueError, match=f"verifier.function={reward} cannot be loaded"):
        verifier.check(config.Verifier(function=reward, function_path=str(SUPPORT)))
    verifier.check(config.Verifier(function="hostile:constant", function_path=str(SUPPORT)))


def test_a_reward_from_a_directory_that_does_not_exist_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"verifier\.function_path=.*is not a directory"):
        verifier.check(config.Verifier(function="hostile:constant", function_path=str(tmp_path / "nowhere")))


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


def test_failures_up_to_the_share_are_borne_and_one_more_is_not():
    kinds = np.array(
        [types.VERDICTS.index(kind) for kind in ("ok", "wrong", "limit", "timeout", "crash", "no_box", "wrong", "ok")]
    )
    verifier.check_failures(kinds, max_share=3 / 8)
    with pytest.raises(verifier.UnreliableError, match=r"3 of 8 responses \(1 limit, 1 timeout, 1 crash\)"):
        verifier.check_failures(kinds, max_share=0.37)


def test_a_run_whose_reward_fails_stops_with_its_rollouts_written_and_says_so(tmp_path: Path, capsys):
    from support import tiny_runs

    from reval_jax import cli

    file = tiny_runs.write_files(tmp_path)
    own = [
        "--verifier.function",
        "hostile:fail",
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
    said = capsys.readouterr().err
    assert "8 of 8 responses (0 limit, 0 timeout, 8 crash)" in said
    assert "KeyError: 'no such thing'" in said
    assert len((tmp_path / "run" / "rollouts" / "round_000001.jsonl").read_text().splitlines()) == 8


# --- what is imported


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


# --- the answers of benchmarks/stress.py, of which the gate runs a tenth


def test_fuzzed_answers_are_a_pure_function_of_the_seed():
    real = [("", "1"), ("", "\\frac{1}{2}")]
    one, other = (list(hostile.fuzzed(0, 50, real=real, canary="c")) for _ in range(2))
    assert one == other
    assert len(set(one)) > 45
    assert one != list(hostile.fuzzed(1, 50, real=real, canary="c"))


def test_there_are_two_hundred_answers_written_by_hand():
    assert len(set(hostile.BY_HAND)) >= 200


@pytest.mark.slow
def test_no_answer_written_by_hand_crashes_a_process_or_is_taken_for_right(grader):
    pairs = hostile.by_hand("canary")
    for answer, gold in pairs:
        assert grader.grade(answer, gold, extracted=True).kind not in ("ok", "crash", "timeout"), (answer, gold)
    for response, gold in hostile.responses():
        assert grader.grade(response, gold).kind not in ("ok", "crash", "timeout"), (response[:100], gold)
