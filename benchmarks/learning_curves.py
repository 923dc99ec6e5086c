"""The four objectives on one prompt, the same number of sampled responses each, drawn by round and by wall-clock.

    python -m benchmarks.learning_curves [--task hard] [--rounds 16]

Each objective runs as `reval train` with the settings below on top of configs/one_shot_TASK.yaml. A run that is already
complete in --runs is not run again. Writes docs/learning_curves_TASK.svg and .json.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import tyro
import yaml

from reval_jax import config as config_lib
from reval_jax import console as console_lib
from reval_jax import metrics
from reval_jax.tools import demo

matplotlib.use("agg")
from matplotlib import pyplot as plt

# What differs from the config file. One update a round is how GRPO and TBRM are defined; TBRM's beta is its authors'.
OBJECTIVES: dict[str, dict[str, str]] = {
    "reval": {},
    "tbrm": {"update.beta": "0.002", "update.reward_design": "binary", "update.updates_per_round": "1"},
    "regression": {},
    "grpo": {"update.reward_design": "binary", "update.updates_per_round": "1"},
}


@dataclasses.dataclass(frozen=True)
class LearningCurves:
    """Draw the learning curves of the four objectives on one prompt."""

    task: Literal["easy", "medium", "hard"] = "medium"  # which configs/one_shot_TASK.yaml
    rounds: int = 16  # generation rounds of 64 responses, the same for every objective
    seed: int = 0  # run.seed
    runs: Path = Path("runs/learning_curves")  # where the runs live
    docs: Path = Path("docs")  # where the figure goes


def main() -> None:
    """Runs what is missing and draws everything."""
    given = tyro.cli(LearningCurves)
    demo.fetch_model(demo.MODEL, console_lib.Console())
    curves = {objective: curve(given, objective) for objective in OBJECTIVES}
    given.docs.mkdir(exist_ok=True)
    record = {
        "command": f"python -m benchmarks.learning_curves --task {given.task} --rounds {given.rounds} --seed {given.seed}",
        "machine": f"{platform.machine()}, {platform.platform()}",
        "settings": OBJECTIVES,
        "curves": curves,
    }
    target = given.docs / f"learning_curves_{given.task}.json"
    target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(curves, given, target.with_suffix(".svg"))
    for objective, points in curves.items():
        print(f"{objective:<11} score by round: " + " ".join(f"{score:.2f}" for score in points["score"]))


def curve(given: LearningCurves, objective: str) -> dict[str, list[float]]:
    """Score and seconds so far after every round of one objective's run."""
    run_dir = given.runs / f"{given.task}_{objective}_seed{given.seed}"
    config_file = Path("configs") / f"one_shot_{given.task}.yaml"
    settings = OBJECTIVES[objective] | {
        "update.objective": objective,
        "run.rounds": str(given.rounds),
        "run.seed": str(given.seed),
        "run.stop_score": "None",
        "checkpoint.every": "1000",
    }
    lines = rounds_of(run_dir, results_hash(config_file, settings))
    if len(lines) < given.rounds:
        shutil.rmtree(run_dir, ignore_errors=True)
        flags = [word for name, value in settings.items() for word in (f"--{name}", value)]
        where = ["--config", str(config_file), "--run-dir", str(run_dir)]
        subprocess.run([sys.executable, "-m", "reval_jax", "train", *where, *flags], check=True)
        shutil.rmtree(run_dir / "checkpoints")  # 2.2 GB that no figure needs
        lines = rounds_of(run_dir, results_hash(config_file, settings))
    lines = lines[: given.rounds]
    return {
        "score": [line["critic/score/mean"] for line in lines],
        "seconds": np.cumsum([line["timing_s/round"] for line in lines]).round(1).tolist(),
        "grad_norm": [line["actor/grad_norm"] for line in lines],
    }


def results_hash(config_file: Path, settings: dict[str, str]) -> str:
    """What a run of the file with these settings on top records about itself."""
    tree = config_lib.to_tree(config_lib.load(config_file))
    for name, value in settings.items():
        section, field = name.split(".")
        tree[section][field] = None if value == "None" else yaml.safe_load(value)
    return config_lib.results_hash(config_lib.from_tree(tree))


def rounds_of(run_dir: Path, config_hash: str) -> list[dict[str, Any]]:
    """The metrics lines of a run's finished rounds; none if it ran with other settings."""
    config_file = run_dir / "config.yaml"
    if not config_file.exists() or config_lib.read_yaml(config_file)["about"]["config_hash"] != config_hash:
        return []
    return [line for line in metrics.read(run_dir / "metrics.jsonl") if line["training/round"] > 0]


def draw(curves: dict[str, dict[str, list[float]]], given: LearningCurves, target: Path) -> None:
    """Score by generation round and by wall-clock, with the standard error of 64 responses."""
    figure, (by_round, by_time) = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for objective, points in curves.items():
        score = np.array(points["score"])
        error = np.sqrt(score * (1 - score) / 64)
        for axes, x in ((by_round, np.arange(1, len(score) + 1)), (by_time, np.array(points["seconds"]) / 60)):
            (line,) = axes.plot(x, score, marker=".", label=objective)
            axes.fill_between(x, score - error, score + error, alpha=0.15, color=line.get_color(), linewidth=0)
    by_round.set(xlabel="generation round (64 responses each)", ylabel="share of right fresh responses", ylim=(0, 1))
    by_time.set(xlabel="minutes, compilation included (2 cores)")
    by_round.legend()
    for axes in (by_round, by_time):
        axes.grid(alpha=0.3)
    figure.suptitle(
        f"One prompt, the {given.task} task, seed {given.seed}: the same rollout budget for every objective"
    )
    figure.savefig(target)


if __name__ == "__main__":
    main()
