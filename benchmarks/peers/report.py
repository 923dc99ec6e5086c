"""Summarizes the turns of all trainers: medians, ratios, and a text table."""

from __future__ import annotations

import dataclasses
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import peer


def record(runs: Sequence[dict[str, Any]], *, command: str, job: str, size: str, warm_up: int) -> dict[str, Any]:
    """The content of the JSON file.

    Args:
      runs: description and `turns` of each trainer; the first `warm_up` turns are not counted.
    """
    shape, sampling = peer.SIZES[size]
    cases = [case(run, shape, sampling, warm_up) for run in runs]
    return {
        "command": command,
        "job": job,
        "machine": {"cores": peer.num_cores(), "cpu": cpu_name(), "platform": platform.platform()},
        "load_average": os.getloadavg(),
        "shape": dataclasses.asdict(shape) | {"parameters": shape.parameters},
        "sampling": dataclasses.asdict(sampling),
        "warm_up": warm_up,
        "cases": cases,
        "ratios": ratios(cases),
    }


def case(run: dict[str, Any], shape: peer.Shape, sampling: peer.Sampling, warm_up: int) -> dict[str, Any]:
    """The medians of one trainer, for one work and dtype."""
    work, timed = run["work"], run["turns"][warm_up:]
    seconds = [turn["seconds"] for turn in timed]
    median = statistics.median(seconds)
    tokens = peer.num_tokens(work, shape, sampling)
    rows = shape.batch_tokens if work == "update" else sampling.slots
    rate = shape.product_flops(rows) / statistics.median(turn["product_seconds"] for turn in timed)
    result = {name: value for name, value in run.items() if name != "turns"} | {
        "seconds": seconds,
        "median_seconds": median,
        "tokens_per_s": tokens / median,
        "processor_seconds": statistics.median(turn["processor_seconds"] for turn in timed),
        "product_flops_per_s": rate,
    }
    if work == "update":
        share = 6 * shape.parameters * tokens / rate / median
        return result | {"product_share": share, "loss": timed[-1]["loss"]}
    return result | {"tokens": tokens} | ({"step_seconds": median / sampling.fixed_tokens} if work == "fixed" else {})


def ratios(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Our tokens per second over the other trainer's, for each work and dtype, and for the faster dtype of each.

    `lowest` and `highest` are the extremes over the rounds; their distance shows the noise of the machine.
    """
    rows = []
    for work in dict.fromkeys(case["work"] for case in cases):
        by_name: dict[str, dict[str, dict[str, Any]]] = {}
        for case in cases:
            if case["work"] == work:
                by_name.setdefault(case["trainer"], {})[case["dtype"]] = case
        ours = by_name.pop("ours", {})
        for name, theirs in by_name.items():
            pairs = [(dtype, ours[dtype], theirs[dtype]) for dtype in ours if dtype in theirs]
            if len(pairs) > 1:
                pairs.append(("faster", _faster(ours), _faster(theirs)))
            rows += [{"theirs": name, "work": work, "dtype": dtype} | _ratio(a, b) for dtype, a, b in pairs]
    return rows


def _faster(by_dtype: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return max(by_dtype.values(), key=lambda case: case["tokens_per_s"])


def _ratio(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    rounds = [b / a for a, b in zip(ours["seconds"], theirs["seconds"], strict=True)]
    return {
        "ratio": ours["tokens_per_s"] / theirs["tokens_per_s"],
        "lowest": min(rounds),
        "highest": max(rounds),
    }


def table(results: dict[str, Any]) -> list[str]:
    """The lines of a text table.

    Args:
      results: from `record`.
    """
    machine = results["machine"]
    lines = [
        "",
        f"{results['shape']['parameters'] / 1e6:.1f}M parameters, {_describe_work(results)}, {machine['cores']} cores of "
        f"{machine['cpu']}, load average {results['load_average'][0]:.1f}",
        "",
        f"{'trainer':<13}{'dtype':<10}{'work':<10}{'tokens/s':>9}{'seconds':>10}{'CPU s':>9}{'product':>16}"
        + (f"{'used':>7}" if results["job"] == "update" else f"{'ms/step':>9}"),
    ]
    for case in results["cases"]:
        lines.append(
            f"{case['trainer']:<13}{case['dtype']:<10}{case['work']:<10}{case['tokens_per_s']:>9.1f}"
            f"{case['median_seconds']:>10.3f}{case['processor_seconds']:>9.3f}"
            f"{case['product_flops_per_s'] / 1e9:>9.1f} GFLOP/s"
            + (f"{case['product_share']:>7.2f}" if "product_share" in case else "")
            + (f"{1e3 * case['step_seconds']:>9.1f}" if "step_seconds" in case else "")
        )
    if results["ratios"]:
        lines += ["", f"{'ours / theirs':<33}{'ratio':>9}   over the rounds"]
    lines += [
        f"{row['theirs']:<13}{row['dtype']:<10}{row['work']:<10}{row['ratio']:>9.2f}   {row['lowest']:.2f} to "
        f"{row['highest']:.2f}"
        for row in results["ratios"]
    ]
    lines.append("")
    for name in dict.fromkeys(case["trainer"] for case in results["cases"]):
        case = next(case for case in results["cases"] if case["trainer"] == name)
        lines.append(f"{name}: " + ", ".join(f"{package} {version}" for package, version in case["versions"].items()))
        lines += [f"  {note}" for note in case["notes"]]
    return lines


def _describe_work(results: dict[str, Any]) -> str:
    shape, sampling = results["shape"], results["sampling"]
    if results["job"] == "update":
        return f"{shape['rows']} rows x {shape['prompt_tokens'] + shape['response_tokens']} tokens"
    return (
        f"{sampling['slots']} responses at once, fixed: {sampling['fixed_tokens']} tokens each, log-normal: "
        f"{sampling['skewed']} of up to {sampling['max_tokens']}"
    )


def cpu_name() -> str:
    """The processor's name from /proc/cpuinfo, or else from `platform`."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
