"""Rewards that only the figures need, by `verifier.function: benchmarks.figures.rewards:NAME`. Standard library only."""

from __future__ import annotations


def zero(response: str, answer: str) -> float:
    """No reward for any response (Fig. 10 of the paper)."""
    return 0.0
