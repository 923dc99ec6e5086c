"""Worker processes: functions and texts that try to stall, crash or misuse the trainer do not succeed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import hostile_rewards

from reval_jax.sandbox import confinement, frames, pool, worker

TESTS = Path(__file__).resolve().parent
SUPPORT = TESTS / "support"
HAS_FILTER = confinement.has_call_filter()

# The CPU limit is short because tests wait for it. The wall limit is long because it must not be reached.
CPU_LIMIT, WALL_LIMIT, MEMORY_LIMIT = 0.2, 60.0, 384 << 20


def settings_for(function: str, **changes: object) -> worker.WorkerSettings:
    settings = worker.WorkerSettings(f"hostile_rewards:{function}", True, CPU_LIMIT, WALL_LIMIT, MEMORY_LIMIT, 100, [])
    return settings._replace(**changes)


def pool_of(function: str, *, num_workers: int = 1, **changes: object) -> pool.Pool:
    return pool.Pool(settings_for(function, **changes), num_workers=num_workers, path=[SUPPORT])


def outcomes_of(function: str, tasks: list[tuple[str, str]], **changes: object) -> list[pool.TaskOutcome]:
    with pool_of(function, **changes) as workers:
        return workers.run(tasks)


# --- limits


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        ("spin", "limit"), ("multiply", "limit"), ("recurse", "limit"), ("allocate", "limit"), ("exit_process", "crash"),
        ("fail", "crash"), ("text", "done"), ("by_length", "done"),
    ],
)  # fmt: skip
def test_each_way_to_misbehave_has_its_verdict_and_leaves_the_next_task_alone(function: str, kind: str):
    with pool_of(function, cpu_limit=2.0 if function == "allocate" else CPU_LIMIT) as workers:
        assert [outcome.kind for outcome in workers.run([("", "1")] * 2)] == [kind] * 2
        assert (workers.capacity, workers.num_replaced) == (1, 0)
        assert workers.peak_bytes <= MEMORY_LIMIT


def test_a_task_that_waits_without_computing_ends_at_the_wall_limit_as_a_timeout():
    (outcome,) = outcomes_of("hang", [("", "")], wall_limit=0.3)
    assert outcome.kind == "timeout"
    assert outcome.seconds >= 0.3


@pytest.mark.parametrize("function", ["block_signals", "stop_timer"])
def test_a_task_without_its_cpu_timer_ends_soon_after_the_cpu_limit(function: str):
    with pool_of(function) as workers:
        workers.start()
        (outcome,) = workers.run([("", "")])
    assert (outcome.kind, outcome.message) == ("limit", "the CPU time limit was reached")
    assert outcome.seconds < WALL_LIMIT / 2


def test_the_wall_limit_does_not_end_a_task_that_computes():
    """The whole worker is stopped for longer than both limits."""
    with pool_of("spin", cpu_limit=0.5, wall_limit=1.0) as workers:
        workers.start()
        session = workers._workers[0]._process.pid
        command = f"sleep 0.1; kill -STOP -{session}; sleep 1.5; kill -CONT -{session}"
        with subprocess.Popen(["/bin/sh", "-c", command]):
            (outcome,) = workers.run([("", "")])
    assert outcome.kind == "limit"
    assert outcome.seconds > 1.5


def test_memory_that_earlier_tasks_keep_does_not_fail_a_later_one():
    """Each task takes two fifths of the limit, so two fit into one process and three do not."""
    size = str(MEMORY_LIMIT * 2 // 5)
    assert [outcome.kind for outcome in outcomes_of("remember", [("", size)] * 6, cpu_limit=5.0)] == ["done"] * 6


def test_a_task_that_runs_out_of_memory_in_a_used_process_is_tried_in_a_fresh_one():
    """The first task keeps 1/20 of the limit, too little to replace the process; the second then has too little room."""
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


@pytest.mark.parametrize("name", hostile_rewards.ways_out("."))
def test_every_way_out_is_closed(name: str, tmp_path: Path):
    if name.startswith("libc") and not HAS_FILTER:
        pytest.skip("this system has no filter of system calls that is known here")
    inside, outside = tempting(tmp_path / "inside"), tempting(tmp_path / "outside")
    # Without confinement the attempt succeeds.
    program = f"import hostile_rewards; hostile_rewards.ways_out({str(outside)!r})[{name!r}]()"
    subprocess.run([sys.executable, "-c", program], cwd=SUPPORT, check=True, stdout=subprocess.DEVNULL)

    (outcome,) = outcomes_of("escape", [(name, str(inside))], cpu_limit=5.0)
    assert (outcome.kind, outcome.value) == ("done", 0.0), outcome.message
    assert [file.name for file in inside.iterdir()] == ["victim"]
    assert (inside / "victim").read_text() == "kept"


def test_a_worker_sees_neither_the_environment_nor_the_directory_nor_the_files_of_the_trainer(monkeypatch, tmp_path):
    monkeypatch.setenv("REVAL_SECRET", "token")
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        assert [outcomes_of(name, [("", "")])[0].value for name in ("sees_trainer", "has_extra_descriptor")] == [
            0.0,
            0.0,
        ]


def test_a_process_that_compares_answers_compiles_nothing():
    assert outcomes_of("evaluate", [("1+1", "2")], may_compile=True)[0].value == 1.0
    (refused,) = outcomes_of("evaluate", [("1+1", "2")], may_compile=False)
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
        outcomes = outcomes_of("constant", tasks, num_workers=num_workers, tasks_per_child=7)
        assert [outcome.value for outcome in outcomes] == [n / 100 for n in range(60)]


def test_texts_arrive_as_they_are_sent():
    texts = ["", "\x00", "\ud800", "\U0001f600", "x" * 3_000_000]
    outcomes = outcomes_of("by_length", [(text, "") for text in texts], cpu_limit=5.0)
    assert [outcome.value for outcome in outcomes] == [min(1.0, len(text) / 10) for text in texts]


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
import test_sandbox
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
    time.sleep(0.5)  # so that their children already hang
    trainer.kill()
    trainer.communicate()
    deadline = time.monotonic() + 10
    while any(is_alive(session) for session in sessions) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_alive(session) for session in sessions)
    assert not any(directory.exists() for directory in directories)


def is_alive(session: int) -> bool:
    """Whether a process of the group runs; a zombie does not count."""
    processes = subprocess.run(["ps", "-e", "-o", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    return any(
        int(group) == session and not state.startswith("Z") for group, state in map(str.split, processes.splitlines())
    )


def test_a_memory_limit_that_leaves_nothing_is_refused_at_the_start():
    refusal = pytest.raises(pool.RefusedError, match=r"memory_limit is too small: \d+ MiB are in use")
    with pool_of("by_length", memory_limit=30 << 20) as workers, refusal:
        workers.run([("", "")])


def test_a_function_that_cannot_be_loaded_is_refused_with_its_reason():
    for target, reason in (
        ("hostile_rewards:nothing", "nothing"),
        ("no_such_module:score", "no_such_module"),
        ("hostile_answers:GOLDS", "tuple"),
    ):
        with pool_of("", target=target) as workers, pytest.raises(pool.RefusedError, match=reason):
            workers.run([("", "")])


@pytest.mark.parametrize(
    ("ends", "reason"),
    [
        ("sys.exit(3)", "SystemExit: 3"),
        ("os._exit(0)", "the worker process ended with exit status 0 while it imported the function"),
        ("os.kill(os.getpid(), 9)", "the worker process ended by signal 9 while it imported the function"),
    ],
)
def test_a_module_that_ends_the_process_while_it_is_imported_is_refused_with_what_happened(ends, reason, tmp_path):
    (tmp_path / "ending.py").write_text(f"import os, sys\n{ends}\n")
    workers = pool.Pool(settings_for("", target="ending:score"), num_workers=1, path=[tmp_path])
    with pytest.raises(pool.RefusedError) as refused:
        workers.start()
    assert str(refused.value) == reason


def test_a_module_whose_import_never_ends_is_refused_and_its_process_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "START_SECONDS", 3.0)
    (tmp_path / "endless.py").write_text("import time\ntime.sleep(1000)\n")
    with pool.Pool(settings_for("", target="endless:score"), num_workers=1, path=[tmp_path]) as workers:
        workers._workers.append(each := pool._WorkerProcess(workers._settings, workers._path))
        with pytest.raises(pool.RefusedError, match="did not start within 3 s: importing the function takes too long"):
            workers.start()
    assert each._process.returncode is not None


def test_files_beside_a_function_do_not_take_the_place_of_the_standard_library(tmp_path):
    """Not even in a library that the function imports."""
    for name in ("math", "random", "string", "numbers", "logging", "statistics", "json", "colorsys"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('the {name} of the user was imported')\n")
    (tmp_path / "helper.py").write_text("value = 0.5\n")
    lines = "import colorsys, json, logging, math, numbers, random, statistics, string\nimport helper, numpy\n"
    (tmp_path / "mine.py").write_text(f"{lines}def score(response, answer):\n    return helper.value\n")
    with pool.Pool(settings_for("", target="mine:score"), num_workers=1, path=[tmp_path]) as workers:
        assert workers.run([("", "")])[0].value == 0.5


def test_only_a_function_of_the_right_number_of_arguments_is_started():
    for function, reason in (
        ("only_response", r"hostile_rewards:only_response\(response.*can't be called with 2 arguments \(too many"),
        ("three", r"can't be called with 2 arguments \(missing a required argument: 'question'\)"),
        ("later", "hostile_rewards:later is async"),
    ):
        with pool_of(function, num_arguments=2) as workers, pytest.raises(pool.RefusedError, match=reason):
            workers.start()
    with pool_of("any_number", num_arguments=2) as workers:
        workers.start()


@pytest.mark.parametrize("reply", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x02{]", b"\x00\x00\x00\x02{}{}"])
def test_a_malformed_reply_is_refused(reply: bytes):
    with pytest.raises(ValueError, match=r"longer|Expecting"):
        frames.decode(reply)


def test_a_message_is_incomplete_until_its_last_byte():
    message = frames.encode({"kind": "done", "value": "\ud800"})
    assert [frames.decode(message[:end]) for end in range(len(message))] == [None] * len(message)
    assert frames.decode(message) == {"kind": "done", "value": "\ud800"}
