"""Run directories written by hand, for tests of what reads them: any metrics, settings and rollouts, in milliseconds."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from reval_jax import config as config_lib


def line(round: int, score: float, **values: Any) -> dict[str, Any]:
    """A round's metrics, as many as a report needs; others, or other values, by name."""
    right = round_half_up(score * 64)
    return {
        "training/round": round,
        "critic/score/mean": score,
        "training/sampled": 64,
        "training/updates": 2 * round,
        "verifier/ok": right,
        "verifier/wrong": 64 - right,
        "actor/loss": 100.0 / round,
        "timing_s/round": 2.0,
        "timing_s/update": 1.5,
    } | values


def round_half_up(value: float) -> int:
    """The nearest whole number."""
    return int(value + 0.5)


def write(
    directory: Path,
    lines: Iterable[dict[str, Any]],
    *,
    rollouts: dict[int, Sequence[dict[str, Any]]] | None = None,
    **settings: Any,
) -> Path:
    """Writes metrics.jsonl, config.yaml with `section__field` settings, and rollouts by round; returns the directory."""
    (directory / "rollouts").mkdir(parents=True)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    tree = config_lib.to_tree(config_lib.Config())
    for name, value in settings.items():
        section, field = name.split("__")
        tree[section][field] = value
    (directory / "config.yaml").write_text(yaml.safe_dump(tree))
    for round, rows in (rollouts or {}).items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / "rollouts" / f"round_{round:06d}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    return directory


def response(text: str = "5", *, prompt: str = "2+3=", verdict: str = "ok", **values: Any) -> dict[str, Any]:
    """A line of a rollouts file."""
    return {
        "prompt": prompt,
        "response": text,
        "answer": "5",
        "verdict": verdict,
        "reward": float(verdict == "ok"),
        "is_truncated": False,
        "num_tokens": len(text),
        "tokens": list(range(len(text))),
        "log_prob": -1.0,
    } | values
