"""Tasks of a real model: SmolLM2-135M-Instruct on one question, as configs/one_shot_*.yaml have it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from reval_jax import config as config_lib
from reval_jax import console as console_lib
from reval_jax import durable, types
from reval_jax.tools import demo

TASKS = {"smollm2_hard": "hard"}
"""Task → the file configs/one_shot_*.yaml."""

STARTS = Path("runs/testbed")
MEASURED = 2048
"""Responses by which the success rate before training is measured: a standard error of 0.006 at 0.1."""


def make() -> None:
    """Downloads the model, unless it is there.

    Raises:
      ValueError: it cannot be downloaded, or the file is another one.
    """
    demo.fetch_model(demo.MODEL, console_lib.Console())


def settings(task: str) -> types.Json:
    """The settings of the task's config file, as a tree; a run saves nothing before its end, and evaluates nothing."""
    tree = config_lib.to_tree(config_lib.load(_file(task)))
    tree["checkpoint"] |= {"every": 10_000, "keep": 1}
    return tree


def start(task: str) -> float:
    """The success rate before training, measured once by sampling and kept in STARTS."""
    path = STARTS / f"{task}_{demo.MODEL_SHA256[:12]}.json"
    if not path.exists():
        make()
        config = config_lib.load(_file(task))
        evaluation = dataclasses.replace(
            config.eval, every=0, benchmarks=(config.task.dataset,), samples_per_prompt=MEASURED
        )
        result = demo.measure({task: dataclasses.replace(config, eval=evaluation)}, None, console_lib.Console())[task]
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write(path, json.dumps({"success_rate": result.mean, "responses": MEASURED}).encode())
    return json.loads(path.read_text(encoding="utf-8"))["success_rate"]


def _file(task: str) -> Path:
    return Path("configs") / f"one_shot_{TASKS[task]}.yaml"
