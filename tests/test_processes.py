"""Two processes over loopback train like one process with two devices."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from support import tiny_programs, tiny_runs

from reval_jax import batch, distributed, setup, update

SCRIPT = tiny_runs.TESTS.parent / "launch" / "local_processes.sh"


def launch(directory, file, run_dir, *options):
    """Trains in two processes with the launch script; returns its result."""
    reval = directory / "reval"
    reval.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m reval_jax "$@"\n')
    reval.chmod(0o755)
    environment = os.environ | {
        "REVAL": str(reval),
        "JAX_NUM_CPU_DEVICES": "1",
        "PYTHONPATH": os.pathsep.join((str(tiny_runs.TESTS.parent), str(tiny_runs.TESTS))),
    }
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
        [json.loads(line)["response"] for line in lines.splitlines()] for lines in tiny_runs.rollouts(run_dir).values()
    ]


def addresses(count):
    """Environment variables of each of `count` processes that connect over loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    joined = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    return [joined | {"JAX_PROCESS_ID": str(index)} for index in range(count)]


def loss_and_gradients(tmp_path, *, processes, devices, tensor):
    """The output of tests/support/sharded_loss.py, computed by processes over loopback, each with this number of fake devices."""
    file = tmp_path / f"{processes}_{tensor}.npz"
    started = [
        subprocess.Popen(
            [sys.executable, str(tiny_runs.SUPPORT / "sharded_loss.py"), str(file), str(tensor)],
            env=os.environ | joined | {"JAX_NUM_CPU_DEVICES": str(devices)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for joined in (addresses(processes) if processes > 1 else [{}])
    ]
    for process in started:
        _, output = process.communicate(timeout=300)
        assert process.returncode == 0, output
    return dict(np.load(file))


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_two_processes_of_four_devices_equal_one_device(tmp_path, tensor):
    single = tiny_programs.tiny()
    rows = batch.pack(tiny_programs.random_trajectories(8), single.mesh, limits=single.limits)
    algorithm = single.algorithm
    value, gradients, *_ = jax.jit(
        lambda params: update.loss_and_gradients(
            single.architecture, params, rows, algorithm, single.mesh, config=single.config
        )
    )(single.params)
    actual = loss_and_gradients(tmp_path, processes=2, devices=4, tensor=tensor)
    np.testing.assert_allclose(actual["loss"], value, rtol=1e-6)
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(gradients))
    params, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(single.params))
    largest = max(np.abs(leaf).max() for _, leaf in leaves)
    for (path, leaf), (_, param) in zip(leaves, params, strict=True):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(actual["gradient" + name], leaf, atol=1e-5 * largest, rtol=0)
        np.testing.assert_allclose(actual["moved" + name], param - 0.1 * leaf, atol=1e-6 * largest + 1e-7, rtol=0)


@pytest.mark.slow
def test_two_processes_train_and_resume_like_one(tmp_path):
    """Prioritized, so that a residual that differed between them would make them draw other rows and be refused; with a pool."""
    file = tiny_runs.write_files(tmp_path)
    pool = tiny_runs.write_pool(file, tmp_path / "pool.npz")
    options = ("--replay.priority", "residual", "--rollout.pool", str(pool))
    first = launch(tmp_path, file, tmp_path / "two", *options, "--run.rounds", "2")
    assert first.returncode == 0, first.stderr
    second = launch(tmp_path, file, tmp_path / "two", *options, "--run.rounds", "4")
    assert second.returncode == 0, second.stderr
    code, output = tiny_runs.finish(tiny_runs.start(file, tmp_path / "one", *options, devices=2))
    assert code == 0, output

    assert responses(tmp_path / "two") == responses(tmp_path / "one")
    together, single = tiny_runs.metrics_lines(tmp_path / "two"), tiny_runs.metrics_lines(tmp_path / "one")
    assert len(together) == len(single) == 5  # the baseline and four rounds
    assert any(line["pool/responses"] for line in single[1:])
    for one, other in zip(together, single, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)


def play_in_two(file, run_dir, *options, ends=("never", "never")):
    """Trains in two processes, each ended in its own way; returns their exit codes and output."""
    started = [
        tiny_runs.start(file, run_dir, *options, end=end, joined=joined)
        for end, joined in zip(ends, addresses(2), strict=True)
    ]
    codes, output = zip(*(tiny_runs.finish(process) for process in started), strict=True)
    return list(codes), "".join(output)


# Two slots and four responses a process: some are not finished when the first are.
FEW_SLOTS = ("--rollout.decode_slots", "2", "--run.rounds", "3")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The config file, and a run of two processes without interruption."""
    directory = tmp_path_factory.mktemp("straight")
    file = tiny_runs.write_files(directory)
    codes, output = play_in_two(file, directory / "run", *FEW_SLOTS)
    assert codes == [0, 0], output
    return file, directory / "run"


@pytest.mark.slow
@pytest.mark.parametrize("ends", [("TERM:journal:2", "never"), ("never", "TERM:journal:2")], ids=["first", "second"])
def test_a_signal_to_one_process_stops_both_and_the_resumed_run_equals_one_that_never_stopped(straight, tmp_path, ends):
    file, never_stopped = straight
    codes, output = play_in_two(file, tmp_path / "run", *FEW_SLOTS, ends=ends)
    assert codes == [75, 75], output
    assert output.count("preempted and saved; run the same command again to resume: 1 rounds") == 2
    assert tiny_runs.saved_rounds(tmp_path / "run") == [1]
    journals = [tiny_runs.journals(tmp_path / "run", f"process_{index}_of_2") for index in range(2)]
    for end, files in zip(ends, journals, strict=True):
        finished = tiny_runs.journalled(files)
        # The other process learns of it at the next collective call, after it has sampled its own share.
        assert len(finished) == 4 if end == "never" else 0 < len(finished) < 4

    codes, output = play_in_two(file, tmp_path / "run", *FEW_SLOTS)
    assert codes == [0, 0], output
    tiny_runs.assert_same_run(tmp_path / "run", never_stopped)


@pytest.mark.slow
def test_a_signal_to_one_process_in_an_update_ends_the_round_of_both_before_the_next_update(straight, tmp_path):
    file, never_stopped = straight
    codes, output = play_in_two(file, tmp_path / "run", *FEW_SLOTS, ends=("never", "TERM:update:3"))
    assert codes == [75, 75], output
    assert tiny_runs.saved_rounds(tmp_path / "run") == [2]
    assert len(tiny_runs.metrics_lines(tmp_path / "run")) == 3  # of the rounds 0, 1 and 2
    codes, output = play_in_two(file, tmp_path / "run", *FEW_SLOTS)
    assert codes == [0, 0], output
    tiny_runs.assert_same_run(tmp_path / "run", never_stopped)


def test_processes_are_stopped_when_the_launch_script_is_killed(tmp_path):
    if not shutil.which("setpriv"):
        pytest.skip("setpriv of util-linux is not installed")
    reval = tmp_path / "reval"
    reval.write_text(
        f'#!/bin/sh\ntrap "echo TERM >> {tmp_path}/$JAX_PROCESS_ID; exit" TERM\ntouch {tmp_path}/$JAX_PROCESS_ID\n'
    )
    with reval.open("a") as script:
        script.write("while true; do sleep 0.1; done\n")
    reval.chmod(0o755)
    script = subprocess.Popen(
        ["bash", str(SCRIPT), "2", "config.yaml"], env=os.environ | {"REVAL": str(reval)}, stderr=subprocess.DEVNULL
    )
    files = [tmp_path / "0", tmp_path / "1"]
    wait_until(lambda: all(file.exists() for file in files))
    script.kill()
    script.wait()
    wait_until(lambda: all(file.read_text() == "TERM\n" for file in files))


def wait_until(is_so, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_settings_that_no_result_depends_on_are_compared_and_named(tmp_path):
    """Processes that evaluate or save at other rounds make different collective calls, and gloo aborts 28 s later."""
    file, run_dir = tiny_runs.write_files(tmp_path), tmp_path / "run"
    options = [("--eval.every", "1", "--run.rounds", "3"), ()]
    started = [
        tiny_runs.start(file, run_dir, *chosen, joined=joined)
        for chosen, joined in zip(options, addresses(2), strict=True)
    ]
    for process in started:
        code, output = tiny_runs.finish(process)
        assert code == 2, output
        assert (
            "the processes differ: eval.every is 1 on process 0, 2 on process 1; run.rounds is 3 on process 0, 4 on"
            in output
        )
        assert "Traceback" not in output
    assert not run_dir.exists()


def test_run_directories_that_are_not_one_are_refused_with_both_hosts(tmp_path, monkeypatch):
    """As a path on each host's own disk is; they would train and hang at the first save."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        distributed,
        "gather_bytes",
        lambda payload: [payload, b"0/scratch/run on host b"] if b"host" in payload else [payload] * 2,
    )
    with pytest.raises(
        ValueError, match=r"not the same directory for all processes.*process 0: .*/run on host .*; process 1: /s"
    ):
        setup.hold(tmp_path / "run", log=print)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_error_of_one_process_ends_the_others_with_its_message(tmp_path):
    file = tiny_runs.write_files(tmp_path)
    joined = addresses(2)
    (tmp_path / "apart").mkdir()
    started = [
        tiny_runs.start(file, tmp_path / "run", "--task.dataset", "train.jsonl", joined=variables, cwd=directory)
        for variables, directory in zip(joined, (tmp_path, tmp_path / "apart"), strict=True)
    ]
    codes, outputs = zip(*(tiny_runs.finish(process) for process in started), strict=True)
    assert codes == (2, 2), outputs
    assert all("Traceback" not in output for output in outputs)
