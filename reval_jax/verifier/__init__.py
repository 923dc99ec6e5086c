"""Response text to reward and verdict: extraction, grading, checkers of other tasks, and the pool that runs them. No JAX."""

from __future__ import annotations

from reval_jax.verifier.grader import Grader, UnreliableError, check, check_failures
from reval_jax.verifier.grading import ANSWER_FORMATS, GOLD_SEPARATOR, Grade, grade, settle, verdicts

__all__ = [
    "ANSWER_FORMATS",
    "GOLD_SEPARATOR",
    "Grade",
    "Grader",
    "UnreliableError",
    "check",
    "check_failures",
    "grade",
    "settle",
    "verdicts",
]
