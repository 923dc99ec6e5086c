"""A training run by the command line that is killed and resumed, against the same run never stopped."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

from benchmarks import interrupted, two_versions
from benchmarks.gpu.parts import Emit, SkippedError

ROUNDS, KILLED_AFTER = 8, 3  # checkpoints are written every two rounds, so that one round is lost


def resume(is_small: bool, emit: Emit) -> None:
    """Compares metrics, rollouts and the last checkpoint's arrays, byte for byte.

    The tests' tiny model with wider layers in bfloat16; it is not good at anything, but its losses move, and its kernels are
    those of any model.
    """
    if importlib.util.find_spec("pytest") is None:
        raise SkippedError("pytest is not installed, with which the tests' files write the model")
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        options = _options(_write_files(directory / "files", is_small), is_small)
        start = time.monotonic()
        _finish(_train(options, directory / "straight"), expected=0)
        straight_s = time.monotonic() - start
        rounds = _killed(options, directory / "killed")
        start = time.monotonic()
        _finish(_train(options, directory / "killed"), expected=0)
        # This process only reads checkpoints: it leaves the GPU to the runs.
        jax.config.update("jax_platforms", "cpu")
        bits = two_versions.compare_runs("killed and resumed", directory / "straight", directory / "killed")
    emit(
        {
            "what": "killed and resumed against never stopped",
            "rounds": ROUNDS,
            "killed_after": rounds,
            "different_metrics": bits.metrics,
            "different_rollouts": bits.rollouts,
            "different_arrays": bits.arrays,
            "straight_s": straight_s,
            "resumed_s": time.monotonic() - start,
            "is_fine": bits.is_equal,
        }
    )


def _write_files(directory: Path, is_small: bool) -> Path:
    """Writes the model, the data and the settings, on the CPU; returns the config file."""
    directory.mkdir()
    sizes = {} if is_small else {"width": 256, "num_layers": 4, "head_size": 64, "mlp_width": 512, "max_positions": 512}
    program = (
        "import pathlib, sys; sys.path.insert(0, 'tests'); from support import tiny_runs; "
        f"tiny_runs.write_files(pathlib.Path(sys.argv[1]), **{sizes!r})"
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", program, str(directory)], env=environment, check=True, stdout=sys.stderr)
    return directory / "config.yaml"


def _options(config: Path, is_small: bool) -> list[str]:
    sizes = {"rollout.max_response_tokens": 100, "rollout.samples_per_prompt": 8, "rollout.decode_slots": 32}
    sizes |= {"replay.capacity": 80, "update.batch_size": 32, "update.micro_batch_tokens": 512}
    settings = {"run.rounds": ROUNDS, "model.compute_dtype": "bfloat16", "optimizer.learning_rate": 1e-3}
    chosen = settings if is_small else settings | sizes
    return ["--config", str(config), *(word for name, value in chosen.items() for word in (f"--{name}", str(value)))]


def _train(options: list[str], run_dir: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "reval_jax", "train", *options, "--run-dir", str(run_dir)]
    return subprocess.Popen(words, stdout=sys.stderr)


def _finish(process: subprocess.Popen[bytes], *, expected: int) -> None:
    if (code := process.wait()) != expected:
        raise RuntimeError(f"reval train ended with exit code {code} instead of {expected}")


def _killed(options: list[str], run_dir: Path) -> int:
    """Trains until KILLED_AFTER rounds are finished, then kills the process at once; returns the rounds that were."""
    process = _train(options, run_dir)
    while interrupted.num_finished(run_dir) < KILLED_AFTER and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    rounds = interrupted.num_finished(run_dir)
    _finish(process, expected=-signal.SIGKILL)
    return rounds
