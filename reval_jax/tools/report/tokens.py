"""The report's section on what `reval inspect` found: AUCs, and two responses with their tokens coloured by reward.

The classes of the colours are those that browser.js gives: p1 … p5 for a number above 0, n1 … n5 for one below.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from reval_jax import types
from reval_jax.tools.report import browser, headline

NUM_SHADES = 5


def section(file: Path) -> str:
    """HTML of the results that `reval inspect` wrote; empty without the file.

    Raises:
      ValueError: the file holds something else.
    """
    if not file.is_file():
        return ""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        found = _about(result) + _table(result) + "".join(map(_example, result["examples"]))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{file} is not a file of reval inspect ({type(error).__name__}: {error}). Run reval inspect again, or "
            "delete it."
        ) from error
    return f"<section><h2>Endogenous reward</h2>{found}</section>"


def _about(result: types.Json) -> str:
    about = (
        f"By {result['model']}, of {', '.join(result['rollouts'])}: {result['num_responses']} responses to "
        f"{result['num_prompts']} prompts, {result['num_right']} right. The AUC of each score against the verdict is the mean "
        f"over {result['num_mixed_prompts']} prompts with right and wrong responses "
        f"({result['num_mixed_responses']} responses), with {result['intervals']['level']:.0%} intervals over prompts."
    )
    return f"<p>{headline.text(about)}</p>"


def _table(result: types.Json) -> str:
    lines = [
        (headline.text(name), _estimate(each["auc"]), _estimate(each["minus_log_prob"], "+"))
        for name, each in result["scores"].items()
    ]
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    return f"<table><tr><th>score</th><th>AUC</th><th>minus log_prob</th></tr>{rows}</table>" if rows else ""


def _estimate(estimate: types.Json, sign: str = "") -> str:
    value = format(estimate["value"], f"{sign}.3f")
    if estimate["low"] is None:
        return f"{value} (one prompt)"
    return f"{value} [{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}]"


def _example(example: types.Json) -> str:
    """A response, each token on a ground of its reward's sign and size; what lies under the pointer is shown in numbers."""
    rewards = np.array(example["endogenous_reward"])
    # The last token's reward has no V(s_{h+1}) to subtract: scaled by the largest, all others would be white.
    scale = float(np.quantile(np.abs(rewards[:-1]), 0.95)) if rewards.size > 1 else float(np.abs(rewards).max())
    numbers = zip(example["tokens"], rewards, example["log_prob"], example["soft_value"], strict=True)
    tokens = "".join([_token(*each, scale=scale) for each in numbers][: browser.MAX_TOKENS])
    if len(rewards) > browser.MAX_TOKENS:
        tokens += f'<span class="soft"> … (the page shows {browser.MAX_TOKENS:,} of {len(rewards):,} tokens)</span>'
    title = f"{example['where']}, verdict {example['verdict']}, return {example['scores']['return']:.2f}"
    return (
        f'<article class="rollout"><h3>{headline.text(title)}</h3>'
        f'<pre class="prompt">{headline.text(browser.shown(example["prompt"]))}</pre>'
        f'<pre class="response">{tokens}</pre></article>'
    )


def shade(value: float, scale: float) -> str:
    """The class of a number's colour: its sign, and its size as a share of the scale; empty near 0."""
    strength = min(NUM_SHADES, round(NUM_SHADES * abs(value) / scale)) if scale > 0 else 0
    return f"{'p' if value > 0 else 'n'}{strength}" if strength else ""


def _token(text: str, reward: float, log_prob: float, soft_value: float, *, scale: float) -> str:
    numbers = f"reward {reward:+.3f}, log pi {log_prob:.3f}, V {soft_value:.3f} nats"
    shown = headline.text(text.replace("\n", "\u21b5\n"))
    return f'<span title="{numbers}" class="{shade(reward, scale)}">{shown}</span>'
