"""Plots a run's metrics in one self-contained HTML file."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from pathlib import Path

from reval_jax import durable, metrics, run_directory, types
from reval_jax.tools import token_page

PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Mean score of the fresh responses", ("critic/score/mean",)),
    ("Loss", ("actor/loss",)),
    ("Gradient norm before clipping", ("actor/grad_norm",)),
    ("Distance to the reference, nats per response", ("actor/kl_ref", "reval/log_ratio", "reval/value_gap")),
    ("Entropy per token, nats", ("actor/entropy",)),
    ("Response length, tokens", ("response_length/mean", "response_length/max")),
    (
        "Seconds per round",
        ("timing_s/generate", "timing_s/reference", "timing_s/update", "timing_s/eval", "timing_s/save"),
    ),
    ("Replay: age in rounds, uses", ("replay/age_mean", "replay/reuse_mean", "replay/reuse_at_eviction")),
)

HELD_OUT = (("avg@k", "mean"), ("pass@k, of all responses", "pass"), ("maj@k, of all responses", "maj"))
"""Title of each held-out panel, and the kind in its metrics' names `acc/{kind}@{k}`."""


def write(run_dir: Path, output: Path) -> Path:
    """Plots the run's metrics.jsonl into `output`; returns `output`.

    Raises:
      ValueError: the run has no metrics, matplotlib is not installed, metrics.jsonl or inspect.json is damaged, or the file
        cannot be written.
    """
    source = run_dir / "metrics.jsonl"
    if source.is_file():
        metrics.verify(source)
    lines = metrics.read(source) if source.is_file() else []
    if not lines:
        raise ValueError(
            f"{run_dir} has no metrics yet (metrics.jsonl). Name the directory of a run with at least one finished round."
        )
    panels = [*PANELS, *((f"Held-out {title}", _held_out(lines, kind)) for title, kind in HELD_OUT)]
    figures = [_figure(title, lines, names) for title, names in panels]
    config = (run_dir / "config.yaml").read_text(encoding="utf-8") if (run_dir / "config.yaml").is_file() else ""
    page = (
        "<!doctype html><meta charset='utf-8'><title>{title}</title>"
        "<style>body{{font-family:sans-serif;max-width:1100px;margin:2em auto}}svg{{width:48%;height:auto}}"
        "table{{border-collapse:collapse}}td,th{{padding:.2em .8em;text-align:right}}"
        "pre{{background:#f4f4f4;padding:1em}}</style>"
        "<h1>{title}</h1>{table}{figures}{tokens}<h2>Settings</h2><pre>{config}</pre>"
    ).format(
        title=html.escape(str(run_dir)),
        table=_table(lines),
        figures="".join(figures),
        tokens=token_page.section(run_directory.RunDirectory(run_dir).inspection),
        config=html.escape(config),
    )
    try:
        # A name's bytes that are no text are shown as escapes.
        with durable.output(output) as file:
            file.write(page.encode(errors="backslashreplace"))
    except OSError as error:
        raise ValueError(f"{output} cannot be written: {error.strerror}. Choose another --output.") from error
    return output


def _held_out(lines: Sequence[types.Json], kind: str) -> tuple[str, ...]:
    """`val-core/{benchmark}/acc/{kind}@{k}` of every benchmark, at the largest k of each line."""
    names: set[str] = set()
    for line in lines:
        largest: dict[str, int] = {}
        for metric in line:
            parsed = re.fullmatch(rf"(val-core/.+/acc/{kind}@)(\d+)", metric)
            if parsed:
                largest[parsed[1]] = max(int(parsed[2]), largest.get(parsed[1], 0))
        names |= {f"{stem}{k}" for stem, k in largest.items()}
    return tuple(sorted(names))


def _figure(title: str, lines: Sequence[types.Json], names: Sequence[str]) -> str:
    """An inline SVG of the named metrics by round, with their intervals; empty if no line has any of them."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(
            "reval report draws with matplotlib, which is not installed. Run: pip install matplotlib"
        ) from error
    series = {
        name: [(line["training/round"], line[name]) for line in lines if line.get(name) is not None] for name in names
    }
    series = {name: points for name, points in series.items() if points}
    if not series:
        return ""
    figure = Figure(figsize=(5.5, 3.0), layout="constrained")
    axes = figure.add_subplot()
    for name, points in series.items():
        (curve,) = axes.plot(*zip(*points, strict=True), marker="." if len(points) < 60 else None, label=name)
        bounds = [
            (line["training/round"], line[f"{name}/low"], line[f"{name}/high"])
            for line in lines
            if _has_interval(line, name)
        ]
        if bounds:
            rounds, low, high = zip(*bounds, strict=True)
            axes.fill_between(rounds, low, high, alpha=0.2, color=curve.get_color(), linewidth=0)
    axes.set(title=title, xlabel="round")
    axes.grid(alpha=0.3)
    if len(series) > 1:
        for label in axes.legend(fontsize="small").get_texts():
            label.set_parse_math(False)  # a benchmark's name may hold dollar signs
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def _has_interval(line: types.Json, name: str) -> bool:
    return line.get(f"{name}/low") is not None and line.get(f"{name}/high") is not None


def _table(lines: Sequence[types.Json]) -> str:
    rounds = [line for line in lines if "critic/score/mean" in line]
    if not rounds:
        return ""
    names = (
        "training/round",
        "critic/score/mean",
        "actor/loss",
        "actor/grad_norm",
        "response_length/mean",
        "timing_s/round",
    )
    rows = "".join(
        "<tr>"
        + "".join(f"<td>{line.get(name):.4g}</td>" if line.get(name) is not None else "<td></td>" for name in names)
        + "</tr>"
        for line in ([rounds[0], rounds[-1]] if len(rounds) > 1 else rounds)
    )
    return (
        "<p>First and last round:</p><table><tr>"
        + "".join(f"<th>{name}</th>" for name in names)
        + f"</tr>{rows}</table>"
    )
