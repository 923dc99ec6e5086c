"""Measures whether training raises the score on held-out problems: last rounds against first rounds, for several seeds.

    python -m benchmarks.held_out [--config configs/procedural_arithmetic.yaml] [--seeds 1 2]

Each seed is one `reval train` of the config, whose `eval` section evaluates the held-out problems after every round. A run that
is complete in --runs is not repeated, and an interrupted one resumes. Writes docs/NAME.json and docs/NAME.svg for a config
NAME.yaml.

The interval of several rounds has as its bounds the means of the rounds' lower and upper bounds. The rounds share their problems,
so their errors are correlated; but whatever the correlation, the standard deviation of a mean is at most the mean of the standard
deviations. The interval is therefore too wide rather than too narrow.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import tyro

from reval_jax import config as config_lib
from reval_jax import metrics
from reval_jax.data import rows

matplotlib.use("agg")
from matplotlib import pyplot as plt


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Train with several seeds, and compare the scores of the first and the last rounds on held-out problems."""

    config: Path = Path("configs/procedural_arithmetic.yaml")  # one benchmark, eval.every=1
    seeds: tuple[int, ...] = (1, 2)  # run.seed of each run; the settings were chosen by a pilot with seed 0
    rounds: int = 5  # number of first and of last rounds to compare
    runs: Path = Path("runs/held_out")  # directory of the runs
    docs: Path = Path("docs")  # directory of the results


def main() -> None:
    """Trains the missing runs, plots the curves and prints for each seed whether the last interval is above the first."""
    args = tyro.cli(HeldOut)
    settings = config_lib.load(args.config)
    if settings.eval.every != 1 or len(settings.eval.benchmarks) != 1:
        raise SystemExit(f"{args.config}: eval.every={settings.eval.every} and {len(settings.eval.benchmarks)} benchmarks. "
                         "Give it eval.every: 1 and one benchmark.")  # fmt: skip
    metric = f"val-core/{rows.label(settings.eval.benchmarks[0])}/acc/mean@{settings.eval.samples_per_prompt}"
    curves = {seed: curve(args, seed, metric) for seed in args.seeds}
    record = {
        "command": f"python -m benchmarks.held_out --config {args.config} --seeds {' '.join(map(str, args.seeds))}",
        "machine": f"{platform.machine()}, {platform.platform()}",
        "config": config_lib.to_tree(settings),
        "metric": metric,
        "seeds": curves,
    }
    target = args.docs / f"{args.config.stem}.json"
    target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(curves, metric, target.with_suffix(".svg"))
    for seed, points in curves.items():
        first, last = (
            f"{points[end]['mean']:.3f} [{points[end]['low']:.3f}, {points[end]['high']:.3f}]"
            for end in ("first", "last")
        )
        print(f"seed {seed}, {args.rounds} rounds: first {first}, last {last}, apart: {points['is_apart']}")
        print(f"  {points['minutes']:.1f} minutes")


def curve(args: HeldOut, seed: int, metric: str) -> dict[str, Any]:
    """Scores of one seed's run after every round (round 0: the untrained model), and its first and last rounds compared."""
    run_dir = args.runs / f"{args.config.stem}_seed{seed}"
    expected = config_lib.load(args.config)
    expected = dataclasses.replace(expected, run=dataclasses.replace(expected.run, seed=seed))
    lines = read_lines(run_dir, expected)
    if len(lines) < expected.run.rounds + 1:
        command = [sys.executable, "-m", "reval_jax", "train", "--config", str(args.config), "--run-dir", str(run_dir)]
        code = subprocess.run([*command, "--run.seed", str(seed)]).returncode
        if code:  # the run printed the reason; 75 means interrupted, and resumable
            raise SystemExit(code)
        lines = read_lines(run_dir, expected)
    points = {end: [line[f"{metric}{end}"] for line in lines] for end in ("", "/low", "/high")}
    first = ends(points, slice(1, 1 + args.rounds))
    last = ends(points, slice(len(lines) - args.rounds, None))
    return {
        "score": points[""],
        "low": points["/low"],
        "high": points["/high"],
        "train_score": [line["critic/score/mean"] for line in lines[1:]],
        "first": first,
        "last": last,
        "is_apart": last["low"] > first["high"],
        "minutes": sum(line["timing_s/round"] for line in lines) / 60,
    }


def ends(points: dict[str, list[float]], rounds: slice) -> dict[str, float]:
    """Mean score of some rounds, with the interval that the module's docstring explains."""
    return {
        name: float(np.mean(points[end][rounds])) for name, end in (("mean", ""), ("low", "/low"), ("high", "/high"))
    }


def read_lines(run_dir: Path, expected: config_lib.Config) -> list[dict[str, Any]]:
    """The metrics of a run, the untrained model's line first; empty if the run has other settings."""
    config_file = run_dir / "config.yaml"
    if not config_file.exists() or config_lib.load(config_file) != expected:
        return []
    return metrics.read(run_dir / "metrics.jsonl")


def draw(curves: dict[int, dict[str, Any]], metric: str, target: Path) -> None:
    """Plots the held-out score by round with its interval, one line per seed."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for seed, points in curves.items():
        x = np.arange(len(points["score"]))
        (line,) = axes.plot(x, points["score"], marker=".", label=f"seed {seed}")
        axes.fill_between(x, points["low"], points["high"], alpha=0.15, color=line.get_color(), linewidth=0)
    axes.set(xlabel="round (0: before training)", ylabel=f"{metric}, 95% interval over problems", ylim=(0, 1))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(target)


if __name__ == "__main__":
    main()
