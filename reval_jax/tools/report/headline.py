"""The report's first screen: what was trained and how, what came of it, and what a reader must know before the curves."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from reval_jax import config as config_lib
from reval_jax import terminal, types
from reval_jax.evaluate import intervals
from reval_jax.tools.report import reading

_WINDOW = 5  # rounds whose mean stands for the end of a run
_NO_WIDTH = 1e-9  # of an interval, but for rounding
_MANY_CUT, _MANY_UNGRADED = 0.2, 0.01  # shares from which on they are a warning


class Score(NamedTuple):
    """A score with its 95% interval; low and high are None where the metrics have none.

    Where all that it is a mean of is equal, no resample differs, and low equals high: that says nothing of what others would be.
    """

    round: int
    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        value = f"{self.value:.3f}"
        if bounds := self.interval:
            return f"{value} [{bounds[0]:.3f}, {bounds[1]:.3f}]"
        return value if self.low is None or self.high is None else f"{value} (all equal, so no interval)"

    @property
    def interval(self) -> tuple[float, float] | None:
        """Low and high, if they say how sure the score is."""
        if self.low is None or self.high is None or self.high - self.low < _NO_WIDTH:
            return None
        return self.low, self.high


def text(value: object) -> str:
    """Any text as HTML that shows it and obeys nothing of it."""
    return html.escape(terminal.visible(str(value)))


def section(run: reading.Run) -> str:
    """HTML of the run's headline: one sentence on what was trained, one on what came of it, facts, warnings."""
    warnings = "".join(f"<li>{text(each)}</li>" for each in warnings_of(run))
    return (
        f'<p class="lead">{text(subject(run))}</p>'
        f'<p class="lead outcome">{text(outcome(run))}</p>'
        + "".join(f'<p class="lead">{text(each)}</p>' for each in _held_out(run))
        + _facts(run)
        + (f'<div class="warnings"><h3>To know first</h3><ul>{warnings}</ul></div>' if warnings else "")
    )


def subject(run: reading.Run) -> str:
    """What was trained: model, task and method in a few sentences."""
    if not run.settings:
        return "The run has no readable settings (config.yaml), so its model, task and method are not known."
    model, data = _short(run.setting("model.path")), _short(run.setting("task.dataset"))
    prompts, samples = run.setting("rollout.prompts_per_round", "?"), run.setting("rollout.samples_per_prompt", "?")
    return (
        f"{model} learns {data} by {method(run)} Each round samples {samples} responses to {_count(prompts, 'question')}, "
        f"of at most {run.setting('rollout.max_response_tokens', '?')} tokens."
    )


def method(run: reading.Run) -> str:
    """The algorithm as one or two sentences, from the settings that choose it."""
    objective = str(run.setting("update.objective"))
    name = config_lib.IN_WORDS.get(objective, f"the objective {objective}")
    has_residual = bool(run.series("reval/residual_abs"))
    name += f" with β = {run.setting('update.beta')}" if has_residual else ""
    updates, batch = reading.whole(run.setting("update.updates_per_round", 1)), run.setting("update.batch_size", "?")
    most = reading.whole(run.setting("update.max_updates_per_round", 0)) or 0
    is_adaptive = updates is not None and most > updates
    draws = run.setting("update.draws", "auto")
    if draws == "replay" or (draws == "auto" and has_residual):
        capacity = run.setting("replay.capacity", "?")
        fresh = "the first on the fresh responses, the others " if run.setting("update.fresh_first", True) else ""
        number = f"{updates} to {most} updates a round, adaptive," if is_adaptive else f"{_updates(updates)} a round"
        how = f"{number} on {batch} responses each, {fresh}drawn from the last {capacity}."
        if updates == 1 and fresh and not is_adaptive:
            how = f"one update a round on the {batch} fresh responses."
    else:
        passes = reading.whole(run.setting("update.passes", 1))
        how = f"{_updates(None if updates is None or passes is None else updates * passes)} a round on the fresh responses."
    return f"{name}: {how}"


def _updates(number: int | None) -> str:
    return "an unknown number of updates" if number is None else _count(number, "update")


def outcome(run: reading.Run) -> str:
    """What came of it: first, last and best score, and whether the first and the last can be told apart."""
    scores = scores_of(run)
    if not scores:
        return "No round has a score." if run.lines[-1]["training/round"] > 0 else "No round has finished."
    first, last, best = scores[0], scores[-1], max(scores, key=lambda score: score.value)
    if len(scores) == 1:
        return f"The score of the sampled responses is {last} in round {last.round}, the only one."
    # Of two rounds the best is too often the last for a sentence of its own.
    also = f" The best of {len(scores)} rounds is round {best.round}: {best.value:.3f}." if len(scores) > 2 else ""
    if _is_constant(scores):
        also = ""
    if len(scores) >= 2 * _WINDOW:
        mean = sum(score.value for score in scores[-_WINDOW:]) / _WINDOW
        also = f" The mean of the last {_WINDOW} rounds is {mean:.3f}." + also
    return (
        f"The score of the sampled responses went from {first} in round {first.round} to {last} in round {last.round}: "
        f"{_compared(first, last)}.{also}"
    )


def scores_of(run: reading.Run) -> list[Score]:
    """The mean score of each round's sampled responses with its interval.

    Where the metrics have no interval, as those of earlier versions, it is Wilson's over the round's responses, if the verifier
    grades with 0 and 1 alone.
    """
    bounds = {round: (low, high) for round, low, high in run.bounds(reading.SCORE)}
    is_binary = not run.setting("verifier.function", "")
    found = []
    for line in run.rounds:
        round, value, num = line["training/round"], line[reading.SCORE], reading.whole(line.get("training/sampled"))
        if not reading.is_number(value):
            continue
        low, high = bounds.get(round, (None, None))
        if low is None and is_binary and num is not None and num > 0 and 0 <= value <= 1:
            _, low, high = intervals.wilson(value, num)
        found.append(Score(round, value, low, high))
    return found


def _is_constant(scores: Sequence[Score]) -> bool:
    return all(score.value == scores[0].value for score in scores)


def held_out_metrics(lines: Sequence[types.Json], kind: str) -> list[str]:
    """`val-core/{benchmark}/acc/{kind}@{k}` of every benchmark, at the largest k of each line, sorted."""
    names: set[str] = set()
    for line in lines:
        largest: dict[str, int] = {}
        for metric in line:
            if parsed := re.fullmatch(rf"(val-core/.+/acc/{kind}@)(\d+)", metric):
                largest[parsed[1]] = max(int(parsed[2]), largest.get(parsed[1], 0))
        names |= {f"{stem}{k}" for stem, k in largest.items()}
    return sorted(names)


def benchmark_of(metric: str) -> str:
    """The benchmark in a held-out metric's name."""
    return metric.removeprefix("val-core/").rsplit("/acc/", 1)[0]


def warnings_of(run: reading.Run) -> list[str]:
    """What a reader must know before the curves, each in a sentence."""
    lines = run.rounds
    found = [*_ending(run), *run.notes]
    if not lines:
        return found
    latest = lines[-1]
    skipped = latest.get("training/skipped")
    if reading.is_number(skipped) and skipped > 0:
        found.append(f"{_count(skipped, 'update')} had a loss or gradient that was not finite, and were skipped.")
    sampled = run.total("training/sampled")
    ungraded = {kind: run.total(f"verifier/{kind}") for kind in ("limit", "timeout", "crash")}
    if sampled and sum(ungraded.values()) > _MANY_UNGRADED * sampled:
        kinds = ", ".join(f"{count} {kind}" for kind, count in ungraded.items() if count)
        found.append(
            f"Grading failed on {sum(ungraded.values()) / sampled:.1%} of the responses ({kinds}): they count 0."
        )
    cut = [line.get("response_length/clip_ratio") for line in lines[-5:]]
    recent = [share for share in cut if reading.is_number(share)]
    if recent and sum(recent) / len(recent) > _MANY_CUT:
        found.append(
            f"{sum(recent) / len(recent):.0%} of the responses of the last {_count(len(recent), 'round')} were cut at the limit "
            f"of {run.setting('rollout.max_response_tokens', '?')} tokens."
        )
    scores = scores_of(run)
    if fallen := _fallen(scores):
        found.append(fallen)
    if _is_constant(scores) and len(scores) > 1:
        found.append(f"The score is {scores[0].value:g} in every round: a value like this teaches nothing.")
    if lines[0]["training/round"] > 1:
        found.append(f"The metrics begin with round {lines[0]['training/round']}: earlier lines were lost.")
    return found


def _fallen(scores: Sequence[Score]) -> str:
    """That the score has fallen, if each of the last rounds is below each of the best rounds in a row; empty otherwise.

    The best single round is the luckiest of many, so that the last one is nearly always below it.
    """
    size = min(_WINDOW, len(scores) // 2)
    if size < 3:
        return ""
    starts = range(len(scores) - 2 * size + 1)
    start = max(starts, key=lambda first: sum(score.value for score in scores[first : first + size]))
    best, last = scores[start : start + size], scores[-size:]
    if max(score.value for score in last) >= min(score.value for score in best):
        return ""
    means = [sum(score.value for score in part) / size for part in (best, last)]
    return (
        f"The score has fallen: its mean was {means[0]:.3f} in rounds {best[0].round} to {best[-1].round}, and is {means[1]:.3f} "
        f"in rounds {last[0].round} to {last[-1].round}, every one of which is below every one of those."
    )


def _ending(run: reading.Run) -> list[str]:
    """Whether the run has ended, as a warning if it has not."""
    last, planned = run.lines[-1]["training/round"], run.setting("run.rounds", None)
    if reading.whole(planned) is None or last >= planned or has_stopped_at_score(run):
        return []
    state = "a process is training it now" if run.is_alive else "the command that began it resumes it"
    return [f"The run has not ended: {last} of {planned} rounds are done; {state}."]


def has_stopped_at_score(run: reading.Run) -> bool:
    """Whether the last rounds reached `run.stop_score`, which ends a run."""
    goal, needed = run.setting("run.stop_score", None), reading.whole(run.setting("run.stop_rounds", 2))
    if not reading.is_number(goal) or needed is None or needed < 1:
        return False
    recent = [line[reading.SCORE] for line in run.rounds][-needed:]
    return len(recent) == needed and all(reading.is_number(score) and score >= goal for score in recent)


def _held_out(run: reading.Run) -> list[str]:
    """A sentence for each benchmark of two evaluations or more."""
    found = []
    for metric in held_out_metrics(run.lines, "mean"):
        points, bounds = run.series(metric), {round: (low, high) for round, low, high in run.bounds(metric)}
        if len(points) > 1:
            first, last = (
                Score(int(round), value, *bounds.get(round, (None, None))) for round, value in (points[0], points[-1])
            )
            found.append(
                f"On the held-out questions of {benchmark_of(metric)} it went from {first} (round {first.round}) to {last} "
                f"(round {last.round}): {_compared(first, last)}."
            )
    return found


def _compared(first: Score, last: Score) -> str:
    order = order_of(first, last)
    if order is None:
        return "without an interval of both, nobody can say whether it changed"
    return {1: "it rose", -1: "it fell", 0: "their 95% intervals overlap, so they are not told apart"}[order]


def order_of(one: Score, other: Score) -> int | None:
    """1 if the other's interval lies above, -1 if below, 0 if they overlap; None where one has none."""
    if one.interval is None or other.interval is None:
        return None
    return int(other.interval[0] > one.interval[1]) - int(other.interval[1] < one.interval[0])


def _facts(run: reading.Run) -> str:
    latest = run.lines[-1]
    last, planned = latest["training/round"], run.setting("run.rounds", "?")
    ended = (
        "stopped at its score" if has_stopped_at_score(run) and last != planned else "done" if last == planned else ""
    )
    seconds, updates = sum(value for _, value in run.series("timing_s/round")), latest.get("training/updates")
    scores = scores_of(run)
    cards = [
        ("rounds", f"{last} of {planned}", ended),
        ("updates", f"{updates if reading.is_number(updates) else 0:,}", ""),
        ("responses", f"{run.total('training/sampled'):,}", ""),
        ("time", duration(seconds), "summed over rounds"),
        ("resets of the reference", str(len(run.resets)), ""),
    ]
    if scores:
        best = max(scores, key=lambda score: score.value)
        shown = [("first score", scores[0]), ("last score", scores[-1]), (f"best score, round {best.round}", best)]
        kept = shown[:2] if _is_constant(scores) else shown
        cards = [*((name, f"{score.value:.3f}", _interval(score)) for name, score in kept), *cards]
    return (
        '<dl class="facts">'
        + "".join(
            f"<div><dt>{text(name)}</dt><dd>{text(value)}<small>{text(more)}</small></dd></div>"
            for name, value, more in cards
        )
        + "</dl>"
    )


def _interval(score: Score) -> str:
    return f"{score.interval[0]:.3f} to {score.interval[1]:.3f}" if score.interval else ""


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as a person says it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _count(number: object, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _short(path: object) -> str:
    """A file's own name, or the last two parts of another path; a hub id and procedural:NAME stay."""
    name = Path(str(path)).name
    is_file = name.endswith((".jsonl", ".gguf"))
    return name.removesuffix(".jsonl").removesuffix(".gguf") if is_file else "/".join(str(path).split("/")[-2:])
