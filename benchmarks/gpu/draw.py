"""Plots the results of `python -m benchmarks.gpu`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt


def draw(record: dict[str, Any], path: Path) -> Path:
    """Draws one panel for each speed that was measured; returns the path."""
    panels: dict[str, Callable[[Any, list[dict[str, Any]]], None]] = {
        "decode": draw_decode,
        "update": draw_update,
        "sampler": draw_sampler,
    }
    chosen = {name: record["parts"][name]["cases"] for name in panels if record["parts"].get(name, {}).get("cases")}
    figure, axes = plt.subplots(1, max(1, len(chosen)), figsize=(4.6 * max(1, len(chosen)), 3.6), squeeze=False)
    for axis, (name, cases) in zip(axes.flat, chosen.items(), strict=False):
        panels[name](axis, cases)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(record["machine"]["device"], fontsize=9)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


def draw_decode(axis: Any, cases: list[dict[str, Any]]) -> None:
    """Milliseconds of a decode step, and the least that the card's rates allow."""
    axis.bar(range(len(cases)), [1e3 * case["seconds"] for case in cases], 0.6, label="measured")
    axis.bar(range(len(cases)), [1e3 * case["floor_s"] for case in cases], 0.6, color="lightgrey", label="roofline")
    axis.set_xticks(range(len(cases)), [_cache(case) for case in cases], fontsize=7)
    axis.set_ylabel("ms")
    axis.set_title(f"a decode step, {cases[0]['slots']} slots, {cases[0]['positions']} positions", fontsize=9)
    axis.legend(fontsize=7, frameon=False)


def _cache(case: dict[str, Any]) -> str:
    """The label of a decode step's case."""
    return f"cache {case['kv_cache']}" + ("" if case["deterministic"] else ",\nnot deterministic")


def draw_update(axis: Any, cases: list[dict[str, Any]]) -> None:
    """Tokens per second by remat and lengths."""
    for index, kind in enumerate(("fixed", "lognormal")):
        places = [column + 0.35 * (index - 0.5) for column in range(len(cases))]
        axis.bar(places, [case["tokens_per_s"][kind] for case in cases], 0.33, label=kind)
    axis.set_xticks(range(len(cases)), [f"remat {case['remat']}" for case in cases], fontsize=7)
    axis.set_ylabel("tokens/s")
    axis.margins(y=0.25)
    axis.set_title("update", fontsize=9)
    axis.legend(fontsize=7, frameon=False)


def draw_sampler(axis: Any, cases: list[dict[str, Any]]) -> None:
    """Tokens per second of every case, and the card's roofline."""
    axis.bar(range(len(cases)), [case["roofline_tokens_per_s"] for case in cases], color="lightgrey", label="roofline")
    axis.bar(range(len(cases)), [case["tokens_per_s"] for case in cases], 0.6, label="measured")
    labels = [f"{case['lengths'][:5]}\n{case['slots']}\n{case['kv_cache'][:4]}" for case in cases]
    axis.set_xticks(range(len(cases)), labels, fontsize=6)
    axis.set_ylabel("tokens/s")
    axis.set_title("sampling, by lengths, slots and cache", fontsize=9)
    axis.legend(fontsize=7, frameon=False)
