"""benchmarks/chaos: every outcome is recognized where it was planted, every fault does what it says, and a small run is whole."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys

import pytest
from support import tiny_runs

from benchmarks.chaos import __main__ as chaos
from benchmarks.chaos import calls, compare, corruptions, damage, lab, outcomes, shim, signals
from benchmarks.chaos.outcomes import (
    HANG,
    IDENTICAL,
    LATE,
    NOT_RUN,
    OUTCOMES,
    SAID,
    SILENT,
    TRACEBACK,
    UNCLEAR,
    Attempt,
    End,
)

CRASH = 'Traceback (most recent call last):\n  File "x.py", line 1\nKeyError: 1\n'


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of two rounds that was never stopped, with both saved."""
    file = tiny_runs.write_files(tmp_path_factory.mktemp("files"))
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    tiny_runs.play(file, run_dir, checkpoint__every=1, run__rounds=2)
    return run_dir


@pytest.fixture
def copy(straight, tmp_path):
    return shutil.copytree(straight, tmp_path / "copy")


# --- outcomes ---


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (End(None, "", 9), HANG),
        (End(1, CRASH + "reval: failed", 9), TRACEBACK),
        (End(-11, "Fatal Python error: Segmentation fault", 9), TRACEBACK),
        (End(2, "reval: wrong input", 9), UNCLEAR),
        (End(-15, "", 9), UNCLEAR),
        (End(1, "", 9), UNCLEAR),
        (End(1, "reval: one\nreval: two", 9), UNCLEAR),
        (End(1, "noise\nreval: the disk is full", 9), None),
        (End(0, "done: 4 rounds", 9), None),
    ],
)
def test_how_a_process_ended_is_told(end, expected):
    found = outcomes.fault(end, codes=(0, 1))
    assert (found and found[0]) == expected


def test_two_signals_may_have_two_answers_and_no_more():
    def found(number):
        text = "reval: interrupted\n" * number
        return outcomes.fault(End(130, text, 9), codes=(130,), most_messages=2)

    assert [found(number) and found(number)[0] for number in range(4)] == [UNCLEAR, None, None, UNCLEAR]


NOTES = damage.Damage("checkpoint notes", "flip", "checkpoints/4/notes/metadata", 0)
LOG = damage.Damage("rollouts", "flip", "rollouts/round_000001.jsonl.gz", 0)
METRICS = damage.Damage("metrics", "flip", "metrics.jsonl", 0)
SKIPPED = "the checkpoint of round 4 is damaged; resuming after round 3"


@pytest.mark.parametrize(
    ("case", "code", "output", "doctor", "differences", "expected"),
    [
        (NOTES, 0, "resuming after round 4", "", [], IDENTICAL),
        (NOTES, 0, SKIPPED, "", [], SAID),
        (NOTES, 0, "", "ok   checkpoint of round 4: whole", [], IDENTICAL),
        (NOTES, 0, "", "BAD  checkpoint of round 4: notes/metadata damaged", ["checkpoint 4 unreadable: E"], SAID),
        (NOTES, 0, "", "ok   checkpoint of round 4: whole", ["checkpoint 4 unreadable: E"], SILENT),
        (NOTES, 0, "resuming after round 4", "", ["checkpoint 5 ['params']"], SILENT),
        (NOTES, 0, SKIPPED, "", ["checkpoint 5 ['params']"], SILENT),
        (NOTES, 2, "reval: checkpoints/4 is damaged", "", [], UNCLEAR),
        (NOTES, 2, "reval: Expecting value: line 1 column 1 (char 0)", "", [], UNCLEAR),
        (NOTES, 1, CRASH, "", [], TRACEBACK),
        (NOTES, 0, SKIPPED, CRASH, [], TRACEBACK),
        (NOTES, None, "", "", [], HANG),
        (LOG, 0, "", "BAD  rollouts: round_000001.jsonl.gz is damaged", ["rollouts/round_000001.jsonl"], SAID),
        (LOG, 0, "", "", ["rollouts/round_000001.jsonl"], SILENT),
        (LOG, 0, "", "BAD  rollouts: round_000001.jsonl.gz is damaged", ["metrics.jsonl"], SILENT),
        (METRICS, 2, "reval: metrics.jsonl:1 is not a line of JSON", "", [], SAID),
        (METRICS, 2, "reval: 'utf-8' codec can't decode byte 0xfc", "", [], UNCLEAR),
    ],
)
def test_the_outcome_of_a_corruption_is_told(case, code, output, doctor, differences, expected):
    end = {"code": code, "output": output, "doctor": doctor}
    assert corruptions.judge(case, end, differences)[0] == expected


def test_a_broken_promise_is_exit_code_1_and_in_the_results(tmp_path, monkeypatch, capsys):
    ends = [IDENTICAL, SAID, NOT_RUN, SILENT, TRACEBACK, HANG, UNCLEAR, LATE]
    assert set(ends) == set(OUTCOMES)
    attempts = [Attempt("fake", name, name, "detail", group="all") for name in ends]
    monkeypatch.setattr(chaos, "PARTS", {"fake": lambda _lab, _scale: attempts[:count]})
    for count, code in ((3, 0), (4, 1), (8, 1)):
        file = tmp_path / "results.json"
        assert chaos.main(["--parts", "fake", "--json", str(file), "--directory", str(tmp_path / str(count))]) == code
        results = json.loads(file.read_text())
        assert [each["name"] for each in results["broken"]] == ends[3:count]
        assert results["parts"]["fake"]["outcomes"] == dict.fromkeys([n for n in OUTCOMES if n in ends[:count]], 1)
        assert "NOT RUN: detail" in capsys.readouterr().out


def test_a_part_that_is_made_again_replaces_its_results_alone(tmp_path):
    file = tmp_path / "results.json"
    broken = [Attempt("kills", "1", HANG)._asdict(), Attempt("disk", "1", SILENT)._asdict()]
    first = {"machine": "m", "parts": {"kills": {"attempts": 1}, "disk": {"attempts": 1}}, "broken": broken}
    chaos.write(file, first)
    chaos.write(file, {"machine": "m", "parts": {"disk": {"attempts": 2}}, "broken": []})
    written = json.loads(file.read_text())
    assert written["parts"] == {"kills": {"attempts": 1}, "disk": {"attempts": 2}}
    assert [each["part"] for each in written["broken"]] == ["kills"]


@pytest.mark.parametrize("words", [["--scale", "0"], ["--scale", "2"], ["--parts", "kills,flood"]])
def test_wrong_arguments_are_exit_code_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        chaos.main(words)
    assert stop.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_calls_of_a_kind_differ_in_numbers_and_random_names_alone():
    made = [
        ("open", "/rollouts/round_000001.jsonl.tmp"),
        ("write", "/rollouts/round_000001.jsonl.tmp"),
        ("open", "/rollouts/round_000012.jsonl.tmp"),
        ("open", "/checkpoints/1.saving0aef52d6c1b84de0a7/arrays/d/3fc0b1a2d4e5f60718293a"),
        ("open", "/checkpoints/3.saving77ab52d6c1b84de0a7/arrays/d/a00b1a2d4e5f60718293bc"),
        ("open", "/metrics.jsonl"),
        ("open", "/checkpoints/1.saving0aef52d6c1b84de0a7/checksums.tmp"),
        ("open", "/checkpoints/2.saving0aef52d6c1b84de0a7.orbax-checkpoint-tmp/_METADATA"),
        ("rename", "/checkpoints/1.deleting"),
    ]
    inside = "/checkpoints/*.saving*/*"
    assert calls.kinds(made) == {
        ("open", "/rollouts/round_*.jsonl.tmp"): 2,
        ("write", "/rollouts/round_*.jsonl.tmp"): 1,
        ("open", inside): 3,
        ("open", "/metrics.jsonl"): 1,
        ("open", "/checkpoints/*.saving*/checksums.tmp"): 1,
        ("rename", "/checkpoints/*.deleting"): 1,
    }


SAYS_LOST = "the rollouts of round 4 cannot be written ([Errno 5] Input/output error); the run goes on without"


@pytest.mark.parametrize(
    ("output", "exists", "differences", "expected"),
    [
        ("", True, [], IDENTICAL),
        (SAYS_LOST, True, [], IDENTICAL),  # it failed after the file had its name
        (SAYS_LOST, False, ["rollouts/round_000004.jsonl"], SAID),
        ("", False, ["rollouts/round_000004.jsonl"], SILENT),
        (SAYS_LOST, True, ["rollouts/round_000004.jsonl"], SILENT),  # torn
        (SAYS_LOST, False, ["rollouts/round_000003.jsonl", "rollouts/round_000004.jsonl"], SILENT),
        (SAYS_LOST, False, ["rollouts/round_000004.jsonl", "metrics.jsonl"], SILENT),
    ],
)
def test_a_rollouts_file_may_lack_where_the_run_has_said_so(tmp_path, output, exists, differences, expected):
    (tmp_path / "rollouts").mkdir()
    if exists:
        (tmp_path / "rollouts" / "round_000004.jsonl.gz").touch()
    assert calls.judged(tmp_path, differences, output)[0] == expected


# --- comparison ---


def test_a_copy_has_no_difference_and_every_change_is_one(straight, copy):
    reference = compare.Reference(straight, 1.0)
    assert compare.differences(copy, reference) == []

    line = json.loads((copy / "metrics.jsonl").read_text().splitlines()[1])
    metrics = (copy / "metrics.jsonl").read_text()
    (copy / "metrics.jsonl").write_text(metrics.replace(str(line["actor/loss"]), "1.25", 1))
    assert compare.differences(copy, reference) == ["metrics.jsonl"]
    (copy / "metrics.jsonl").write_text(metrics)

    (rollouts := sorted((copy / "rollouts").iterdir()))[0].write_bytes(rollouts[1].read_bytes())
    name = rollouts[0].name.removesuffix(".gz")
    assert compare.differences(copy, reference) == [f"rollouts/{name}"]
    shutil.copy(straight / "rollouts" / rollouts[0].name, rollouts[0])

    shutil.rmtree(copy / "checkpoints" / "2" / "arrays")
    shutil.copytree(straight / "checkpoints" / "1" / "arrays", copy / "checkpoints" / "2" / "arrays")
    assert any("checkpoint 2 ['params']" in each for each in compare.differences(copy, reference))
    shutil.rmtree(copy / "checkpoints" / "2")
    assert compare.differences(copy, reference) == ["no checkpoint of the last round, only of [1]"]


# --- faults ---


def plan(run_dir):
    return damage.plan(run_dir, 400, random.Random(0))  # noqa: S311


def test_corruptions_meet_every_class_of_file_and_every_kind(straight):
    planned = plan(straight)
    assert {each.group for each in planned} == set(damage.files(straight))
    assert {"checkpoint arrays", "checkpoint notes", "config", "metrics", "rollouts"} <= set(damage.files(straight))
    assert {each.kind for each in planned} == set(damage.KINDS)
    assert planned == plan(straight)


@pytest.mark.parametrize("kind", damage.KINDS)
def test_a_corruption_changes_one_file_or_adds_one_directory(kind, straight, tmp_path):
    chosen = [each for each in plan(straight) if each.kind == kind][:10]
    assert len(chosen) == 10
    for number, each in enumerate(chosen):
        run_dir = shutil.copytree(straight, tmp_path / str(number))
        damage.inflict(run_dir, each)
        before, after = (
            {path.relative_to(root): path.is_file() and path.read_bytes() for path in root.rglob("*")}
            for root in (straight, run_dir)
        )
        changed = [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)]
        if kind == "directory":
            assert [(after[path], path in before) for path in changed] == [(False, False)]
        elif changed or kind != "swap":  # the same file of an older checkpoint may have the same bytes
            assert [path.as_posix() for path in changed] == [each.path]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    built = shim.build(tmp_path_factory.mktemp("shim"))
    if built is None:
        pytest.skip("there is no C compiler")
    return built


WRITER = """
import os, sys
os.chdir(sys.argv[1])
os.mkdir("d")
with open("d/new", "wb", buffering=0) as file:
    file.write(b"0123456789")
    os.fsync(file.fileno())
os.rename("d/new", "d/file")
os.unlink("d/file")
print("done")
"""
CALLS = ["mkdir", "open", "write", "fsync", "rename", "unlink"]


def write(directory, library, log, **options):
    variables = shim.variables(library, directory, log, **options)
    return subprocess.run(
        [sys.executable, "-c", WRITER, str(directory)], env=variables, capture_output=True, text=True, check=False
    )


def test_the_library_counts_the_calls_below_the_directory_alone(tmp_path, library):
    (inside := tmp_path / "inside").mkdir()
    assert write(inside, library, tmp_path / "log").stdout == "done\n"
    assert [name for name, _ in shim.calls(tmp_path / "log")] == CALLS
    (other := tmp_path / "inside2").mkdir()  # its name begins with the other's
    variables = shim.variables(library, inside, tmp_path / "none")
    subprocess.run([sys.executable, "-c", WRITER, str(other)], env=variables, stdout=subprocess.DEVNULL, check=True)
    assert shim.calls(tmp_path / "none") == []


@pytest.mark.parametrize("at", range(1, 7))
@pytest.mark.parametrize("mode", ["KILL", "EIO", "ENOSPC"])
def test_the_library_kills_before_a_call_or_fails_it(tmp_path, library, mode, at):
    (inside := tmp_path / "inside").mkdir()
    ended = write(inside, library, tmp_path / "log", at=at, mode=mode)
    if mode == "KILL":
        assert ended.returncode == -signal.SIGKILL
    else:
        assert ended.returncode == 1
        assert f"Errno {5 if mode == 'EIO' else 28}" in ended.stderr
    assert (inside / "d").exists() == (at > 1)
    assert (inside / "d" / "file").exists() == (at == 6)


@pytest.mark.parametrize(
    ("only", "at", "expected"),
    [
        (("mkdir", "/*"), 1, "mkdir /d"),
        (("open", "/*/n*w"), 1, "open /d/new"),
        (("open", "/*"), 1, "open /d/new"),  # a tree
        (("open", "/ne*"), 1, None),  # a star is no slash
        (("unlink", "/d/file"), 1, "unlink /d/file"),
        (("unlink", "/d/file"), 2, None),
    ],
)
def test_the_library_fails_a_call_of_a_kind(tmp_path, library, only, at, expected):
    (inside := tmp_path / "inside").mkdir()
    ended = write(inside, library, tmp_path / "log", at=at, mode="EIO", only=only)
    struck = shim.struck(tmp_path / "log")
    assert (struck and " ".join(struck).replace(str(inside), "")) == expected
    assert ended.returncode == int(expected is not None)
    made = [name for name, _ in shim.calls(tmp_path / "log")]
    assert made == (CALLS[: CALLS.index(only[0]) + 1] if expected else CALLS)


def test_the_library_tears_a_write_and_fills_a_disk(tmp_path, library):
    for mode, at, content in (("TORN", 3, b"01234"), ("FULL", 9, b""), ("FULL", 10, None)):
        inside = tmp_path / f"{mode}_{at}"
        inside.mkdir()
        write(inside, library, tmp_path / "log", at=at, mode=mode)
        left = inside / "d" / "new"
        assert (left.read_bytes() if left.exists() else None) == content


def test_a_process_that_does_not_end_is_a_hang_and_leaves_nothing(tmp_path):
    code = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('here', flush=True)\ntime.sleep(600)"
    )
    process = lab.Process([sys.executable, "-c", code], tmp_path / "log", {"PYTHONFAULTHANDLER": "1"})
    while "here" not in process.output():
        assert process.is_running()
    assert signals.is_handled(process.pid, signal.SIGABRT)
    assert not signals.is_handled(process.pid, signal.SIGHUP)
    process.send(signal.SIGTERM)
    end = process.wait(0.5)
    assert outcomes.fault(end, codes=(0,))[0] == HANG
    assert "line 4" in end.output  # the stack says where it was
    assert not process.is_running()


# --- the whole ---


@pytest.mark.slow
def test_a_kill_and_a_torn_write_are_made_and_recorded(tmp_path):
    # The gate makes a tenth of every part.
    file = tmp_path / "results.json"
    words = ["--parts", "calls", "--scale", "0.01", "--busy", "--lanes", "1"]
    assert chaos.main([*words, "--json", str(file), "--directory", str(tmp_path / "lab")]) == 0
    results = json.loads(file.read_text())
    assert results["broken"] == []
    assert results["parts"]["calls"]["faults"] == 2
