"""Measures and plots the results of docs/performance.md.

    python -m benchmarks.performance               # reval bench scores, update and sampler; about 20 minutes on two cores
    python -m benchmarks.performance --peers       # also other libraries, whose environments take several GB
    python -m benchmarks.performance --no-measure  # plots docs/performance_*.json again

Writes docs/performance_{scores,update,sampler,peers,peers_sampler,peers_lognormal}.json and docs/performance.svg.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import tyro

matplotlib.use("agg")
from matplotlib import pyplot as plt

DOCS = Path(__file__).parents[1] / "docs"
COMMANDS = {
    "scores": ("reval_jax", "bench", "scores"),
    "update": ("reval_jax", "bench", "update", "--dtype", "bfloat16", "--remat", "none", "full"),
    "sampler": (
        *("reval_jax", "bench", "sampler", "--dtype", "bfloat16", "--slots", "32", "64"),
        *("--kv_cache", "compute", "int8", "--repeats", "2"),
    ),
    "peers": ("benchmarks.peers", "update"),
    "peers_sampler": ("benchmarks.peers", "sampler", "--lengths", "fixed"),
    # A round of tunix takes ten minutes, since every batch is decoded until its longest response ends.
    "peers_lognormal": (
        *("benchmarks.peers", "sampler", "--lengths", "lognormal", "--dtypes", "float32"),
        *("--rounds", "1", "--warm_up", "1", "--trainers", "ours", "tunix"),
    ),
}


@dataclasses.dataclass(frozen=True)
class Performance:
    """Measure and plot the results of docs/performance.md."""

    measure: bool = True  # run the benchmarks; --no-measure plots the last results
    peers: bool = False  # also run the other libraries


def main() -> None:
    """Runs the commands one after the other, then plots."""
    args = tyro.cli(Performance, description=__doc__)
    for name, command in COMMANDS.items():
        if args.measure and (args.peers or not name.startswith("peers")):
            file = DOCS / f"performance_{name}.json"
            subprocess.run([sys.executable, "-m", *command, "--json", str(file)], check=True)
    results = {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name in COMMANDS
        if (path := DOCS / f"performance_{name}.json").exists()
    }
    if not results:
        raise SystemExit(f"{DOCS} has no performance_*.json, so there is nothing to plot. Run without --no-measure.")
    draw(results, DOCS / "performance.svg")


def draw(results: dict[str, Any], path: Path) -> None:
    """Draws one panel for each benchmark with results."""
    panels: dict[str, Callable[[Any, dict[str, Any]], None]] = {
        "scores": draw_scores,
        "update": draw_update,
        "sampler": draw_sampler,
        "peers": functools.partial(draw_peers, title="update, compared with other libraries"),
        "peers_sampler": functools.partial(draw_peers, title="sampling, compared with other libraries"),
        "peers_lognormal": functools.partial(draw_peers, title="sampling at log-normal lengths"),
    }
    columns = min(3, len(results))
    rows = -(-len(results) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.6 * columns, 3.6 * rows), squeeze=False)
    for axis in axes.flat[len(results) :]:
        axis.set_axis_off()
    for axis, (name, cases) in zip(axes.flat, results.items(), strict=False):
        panels[name](axis, cases)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    print(path)


def draw_scores(axis: Any, results: dict[str, Any]) -> None:
    """Time and temporary memory of the fused head, relative to full logits."""
    cases = [case for case in results["cases"] if "time_ratio" in case]
    labels = [f"{case['tokens']} x {case['vocabulary']}\nx {case['width']} {case['dtype']}" for case in cases]
    rows = range(len(cases))
    axis.barh([row + 0.2 for row in rows], [case["time_ratio"] for case in cases], 0.38, label="time")
    axis.barh([row - 0.2 for row in rows], [case["temporary_bytes_ratio"] for case in cases], 0.38, label="memory")
    axis.set_yticks(list(rows), labels, fontsize=7)
    axis.axvline(1.0, color="grey", linewidth=0.8)
    axis.set_xlabel("relative to full logits")
    axis.set_title("score head, forward + backward", fontsize=9)
    axis.margins(x=0.35)
    axis.legend(fontsize=7, frameon=False, loc="upper right")


def draw_update(axis: Any, results: dict[str, Any]) -> None:
    """Tokens per second at fixed and log-normal lengths, packed and not packed."""
    kinds = ("fixed", "lognormal", "lognormal_unpacked")
    cases = results["cases"]
    for index, kind in enumerate(kinds):
        positions = [column + 0.27 * (index - 1) for column in range(len(cases))]
        axis.bar(positions, [case["tokens_per_s"][kind] for case in cases], 0.25, label=kind.replace("_", ", "))
    axis.set_xticks(range(len(cases)), [f"{case['dtype']}\nremat {case['remat']}" for case in cases], fontsize=7)
    axis.set_ylabel("tokens/s")
    axis.margins(y=0.35)
    axis.set_title("update, by lengths", fontsize=9)
    axis.legend(fontsize=7, frameon=False)


def draw_sampler(axis: Any, results: dict[str, Any]) -> None:
    """Tokens per second of every case, and the machine's roofline."""
    cases = results["cases"]
    axis.bar(range(len(cases)), [case["roofline_tokens_per_s"] for case in cases], color="lightgrey", label="roofline")
    axis.bar(range(len(cases)), [case["tokens_per_s"] for case in cases], 0.6, label="measured")
    labels = [f"{case['lengths'][:5]}\n{case['slots']}\n{case['kv_cache'][:4]}" for case in cases]
    axis.set_xticks(range(len(cases)), labels, fontsize=6)
    axis.set_ylabel("tokens/s")
    axis.margins(y=0.25)
    axis.set_title("sampling, by lengths, slots and cache", fontsize=9)
    axis.legend(fontsize=7, frameon=False)


def draw_peers(axis: Any, results: dict[str, Any], *, title: str) -> None:
    """Tokens per second of every library, dtype and work."""
    cases = results["cases"]
    axis.barh(range(len(cases)), [case["tokens_per_s"] for case in cases])
    axis.set_yticks(
        range(len(cases)), [f"{case['trainer']}\n{case['dtype']}, {case['work']}" for case in cases], fontsize=6
    )
    axis.set_xlabel("tokens/s")
    axis.set_title(title, fontsize=9)


if __name__ == "__main__":
    main()
