"""Evaluation: avg@k, pass@k and maj@k of a policy on held-out questions, each with its interval.

`evaluation` samples and grades responses · `estimators` computes the metrics · `intervals` their bootstrap intervals ·
`results` summaries and metric names · `record` the JSON record that repeats an evaluation.
"""

from __future__ import annotations

from reval_jax.evaluate import estimators, intervals, record, results
from reval_jax.evaluate.evaluation import check_same_problems, load, run
from reval_jax.evaluate.results import Benchmark, Result, as_metrics, comparison_summary, differences, summary

__all__ = [
    "Benchmark",
    "Result",
    "as_metrics",
    "check_same_problems",
    "comparison_summary",
    "differences",
    "estimators",
    "intervals",
    "load",
    "record",
    "results",
    "run",
    "summary",
]
