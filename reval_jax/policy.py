"""Parameters and a micro-batch → per trajectory log pi(tau) and V(s1), per token log pi: what update and reference share."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from reval_jax import model, scores


class PolicyScores(NamedTuple):
    """What the loss needs of R rows, float32."""

    log_prob: jax.Array  # f32[R, C] nats a response token; 0 past the response
    trajectory_log_prob: jax.Array  # f32[R] nats, log pi(tau): the sum over the response, its end token included
    soft_value: jax.Array  # f32[R] nats, V(s1): logsumexp of Q at the last prompt token; 0 in an empty row
    response_mask: jax.Array  # bool[R, C] True on response tokens


def score(
    architecture: model.Architecture,
    params: Any,
    tokens: jax.Array,
    prompt_length: jax.Array,
    response_length: jax.Array,
    *,
    capacity: int,
    temperature: float,
    compute_dtype: Any,
    remat: str = "none",
) -> PolicyScores:
    """Scores of the rows' responses under Q = logit / temperature.

    The H positions P−1 … P+H−2, whose logits predict the H response tokens, are gathered before the head, so that no logit
    of a prompt or of padding is computed; V(s1) is the logsumexp at the first of them.

    Args:
      tokens: i32[R, T] prompt, response, padding.
      prompt_length: i32[R], at least 1 in a row with a trajectory.
      response_length: i32[R]; 0 marks an empty row.
      capacity: C, static; at least the longest response.
    """
    num_rows, num_tokens = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(num_tokens, dtype=jnp.int32), tokens.shape)
    segment_ids = (positions < (prompt_length + response_length)[:, None]).astype(jnp.int32)
    hidden = model.hidden_states(
        architecture, params, tokens, positions, segment_ids, compute_dtype=compute_dtype, remat=remat
    )
    offsets = jnp.arange(capacity, dtype=jnp.int32)[None]
    response_mask = offsets < response_length[:, None]
    target_index = jnp.where(response_mask, prompt_length[:, None] + offsets, 1)
    targets = jnp.take_along_axis(tokens, target_index, axis=1)
    predicting = jnp.take_along_axis(hidden, (target_index - 1)[:, :, None], axis=1)
    log_prob, logsumexp = scores.token_scores(
        predicting.reshape(num_rows * capacity, -1),
        model.head(architecture, params, compute_dtype=compute_dtype),
        targets.reshape(-1),
        temperature=temperature,
    )
    log_prob = jnp.where(response_mask, log_prob.reshape(num_rows, capacity), 0.0)
    soft_value = jnp.where(response_mask[:, 0], logsumexp.reshape(num_rows, capacity)[:, 0], 0.0)
    return PolicyScores(log_prob, log_prob.sum(axis=1), soft_value, response_mask)
