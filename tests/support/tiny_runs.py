"""Tiny training runs for tests: their files, starting them here or as a process of their own, and comparing two of them."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import yaml

from reval_jax import config as config_lib
from reval_jax import console, journal, pool, programs, prompts, ragged, train, weights
from reval_jax.sampler import sampler as engine
from support import hf_checkpoints

TESTS = Path(__file__).resolve().parent.parent
SUPPORT = TESTS / "support"
EXEMPT = ("timing_s/", "perf/")
"""Prefixes of the metrics that two equal runs need not share."""


def write_files(directory: Path, **model_overrides: Any) -> Path:
    """Writes a tiny model, a training set of 6 questions, a held-out set of 2 and config.yaml; returns the last."""
    model = hf_checkpoints.tiny_checkpoint(directory / "model", **model_overrides)
    for name, pairs in (("train", [(a, b) for a in range(3) for b in range(2)]), ("held_out", [(0, 3), (1, 3)])):
        rows = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a, b in pairs]
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "model": {"path": model, "compute_dtype": "float32"},
        "task": {
            "dataset": str(directory / "train.jsonl"),
            "template": "raw",
            "max_prompt_tokens": 16,
            "answer_format": "first_number",
        },
        "rollout": {
            "prompts_per_round": 4,
            "samples_per_prompt": 2,
            "max_response_tokens": 8,
            "decode_slots": 16,
            "decode_window": 3,
        },
        # 20 is no multiple of the 8 trajectories of a round, so a round leaves in two parts.
        "replay": {"capacity": 20},
        "update": {
            "beta": 0.5,
            "updates_per_round": 2,
            "batch_size": 8,
            "micro_batch_tokens": 64,
            "reference_reset_every": 3,
        },
        "optimizer": {"learning_rate": 0.01, "warmup_updates": 3},
        "eval": {"every": 2, "benchmarks": [str(directory / "held_out.jsonl")], "samples_per_prompt": 4},
        "checkpoint": {"every": 2, "keep": 10},
        "run": {"rounds": 4},
    }
    file = directory / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def with_overrides(file: Path, overrides: dict[str, Any]) -> config_lib.Config:
    """The settings in the file, with `{"section.field": value}` in place of its own."""
    tree = yaml.safe_load(file.read_text())
    for name, value in overrides.items():
        section, field = name.split(".")
        tree.setdefault(section, {})[field] = value
    return config_lib.from_tree(tree)


def write_pool(file: Path, path: Path) -> Path:
    """Writes a pool of three random responses to every second question of the config's training set."""
    config = with_overrides(file, {})
    _, tokenizer, stop_ids = weights.read(config.model.path)
    data, rng = prompts.load(config.task, tokenizer), np.random.default_rng(0)
    rows = np.repeat(np.arange(0, data.size, 2), 3)
    responses = [
        np.append(rng.integers(4, hf_checkpoints.VOCABULARY, size), stop_ids[0]).astype(np.int32)
        for size in rng.integers(1, config.rollout.max_response_tokens, rows.size)
    ]
    fields = {
        "tokens": ragged.interleave([data.tokens[row] for row in rows], responses).astype(np.int32),
        "prompt_length": np.array([len(data.tokens[row]) for row in rows], np.int32),
        "response_length": np.array([len(response) for response in responses], np.int32),
        "is_truncated": np.zeros(rows.size, np.bool_),
        "row": rows.astype(np.int64),
    }
    task = {name: getattr(config.task, name) for name in pool.TASK}
    about = {"data_fingerprint": data.fingerprint, "task": task, "run_dir": "no run", "rounds": []}
    pool.save(pool.of(fields, about), path)
    return path


def play(file: Path, run_dir: Path, *, shared: programs.Programs | None = None, **overrides: Any) -> train.Outcome:
    """Trains here, on the eight fake devices; an override is named `section__field`."""
    config = with_overrides(file, {name.replace("__", "."): value for name, value in overrides.items()})
    # optax's adamw needs int32 to become float32.
    with jax.numpy_dtype_promotion("standard"):
        return train.train(config, run_dir, console=console.Console(is_quiet=True), programs=shared)


@contextlib.contextmanager
def stopped_when(is_time: Callable[[int, int], bool]) -> Iterator[None]:
    """Sends this process SIGTERM after the first write to the journal for which `is_time(number of responses, first prompt)`."""
    add = journal.Journal.add

    def add_and_stop(self: Any, responses: Any, first: int) -> None:
        add(self, responses, first)
        if is_time(len(responses), first):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal.Journal, "add", add_and_stop)
        yield


@contextlib.contextmanager
def counting_restored() -> Iterator[list[int]]:
    """A list of the number of responses from the journal in each call of the sampler, one appended per call."""
    generate, counts = engine.generate, []

    def counted(*arguments: Any, finished: Any, **options: Any) -> Any:
        counts.append(len(finished))
        return generate(*arguments, finished=finished, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "generate", counted)
        yield counts


def start(
    file: Path,
    run_dir: Path,
    *options: str,
    end: str = "never",
    devices: int = 1,
    joined: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.Popen[str]:
    """Starts `reval train` in a process of its own, which `train_until.py` ends.

    Args:
      joined: environment variables by which processes join.
      cwd: the working directory of the process; this one's if None.
    """
    return subprocess.Popen(
        [
            sys.executable,
            str(SUPPORT / "train_until.py"),
            end,
            "train",
            "--config",
            str(file),
            "--run-dir",
            str(run_dir),
            *options,
        ],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent), "JAX_NUM_CPU_DEVICES": str(devices)} | (joined or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Waits; returns the exit code (minus the signal that killed it) and the text of both output streams."""
    out, error = process.communicate(timeout=300)
    return process.returncode, out + error


def metrics_lines(run_dir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the values that depend on the clock."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith(EXEMPT)} for line in lines]


def rollouts(run_dir: Path) -> dict[str, str]:
    """The text of each rollouts file by its name without `.gz`."""
    files = sorted((run_dir / "rollouts").iterdir())
    return {file.name.removesuffix(".gz"): gzip.decompress(file.read_bytes()).decode() for file in files}


def journals(run_dir: Path, process: str = "process_0_of_1") -> list[Path]:
    """The files of finished responses that a process keeps, in the order they were written."""
    return sorted((run_dir / "journal" / process).glob("*/*.npz"))


def journalled(files: list[Path]) -> list[tuple[int, int]]:
    """(prompt, sample) of every response in the files, in their order; read without our own code."""
    requests: list[tuple[int, int]] = []
    for file in files:
        with np.load(file) as stored:
            requests += zip(stored["prompt"].tolist(), stored["sample"].tolist(), strict=True)
    return requests


def saved_rounds(run_dir: Path) -> list[int]:
    """The committed checkpoints' rounds, ascending."""
    return sorted(int(entry.name) for entry in (run_dir / "checkpoints").iterdir() if entry.name.isdigit())


def saved_tree(run_dir: Path, round: int | None = None) -> dict[str, Any]:
    """The arrays of a checkpoint (the last, unless a round is named) in their nested dicts, read without our own code."""
    directory = run_dir / "checkpoints" / str(round or saved_rounds(run_dir)[-1]) / "arrays"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(directory).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return checkpointer.restore(directory, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def saved_arrays(run_dir: Path, round: int | None = None) -> dict[str, np.ndarray]:
    """Every array of `saved_tree` by its path."""
    restored = saved_tree(run_dir, round)
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(restored)}


def saved_progress(run_dir: Path, round: int | None = None) -> dict[str, int]:
    """The counters of a checkpoint, without the metrics file's length, in which the clock's digits are counted."""
    directory = run_dir / "checkpoints" / str(round or saved_rounds(run_dir)[-1])
    progress = json.loads((directory / "notes" / "metadata").read_text())["progress"]
    del progress["metrics_bytes"]
    return progress


def different_arrays(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> list[str]:
    """Names of the arrays that are not bit for bit the same."""
    assert actual.keys() == expected.keys()
    assert {"['params']", "['optimizer']", "['replay']"} <= {name[: name.index("]") + 1] for name in actual}
    return [
        name
        for name, value in expected.items()
        if (actual[name].dtype, actual[name].shape, actual[name].tobytes())
        != (value.dtype, value.shape, value.tobytes())
    ]


def assert_same_run(actual: Path, expected: Path) -> None:
    """The two run directories hold the same run: metrics, rollouts, counters, and the last checkpoint bit for bit."""
    assert metrics_lines(actual) == metrics_lines(expected)
    assert rollouts(actual) == rollouts(expected)
    assert saved_rounds(actual)[-1] == saved_rounds(expected)[-1]
    assert saved_progress(actual) == saved_progress(expected)
    assert different_arrays(saved_arrays(actual), saved_arrays(expected)) == []


def tree_hash(directory: Path) -> str:
    """A digest of the names and contents of everything under the directory."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        digest.update(str(path.relative_to(directory)).encode() + b"\0")
        digest.update(path.read_bytes() if path.is_file() else b"directory")
    return digest.hexdigest()
