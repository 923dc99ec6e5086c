"""Two runs in one report: their outcomes beside each other, and the settings that differ."""

from __future__ import annotations

from collections.abc import Sequence

from reval_jax.tools.report import headline, reading

_PLACES = frozenset(
    {"run.sinks", "checkpoint.every", "checkpoint.keep", "checkpoint.stall_seconds", "run.grace_seconds"}
)
"""Settings that change no result: below the others."""


def headlines(runs: Sequence[reading.Run]) -> str:
    """HTML of both runs' headlines, A to the left."""
    columns = "".join(
        f'<div class="column"><h2 class="run-{"ab"[index]}">{"AB"[index]}: {headline.text(run.name)}</h2>'
        f"{headline.section(run)}</div>"
        for index, run in enumerate(runs)
    )
    return (
        f'<p class="lead outcome">{headline.text(outcome(*runs))}</p>'
        "<p>A is drawn solid, B dashed. <code>reval report --run-dir</code> of one run alone shows its rollouts too.</p>"
        f'<div class="columns">{columns}</div>'
    )


def outcome(one: reading.Run, other: reading.Run) -> str:
    """Which run's score is higher in the last round that both have, and whether the two can be told apart."""
    of_other = {score.round: score for score in headline.scores_of(other)}
    shared = [(score, of_other[score.round]) for score in headline.scores_of(one) if score.round in of_other]
    if not shared:
        return "The runs have no round in common."
    ours, theirs = shared[-1]
    said = {
        1: "B is higher",
        -1: "A is higher",
        0: "their 95% intervals overlap, so they are not told apart",
        None: "without an interval of both they cannot be told apart",
    }[headline.order_of(ours, theirs)]
    return f"In round {ours.round}, the last that both have, A scores {ours} and B {theirs}: {said}."


def differences(one: reading.Run, other: reading.Run) -> str:
    """HTML of a table of the settings that differ."""
    if not (one.settings and other.settings):
        return "<section><h2>Settings that differ</h2><p>One of the runs has no readable settings.</p></section>"
    names = sorted(one.settings.keys() | other.settings.keys(), key=lambda name: (name in _PLACES, name))
    absent = object()
    rows = [
        (name, *("(none)" if value is absent else value for value in values))
        for name in names
        if len(set(map(repr, values := (one.settings.get(name, absent), other.settings.get(name, absent))))) > 1
    ]
    if not rows:
        return "<section><h2>Settings that differ</h2><p>None: both runs have the same settings.</p></section>"
    cells = "".join(f"<tr>{''.join(f'<td>{headline.text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return (
        '<section><h2>Settings that differ</h2><table class="settings"><thead><tr><th>setting</th>'
        f"<th>A: {headline.text(one.name)}</th><th>B: {headline.text(other.name)}</th></tr></thead>"
        f"<tbody>{cells}</tbody></table></section>"
    )
