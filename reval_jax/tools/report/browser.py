"""The report's browser of rollouts: chosen responses as JSON in the page, which browser.js shows as text.

Nothing of a response is ever HTML: the JSON has no `<`, `>` or `&`, and the script sets text only.
"""

from __future__ import annotations

import collections
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reval_jax import rollout_files, run_directory, terminal, types
from reval_jax.tools.report import choice, headline, reading, token_file

MAX_BYTES = 3_000_000
"""Of the JSON in the page."""

_PART = "\ufffd"  # what bytes that are no whole character decode to

MAX_CHARACTERS, MAX_TOKENS = 20_000, 4_000
"""Of one response that the page shows, as text or token by token."""

_LABELS = {
    "log_ratio": "log-ratio to the reference",
    "endogenous_reward": "endogenous reward, last checkpoint",
    "reference_endogenous_reward": "endogenous reward, initial model",
}


def section(run: reading.Run) -> str:
    """HTML of the browser, with what it leaves out and how to get colours; a sentence where there are no rollouts.

    Raises:
      ValueError: token_scores.jsonl.gz is damaged.
    """
    files = run.directory.rollout_files()
    if not files:
        return "<section><h2>Rollouts</h2><p>The run has no rollouts files, so no response can be shown.</p></section>"
    scores = token_file.read(run.directory.token_scores)
    scored = scores.rows if scores else {}
    found = choice.choose(files, budget=MAX_BYTES * 0.8, cost=_cost, first=scored)
    rows, prompts = _fitted(found, scored)
    finished = {line["training/round"] for line in run.lines}
    for row in rows:
        row |= {} if row["r"] in finished else {"u": True}
    content = {
        "verdicts": types.VERDICTS,
        "prompts": prompts,
        "scores": [_LABELS[name] for name in token_file.SCORES],
        "rows": sorted(rows, key=lambda row: (row["r"], row["l"])),
    }
    return (
        f"<section><h2>Rollouts</h2><p>{headline.text(_about(run, files, found, rows))}</p>"
        f"<p>{_colours(run, scores, sum('s' in row for row in rows))}</p>"
        "<noscript><p>Browsing the responses needs JavaScript; the rest of this page does not.</p></noscript>"
        '<div id="browser"></div>'
        f'<script type="application/json" id="rollouts">{embedded(content)}</script></section>'
    )


def embedded(content: Any) -> str:
    """JSON that is safe between script tags: no character in it begins a tag, an entity or a line of a script."""
    written = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", written)


def _cost(record: types.Json) -> float:
    """About the bytes that a response with colours takes in the page."""
    length = min(len(record["response"]), MAX_CHARACTERS)
    return 120 + length * 1.2 + min(record["num_tokens"], MAX_TOKENS) * 20 + min(len(record["prompt"]), 2000) / 4


def _fitted(found: choice.Choice, scored: dict[tuple[int, int], types.Json]) -> tuple[list[types.Json], list[str]]:
    """The chosen responses as the page's rows, as many as fit, and their prompts."""
    prompts: dict[str, int] = {}
    rows, size = [], 0
    for each in found.rows:
        prompt = shown(each.record["prompt"])
        row = _row(each, scored.get(each.key)) | {"p": prompts.get(prompt, len(prompts))}
        needed = len(embedded(row).encode(errors="backslashreplace"))
        needed += 0 if prompt in prompts else len(embedded(prompt).encode(errors="backslashreplace"))
        if size + needed > MAX_BYTES:
            continue
        size += needed + 2
        prompts.setdefault(prompt, len(prompts))
        rows.append(row)
    return rows, list(prompts)


def _row(chosen: choice.Row, scores: types.Json | None) -> types.Json:
    """A response in short keys: round, line, answer, verdict, reward, tokens, is cut; its text, or its tokens and scores.

    The text stands beside the tokens where these together are not it, so that it can be found and read all the same.
    """
    record = chosen.record
    row = {
        "r": chosen.round,
        "l": chosen.line,
        "a": shown(record["answer"]),
        "v": record["verdict"],
        "w": round(record["reward"], 4),
        "n": record["num_tokens"],
        "c": bool(record.get("is_truncated")),
    }
    if scores is None or scores["digest"] != token_file.digest(record["prompt"], record["response"]):
        return row | {"x": shown(record["response"])}
    pieces = _pieces(scores["tokens"], record["response"])
    if pieces is None:
        row["x"] = shown(record["response"])
        pieces = [(token, at, at + 1) for at, token in enumerate(scores["tokens"])]
    tokens = [terminal.visible(text) for text, _, _ in pieces[:MAX_TOKENS]]
    numbers = [
        [round(sum(scores[name][start:end]), 2) for _, start, end in pieces[:MAX_TOKENS]] for name in token_file.SCORES
    ]
    return row | {"t": tokens, "s": numbers} | ({"more": True} if len(pieces) > MAX_TOKENS else {})


def _pieces(tokens: Sequence[str], text: str) -> list[tuple[str, int, int]] | None:
    """The text in parts, each with its tokens' start and end: one token, or several that share a character.

    A token that ends within a character decodes to U+FFFD; what it and its neighbours are together, the text says. None where the
    tokens, one by one, are not the text.
    """
    found, at, start = [], 0, 0
    while start < len(tokens):
        end, token = start + 1, tokens[start]
        if _PART not in token:
            upto = at + len(token)
            if text[at:upto] != token:
                return None
        else:
            while end < len(tokens) and _PART in tokens[end]:
                end += 1
            # They have their whole characters, and at least one more.
            fewest = 1 + sum(len(each.replace(_PART, "")) for each in tokens[start:end])
            upto = text.find(tokens[end], at + fewest) if end < len(tokens) else len(text)
            if upto < 0:
                return None
        found.append((text[at:upto], start, end))
        at, start = upto, end
    return found if at == len(text) else None


def shown(text: str) -> str:
    """The text with what a terminal or a browser would obey as escapes, cut if it is very long."""
    cut = (
        f"… ({len(text):,} characters in all; the page shows {MAX_CHARACTERS:,})" if len(text) > MAX_CHARACTERS else ""
    )
    return terminal.visible(text[:MAX_CHARACTERS]) + cut


def _about(run: reading.Run, files: Mapping[int, Path], found: choice.Choice, rows: Sequence[types.Json]) -> str:
    held_of = collections.Counter(row["r"] for row in rows)
    sampled_of = {line["training/round"]: reading.whole(line.get("training/sampled")) for line in run.lines}
    of_files = {round: _num_responses(file) for round, file in files.items() if sampled_of.get(round) is None}
    sampled = sum(max(held_of[round], num or 0) for round, num in {**sampled_of, **of_files}.items())
    last = max(sampled_of.keys() | held_of.keys())
    held = f"The page holds {len(rows):,} of the {sampled:,} sampled responses"
    if len(rows) < sampled:
        held += (
            f", of {len(held_of)} of {last} rounds: the first and the last that have a rollouts file, others evenly between, "
            "right and wrong ones in turn. All that the run keeps are in RUN/rollouts (zcat prints them)"
        )
    unfinished = ", ".join(str(round) for round in sorted(files.keys() - sampled_of.keys()))
    if unfinished:
        held += f". Unfinished, as metrics.jsonl has no line of it: round {unfinished}"
    damaged = f" Left out as damaged: {'; '.join(found.damaged).rstrip('.')}." if found.damaged else ""
    return f"{held}.{damaged}"


def _num_responses(file: Path) -> int:
    """Of a rollouts file; 0 of a damaged one."""
    try:
        return len(rollout_files.read(file).splitlines())
    except ValueError:
        return 0


def _colours(run: reading.Run, scores: token_file.TokenScores | None, num_coloured: int) -> str:
    command = f"<code>reval inspect --run-dir {headline.text(shlex.quote(str(run.directory.path)))}</code>"
    if not num_coloured or scores is None:
        return (
            f"No token has colours yet: {command} scores them with the run's last checkpoint and its initial model; then make "
            "this report again."
        )
    scored, saved = scores.about.get("round"), run_directory.saved_rounds(run.directory.checkpoints)
    stale = (
        f" These numbers are of the checkpoint of round {scored}; the newest is of round {saved[-1]}."
        if scored is not None and saved and saved[-1] != scored
        else ""
    )
    return (
        f"{num_coloured:,} of them have coloured tokens, by {headline.text(scores.about['policy'])} against "
        f"{headline.text(scores.about['reference'])}. Log-ratio: how much more (blue) or less (orange) likely training made this "
        "token, in nats. Endogenous reward: log π + V here − V at the next token, the reward that the model holds for the "
        f"token (its last token has no next one). {command} scores again.{stale}"
    )
