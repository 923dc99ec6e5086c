"""Runs every preset of configs/algorithms for some rounds on two tasks, and tells which of them learned.

    python -m benchmarks.presets                               # a tiny model on the demo's medium prompt and on sums
    python -m benchmarks.presets --model smollm2 --seeds 0     # SmolLM2-135M on the medium prompt
    python -m benchmarks.presets --no-measure                  # the table of the last measurement again

Each run is `reval train`'s, with the real sampler, verifier, replay and update. All presets have the same task, learning rate
and number of sampled responses; the number of updates is each preset's own. A run that is complete in --runs is not repeated.
Writes docs/presets_MODEL.json and .svg. Ten rounds at one learning rate show that a method works, not which one is best.
"""

from __future__ import annotations

import dataclasses
import json
import platform
from pathlib import Path
from typing import Any, Literal

import jax
import matplotlib
import numpy as np
import tyro

from benchmarks.presets import tiny_model
from reval_jax import config as config_lib
from reval_jax import console as console_lib
from reval_jax import metrics, pool, train
from reval_jax.tools import demo

matplotlib.use("agg")
from matplotlib import pyplot as plt

PRESETS = Path("configs/algorithms")
TREES: dict[str, dict[str, dict[str, Any]]] = {
    "medium": {
        "task": {"dataset": "configs/data/one_shot_medium.jsonl"},
        "rollout": {"prompts_per_round": 1, "samples_per_prompt": 64},
    },
    "sums": {
        "task": {"dataset": "procedural:arithmetic,level=1,style=raw"},
        "rollout": {"prompts_per_round": 32, "samples_per_prompt": 8},
    },
}
"""The two tasks: one prompt, and the sums and differences of single digits."""
POOL_SEED = 1000
"""Seed of the run whose right responses are RLEP's pool."""


@dataclasses.dataclass(frozen=True)
class Presets:
    """Run every preset of configs/algorithms on two tasks."""

    model: Literal["tiny", "smollm2"] = "tiny"  # 0.4M parameters taught here, or SmolLM2-135M-Instruct
    tasks: tuple[Literal["medium", "sums"], ...] = ("medium", "sums")
    names: tuple[str, ...] = ()  # presets to run; without any, all
    rounds: int = 10
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    learning_rate: float = 3e-4  # of the tiny model; SmolLM2's is 2e-6
    runs: Path = Path("runs/presets")  # directory of the runs
    docs: Path = Path("docs")  # directory of the results
    measure: bool = True  # run the presets; --no-measure shows the last measurement again


def main() -> None:
    """Runs what is missing, then writes the record, the picture and the table."""
    args = tyro.cli(Presets)
    target = args.docs / f"presets_{args.model}.json"
    if args.measure:
        jax.config.update("jax_compilation_cache_dir", str(args.runs / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        target.write_text(json.dumps(_measured(args), indent=1) + "\n", encoding="utf-8")
    record = json.loads(target.read_text(encoding="utf-8"))
    _draw(record, target.with_suffix(".svg"))
    print(table(record))


def table(record: dict[str, Any]) -> str:
    """A Markdown table: mean score of the first two and of the last two rounds, over seeds, and their paired difference."""
    tasks = list(record["scores"])
    lines = ["| preset | " + " | ".join(f"{task}: first 2, last 2 rounds, difference" for task in tasks) + " |"]
    lines += ["|---" * (len(tasks) + 1) + "|"]
    names = sorted({name for scores in record["scores"].values() for name in scores})
    for name in names:
        cells = [_cell(np.array(record["scores"][task].get(name, []))) for task in tasks]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(scores: np.ndarray) -> str:
    """The scores f64[seeds, rounds] of one preset in words."""
    if not scores.size:
        return "not run"
    first, last = scores[:, :2].mean(axis=1), scores[:, -2:].mean(axis=1)
    rise = last - first
    text = f"{first.mean():.2f} → {last.mean():.2f}, {rise.mean():+.2f}"
    if len(rise) > 1:
        text += f" ± {rise.std(ddof=1) / np.sqrt(len(rise)):.2f}"
    return text


def _measured(args: Presets) -> dict[str, Any]:
    names = args.names or tuple(sorted(file.stem for file in PRESETS.glob("*.yaml")))
    console = console_lib.Console()
    scores: dict[str, dict[str, list[list[float]]]] = {task: {} for task in args.tasks}
    for task in args.tasks:
        for name in names:
            scores[task][name] = [_scores(args, task, name, seed) for seed in args.seeds]
            console.log(f"{task:<7}{name:<11}{_cell(np.array(scores[task][name]))}")
    return {
        "command": f"python -m benchmarks.presets --model {args.model} --rounds {args.rounds} "
        f"--seeds {' '.join(map(str, args.seeds))} --learning_rate {args.learning_rate}",
        "machine": f"{platform.machine()}, {platform.platform()}, jax {jax.__version__}",
        "scores": scores,
    }


def _scores(args: Presets, task: str, name: str, seed: int) -> list[float]:
    """The mean score of each round."""
    run_dir = args.runs / args.model / task / f"{name}_{seed}"
    config = _config(args, task, name, seed)
    lines = metrics.read(run_dir / "metrics.jsonl") if (run_dir / "metrics.jsonl").exists() else []
    if len(lines) < config.run.rounds:
        lines = train.train(config, run_dir, console=console_lib.Console(is_quiet=True)).lines
    return [line["critic/score/mean"] for line in lines]


def _config(args: Presets, task: str, name: str, seed: int) -> config_lib.Config:
    base = config_lib.to_tree(config_lib.load("configs/one_shot_medium.yaml"))
    tree = config_lib.to_tree(config_lib.load("configs/one_shot_medium.yaml", PRESETS / f"{name}.yaml"))
    for section, fields in TREES[task].items():
        tree[section] |= fields
    size = tree["rollout"]["prompts_per_round"] * tree["rollout"]["samples_per_prompt"]
    tree["update"]["batch_size"] = size
    # At the paper's beta all rewards are hundreds of nats; the configs of these tasks have one that fits short answers.
    tree["update"]["beta"] = base["update"]["beta"]
    if tree["update"]["reference_reset_every"] > args.rounds:
        tree["update"]["reference_reset_every"] = 0
    tree["optimizer"]["learning_rate"] = base["optimizer"]["learning_rate"]
    tree["replay"]["capacity"] = 5 * size
    tree["checkpoint"] = {"every": args.rounds, "keep": 1}
    tree["run"] |= {"rounds": args.rounds, "seed": seed, "stop_score": None}
    if args.model == "tiny":
        tree["model"]["path"] = str(tiny_model.make(args.runs / "tiny_model"))
        tree["rollout"] |= {"max_response_tokens": 4, "decode_slots": 64, "decode_window": 4}
        tree["optimizer"] |= {"learning_rate": args.learning_rate, "value_learning_rate": args.learning_rate}
    else:
        demo.fetch_model(demo.MODEL, console_lib.Console())
        tree["optimizer"]["value_learning_rate"] = 1e-3
    if tree["rollout"]["pool"]:
        tree["rollout"]["pool"] = str(_pool(args, task))
        tree["replay"]["capacity"] *= 2
    return config_lib.from_tree(tree)


def _pool(args: Presets, task: str) -> Path:
    """The right responses of one run of GRPO, with a seed of its own."""
    run_dir = args.runs / args.model / task / f"grpo_{POOL_SEED}"
    file = run_dir / "pool.npz"
    if not file.exists():
        _scores(args, task, "grpo", POOL_SEED)
        pool.save(pool.collect(run_dir), file)
    return file


def _draw(record: dict[str, Any], target: Path) -> None:
    """One small plot per preset and task: each seed's curve, and their mean."""
    names = sorted({name for scores in record["scores"].values() for name in scores})
    tasks = list(record["scores"])
    columns = 6
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(12, 1.9 * rows), sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for axis, name in zip(axes.flat, names, strict=False):
        for color, task in zip(("tab:blue", "tab:orange"), tasks, strict=False):
            scores = np.array(record["scores"][task].get(name, []))
            if scores.size:
                rounds = np.arange(1, scores.shape[1] + 1)
                axis.plot(rounds, scores.T, color=color, alpha=0.25, linewidth=0.8)
                axis.plot(rounds, scores.mean(axis=0), color=color, linewidth=1.6, label=task)
        axis.set_title(name, fontsize=9)
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=7, loc="lower right")
    figure.supxlabel("round", fontsize=9)
    figure.supylabel("mean score", fontsize=9)
    figure.tight_layout()
    figure.savefig(target)
    plt.close(figure)


if __name__ == "__main__":
    main()
