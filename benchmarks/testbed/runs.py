"""Runs on the test bed: each task's settings, and a run of it by `reval_jax.train.train`, recorded as a small dictionary."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.testbed import bed, smollm2
from reval_jax import config as config_lib
from reval_jax import console, programs, train, types
from reval_jax import metrics as metrics_file
from reval_jax.tools import demo

RESPONSES = 64  # of a round
STOP_SCORE, STOP_ROUNDS = 0.95, 5  # a run may end after so many rounds in a row at this score
EVAL_EVERY = 10  # rounds, of the tasks with held-out questions

SHORT_TOKENS, LONG_TOKENS = 5, 24  # of a response, its end token included


SMOLLM2 = "smollm2"


class Task(NamedTuple):
    """A training set of a model."""

    bed: str  # a key of bed.PLANS, or SMOLLM2
    prompts: int  # of a round
    has_held_out: bool = False


SINGLE = [f"{level}_{number}" for level in bed.LEVELS for number in range(1, bed.PROMPTS + 1)]
TASKS: Mapping[str, Task] = {
    **{name: Task("short", 1) for name in (*SINGLE, "tuning")},
    "many": Task("short", RESPONSES, has_held_out=True),
    "many_groups": Task("short", RESPONSES // 8, has_held_out=True),
    "long_8": Task("long", bed.SUMS),
    **{name: Task(SMOLLM2, 1) for name in smollm2.TASKS},
}
"""Tasks by name: one prompt × 64 responses; `many` has 64 prompts × 1 response of a distribution, `many_groups` 8 prompts × 8
the same, and `long_8` the same 8 sums in steps × 8 in every round. Those of SmolLM2 are one prompt × 64."""


def start(task: str) -> float:
    """The success rate at which a task begins."""
    kind = TASKS[task].bed
    return smollm2.start(task) if kind == SMOLLM2 else bed.start(kind, task)


def weights_hash(task: str) -> str:
    """Of the model's weights."""
    kind = TASKS[task].bed
    return demo.MODEL_SHA256 if kind == SMOLLM2 else bed.bed(kind).about()["weights"]


class InterruptedRunError(Exception):
    """A signal asked to stop; the run's directory is saved."""


def settings(task: str, overrides: Mapping[str, Any], *, seed: int, rounds: int, stops: bool) -> config_lib.Config:
    """The settings of a run: those of its task, with `{"section.field": value}` in place of some.

    Raises:
      ValueError: a setting does not exist or cannot have this value.
    """
    tree = smollm2.settings(task) if TASKS[task].bed == SMOLLM2 else _of_test_bed(task)
    tree["run"] = tree.get("run", {}) | {"rounds": rounds, "seed": seed}
    tree["run"] |= {"stop_score": STOP_SCORE if stops else None, "stop_rounds": STOP_ROUNDS}
    for name, value in overrides.items():
        section, field = name.split(".")
        tree[section][field] = value
    return config_lib.from_tree(tree, source=f"the test bed's task {task}")


def _of_test_bed(task: str) -> types.Json:
    """The settings of a task of the test bed, as a tree."""
    known = TASKS[task]
    place = bed.bed(known.bed)
    data = task.split("_")[0] if known.has_held_out else task
    length = LONG_TOKENS if known.bed == "long" else SHORT_TOKENS
    tree: types.Json = {
        "model": {"path": str(place.model), "compute_dtype": "float32"},
        "task": {
            "dataset": str(place.data(data)),
            "template": "raw",
            "max_prompt_tokens": 16,
            "answer_format": "last_number" if known.bed == "long" else "first_number",
        },
        "rollout": {
            "prompts_per_round": known.prompts,
            "samples_per_prompt": RESPONSES // known.prompts,
            "max_response_tokens": length,
            "decode_slots": RESPONSES,
            "decode_window": length,
        },
        "replay": {"capacity": 5 * RESPONSES},
        "update": {
            "objective": "reval",
            "beta": 0.02,
            "reward_design": "group_normalized" if known.prompts < RESPONSES else "binary",
            "updates_per_round": 2,
            "batch_size": RESPONSES,
            "micro_batch_tokens": 2048,
            "reference_memory": "device",
        },
        "optimizer": {"learning_rate": 1e-4},
        "verifier": {"workers": 1},
        "eval": {"every": 0},
        "checkpoint": {"every": 10_000, "keep": 1},
    }
    if known.has_held_out:
        tree["eval"] = {
            "every": EVAL_EVERY,
            "benchmarks": [str(place.held_out(data))],
            "samples_per_prompt": 4,
            "max_prompts": bed.HELD_OUT,
        }
    return tree


def play(
    config: config_lib.Config, run_dir: Path, *, metrics: Sequence[str], compiled: programs.Programs
) -> dict[str, Any]:
    """Trains until the run's end, or from where it was interrupted; deletes its directory and returns its numbers by round.

    Args:
      metrics: further names in metrics.jsonl, of which every round's value is kept.

    Raises:
      InterruptedRunError: by a signal; the same call goes on.
    """
    begun = time.monotonic()
    stopped = "rounds"
    try:
        outcome = train.train(config, run_dir, console=console.Console(is_quiet=True), programs=compiled)
    except FloatingPointError as error:
        stopped, lines = f"failed: {error}", metrics_file.read(run_dir / "metrics.jsonl")
    else:
        if outcome.is_preempted:
            raise InterruptedRunError
        lines = outcome.lines
    rounds = [line for line in lines if line["training/round"]]
    if stopped == "rounds" and len(rounds) < config.run.rounds:
        stopped = "t95"
    shutil.rmtree(run_dir)
    return {
        "score": [_short(line["critic/score/mean"]) for line in rounds],
        "generated_tokens": [int(total) for total in _cumulative(rounds)],
        "updates": [int(line["training/updates"]) for line in rounds],
        "metrics": {name: [_short(line.get(name)) for line in rounds] for name in metrics},
        "held_out": [
            [line["training/round"], _short(value)]
            for line in lines
            for name, value in line.items()
            if name.startswith("val-core/") and "/acc/mean@" in name and not name.endswith(("/low", "/high"))
        ],
        "stopped": stopped,
        "seconds": round(time.monotonic() - begun, 1),
    }


def _cumulative(rounds: Sequence[types.Json]) -> list[float]:
    total, found = 0.0, []
    for index, line in enumerate(rounds):
        count = line["training/trajectories"] - (rounds[index - 1]["training/trajectories"] if index else 0)
        total += round(line["response_length/mean"] * count)
        found.append(total)
    return found


def _short(value: float | None) -> float | None:
    """Four significant digits; None for what is absent or no finite number."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")
