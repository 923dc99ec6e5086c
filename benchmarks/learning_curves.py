"""Plots learning curves of the four objectives on one prompt, by round and by wall-clock time, with equal rollout budgets.

    python -m benchmarks.learning_curves [--task hard] [--rounds 16]
    python -m benchmarks.learning_curves --no-measure      # plots docs/learning_curves_TASK.json again

Each objective runs as `reval train` with configs/one_shot_TASK.yaml, overridden by the settings below. A run that is complete in
--runs is not repeated. Writes docs/learning_curves_TASK.svg and .json and, for the medium task, the README's picture,
docs/learning_curve.svg.
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
from matplotlib.figure import Figure

# Differences from the config file. GRPO and TBRM are defined with one update per round; TBRM's beta is that of its authors.
OBJECTIVES: dict[str, dict[str, str]] = {
    "reval": {},
    "tbrm": {"update.beta": "0.002", "update.reward_design": "binary", "update.updates_per_round": "1"},
    "regression": {},
    "grpo": {"update.reward_design": "binary", "update.updates_per_round": "1"},
}


@dataclasses.dataclass(frozen=True)
class LearningCurves:
    """Plot the learning curves of the four objectives on one prompt."""

    task: Literal["easy", "medium", "hard"] = "medium"  # which configs/one_shot_TASK.yaml
    rounds: int = 16  # generation rounds of 64 responses, the same for every objective
    seed: int = 0  # run.seed
    runs: Path = Path("runs/learning_curves")  # directory of the runs
    docs: Path = Path("docs")  # directory of the plots
    measure: bool = True  # run the objectives; --no-measure plots the last measurement again


def main() -> None:
    """Trains the missing runs, then plots all objectives."""
    args = tyro.cli(LearningCurves)
    target = args.docs / f"learning_curves_{args.task}.json"
    if args.measure:
        demo.fetch_model(demo.MODEL, console_lib.Console())
        write_record({objective: curve(args, objective) for objective in OBJECTIVES}, args, target)
    curves = json.loads(target.read_text(encoding="utf-8"))["curves"]
    draw(curves, args, target.with_suffix(".svg"))
    if args.task == "medium":
        draw_one(curves["reval"]["score"], args.docs / "learning_curve.svg")
    for objective, points in curves.items():
        print(f"{objective:<11} score by round: " + " ".join(f"{score:.2f}" for score in points["score"]))


def write_record(curves: dict[str, dict[str, list[float]]], args: LearningCurves, target: Path) -> None:
    """Writes the curves with the command and the machine that produced them."""
    record = {
        "command": f"python -m benchmarks.learning_curves --task {args.task} --rounds {args.rounds} --seed {args.seed}",
        "machine": f"{platform.machine()}, {platform.platform()}",
        "settings": OBJECTIVES,
        "curves": curves,
    }
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def curve(args: LearningCurves, objective: str) -> dict[str, list[float]]:
    """Score, elapsed seconds and gradient norm of every round of one objective's run."""
    run_dir = args.runs / f"{args.task}_{objective}_seed{args.seed}"
    config_file = Path("configs") / f"one_shot_{args.task}.yaml"
    settings = OBJECTIVES[objective] | {
        "update.objective": objective,
        "run.rounds": str(args.rounds),
        "run.seed": str(args.seed),
        "run.stop_score": "None",
        "checkpoint.every": "1000",
    }
    lines = rounds_of(run_dir, results_hash(config_file, settings))
    if len(lines) < args.rounds:
        shutil.rmtree(run_dir, ignore_errors=True)
        flags = [word for name, value in settings.items() for word in (f"--{name}", value)]
        where = ["--config", str(config_file), "--run-dir", str(run_dir)]
        subprocess.run([sys.executable, "-m", "reval_jax", "train", *where, *flags], check=True)
        shutil.rmtree(run_dir / "checkpoints")  # 2.2 GB that no figure needs
        lines = rounds_of(run_dir, results_hash(config_file, settings))
    lines = lines[: args.rounds]
    return {
        "score": [line["critic/score/mean"] for line in lines],
        "seconds": np.cumsum([line["timing_s/round"] for line in lines]).round(1).tolist(),
        "grad_norm": [line["actor/grad_norm"] for line in lines],
    }


def results_hash(config_file: Path, settings: dict[str, str]) -> str:
    """The hash that a run of the file, overridden by these settings, writes into its config.yaml."""
    tree = config_lib.to_tree(config_lib.load(config_file))
    for name, value in settings.items():
        section, field = name.split(".")
        tree[section][field] = None if value == "None" else yaml.safe_load(value)
    return config_lib.results_hash(config_lib.from_tree(tree))


def rounds_of(run_dir: Path, config_hash: str) -> list[dict[str, Any]]:
    """The metrics of a run's finished rounds; empty if the run has other settings."""
    config_file = run_dir / "config.yaml"
    if not config_file.exists() or config_lib.read_yaml(config_file)["about"]["config_hash"] != config_hash:
        return []
    return [line for line in metrics.read(run_dir / "metrics.jsonl") if line["training/round"] > 0]


def standard_error(score: np.ndarray) -> np.ndarray:
    """Standard error of the share of right responses among a round's 64."""
    return np.sqrt(score * (1 - score) / 64)


def draw(curves: dict[str, dict[str, list[float]]], args: LearningCurves, target: Path) -> None:
    """Plots the score by round and by wall-clock time, with the standard error of 64 responses."""
    figure, (by_round, by_time) = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for objective, points in curves.items():
        score = np.array(points["score"])
        error = standard_error(score)
        for axes, x in ((by_round, np.arange(1, len(score) + 1)), (by_time, np.array(points["seconds"]) / 60)):
            (line,) = axes.plot(x, score, marker=".", label=objective)
            axes.fill_between(x, score - error, score + error, alpha=0.15, color=line.get_color(), linewidth=0)
    by_round.set(xlabel="generation round (64 responses each)", ylabel="share of right fresh responses", ylim=(0, 1))
    by_time.set(xlabel="minutes, compilation included (2 cores)")
    by_round.legend()
    for axes in (by_round, by_time):
        axes.grid(alpha=0.3)
    figure.suptitle(f"One prompt, the {args.task} task, seed {args.seed}: the same rollout budget for every objective")
    save(figure, target)


def draw_one(scores: list[float], target: Path) -> None:
    """Plots ReVal's score by round alone, small enough for the README's first screen."""
    score = np.array(scores)
    error, rounds = standard_error(score), np.arange(1, score.size + 1)
    figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
    axes.fill_between(rounds, score - error, np.minimum(score + error, 1), alpha=0.2, linewidth=0)
    axes.plot(rounds, score, marker="o", markersize=4)
    axes.set(xlabel="round (64 fresh responses each)", ylabel="share of right responses", ylim=(0, 1.02))
    axes.set_xticks(rounds)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, target)


def save(figure: Figure, target: Path) -> None:
    """Writes an SVG whose bytes depend on the figure alone, not on the date or on random ids."""
    with matplotlib.rc_context({"svg.hashsalt": "reval_jax"}):
        figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main()
