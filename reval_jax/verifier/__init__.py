"""Response text to reward and verdict: extraction, grading, checkers of generated tasks, and the worker pools. No JAX."""

from __future__ import annotations

from reval_jax.sandbox.pool import StoppedError
from reval_jax.verifier.grader import Grader, Memory, UnreliableError, check, check_failures
from reval_jax.verifier.grading import GOLD_SEPARATOR, Grade, grade, settle, verdicts

__all__ = [
    "GOLD_SEPARATOR",
    "Grade",
    "Grader",
    "Memory",
    "StoppedError",
    "UnreliableError",
    "check",
    "check_failures",
    "grade",
    "settle",
    "verdicts",
]
