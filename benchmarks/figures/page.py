"""Writes the tables of docs/evidence.md and docs/evidence_protocol.md; the text around them is written by hand.

    python -m benchmarks.figures.page

A table stands between two comments, `<!-- NAME -->` and `<!-- end -->`. Those of the protocol (`contrasts`, `costs`) come from
the plans alone; those of the evidence (`losses`, `claims`, and a figure's name) from the records docs/evidence/NAME.json.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.figures import curves, outcomes, plan
from benchmarks.figures.experiments import FIGURES, ON_TEST_BED
from reval_jax import durable

DOCS = Path("docs")
LABELS = {
    "log_t95": "rounds to 0.95",
    "log_updates": "updates to 0.95",
    "catch_up": "share of the rounds",
    "area": "mean score",
    "early": "score of rounds 2–4",
    "final": "score of the last 5 rounds",
    "slope": "rise per 10 rounds",
    "collapsed": "share collapsed",
    "held_out": "held-out accuracy",
    "kl_ref": "KL, nats",
}
RATIOS = ("log_t95", "log_updates", "catch_up")
"""Outcomes that are logarithms, and shown as ratios."""


class RecordError(ValueError):
    """A record does not fit its figure; the message says what to do."""


def main() -> None:
    """Rewrites every table of both pages from the plans and from the records that exist."""
    for page in ("evidence.md", "evidence_protocol.md"):
        path = DOCS / page
        if path.exists():
            text = with_tables(path.read_text(encoding="utf-8"), tables(records(DOCS / "evidence")))
            durable.write(path, text.encode())


def records(directory: Path) -> dict[str, dict[str, Any]]:
    """Figure's name → its record, of those that exist.

    Raises:
      RecordError: a record has runs of a variant that its figure does not have, and that no table would show.
    """
    files = {name: directory / f"{name}.json" for name in FIGURES}
    found = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.exists()}
    for name, record in found.items():
        known = {variant.name for variant in FIGURES[name].variants}
        if unknown := sorted({run["variant"] for run in record["runs"]} - known):
            raise RecordError(
                f"{files[name]} has runs of {', '.join(unknown)}, which are no variants of {name} "
                f"({', '.join(sorted(known))}): `python -m benchmarks.figures run {name}` writes it again."
            )
    return found


def with_tables(text: str, named: Mapping[str, str]) -> str:
    """The text of a page with each named table in its place.

    Raises:
      ValueError: the page has a place for a table that has no such name.
    """

    def table(match: re.Match[str]) -> str:
        if match[1] not in named:
            raise ValueError(
                f"a page has the comment <!-- {match[1]} -->, but the tables are {', '.join(sorted(named))}."
            )
        return f"<!-- {match[1]} -->\n\n{named[match[1]]}\n\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def tables(found: Mapping[str, outcomes.Record]) -> dict[str, str]:
    """Name → Markdown, of every table."""
    compared = {name: outcomes.comparisons(FIGURES[name], record) for name, record in found.items()}
    named = {"contrasts": contrasts(), "costs": costs(), "losses": losses(compared), "claims": claims(compared)}
    for name, figure in FIGURES.items():
        named[name] = of_figure(figure, found[name], compared[name]) if name in found else "Not run yet."
    return named


# --- Of the plans ---


def contrasts() -> str:
    """Every comparison, as it was decided before the runs."""
    lines = ["| figure | compared | outcome, tasks | confirmed if | refuted if |", "|---|---|---|---|---|"]
    for figure in FIGURES.values():
        for contrast in figure.contrasts:
            confirmed, refuted = _conditions(contrast)
            tasks = ", ".join(contrast.tasks)
            if contrast.other_tasks:
                tasks += " against " + ", ".join(contrast.other_tasks)
            lines.append(
                f"| {_title(figure)} | {compared(contrast)} | {LABELS[contrast.outcome]}; {tasks} | "
                f"{confirmed}. {contrast.confirms} | {refuted}. {contrast.refutes} |"
            )
    return "\n".join(lines)


def costs() -> str:
    """Runs and seconds of every figure by itself, and of all, whose common cells and searches run once."""
    lines = ["| figure | question | tasks × variants × seeds × rounds | runs | runs of the search | at most, minutes |"]
    lines.append("|---|---|---|---|---|---|")
    for figure in FIGURES.values():
        cost = plan.cost(figure)
        size = f"{len(figure.tasks)} × {len(figure.variants)} × {len(figure.seeds)} × {figure.rounds}"
        minutes = f"{cost.seconds / 60:.0f}"
        lines.append(
            f"| {_title(figure)} | {figure.question} | {size} | {cost.runs} | {cost.search_runs} | {minutes} |"
        )
    cost = plan.total([FIGURES[name] for name in ON_TEST_BED])
    lines.append(
        f"| all of the test bed | what they share once | | {cost.runs} | {cost.search_runs} | {cost.seconds / 60:.0f} |"
    )
    return "\n".join(lines)


def _title(figure: plan.Figure) -> str:
    return f"`{figure.name}`, **added after runs had been seen**" if figure.is_exploratory else f"`{figure.name}`"


def compared(contrast: plan.Contrast) -> str:
    """The two sides of a contrast in words."""
    second = contrast.second
    if isinstance(second, plan.Plateau):
        return f"{contrast.first} − p*({second.beta:g})"
    sign = "/" if contrast.outcome in RATIOS else "−"
    if contrast.other_tasks:  # of one variant on two levels
        one, other = (", ".join(curves.groups(tasks)) for tasks in (contrast.tasks, contrast.other_tasks))
        return f"{contrast.first}: {one} {sign} {other}"
    return f"{contrast.first} {sign} {second}" if isinstance(second, str) else f"{contrast.first} − {second:g}"


def _conditions(contrast: plan.Contrast) -> tuple[str, str]:
    """What the interval has to be for either verdict."""
    margin = contrast.margin
    if contrast.outcome in RATIOS:
        low, high = f"{math.exp(-margin):.2f}", f"{math.exp(margin):.2f}"
    else:
        low, high = f"{-margin:g}".replace("-", "−"), f"{margin:g}"
    match contrast.expects:
        case "greater":
            return f"above {high}", f"below {high}"
        case "less":
            return f"below {low if margin else high}", f"above {low if margin else high}"
        case _:
            return f"inside {low} … {high}", f"outside {low} … {high}"


# --- Of the records ---


def losses(compared_by_name: Mapping[str, list[outcomes.Comparison]]) -> str:
    """Where ReVal loses: refuted claims that would have spoken for it."""
    lost = [
        f"- `{name}`: {compared(each.contrast)}, {LABELS[each.contrast.outcome]}: {seen(each)}. {each.contrast.refutes}"
        for name, found in compared_by_name.items()
        for each in found
        if each.contrast.for_reval and each.verdict == "refuted"
    ]
    return "\n".join(lost) or "In no comparison that was decided."


def claims(compared_by_name: Mapping[str, list[outcomes.Comparison]]) -> str:
    """Every contrast of every record with what was seen, refuted ones first."""
    order = ("refuted", "not told apart", "confirmed", "exploratory", "unfinished")
    rows = [(name, each) for name, found in compared_by_name.items() for each in found]
    rows.sort(key=lambda row: order.index(row[1].verdict))
    lines = ["| verdict | claim | figure: compared | seen, 95% interval | pairs |", "|---|---|---|---|---|"]
    for name, each in rows:
        what = f"`{name}`: {compared(each.contrast)}, {LABELS[each.contrast.outcome]}"
        lines.append(f"| **{each.verdict}** | {each.contrast.confirms} | {what} | {seen(each)} | {_pairs(each)} |")
    return "\n".join(lines) if rows else "No figure has been run yet."


def of_figure(figure: plan.Figure, record: outcomes.Record, found: list[outcomes.Comparison]) -> str:
    """A figure's contrasts with their p-values, a line of each variant's outcomes with its rate, and notes."""
    lines = ["| compared | outcome | seen, 95% interval | pairs | p, Holm | verdict |", "|---|---|---|---|---|---|"]
    for each in found:
        lines.append(
            f"| {compared(each.contrast)} | {LABELS[each.contrast.outcome]} | {seen(each)} | {_pairs(each)} | "
            f"{each.p:.2g}, {each.p_holm:.2g} | {each.verdict} |"
        )
    return "\n".join([*lines, "", *_variants(figure, record), *_notes(figure, record)])


def seen(each: outcomes.Comparison) -> str:
    """The effect with its interval, a ratio where the outcome is a logarithm."""
    if not each.pairs:
        return "–"
    is_ratio = each.contrast.outcome in RATIOS
    # Rounded first, so that the last bits of a mean are no number of their own.
    value, low, high = (round(bound, 4) + 0.0 for bound in (each.ratio if is_ratio else each.effect))
    sign = "" if is_ratio else "+"
    text = f"{value:{sign}.3g}, {low:{sign}.3g} … {high:{sign}.3g}"
    return text.replace("-", "−") + (" times" if is_ratio else "")


def _pairs(each: outcomes.Comparison) -> str:
    """Pairs, and what is unusual about them."""
    text = str(each.pairs) if not each.missing else f"{each.pairs} of {each.expected_pairs}"
    if any(each.failed):
        text += f"; failed: {each.failed[0]} and {each.failed[1]}"
    if any(each.censored):
        text += f"; not reached: {each.censored[0]:.0%} and {each.censored[1]:.0%}"
    return text


def _variants(figure: plan.Figure, record: outcomes.Record) -> list[str]:
    """A row for each variant: rate, and by task the geometric mean of T95 (those that reached it) or the last score."""
    heads = " | ".join(f"{task}: {'T95 (reached), ' if figure.stops_at_95 else ''}last score" for task in figure.tasks)
    lines = [f"| variant | rate | {heads} |", "|---|---" + "|---" * len(figure.tasks) + "|"]
    for variant in figure.variants:
        cells = outcomes.by_cell(record, variant.name)
        rates = sorted({float(run["learning_rate"]) for run in cells.values()})
        row = [variant.name, ", ".join(f"{rate:.2g}" for rate in rates) or "–"]
        for task in figure.tasks:
            runs = [run for (of, _), run in sorted(cells.items()) if of == task]
            row.append(_cell(figure, runs))
        lines.append("| " + " | ".join(row) + " |")
    return lines


def _notes(figure: plan.Figure, record: outcomes.Record) -> list[str]:
    """What else a reader has to know, after an empty line each."""
    notes = []
    of_level = list(curves.groups(figure.tasks).values())
    if len(of_level) > 1 and all(len(tasks) > 1 for tasks in of_level):
        share = outcomes.between_share(record, figure.variants[0].name, of_level, figure.rounds)
        chance = (len(of_level) - 1) / (len(figure.tasks) - 1)
        where = "of the variance of the prompts' mean log T95 lies between difficulties"
        notes.append(f"A share of {share:.2f} {where}; by chance {chance:.2f}.")
    if edges := [method for method, each in curves.searches(figure, record).items() if each.is_at_edge]:
        notes.append(
            f"The best rate is at the edge of what was searched, after both extensions, for: {', '.join(edges)}."
        )
    if values := curves.reference_values(figure, record):
        listed = ", ".join(f"{value:.1f} ({task})" for task, value in values.items())
        notes.append(f"V_ref(s₁) in nats, from the first residual of TBRM: {listed}.")
    return [line for note in notes for line in ("", note)]


def _cell(figure: plan.Figure, runs: list[outcomes.Run]) -> str:
    if not runs:
        return "–"
    final = sum(outcomes.outcome(run, "final", figure.rounds) for run in runs) / len(runs)
    if not figure.stops_at_95:
        return f"{final:.2f}"
    times = [outcomes.t95(run, figure.rounds) for run in runs]
    mean = math.exp(sum(math.log(each.round) for each in times) / len(times))
    return f"{mean:.1f} ({sum(not each.is_censored for each in times)}/{len(times)}), {final:.2f}"


if __name__ == "__main__":
    main()
