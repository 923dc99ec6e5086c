"""Responses as flat arrays, one a field, to compare two lists of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from reval_jax import types


class Flat(NamedTuple):
    """B responses; the parts of unequal length are end to end."""

    prompt: np.ndarray  # i32[B]
    sample: np.ndarray  # i32[B]
    tokens: np.ndarray  # i32[sum of length]
    log_prob: np.ndarray  # f32[sum of length]
    truncated_log_prob: np.ndarray  # f32[sum of length]
    length: np.ndarray  # i32[B]
    is_truncated: np.ndarray  # bool[B]
    mean_log_prob: np.ndarray | None = None  # f32[sum of length], if every response has it


def flat(responses) -> Flat:
    """The responses, in their order."""
    means = [response.mean_log_prob for response in responses]
    return Flat(
        prompt=np.array([response.prompt for response in responses], np.int32),
        sample=np.array([response.sample for response in responses], np.int32),
        tokens=np.concatenate([response.tokens for response in responses]),
        log_prob=np.concatenate([response.log_prob for response in responses]),
        truncated_log_prob=np.concatenate([response.truncated_log_prob for response in responses]),
        length=np.array([len(response.tokens) for response in responses], np.int32),
        is_truncated=np.array([response.is_truncated for response in responses], bool),
        mean_log_prob=None if any(mean is None for mean in means) else np.concatenate(means),
    )


def unflat(flat: Flat) -> list[types.Response]:
    """The list that `flat` flattened."""
    ends = np.cumsum(flat.length)
    return [
        types.Response(
            int(flat.prompt[index]),
            int(flat.sample[index]),
            flat.tokens[end - flat.length[index] : end],
            flat.log_prob[end - flat.length[index] : end],
            flat.truncated_log_prob[end - flat.length[index] : end],
            bool(flat.is_truncated[index]),
            None if flat.mean_log_prob is None else flat.mean_log_prob[end - flat.length[index] : end],
        )
        for index, end in enumerate(ends)
    ]
