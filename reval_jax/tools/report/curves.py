"""The charts of a report: which metrics, in which order, and what each says; of one run, or of two on the same axes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from reval_jax import types
from reval_jax.tools.report import charts, choice, headline, reading

MAX_MARKS = 300
"""Vertical lines of a chart; of more resets, the first, the last and some evenly between are drawn."""

Bounds = Sequence[tuple[float, float, float]]


class Panel(NamedTuple):
    """A chart."""

    title: str
    about: str  # what it shows and how to read it
    metrics: tuple[tuple[str, str], ...]  # name in metrics.jsonl, label
    limits: tuple[float, float] | None = None  # of y; None fits the values
    has_resets: bool = False
    may_be_log: bool = False
    is_stacked: bool = False


SCORE = Panel(
    "Score of the sampled responses",
    "The mean reward from the verifier. Band: 95% interval, over questions where a round has several, else over responses.",
    ((reading.SCORE, "score"),),
    limits=(0.0, 1.0),
    has_resets=True,
)

AGES = (
    *((0, "fresh"), (1, "1 round"), (2, "2 to 3")),
    *((4, "4 to 7"), (8, "8 to 15"), (16, "16 or more")),
)
"""Of `round_metrics.by_age`, with labels."""

VERDICTS = Panel(
    "Verdicts",
    "Share of the round's responses with each verdict.",
    tuple((f"verifier/{kind}", kind) for kind in types.VERDICTS),
    limits=(0.0, 1.0),
    is_stacked=True,
)

GROUPS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Learning",
        (
            Panel(
                "Distance from the reference",
                "Nats a response. It grows from 0, and falls to 0 when the reference becomes the policy.",
                (("actor/kl_ref", "fresh responses"), ("reval/log_ratio", "trained batches")),
                has_resets=True,
            ),
            Panel(
                "Residual",
                "Nats. What is left of a trajectory's Bellman equation: the size falls as the policy absorbs the reward.",
                (
                    ("reval/residual_abs", "size, all updates"),
                    ("reval/fresh/residual_abs", "size, fresh batch"),
                    ("reval/residual_mean", "mean with its sign"),
                ),
                has_resets=True,
            ),
            Panel(
                "Value gap",
                "Nats. V of the policy at the end of the prompt, less that of the reference.",
                (("reval/value_gap", "all updates"), ("reval/fresh/value_gap", "fresh batch")),
                has_resets=True,
            ),
            Panel(
                "Loss",
                "The objective's own, mean over the round's updates.",
                (("actor/loss", "loss"),),
                may_be_log=True,
            ),
            Panel(
                "Gradient norm before the clip",
                "A spike is a batch that pulls hard; a rise that lasts is a warning.",
                (("actor/grad_norm", "gradient norm"),),
                may_be_log=True,
            ),
            Panel(
                "Entropy",
                "Nats a token. It falls slowly; near 0 the policy samples one response over and over.",
                (("actor/entropy", "entropy"),),
            ),
        ),
    ),
    (
        "Responses",
        (
            Panel(
                "Response length",
                "Tokens, the end token included.",
                (("response_length/mean", "mean"), ("response_length/max", "longest")),
            ),
            Panel(
                "Cut responses",
                "Share of responses that reached the limit of tokens.",
                (("response_length/clip_ratio", "cut"),),
                limits=(0.0, 1.0),
            ),
        ),
    ),
    (
        "Replay",
        (
            Panel(
                "Age of the buffer's trajectories",
                "Rounds since they were sampled.",
                (("replay/age_mean", "mean"), ("replay/age_max", "oldest")),
            ),
            Panel(
                "Uses of a trajectory",
                "Updates that trained on it: so far, of those in the buffer; in all, of those that left it.",
                (("replay/reuse_mean", "in the buffer"), ("replay/reuse_at_eviction", "when it left")),
            ),
            Panel(
                "Residual by age",
                "Size in nats, of what the round trained on, by rounds since it was sampled.",
                tuple((f"reval/age/{age}/residual_abs", label) for age, label in AGES),
            ),
            Panel(
                "Value gap by age",
                "Nats: V of the policy less V of the reference, by rounds since the trajectory was sampled.",
                tuple((f"reval/age/{age}/value_gap", label) for age, label in AGES),
            ),
            Panel(
                "Fresh share of what was trained on",
                "1 is on-policy training; the rest comes from replay.",
                (("replay/fresh_fraction", "fresh"),),
                limits=(0.0, 1.0),
            ),
        ),
    ),
    (
        "Time",
        (
            Panel(
                "Seconds of a round by phase",
                "Wall-clock time of the first process.",
                tuple(
                    (f"timing_s/{phase}", label)
                    for phase, label in (
                        ("generate", "sampling"),
                        ("verify", "grading"),
                        ("reference", "reference scores"),
                        ("update", "updates"),
                        ("eval", "evaluation"),
                        ("save", "saving"),
                        ("round", "other"),
                    )
                ),
                is_stacked=True,
            ),
            Panel(
                "Tokens a second",
                "Of sampling and of updates.",
                (("perf/rollout_tokens_per_s", "sampling"), ("perf/update_tokens_per_s", "updates")),
                may_be_log=True,
            ),
        ),
    ),
)

_HELD_OUT = (
    (
        "mean",
        "Held-out avg@k",
        "Mean reward on held-out questions; round 0 is before training. Band: 95% interval over questions.",
    ),
    (
        "pass",
        "Held-out pass@k",
        "Share of held-out questions that at least one of k responses answers. Band: 95% interval.",
    ),
    ("maj", "Held-out maj@k", "Reward of the most frequent answer among k. Band: 95% interval."),
)


def sections(runs: Sequence[reading.Run]) -> str:
    """HTML of all charts that have a point; of two runs every chart shows both on the same axes."""
    # Areas of two runs need a row of their own.
    score = (SCORE, VERDICTS, *_held_out(runs)) if len(runs) == 1 else (SCORE, *_held_out(runs), VERDICTS)
    groups = [("Score", score), *GROUPS]
    drawn = [(title, [figure(panel, runs) for panel in panels]) for title, panels in groups]
    return "".join(
        f'<section><h2>{title}</h2><div class="panels">{"".join(figures)}</div></section>'
        for title, figures in drawn
        if any(figures)
    )


def _held_out(runs: Sequence[reading.Run]) -> list[Panel]:
    panels = []
    for kind, title, about in _HELD_OUT:
        names = sorted({name for run in runs for name in headline.held_out_metrics(run.lines, kind)})
        labelled = tuple((name, f"{headline.benchmark_of(name)} @{name.rpartition('@')[2]}") for name in names)
        panels.append(Panel(title, about, labelled, limits=(0.0, 1.0)))
    return panels


def figure(panel: Panel, runs: Sequence[reading.Run]) -> str:
    """HTML of a chart; empty if no run has any of its metrics."""
    if panel.is_stacked:
        return _stacked(panel, runs)
    drawn = [
        charts.Curve(
            label if len(runs) == 1 else f"{label}, {'AB'[index]}",
            points,
            _bounds(run, metric),
            # Two runs of one metric differ in colour too.
            (index if len(panel.metrics) == 1 else number) % charts.NUM_COLOURS,
            is_dashed=index == 1,
        )
        for index, run in enumerate(runs)
        for number, (metric, label) in enumerate(panel.metrics)
        if (points := run.series(metric))
    ]
    if not drawn:
        return ""
    values = [y for curve in drawn for _, y in curve.points]
    limits = (
        panel.limits if panel.limits and min(values) >= panel.limits[0] and max(values) <= panel.limits[1] else None
    )
    marks = runs[0].resets if panel.has_resets and len(runs) == 1 else []
    shown = choice.spread(marks, MAX_MARKS)
    axes = charts.axes_of(drawn, limits=limits, may_be_log=panel.may_be_log, marks=shown)
    about = panel.about + (" Logarithmic." if axes.is_log else "")
    if marks:
        some = f"{len(shown):,} of the {len(marks):,} " if len(shown) < len(marks) else ""
        about += f" Vertical lines: {some}resets of the reference."
    keys = [(curve.label, curve.colour, curve.is_dashed) for curve in drawn]
    return _html(panel.title, about, keys if len(keys) > 1 else [], charts.curves(drawn, axes, name=panel.title))


def _bounds(run: reading.Run, metric: str) -> Bounds:
    if metric == reading.SCORE:
        scores = headline.scores_of(run)
        return [(each.round, each.low, each.high) for each in scores if each.low is not None and each.high is not None]
    return run.bounds(metric)


def _stacked(panel: Panel, runs: Sequence[reading.Run]) -> str:
    """One chart of areas for each run, on the same axes."""
    of_runs = [_layers(panel, run) for run in runs]
    totals = [
        sum(values)
        for layers in of_runs
        for values in zip(*([y for _, y in layer.points] for layer in layers), strict=True)
    ]
    if not totals:
        return ""
    # The first rounds, which compile, would leave nothing to see of the others.
    limits = panel.limits or (0.0, min(max(totals), 4 * statistics.median(totals)) * 1.05 or 1.0)
    shared = charts.axes_of([layer for layers in of_runs for layer in layers], limits=limits)
    about, num_beyond = panel.about, sum(total > limits[1] * 1.0001 for total in totals)
    if num_beyond:
        rounds = "1 round" if num_beyond == 1 else f"{num_beyond} rounds"
        about += f" Beyond the axis: {rounds}, of up to {charts.number(max(totals))} s."
    figures = []
    for index, layers in enumerate(of_runs):
        if not layers:
            continue
        title = panel.title if len(runs) == 1 else f"{panel.title}, {'AB'[index]}"
        keys = [(layer.label, layer.colour, False) for layer in layers]
        figures.append(_html(title, about, keys, charts.stacked(layers, shared, name=title), is_area=True))
    return "".join(figures) if len(figures) == 1 else f'<div class="pair">{"".join(figures)}</div>'


def _layers(panel: Panel, run: reading.Run) -> list[charts.Curve]:
    """The panel's areas: shares of the sampled responses, or seconds with what no phase names as the last."""
    names = [name for name, _ in panel.metrics]
    lines = [line for line in run.lines if any(reading.is_number(line.get(name)) for name in names)]
    if panel.limits:
        lines = [line for line in lines if reading.is_number(num := line.get("training/sampled")) and num > 0]
        whole = [line["training/sampled"] for line in lines]
        values = {
            name: [_or_zero(line.get(name)) / num for line, num in zip(lines, whole, strict=True)] for name in names
        }
    else:
        values = {name: [_or_zero(line.get(name)) for line in lines] for name in names}
        phases = [values[name] for name in names[:-1]]
        rest = [max(0.0, whole - sum(parts)) for whole, *parts in zip(values[names[-1]], *phases, strict=True)]
        values[names[-1]] = rest
    return [
        charts.Curve(
            label, [(line["training/round"], y) for line, y in zip(lines, values[name], strict=True)], colour=number
        )
        for number, (name, label) in enumerate(panel.metrics)
        if any(values[name])
    ]


def _or_zero(value: object) -> float:
    return float(value) if reading.is_number(value) else 0.0


def _html(title: str, about: str, keys: Sequence[tuple[str, int, bool]], chart: str, *, is_area: bool = False) -> str:
    legend = charts.legend(keys) if keys else ""
    kind = "panel area-panel" if is_area else "panel"
    return (
        f'<figure class="{kind}"><figcaption><b>{headline.text(title)}</b> {headline.text(about)}</figcaption>'
        f"{legend}{chart}</figure>"
    )
