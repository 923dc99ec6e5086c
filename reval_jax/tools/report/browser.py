"""The report's browser of rollouts: chosen responses as JSON in the page, which browser.js shows as text.

Nothing of a response is ever HTML: the JSON has no `<`, `>` or `&`, and the script sets text only.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

from reval_jax import terminal, types
from reval_jax.tools.report import choice, headline, reading, token_file

MAX_BYTES = 3_000_000
"""Of the JSON in the page."""

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
    content = {
        "verdicts": types.VERDICTS,
        "prompts": prompts,
        "scores": [_LABELS[name] for name in token_file.SCORES],
        "rows": sorted(rows, key=lambda row: (row["r"], row["l"])),
    }
    return (
        f"<section><h2>Rollouts</h2><p>{headline.text(_about(run, found, rows))}</p>"
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
        prompt = _shown(each.record["prompt"])
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
    """A response in short keys: round, line, answer, verdict, reward, tokens, is cut; its text, or its tokens and scores."""
    record = chosen.record
    row = {
        "r": chosen.round,
        "l": chosen.line,
        "a": _shown(record["answer"]),
        "v": record["verdict"],
        "w": round(record["reward"], 4),
        "n": record["num_tokens"],
        "c": bool(record.get("is_truncated")),
    }
    if scores is None or scores["digest"] != token_file.digest(record["response"]):
        return row | {"x": _shown(record["response"])}
    tokens = [terminal.visible(token) for token in scores["tokens"][:MAX_TOKENS]]
    numbers = [[round(value, 2) for value in scores[name][:MAX_TOKENS]] for name in token_file.SCORES]
    return row | {"t": tokens, "s": numbers} | ({"more": True} if len(scores["tokens"]) > MAX_TOKENS else {})


def _shown(text: str) -> str:
    """The text with what a terminal or a browser would obey as escapes, cut if it is very long."""
    cut = (
        f"… ({len(text):,} characters in all; the page shows {MAX_CHARACTERS:,})" if len(text) > MAX_CHARACTERS else ""
    )
    return terminal.visible(text[:MAX_CHARACTERS]) + cut


def _about(run: reading.Run, found: choice.Choice, rows: list[types.Json]) -> str:
    sampled, rounds = sum(line.get("training/sampled") or 0 for line in run.rounds), sorted({row["r"] for row in rows})
    held = f"The page holds {len(rows):,} of the {sampled:,} sampled responses"
    if len(rows) < sampled:
        held += (
            f", of {len(rounds)} of {run.lines[-1]['training/round']} rounds: the first and the last that have a rollouts file, "
            "others evenly between, right and wrong ones in turn. All are in RUN/rollouts (zcat prints them)"
        )
    damaged = f" Left out as damaged: {'; '.join(found.damaged)}." if found.damaged else ""
    return f"{held}.{damaged}"


def _colours(run: reading.Run, scores: token_file.TokenScores | None, num_coloured: int) -> str:
    command = f"<code>reval inspect --run-dir {headline.text(shlex.quote(str(run.directory.path)))}</code>"
    if not num_coloured or scores is None:
        return (
            f"No token has colours yet: {command} scores them with the run's last checkpoint and its initial model; then make "
            "this report again."
        )
    return (
        f"{num_coloured:,} of them have coloured tokens, by {headline.text(scores.about['policy'])} against "
        f"{headline.text(scores.about['reference'])}. Log-ratio: how much more (blue) or less (orange) likely training made this "
        "token, in nats. Endogenous reward: log π + V here − V at the next token, the reward that the model holds for the "
        f"token (its last token has no next one). {command} scores again."
    )
