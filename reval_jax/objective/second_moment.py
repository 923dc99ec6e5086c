"""M2PO's threshold: the largest bound of log-ratios whose second moment over the whole step stays within a budget.

The threshold must be known before the gradient, and it depends on all tokens of the step. Published code sorts the tokens of
each micro-batch and finds a threshold for each, so its result depends on packing and devices. Here a micro-batch adds its
tokens to sums at the thresholds of a fixed grid; the sums of all micro-batches and devices are added, and one threshold is
chosen from them. It needs one more forward pass, no sort, and is exact up to the step of the grid, downwards.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from reval_jax.objective import arrays

THRESHOLDS = tuple(2.0 ** (step / 8) for step in range(-64, 65))
"""The grid, tau^2 in nats squared: 129 values from 2^-8 to 2^8 (tau from 1/16 to 16 nats), each 2^(1/8) times the one before,
so 9.1% apart in tau^2 and 4.4% in tau. Below tau = 0.36 nats `second_moment_clipped` no longer changes, and 16 nats is a ratio
of nine million."""


def second_moment_sums(
    log_prob: jax.Array, behaviour_log_prob: jax.Array, advantage: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums over the harmful tokens of these rows, from which `second_moment_threshold` chooses.

    delta = log pi - log pi_behaviour; a token is harmful where A > 0 and r > 1, or A < 0 and r < 1: where an update has already
    moved its probability in the direction of its advantage          (M2PO, arXiv 2510.01161)

    The three are additive: those of a step are the sums of those of its micro-batches, in any order (to rounding).

    Args:
      log_prob: [R, C], the policy's before the step, per token; a constant.
      behaviour_log_prob: [R, C], the sampler's; a constant.
      advantage: [R, C], or [R] if it is the same for a whole row; a constant.
      mask: bool[R, C], True on response tokens. The contents of the others, NaN and infinity included, do not count.

    Returns:
      (f32[G], sum of min(delta^2, tau_j^2) for each of THRESHOLDS, in nats squared; f32 scalar, number of harmful tokens, exact
      up to 2^24; f32 scalar, sum of delta^2 without a bound). No gradient.

    Raises:
      ValueError: shapes do not fit.
    """
    arrays.check_same_shape(log_prob=log_prob, behaviour_log_prob=behaviour_log_prob, mask=mask)
    token_advantage = arrays.per_token(arrays.constant(advantage), jnp.shape(mask))
    delta = arrays.constant(log_prob) - arrays.constant(behaviour_log_prob)
    is_harmful = jnp.asarray(mask, jnp.bool_) & (
        ((token_advantage > 0.0) & (delta > 0.0)) | ((token_advantage < 0.0) & (delta < 0.0))
    )
    squares = jnp.where(is_harmful, jnp.square(delta), 0.0).reshape(1, -1)
    grid = jnp.asarray(THRESHOLDS, jnp.float32)[:, None]
    bounded = jnp.sum(jnp.minimum(squares, grid), axis=1)
    return bounded, jnp.sum(is_harmful, dtype=jnp.float32), jnp.sum(squares)


def second_moment_threshold(
    sums: jax.Array, count: jax.Array, uncapped: jax.Array, *, budget: float | jax.Array
) -> jax.Array:
    """Threshold tau of M2PO, in nats, for `second_moment_clipped`.

    tau^2 = the largest of THRESHOLDS with sum of min(delta^2, tau^2) <= budget * count          (M2PO, arXiv 2510.01161)

    Infinity if the sum without a bound is within the budget, also where no token is harmful; the smallest of the grid if none
    of it is within. The published code takes the largest of the tokens' own delta^2 that is within, instead of one of a grid.

    Args:
      sums: [G], first result of `second_moment_sums`, summed over the whole step.
      count: scalar, its second result, summed.
      uncapped: scalar, its third result, summed.
      budget: scalar > 0, nats squared per harmful token, paper 0.04; infinity for no limit.

    Returns:
      f32 scalar, no gradient.

    Raises:
      ValueError: sums is not [G].
    """
    if jnp.shape(sums) != (len(THRESHOLDS),):
        raise ValueError(
            f"sums takes one number for each of the {len(THRESHOLDS)} thresholds, but got the shape {list(jnp.shape(sums))}. "
            "Add up the results of second_moment_sums over micro-batches."
        )
    # Without a harmful token an infinite budget would give 0 times infinity, a NaN.
    allowed = arrays.constant(budget) * jnp.maximum(arrays.constant(count), 1.0)
    grid = jnp.asarray(THRESHOLDS, jnp.float32)
    largest = jnp.max(jnp.where(arrays.constant(sums) <= allowed, grid, grid[0]))
    return jnp.where(arrays.constant(uncapped) <= allowed, jnp.inf, jnp.sqrt(largest))
