"""Means of token losses: (loss, mask) to a scalar. The only places with a denominator.

loss is f32[R, C] and mask bool[R, C], True on response tokens; the contents of the others, NaN and infinity included, reach
neither the result nor its gradient. Counts are those of the whole batch of which these rows may be one part: the losses and
gradients of the parts then add up to the batch's. Shapes must be equal, else ValueError.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from reval_jax.objective import arrays


def token_mean(loss: jax.Array, mask: jax.Array, *, num_tokens: int | jax.Array | None = None) -> jax.Array:
    """Mean over all response tokens of the batch, so that long responses weigh more (DAPO, arXiv 2503.14476).

    Args:
      loss: f32[R, C].
      mask: bool[R, C].
      num_tokens: scalar, response tokens of the whole batch. None: the tokens masked in here.

    Returns:
      f32 scalar; 0 where no token is masked in.

    Raises:
      ValueError: shapes differ.
    """
    arrays.check_same_shape(loss=loss, mask=mask)
    mask = jnp.asarray(mask, jnp.bool_)
    return jnp.sum(arrays.float32(loss), where=mask) / arrays.denominator(num_tokens, mask)


def trajectory_mean(
    loss: jax.Array, mask: jax.Array, *, length: jax.Array, num_trajectories: int | jax.Array
) -> jax.Array:
    """Mean over trajectories of the mean over their tokens, so that all trajectories weigh the same (GRPO, arXiv 2402.03300).

    mean = 1 / num_trajectories * sum over trajectories of (1 / length) sum_t loss_t

    Each token of a long response weighs less; GSPO, arXiv 2507.18071, needs this mean.

    Args:
      loss: f32[R, C].
      mask: bool[R, C].
      length: int[R, C] or f32[R, C], response tokens of the trajectory that each token belongs to; a constant, any number on
        masked tokens.
      num_trajectories: scalar, trajectories of the whole batch.

    Returns:
      f32 scalar; 0 where no token is masked in.

    Raises:
      ValueError: shapes differ.
    """
    arrays.check_same_shape(loss=loss, mask=mask, length=length)
    mask = jnp.asarray(mask, jnp.bool_)
    # A length of 0 or NaN on a masked token must not become a factor of its gradient.
    length = jnp.where(mask, arrays.constant(length), 1.0)
    kept = jnp.where(mask, arrays.float32(loss), 0.0)
    return jnp.sum(kept / length) / arrays.denominator(num_trajectories, mask)


def constant_mean(
    loss: jax.Array, mask: jax.Array, *, constant: float | jax.Array, num_trajectories: int | jax.Array
) -> jax.Array:
    """Mean over trajectories of the sum over their tokens, divided by a constant instead of their length.

    mean = 1 / num_trajectories * sum over trajectories of sum_t loss_t / constant          (Dr. GRPO, arXiv 2503.20783)

    Dr. GRPO's constant is the limit of the response's length, which removes the bias towards long wrong answers. It must be
    the same for every micro-batch: the padded width, as in some code, makes the loss depend on packing.

    Args:
      loss: f32[R, C].
      mask: bool[R, C].
      constant: scalar > 0, tokens, such as `rollout.max_response_tokens`.
      num_trajectories: scalar, trajectories of the whole batch.

    Returns:
      f32 scalar; 0 where no token is masked in.

    Raises:
      ValueError: shapes differ.
    """
    arrays.check_same_shape(loss=loss, mask=mask)
    mask = jnp.asarray(mask, jnp.bool_)
    total = jnp.sum(arrays.float32(loss), where=mask)
    return total / arrays.constant(constant) / arrays.denominator(num_trajectories, mask)
