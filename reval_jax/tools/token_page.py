"""The section of a report on inspected rollouts: AUCs, and example responses with their tokens coloured by reward."""

from __future__ import annotations

import html
import json
from pathlib import Path

import numpy as np

from reval_jax import types

POSITIVE, NEGATIVE = "31,119,180", "214,39,40"  # blue and red, which people with any colour vision tell apart


def section(file: Path) -> str:
    """HTML of the results that `reval inspect` wrote; empty without the file.

    Raises:
      ValueError: the file holds something else.
    """
    if not file.is_file():
        return ""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        return (
            "<h2>Endogenous reward</h2>" + _about(result) + _table(result) + "".join(map(_example, result["examples"]))
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is not a file of reval inspect ({type(error).__name__}: {error}). Run reval inspect again, or "
            "delete it."
        ) from error


def _about(result: types.Json) -> str:
    about = (
        f"By {result['model']}, of {', '.join(result['rollouts'])}: {result['num_responses']} responses to "
        f"{result['num_prompts']} prompts, {result['num_right']} right. The AUC of each score against the verdict is the mean "
        f"over {result['num_mixed_prompts']} prompts with right and wrong responses "
        f"({result['num_mixed_responses']} responses), with {result['intervals']['level']:.0%} intervals over prompts."
    )
    return f"<p>{html.escape(about)}</p>"


def _table(result: types.Json) -> str:
    lines = [
        (html.escape(name), _estimate(each["auc"]), _estimate(each["minus_log_prob"], "+"))
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
    tokens = "".join(_token(*each, scale=scale) for each in numbers)
    title = f"{example['where']}, verdict {example['verdict']}, return {example['scores']['return']:.2f}"
    return (
        f"<h3>{html.escape(title)}</h3><pre style='white-space:pre-wrap'>{html.escape(example['prompt'])}</pre>"
        f"<pre style='white-space:pre-wrap;background:#fff;border:1px solid #ccc'>{tokens}</pre>"
    )


def _token(text: str, reward: float, log_prob: float, soft_value: float, *, scale: float) -> str:
    strength = min(1.0, abs(reward) / scale) * 0.6 if scale > 0 else 0.0
    numbers = f"reward {reward:+.3f}, log pi {log_prob:.3f}, V {soft_value:.3f} nats"
    colour = f"rgba({POSITIVE if reward > 0 else NEGATIVE},{strength:.2f})"
    shown = html.escape(text.replace("\n", "\u21b5\n"))
    return f"<span title='{numbers}' style='background:{colour}'>{shown}</span>"
