"""Graded responses for tests of evaluation, from their rewards."""

from __future__ import annotations

import numpy as np

from reval_jax import types
from reval_jax.evaluate import estimators

OK, WRONG = types.VERDICTS.index("ok"), types.VERDICTS.index("wrong")


def of_rewards(reward, answer=None, verdict=None, length=None, is_truncated=None):
    """Graded responses with rewards [P, n]; by default the answer of a response is its reward as text."""
    reward = np.asarray(reward, np.float32)
    return estimators.GradedResponses(
        reward=reward,
        answer=tuple(map(tuple, answer)) if answer else tuple(tuple(str(each) for each in row) for row in reward),
        verdict=np.where(reward > 0, OK, WRONG).astype(np.int8) if verdict is None else np.asarray(verdict, np.int8),
        length=np.full(reward.shape, 3, np.int32) if length is None else np.asarray(length, np.int32),
        is_truncated=np.zeros(reward.shape, bool) if is_truncated is None else np.asarray(is_truncated),
    )
