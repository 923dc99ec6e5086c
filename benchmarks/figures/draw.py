"""One picture for each figure: curves with intervals, the search for learning rates, and the contrasts with their verdicts.

    python -m benchmarks.figures.draw            # docs/evidence/NAME.json → docs/evidence/NAME.svg, of every record that exists

The bytes depend on the record and the version of matplotlib alone.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.figures import curves, outcomes, page, plan
from benchmarks.figures.experiments import FIGURES

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

WIDTH = 7.9
"""Inches; 758 px at the 96 dpi of a browser."""
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
"""Okabe and Ito's, without yellow, which is not seen on white, and with grey."""
DASHES = ("-", "--", "-.", ":")
MARKS = {"confirmed": ("o", "#0072B2"), "refuted": ("s", "#D55E00"), "not told apart": ("o", "white")}
AXES = {"generated_tokens": "response tokens sampled (mean of the runs)", "rounds": "round", "updates": "updates"}
STYLE = {
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "svg.hashsalt": "reval_jax",
}
MOST_TRIES = 4
"""Searches in one plot."""


def main() -> None:
    """Draws every record that exists."""
    directory = page.DOCS / "evidence"
    for name, record in page.records(directory).items():
        draw(FIGURES[name], record, directory / f"{name}.svg")


def draw(figure: plan.Figure, record: outcomes.Record, target: Path) -> None:
    """Writes the picture of one record, as an SVG."""
    columns = curves.groups(figure.tasks)
    panel_height = 2.35 if len(columns) > 1 else 2.2
    tries = curves.searches(figure, record)
    compared = [each for each in outcomes.comparisons(figure, record) if each.pairs]
    units = _by_unit(compared)
    heights = [panel_height] * len(figure.panels)
    heights += [2.2] if tries else []
    heights += [0.55 + 0.4 * len(of_unit) for of_unit in units.values()]
    with matplotlib.rc_context(STYLE):
        whole = plt.figure(figsize=(WIDTH, sum(heights) + 0.35), layout="constrained")
        rows = iter(np.atleast_1d(whole.subfigures(len(heights), 1, height_ratios=heights)).tolist())
        looks = _looks(figure)
        for panel in figure.panels:
            _draw_panel(next(rows), figure, record, panel, columns, looks)
        if tries:
            _draw_searches(next(rows), figure, tries, looks)
        for label, of_unit in units.items():
            _draw_contrasts(next(rows), label, of_unit)
        whole.suptitle(figure.title, fontsize=11)
        save(whole, target)


def save(whole: Figure, target: Path) -> None:
    """Writes an SVG without the date, and closes the figure."""
    target.parent.mkdir(parents=True, exist_ok=True)
    whole.savefig(target, metadata={"Date": None})
    plt.close(whole)


def _looks(figure: plan.Figure) -> dict[str, tuple[str, str]]:
    """Variant → (color, dashes): the same in every panel, and of different color from each that shares a panel with it."""
    looks: dict[str, tuple[str, str]] = {}
    for panel in figure.panels:
        for name in panel.variants:
            if name in looks:
                continue
            beside = {other for each in figure.panels if name in each.variants for other in each.variants}
            taken = {looks[other][0] for other in beside if other in looks}
            color = next((each for each in COLORS if each not in taken), COLORS[-1])
            looks[name] = (color, DASHES[len(looks) % len(DASHES)])
    return looks


# --- Curves ---


def _draw_panel(
    row: SubFigure,
    figure: plan.Figure,
    record: outcomes.Record,
    panel: plan.Panel,
    columns: dict[str, list[str]],
    looks: dict[str, tuple[str, str]],
) -> None:
    is_alone = len(columns) == 1
    widths = [2.3, 1] if is_alone else [1] * len(columns)
    axes = row.subplots(1, len(widths), sharey=not is_alone, squeeze=False, width_ratios=widths)[0]
    lines: dict[str, list[Any]] = {}
    for axis, (label, tasks) in zip(axes, columns.items(), strict=False):
        for name in panel.variants:
            runs = [run for (task, _), run in sorted(outcomes.by_cell(record, name).items()) if task in tasks]
            found = curves.curve(figure, runs, panel)
            if found is None:
                continue
            color, dashes = looks[name]
            (line,) = axis.plot(found.x, found.mean, dashes, color=color, linewidth=1.4)
            axis.fill_between(found.x, found.low, found.high, color=color, alpha=0.15, linewidth=0)
            lines.setdefault(name, [line, 0, 0])
            lines[name][1] += found.failed
            lines[name][2] += found.runs
        _draw_levels(axis, figure, record, panel, tasks, looks)
        if not is_alone:
            # A task that has a number is one prompt; others are distributions.
            is_single = tasks != [label]
            axis.set_title(f"{label} ({len(tasks)} prompt{'s' * (len(tasks) > 1)})" if is_single else label)
        _scale(axis, panel)
    axes[0].set_ylabel(_y_label(panel))
    axes[0 if is_alone else len(columns) // 2].set_xlabel(AXES[panel.x])
    row.suptitle(panel.title, fontsize=9.5, x=0.01, ha="left", weight="bold")
    labels = [name + (f" ({failed} of {total} failed)" if failed else "") for name, (_, failed, total) in lines.items()]
    handles = [line for line, _, _ in lines.values()]
    if is_alone:
        axes[1].set_axis_off()
        axes[1].legend(handles, labels, loc="upper left", frameon=False, handlelength=2.4)
    elif labels:
        ncols = max(1, min(len(labels), 125 // (max(map(len, labels)) + 8)))
        row.legend(handles, labels, loc="outside lower center", ncols=ncols, frameon=False, handlelength=2.4)


def _draw_levels(
    axis: Axes,
    figure: plan.Figure,
    record: outcomes.Record,
    panel: plan.Panel,
    tasks: list[str],
    looks: dict[str, tuple[str, str]],
) -> None:
    """The level of T95, and the plateaus that β fixes."""
    if panel.y != "score":
        return
    if figure.stops_at_95:
        axis.axhline(outcomes.LEVEL, color="0.4", linewidth=0.8, linestyle=":")
    for contrast in figure.contrasts:
        second = contrast.second
        if isinstance(second, plan.Plateau) and contrast.first in panel.variants:
            starts = [record["starts"][task] for task in tasks if task in contrast.tasks]
            for start in starts:
                level = outcomes.plateau(start, second.beta)
                axis.axhline(level, color=looks[contrast.first][0], linewidth=0.9, linestyle=(0, (1, 2)))
                axis.annotate(
                    f"p*({second.beta:g})",
                    (1, level),
                    xycoords=("axes fraction", "data"),
                    ha="right",
                    va="bottom",
                    fontsize=7,
                )


def _scale(axis: Axes, panel: plan.Panel) -> None:
    if panel.y == "score":
        axis.set_ylim(0, 1.02)
    if "grad_norm" in panel.y and axis.lines:
        axis.set_yscale("log")
    axis.set_xlim(left=0)
    if panel.x == "generated_tokens":
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
        axis.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value / 1000:g}k"))


def _y_label(panel: plan.Panel) -> str:
    return {"score": "share right", "held_out": "share right, held-out"}.get(panel.y, panel.y)


# --- The search ---


def _draw_searches(
    row: SubFigure, figure: plan.Figure, tries: dict[str, curves.Try], looks: dict[str, tuple[str, str]]
) -> None:
    """Mean score of the search by learning rate; the chosen rate is filled, rates at which a run collapsed are crossed out."""
    count = -(-len(tries) // MOST_TRIES)
    axes = row.subplots(1, count, sharey=True, squeeze=False)[0]
    first = {method: variant.name for method, variant in plan.searched(figure).items()}
    names = list(tries)
    for index, axis in enumerate(axes):
        for method in names[index * MOST_TRIES : (index + 1) * MOST_TRIES]:
            found = tries[method]
            color, dashes = looks[first[method]]
            means = [float(np.mean(areas)) for areas in found.areas]
            axis.plot(found.rates, means, dashes, color=color, linewidth=1.2, label=method)
            for rate, areas, mean, has_collapsed in zip(found.rates, found.areas, means, found.collapsed, strict=True):
                axis.plot([rate] * len(areas), areas, ".", color=color, markersize=2.5)
                face = color if rate == found.chosen else "white"
                axis.plot(
                    [rate], [mean], "X" if has_collapsed else "o", color=color, markerfacecolor=face, markersize=5.5
                )
        axis.set_xscale("log")
        axis.set_xticks(plan.LEARNING_RATES, [_rate(rate) for rate in plan.LEARNING_RATES], minor=False)
        axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axis.legend(fontsize=7, frameon=False, loc="lower left")
        axis.set_ylim(0, 1.1 * max(area for each in tries.values() for areas in each.areas for area in areas))
    axes[0].set_ylabel("mean score of the search")
    row.supxlabel("learning rate; filled: chosen; crossed: a run collapsed", fontsize=8.5)
    row.suptitle(f"search, task {figure.tuning}, two seeds", fontsize=9.5, x=0.01, ha="left", weight="bold")


def _rate(rate: float) -> str:
    digits, exponent = f"{rate:.1e}".split("e")
    return f"{float(digits):g}e{int(exponent)}".replace("-", "−")


# --- The contrasts ---


def _by_unit(compared: list[outcomes.Comparison]) -> dict[str, list[outcomes.Comparison]]:
    """What can share an axis: ratios, shares of responses, nats."""
    units: dict[str, list[outcomes.Comparison]] = {}
    for each in compared:
        name = each.contrast.outcome
        unit = (
            "ratio, first / second" if name in page.RATIOS else "nats" if name == "kl_ref" else "difference of scores"
        )
        units.setdefault(unit, []).append(each)
    return units


def _draw_contrasts(row: SubFigure, unit: str, compared: list[outcomes.Comparison]) -> None:
    """A forest plot: effects with 95% intervals, the margins as ticks, and the verdicts."""
    axis = row.subplots()
    is_ratio = unit.startswith("ratio")
    axis.axvline(1 if is_ratio else 0, color="0.4", linewidth=0.8)
    for height, each in zip(range(len(compared))[::-1], compared, strict=True):
        value, low, high = each.ratio if is_ratio else each.effect
        mark, face = MARKS.get(each.verdict, ("x", "0.4"))
        edge = face if face != "white" else "0.2"
        axis.plot([low, high], [height, height], color=edge, linewidth=1.6)
        axis.plot([value], [height], mark, color=edge, markerfacecolor=face, markersize=6)
        for bound in _margins(each.contrast):
            at = math.exp(bound) if is_ratio else bound
            axis.plot([at, at], [height - 0.3, height + 0.3], color="0.4", linewidth=0.9, linestyle=":")
        axis.annotate(f"{each.verdict}", (1.01, height), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    if is_ratio:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(matplotlib.ticker.FuncFormatter(_minor))
    labels = [_label(each.contrast) for each in compared]
    axis.set_yticks(range(len(compared))[::-1], labels, fontsize=7.5)
    axis.set_ylim(-0.6, len(compared) - 0.4)
    axis.grid(visible=False, axis="y")
    row.supxlabel(f"{unit}; dotted: margin", fontsize=8.5)


def _label(contrast: plan.Contrast) -> str:
    return f"{page.compared(contrast)}\n{page.LABELS[contrast.outcome]}, {_tasks(contrast)}"


def _minor(value: float, _: int) -> str:
    """Labels of 2 and 5 between powers of ten."""
    digit = round(value / 10 ** math.floor(math.log10(value)))
    return f"{value:g}" if digit in (2, 5) else ""


def _margins(contrast: plan.Contrast) -> tuple[float, ...]:
    if not contrast.margin:
        return ()
    return {
        "greater": (contrast.margin,),
        "less": (-contrast.margin,),
        "equal": (-contrast.margin, contrast.margin),
    }[contrast.expects]


def _tasks(contrast: plan.Contrast) -> str:
    names = "+".join(curves.groups(contrast.tasks))
    return f"{names} against {'+'.join(curves.groups(contrast.other_tasks))}" if contrast.other_tasks else names


if __name__ == "__main__":
    main()
