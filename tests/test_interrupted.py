"""`benchmarks.interrupted` stops a run at the requested rounds, completes it, and writes no problem's text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support import tiny_runs

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_a_run_that_is_stopped_twice_is_ended_evaluated_and_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    file = tiny_runs.write_files(tmp_path)
    settings = yaml.safe_load(file.read_text()) | {"run": {"rounds": 20}}
    file.write_text(yaml.safe_dump(settings))
    options = {"--config": file, "--runs": tmp_path / "runs", "--docs": tmp_path / "docs", "--delay": 0}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.interrupted", "--stops", "TERM:1", "KILL:8"),
            *(str(part) for option in options.items() for part in option),
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "docs" / "config.json").read_text()
    record = json.loads(text)
    assert [stop["signal"] for stop in record["interruptions"]] == ["SIGTERM", "SIGKILL"]
    assert [stop["exit"] for stop in record["interruptions"]] == [75, -9]
    assert len(record["curves"]["actor/loss"]) == 20
    assert len(record["ends"]) == 2
    assert [stop["rounds"] >= minimum for stop, minimum in zip(record["interruptions"], (1, 8), strict=True)] == [
        True
    ] * 2
    assert '"question"' not in text
    assert "0+3=" not in text
    assert not any("problems" in end for end in record["ends"])
    assert (tmp_path / "docs" / "config.svg").stat().st_size > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--stops", "TERM"), "--stops TERM"),
        (("--stops", "FOO:5"), "--stops FOO:5"),
        (("--stops", "TERM:x"), "--stops TERM:x"),
        (("--config", "absent.yaml"), "absent.yaml"),
    ],
)
def test_wrong_input_is_refused_in_one_line_before_anything_runs(options, message, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks import interrupted

    monkeypatch.setattr(sys, "argv", ["interrupted", "--runs", str(tmp_path), *options])
    with pytest.raises(SystemExit, match=message) as caught:
        interrupted.main()
    assert "\n" not in str(caught.value.code)
    assert not list(tmp_path.iterdir())
