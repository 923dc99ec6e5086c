"""Everything it takes to repeat an evaluation, as one JSON object; docs/evaluation.md explains its keys."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from reval_jax import config as config_lib
from reval_jax import distributed, run_directory, types
from reval_jax.evaluate import intervals, results

FORMAT = 1
"""Raised when a key goes or changes its meaning."""

CHOICE_SEED = 0
"""Chooses the problems of a benchmark, whatever run.seed is: runs with different seeds are compared on the same ones."""


def fingerprint(params: Any) -> str:
    """16 hex digits of every parameter's name, shape, dtype and bits, the same on any mesh: a collective call.

    One parameter at a time is brought to the host, so that a large model needs no second copy there.
    """
    digest = hashlib.blake2b(digest_size=8)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        whole = np.ascontiguousarray(distributed.fetch(leaf))
        digest.update(f"{jax.tree_util.keystr(path)} {whole.shape} {whole.dtype}\n".encode())
        digest.update(whole.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def of_evaluation(
    config: config_lib.Config,
    command: str,
    policies: Sequence[dict[str, Any]],
    measured: Sequence[dict[str, Any]],
    compared: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """The whole record.

    Args:
      command: as it was typed.
      policies: from `of_policy`; the first is what the others are compared with.
      measured: from `of_result`.
      compared: from `of_comparison`.
    """
    settings, kind = config.eval, jax.devices()[0].device_kind
    return {
        "format": FORMAT,
        "command": command,
        "packages": {"python": platform.python_version(), **run_directory.package_versions()},
        "devices": {"platform": jax.default_backend(), "kind": kind, "count": jax.device_count()},
        "settings": config_lib.to_tree(config),
        # What was in force: `settings` also holds the rollout's temperature, which an evaluation does not read.
        "protocol": {
            "template": config.task.template,
            "instruction": config.task.instruction,
            "answer_format": config.task.answer_format,
            "samples_per_prompt": settings.samples_per_prompt,
            "temperature": settings.temperature,
            "top_k": 0,
            "top_p": settings.top_p,
            "max_response_tokens": config.rollout.max_response_tokens,
            "max_prompts": settings.max_prompts,
            "choice_seed": CHOICE_SEED,
            "seed": config.run.seed,
        },
        "intervals": {
            "method": "percentile bootstrap",
            "level": intervals.LEVEL,
            "resamples": intervals.RESAMPLES,
            "seed": intervals.SEED,
        },
        "model": policies[0]["source"],
        "policies": list(policies),
        "results": list(measured),
        "comparisons": list(compared),
    }


def of_policy(
    params: Any, *, source: str, model_path: str, run_dir: str | None, round: int, stop_ids: Sequence[int]
) -> dict[str, Any]:
    """Which parameters were evaluated."""
    return {
        "source": source,
        "model_path": model_path,
        "run_dir": run_dir,
        "round": round,
        "fingerprint": fingerprint(params),
        "stop_ids": list(stop_ids),
    }


def of_result(benchmark: results.Benchmark, result: results.Result, *, policy: int) -> dict[str, Any]:
    """One policy on one benchmark: its metrics under the names of metrics.jsonl, and every response's verdict."""
    counts = np.bincount(result.outcomes.verdict.ravel(), minlength=len(types.VERDICTS))
    return {
        "policy": policy,
        "benchmark": benchmark.name,
        "dataset": benchmark.dataset,
        "fingerprint": benchmark.fingerprint,
        "num_rows": benchmark.num_rows,
        "num_problems": result.num_problems,
        "interval_unit": result.unit,
        **results.as_metrics(result),
        "verdicts": {kind: int(count) for kind, count in zip(types.VERDICTS, counts, strict=True)},
        "problems": [_problem(benchmark, result, index) for index in range(result.num_problems)],
    }


def _problem(benchmark: results.Benchmark, result: results.Result, index: int) -> dict[str, Any]:
    seen = result.outcomes
    return {
        "row": int(benchmark.prompts.row[index]),
        # Names the question without repeating it: most benchmarks' texts may not be passed on.
        "prompt_sha256": hashlib.sha256(benchmark.prompts.texts[index].encode()).hexdigest()[:16],
        "gold": benchmark.prompts.answers[index],
        "rewards": seen.reward[index].tolist(),
        "answers": list(seen.answer[index]),
        "verdicts": [types.VERDICTS[kind] for kind in seen.verdict[index]],
        "lengths": seen.length[index].tolist(),
        "truncated": seen.is_truncated[index].tolist(),
    }


def of_comparison(
    result: results.Result, difference: dict[str, intervals.Estimate], *, policy: int, baseline: int
) -> dict[str, Any]:
    """`policy`, whose result it is, minus `baseline` on one benchmark."""
    prefix = f"val-core/{result.name}"
    return {
        "policy": policy,
        "baseline": baseline,
        "benchmark": result.name,
        "interval_unit": result.unit,
        "differences": {f"{prefix}/{name}": estimate._asdict() for name, estimate in difference.items()},
    }
