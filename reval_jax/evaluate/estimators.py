"""Estimators of avg@k, pass@k and maj@k from n graded responses per problem: NumPy in, one number per problem out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from reval_jax import types

NO_ANSWER = tuple(types.VERDICTS.index(kind) for kind in ("no_box", "unparsed", "unclosed_think"))
"""Verdicts of responses without a readable answer."""


class GradedResponses(NamedTuple):
    """n graded responses to each of P problems; one row per problem, columns in sample order."""

    reward: np.ndarray  # f32[P, n] in [0, 1]
    answer: tuple[tuple[str, ...], ...]  # [P][n] in normal form; "" for a response without an answer
    verdict: np.ndarray  # i8[P, n] index into types.VERDICTS
    length: np.ndarray  # i32[P, n] tokens
    is_truncated: np.ndarray  # bool[P, n] cut at the length limit


def group_sizes(num_samples: int) -> tuple[int, ...]:
    """The k of pass@k and maj@k: n, and every power of two from 2 on that divides n; none for n = 1, where both equal avg@1."""
    powers = {2**exponent for exponent in range(1, num_samples.bit_length()) if num_samples % 2**exponent == 0}
    return tuple(sorted(powers | {num_samples} - {1}))


def pass_at(reward: np.ndarray, k: int) -> np.ndarray:
    """The unbiased pass@k: the expected best reward of k of the n responses, drawn without replacement.

        pass@k = sum_i r_(i) C(i-1, k-1) / C(n, k),  r_(1) <= ... <= r_(n)

    With c rewards of 1 and n-c of 0, it is 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, Eq. 1). Each
    ratio is computed as a product of factors in [0, 1], which cannot overflow.

    Args:
      reward: f[..., n] in [0, 1]; the last axis is the responses to one problem.
      k: 1 ... n.

    Returns:
      f64[...].
    """
    num = reward.shape[-1]
    if not 1 <= k <= num:
        raise ValueError(f"pass@{k} was requested, but each problem has {num} responses. Use a k from 1 to {num}.")
    ends = np.arange(num + 1)[:, None] - np.arange(k)
    all_within = np.prod(np.maximum(ends, 0) / (num - np.arange(k)), axis=1)  # C(i, k) / C(n, k), i = 0 ... n
    return np.sort(reward.astype(np.float64), axis=-1) @ np.diff(all_within)


def maj_at(reward: np.ndarray, answer: Sequence[str], k: int) -> np.ndarray:
    """The reward of the majority answer in each group of k consecutive responses; their mean is an unbiased maj@k.

    Each response votes for its answer; a response without an answer does not vote. The reward of an answer is the mean
    reward of its responses. If several answers have the most votes, the group gets the mean of their rewards, the
    expectation of a random choice among them. A group without votes gets 0.

    Args:
      reward: f32[n] of one problem.
      answer: n answers in normal form, "" for none.
      k: a divisor of n.

    Returns:
      f64[n / k], one value per group.
    """
    if k < 1 or len(answer) % k:
        raise ValueError(
            f"maj@{k} was requested, but each problem has {len(answer)} responses, not a multiple of {k}. Use a "
            f"divisor of {len(answer)}."
        )
    return np.array([_majority(reward[i : i + k], answer[i : i + k]) for i in range(0, len(answer), k)])


def _majority(reward: np.ndarray, answer: Sequence[str]) -> float:
    rewards_by_answer: dict[str, list[float]] = {}
    for text, value in zip(answer, reward.tolist(), strict=True):
        if text:
            rewards_by_answer.setdefault(text, []).append(value)
    most = max(map(len, rewards_by_answer.values()), default=0)
    if not most:
        return 0.0
    return float(np.mean([np.mean(rewards) for rewards in rewards_by_answer.values() if len(rewards) == most]))


def by_response(graded: GradedResponses) -> dict[str, np.ndarray]:
    """f64[P, n] of each metric that is a mean over responses, by metric name."""
    return {
        f"acc/mean@{graded.reward.shape[1]}": graded.reward.astype(np.float64),
        "response_length/mean": graded.length.astype(np.float64),
        "response_length/clip_ratio": graded.is_truncated.astype(np.float64),
        "verifier/no_answer_ratio": np.isin(graded.verdict, NO_ANSWER).astype(np.float64),
    }


def by_problem(graded: GradedResponses) -> dict[str, np.ndarray]:
    """f64[P] of every metric, by metric name; a benchmark's value is the mean over its problems."""
    values = {name: by_sample.mean(axis=1) for name, by_sample in by_response(graded).items()}
    for k in group_sizes(graded.reward.shape[1]):
        values[f"acc/pass@{k}"] = pass_at(graded.reward, k)
        rows = zip(graded.reward, graded.answer, strict=True)
        values[f"acc/maj@{k}"] = np.array([maj_at(reward, answer, k).mean() for reward, answer in rows])
    return values
