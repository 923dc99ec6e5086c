"""Does training raise the score on problems that are never trained on? The last rounds beside the first, for several seeds.

    python -m benchmarks.held_out [--config configs/procedural_arithmetic.yaml] [--seeds 1 2]

Each seed is one `reval train` of the config, whose own `eval` section measures the held-out problems after every round. A run
that is complete in --runs is not run again, one that was interrupted goes on. Writes docs/NAME.json and docs/NAME.svg, NAME the
config's.

The interval of five rounds is the mean of their intervals' ends. The five are of the same problems, so their errors go
together; whatever they do, the mean of five estimates varies no more than the five do on average. So it is, if
anything, too wide.
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
from reval_jax import metrics, prompts

matplotlib.use("agg")
from matplotlib import pyplot as plt


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Train with several seeds, and compare the first and the last rounds' score on held-out problems."""

    config: Path = Path("configs/procedural_arithmetic.yaml")  # one benchmark, eval.every=1
    seeds: tuple[int, ...] = (1, 2)  # run.seed of each run; the settings were chosen by a pilot with seed 0
    rounds: int = 5  # rounds at each end that are compared
    runs: Path = Path("runs/held_out")  # where the runs live
    docs: Path = Path("docs")  # where the figures go


def main() -> None:
    """Runs what is missing, draws the curves and says for each seed whether the two intervals are apart."""
    given = tyro.cli(HeldOut)
    settings = config_lib.load(given.config)
    if settings.eval.every != 1 or len(settings.eval.benchmarks) != 1:
        raise SystemExit(f"{given.config}: eval.every={settings.eval.every} and {len(settings.eval.benchmarks)} benchmarks. "
                         "Give it eval.every: 1 and one benchmark.")  # fmt: skip
    metric = f"val-core/{prompts.name(settings.eval.benchmarks[0])}/acc/mean@{settings.eval.samples_per_prompt}"
    curves = {seed: curve(given, seed, metric) for seed in given.seeds}
    record = {
        "command": f"python -m benchmarks.held_out --config {given.config} --seeds {' '.join(map(str, given.seeds))}",
        "machine": f"{platform.machine()}, {platform.platform()}",
        "config": config_lib.to_tree(settings),
        "metric": metric,
        "seeds": curves,
    }
    target = given.docs / f"{given.config.stem}.json"
    target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(curves, metric, target.with_suffix(".svg"))
    for seed, found in curves.items():
        first, last = (
            f"{found[end]['mean']:.3f} [{found[end]['low']:.3f}, {found[end]['high']:.3f}]" for end in ("first", "last")
        )
        print(f"seed {seed}, {given.rounds} rounds: first {first}, last {last}, apart: {found['is_apart']}")
        print(f"  {found['minutes']:.1f} minutes")


def curve(given: HeldOut, seed: int, metric: str) -> dict[str, Any]:
    """Score after every round of one seed's run, round 0 the untrained model, and its two ends compared."""
    run_dir = given.runs / f"{given.config.stem}_seed{seed}"
    expected = config_lib.load(given.config)
    expected = dataclasses.replace(expected, run=dataclasses.replace(expected.run, seed=seed))
    lines = lines_of(run_dir, expected)
    if len(lines) < expected.run.rounds + 1:
        command = [sys.executable, "-m", "reval_jax", "train", "--config", str(given.config), "--run-dir", str(run_dir)]
        code = subprocess.run([*command, "--run.seed", str(seed)]).returncode
        if code:  # it has said why; 75: interrupted, the same command goes on
            raise SystemExit(code)
        lines = lines_of(run_dir, expected)
    points = {end: [line[f"{metric}{end}"] for line in lines] for end in ("", "/low", "/high")}
    first = ends(points, slice(1, 1 + given.rounds))
    last = ends(points, slice(len(lines) - given.rounds, None))
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
    """Mean score of some rounds, with the interval that the module's docstring argues for."""
    return {
        name: float(np.mean(points[end][rounds])) for name, end in (("mean", ""), ("low", "/low"), ("high", "/high"))
    }


def lines_of(run_dir: Path, expected: config_lib.Config) -> list[dict[str, Any]]:
    """The metrics lines of a run, the untrained model's first; none if it ran with other settings."""
    config_file = run_dir / "config.yaml"
    if not config_file.exists() or config_lib.load(config_file) != expected:
        return []
    return metrics.read(run_dir / "metrics.jsonl")


def draw(curves: dict[int, dict[str, Any]], metric: str, target: Path) -> None:
    """Held-out score by round with its interval, one line a seed, and the two compared intervals."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for seed, found in curves.items():
        x = np.arange(len(found["score"]))
        (line,) = axes.plot(x, found["score"], marker=".", label=f"seed {seed}")
        axes.fill_between(x, found["low"], found["high"], alpha=0.15, color=line.get_color(), linewidth=0)
    axes.set(xlabel="round (0: before training)", ylabel=f"{metric}, 95% interval over problems", ylim=(0, 1))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(target)


if __name__ == "__main__":
    main()
