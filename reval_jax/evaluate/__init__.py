"""avg@k, pass@k and maj@k of a policy on held-out questions, each with its interval.

`estimators` says what the numbers are, `intervals` how sure they are, `results` how they are shown, `record` what it
takes to repeat them; here responses are sampled and graded.
"""

from __future__ import annotations

from reval_jax import prompts
from reval_jax.evaluate import estimators, intervals, record, results
from reval_jax.evaluate.evaluation import check_same_problems, load, run
from reval_jax.evaluate.results import Benchmark, Result, as_metrics, comparison, differences, sentence

__all__ = [
    "Benchmark",
    "Result",
    "as_metrics",
    "check_same_problems",
    "comparison",
    "differences",
    "estimators",
    "intervals",
    "load",
    "prompts",
    "record",
    "results",
    "run",
    "sentence",
]
