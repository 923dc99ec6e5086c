"""Two processes over loopback train as one process with two devices does."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import runs

SCRIPT = runs.TESTS.parent / "launch" / "local_processes.sh"


def launch(directory, file, run_dir, *options):
    """Trains in two processes with the launch script; returns its result."""
    reval = directory / "reval"
    reval.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m reval_jax "$@"\n')
    reval.chmod(0o755)
    environment = os.environ | {"REVAL": str(reval), "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(runs.TESTS.parent)}
    return subprocess.run(
        ["bash", str(SCRIPT), "2", str(file), "--run-dir", str(run_dir), *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def responses(run_dir):
    return [
        [json.loads(line)["response"] for line in path.read_text().splitlines()]
        for path in sorted((run_dir / "rollouts").glob("*.jsonl"))
    ]


@pytest.mark.slow
def test_two_processes_sample_and_learn_as_one_does_and_go_on(tmp_path):
    file = runs.write_files(tmp_path)
    first = launch(tmp_path, file, tmp_path / "two", "--run.rounds", "2")
    assert first.returncode == 0, first.stderr
    second = launch(tmp_path, file, tmp_path / "two", "--run.rounds", "4")
    assert second.returncode == 0, second.stderr
    code, said = runs.finish(runs.start(file, tmp_path / "one", devices=2))
    assert code == 0, said

    assert responses(tmp_path / "two") == responses(tmp_path / "one")
    together, single = runs.metrics_lines(tmp_path / "two"), runs.metrics_lines(tmp_path / "one")
    assert len(together) == len(single) == 5  # the baseline and four rounds
    for one, other in zip(together, single, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
