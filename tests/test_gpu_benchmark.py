"""`python -m benchmarks.gpu`: a part that fails or runs out of time does not stop the rest, and every part runs in small."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import parts

CASE = 'print(\'{"case": {"number": 1}}\', flush=True)'
DONE = 'print(\'{"end": "done"}\')'


def run(tmp_path, program, *, limit=60.0):
    """The result of a part whose process runs this program, and the cases in the order they came."""
    came = []
    result = gpu.run_part(
        [sys.executable, "-c", program],
        limit=limit,
        environment=dict(os.environ),
        log=tmp_path / "part.log",
        on_case=came.append,
    )
    assert came == result.cases
    return result


def test_a_parts_cases_are_kept_and_its_log_deleted(tmp_path):
    result = run(tmp_path, f"{CASE}; {DONE}")
    assert (result.end, result.reason, result.cases) == ("done", "", [{"number": 1}])
    assert result.is_fine
    assert not list(tmp_path.iterdir())


def test_a_part_out_of_time_is_killed_with_its_children_and_keeps_its_cases(tmp_path):
    child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    result = run(tmp_path, f"{child}; {CASE}; time.sleep(60)", limit=3.0)
    assert result.end == "out of time"
    assert result.seconds < 30
    assert result.cases == [{"number": 1}]
    assert "killed after 3 s with 1 cases" in result.reason
    assert not result.is_fine


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; sys.exit('lost')", "exit code 1"),
        (f"{CASE}; import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "exit code -9"),
        (
            f"{CASE}; import os, signal; print('{{\"case\": {{\"num', end='', flush=True); os.kill(os.getpid(), signal.SIGKILL)",
            "exit code -9; a line was cut off after 14 characters",
        ),
        ('print(\'{"end": "failed", "reason": "no memory"}\')', "no memory"),
    ],
)
def test_a_part_that_fails_says_why_and_where_its_output_is(program, reason, tmp_path):
    result = run(tmp_path, program)
    assert result.end == "failed"
    assert reason in result.reason
    assert str(tmp_path / "part.log") in result.reason


def test_the_rest_runs_after_a_failure_and_the_exit_code_tells_of_it(tmp_path, monkeypatch, capsys):
    programs = {
        "machine": f'print(\'{{"case": {{"device": "cpu: a test"}}}}\'); {DONE}',
        "scores": "raise SystemExit(1)",
        "decode": 'print(\'{"end": "skipped", "reason": "not here"}\')',
        "update": f'print(\'{{"case": {{"is_fine": false}}}}\'); {DONE}',
        "repeat": f"{CASE}; {DONE}",
    }
    monkeypatch.setattr(parts, "command", lambda name, *, is_small: [sys.executable, "-c", programs[name]])
    monkeypatch.setattr(gpu, "_plot", lambda record, path: "no plot")
    file = tmp_path / "results.json"
    options = ["--small", "--json", str(file)]
    assert gpu.main([*options, "--parts", "scores,decode,update,repeat"]) == 1
    record = json.loads(file.read_text())
    assert {name: part["end"] for name, part in record["parts"].items()} == {
        "scores": "failed",
        "decode": "skipped",
        "update": "done",
        "repeat": "done",
    }
    assert [json.loads(line)["part"] for line in capsys.readouterr().out.splitlines()] == ["update", "repeat"]
    assert gpu.main([*options, "--parts", "decode,repeat"]) == 0
    assert gpu.main([*options, "--parts", "update"]) == 1, "a check that was not met"
    assert gpu.main([*options, "--parts", "repeat", "--minutes", "0.001"]) == 1
    assert json.loads(file.read_text())["parts"]["repeat"]["end"] == "out of time"


def test_a_machine_that_takes_too_long_to_describe_does_not_stop_the_parts(tmp_path, monkeypatch):
    programs = {"machine": "import time; time.sleep(60)", "repeat": f"{CASE}; {DONE}"}
    monkeypatch.setattr(parts, "command", lambda name, *, is_small: [sys.executable, "-c", programs[name]])
    monkeypatch.setattr(gpu, "_plot", lambda record, path: "no plot")
    monkeypatch.setattr(gpu, "MACHINE_SECONDS", 1)
    file = tmp_path / "results.json"
    assert gpu.main(["--json", str(file), "--parts", "repeat"]) == 0
    record = json.loads(file.read_text())
    assert record["machine"]["device"] == "unknown"
    assert "killed after 1 s" in record["machine"]["reason"]
    assert record["parts"]["repeat"]["cases"] == [{"number": 1}]


def test_every_part_has_time_to_start_and_gets_what_those_before_it_left(tmp_path, monkeypatch):
    assert sum(part.limit for part in parts.PARTS.values()) + 15 <= 60 * gpu.Gpu().minutes
    limits = {}

    def run_part(command, *, limit, **_):
        limits[command[0]] = limit
        cases = [{"device": "gpu: a test"}]
        return gpu.Result("done", 0.0, "", cases)

    monkeypatch.setattr(parts, "command", lambda name, *, is_small: [name])
    monkeypatch.setattr(gpu, "run_part", run_part)
    monkeypatch.setattr(gpu, "_plot", lambda record, path: "no plot")
    assert gpu.main(["--json", str(tmp_path / "results.json")]) == 0
    assert all(limits[name] >= part.limit for name, part in parts.PARTS.items())
    assert limits["scores"] == pytest.approx(480, abs=5), "nothing was used before"
    later = sum(part.limit for name, part in parts.PARTS.items() if name != "numerics")
    assert limits["numerics"] == pytest.approx(480 - later, abs=5)


def test_every_part_names_a_function_of_the_benchmark():
    for part in parts.PARTS.values():
        module, _, function = part.function.partition(":")
        assert callable(getattr(__import__(f"benchmarks.gpu.{module}", fromlist=[function]), function))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--parts", "speed"), "--parts speed: no such part. Use some of numerics,"),
        (("--minutes", "0"), "--minutes 0"),
        ((), "jax sees no GPU here (cpu: cpu)"),
    ],
)
def test_wrong_input_and_a_missing_gpu_are_one_line_and_exit_2(options, says, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--json", str(tmp_path / "results.json"), *options],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_few_parts_run_in_small_and_write_results_and_plot(tmp_path):
    pytest.importorskip("matplotlib")
    names = ("numerics", "decode", "scores")
    file = tmp_path / "results.json"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.gpu",
            "--small",
            "--minutes",
            "30",
            "--parts",
            ",".join(names),
            "--json",
            str(file),
        ],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(file.read_text())
    assert {name: part["end"] for name, part in record["parts"].items()} == dict.fromkeys(names, "done")
    assert record["machine"]["versions"]["jax"]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["part"] for line in lines] == [name for name in names for _ in record["parts"][name]["cases"]]
    checks = record["parts"]["numerics"]["cases"]
    assert {case["what"].split()[0] for case in checks} == {"attention", "score", "forward", "sampler"}
    assert all(case["is_fine"] for case in checks if "is_fine" in case)
    assert {case["kv_cache"] for case in record["parts"]["decode"]["cases"]} == {"compute", "int8"}
    assert file.with_suffix(".svg").stat().st_size > 0
    assert not list(tmp_path.glob("*.log"))
