"""The JSON record of an evaluation, with everything needed to repeat it; docs/evaluation.md explains its keys."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence

import jax
import numpy as np

from reval_jax import config as config_lib
from reval_jax import distributed, model, run_directory, types
from reval_jax.evaluate import intervals
from reval_jax.evaluate import results as results_lib

FORMAT = 1
"""Increased when a key is removed or changes its meaning."""

CHOICE_SEED = 0
"""Chooses the problems of a benchmark; not run.seed, so that runs with different seeds are compared on the same problems."""


def fingerprint(params: model.Params) -> str:
    """16 hex digits of every parameter's name, shape, dtype and bits, equal on any mesh. Every process must call it.

    Fetches one parameter at a time, so that the host never holds a second copy of the model.
    """
    digest = hashlib.blake2b(digest_size=8)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        whole = np.ascontiguousarray(distributed.fetch(leaf))
        digest.update(f"{jax.tree_util.keystr(path)} {whole.shape} {whole.dtype}\n".encode())
        digest.update(whole.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def evaluation_record(
    config: config_lib.Config,
    command: str,
    policies: Sequence[types.Json],
    results: Sequence[types.Json],
    comparisons: Sequence[types.Json],
    *,
    template_date: str,
) -> types.Json:
    """The whole record.

    Args:
      command: as the user typed it.
      policies: from `policy_record`; the first is the baseline of the comparisons.
      results: from `result_record`.
      comparisons: from `comparison_record`.
      template_date: that a chat template printed as today's.
    """
    settings, kind = config.eval, jax.devices()[0].device_kind
    return {
        "format": FORMAT,
        "command": command,
        "packages": {"python": platform.python_version(), **run_directory.package_versions()},
        "devices": {"platform": jax.default_backend(), "kind": kind, "count": jax.device_count()},
        "settings": config_lib.to_tree(config),
        # The settings that apply to this evaluation; `settings` also holds others, such as the rollout's temperature.
        "protocol": {
            "template": config.task.template,
            "template_date": template_date,
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
        "results": list(results),
        "comparisons": list(comparisons),
    }


def policy_record(
    params: model.Params, *, source: str, model_path: str, run_dir: str | None, round: int, stop_ids: Sequence[int]
) -> types.Json:
    """The entry of one policy: which parameters were evaluated."""
    return {
        "source": source,
        "model_path": model_path,
        "run_dir": run_dir,
        "round": round,
        "fingerprint": fingerprint(params),
        "stop_ids": list(stop_ids),
    }


def result_record(benchmark: results_lib.Benchmark, result: results_lib.Result, *, policy: int) -> types.Json:
    """The entry of one policy on one benchmark: metrics under their names in metrics.jsonl, and the verdict of each response."""
    counts = np.bincount(result.graded.verdict.ravel(), minlength=len(types.VERDICTS))
    return {
        "policy": policy,
        "benchmark": benchmark.name,
        "dataset": benchmark.dataset,
        "fingerprint": benchmark.fingerprint,
        "num_rows": benchmark.num_rows,
        "num_problems": result.num_problems,
        "interval_unit": result.unit,
        **results_lib.as_metrics(result),
        "verdicts": {kind: int(count) for kind, count in zip(types.VERDICTS, counts, strict=True)},
        "problems": [_problem(benchmark, result, index) for index in range(result.num_problems)],
    }


def _problem(benchmark: results_lib.Benchmark, result: results_lib.Result, index: int) -> types.Json:
    graded = result.graded
    return {
        "row": int(benchmark.prompts.row[index]),
        # Identifies the question without its text, which most benchmarks do not allow to be passed on.
        "prompt_sha256": hashlib.sha256(benchmark.prompts.texts[index].encode()).hexdigest()[:16],
        "gold": benchmark.prompts.answers[index],
        "rewards": graded.reward[index].tolist(),
        "answers": list(graded.answer[index]),
        "verdicts": [types.VERDICTS[kind] for kind in graded.verdict[index]],
        "lengths": graded.length[index].tolist(),
        "truncated": graded.is_truncated[index].tolist(),
    }


def comparison_record(
    result: results_lib.Result, difference: dict[str, intervals.Estimate], *, policy: int, baseline: int
) -> types.Json:
    """The entry of one comparison: `policy`, to which `result` belongs, minus `baseline`."""
    prefix = f"val-core/{result.name}"
    return {
        "policy": policy,
        "baseline": baseline,
        "benchmark": result.name,
        "interval_unit": result.unit,
        "differences": {f"{prefix}/{name}": estimate._asdict() for name, estimate in difference.items()},
    }
