"""Corrections for responses that another policy sampled: weights of the token losses, without a gradient.

All are functions of log_ratio f32[R, C], the policy's log-probability less the sampler's, in nats, 0 on masked tokens.
`policy_gradient_loss` multiplies the surrogate's loss by them, after its clips. With one engine for sampling and training, as
here, the ratio compares the policy with its older self; elsewhere these forms also repair a sampler that computes differently.

Do not combine them with a surrogate that holds the ratio itself (`clipped`, `sequence_clipped`, `reweighted`,
`second_moment_clipped`): the weight would count twice. A mask goes with any of them.

**The denominator of the mean is not changed by a mask**: a rejected token counts in it with a loss of 0, so the loss and its
gradient shrink as more is rejected. A mean over the kept ones would give a step of full size from the few tokens that are left,
and would depend on how micro-batches are cut.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from reval_jax.objective import arrays, surrogates


def token_weight(log_ratio: jax.Array, *, high: float | jax.Array) -> jax.Array:
    """Truncated importance weight of each token.

    w = min(r, high), r = exp(clip(log_ratio, -20, 20))
                  (truncated importance sampling: Ionides, JCGS 17, 2008; in this form Yao et al. 2025 and verl)

    Times `reinforce` it is `reweighted` with clip_low = 1 and clip_high = high - 1. It leaves out the ratios of earlier
    tokens, so it is biased even where nothing is truncated; `sequence_weight` is not, at the price of its variance.

    Args:
      log_ratio: f32[R, C]; a constant.
      high: scalar > 0; infinity for no truncation but the ratio's own bound.

    Returns:
      f32[R, C], no gradient.
    """
    return jnp.minimum(surrogates.bounded_ratio(arrays.constant(log_ratio)), arrays.constant(high))


def sequence_weight(
    log_ratio: jax.Array, *, trajectory_sum: surrogates.PerTrajectory, high: float | jax.Array
) -> jax.Array:
    """Truncated importance weight of each token's whole trajectory.

    w = min(exp(clip(sum_t log r_t, -20, 20)), high)          (the same; unbiased where nothing is truncated)

    The sum grows with the length: over thousands of tokens most weights are near 0 or at the bound.

    Args:
      log_ratio: f32[R, C]; a constant.
      trajectory_sum: f32[R, C] to the sum over each token's own trajectory, f32[R, C].
      high: scalar > 0.

    Returns:
      f32[R, C], equal along a trajectory, no gradient.

    Raises:
      ValueError: the sums have another shape.
    """
    return token_weight(_over_trajectory(trajectory_sum, log_ratio), high=high)


def token_mask(log_ratio: jax.Array, *, low: float | jax.Array, high: float | jax.Array) -> jax.Array:
    """Mask of the tokens whose ratio is inside bounds.

    w = 1 if low <= r <= high, else 0          (IcePop: Zhao et al., September 2025; arXiv 2510.18855)

    IcePop multiplies the kept tokens by their ratio too, and bounds it to [0.5, 5]. The denominator of the mean still counts
    rejected tokens (see above).

    Args:
      log_ratio: f32[R, C]; a constant.
      low: scalar in [0, 1].
      high: scalar >= 1.

    Returns:
      f32[R, C] of 0 and 1, no gradient.
    """
    ratio = surrogates.bounded_ratio(arrays.constant(log_ratio))
    return ((ratio >= arrays.constant(low)) & (ratio <= arrays.constant(high))).astype(jnp.float32)


def sequence_mask(
    log_ratio: jax.Array,
    *,
    trajectory_mean: surrogates.PerTrajectory,
    low: float | jax.Array,
    high: float | jax.Array,
) -> jax.Array:
    """Mask of the trajectories whose geometric mean ratio is inside bounds.

    w = 1 if low <= exp(clip(mean_t log r_t, -20, 20)) <= high, else 0          (NeMo-RL's `seq-mask-tis`, verl's geometric form)

    The mean varies far less than a token's ratio: NeMo-RL's bounds are [0.999, 1.002]. NeMo-RL multiplies the kept trajectories
    by their untruncated token weights; this mask does not. The denominator of the mean still counts the tokens and trajectories
    that are rejected (see above).

    Args:
      log_ratio: f32[R, C]; a constant.
      trajectory_mean: f32[R, C] to the mean over each token's own trajectory, f32[R, C].
      low: scalar in [0, 1].
      high: scalar >= 1.

    Returns:
      f32[R, C] of 0 and 1, equal along a trajectory, no gradient.

    Raises:
      ValueError: the means have another shape.
    """
    return token_mask(_over_trajectory(trajectory_mean, log_ratio), low=low, high=high)


def _over_trajectory(reduce: surrogates.PerTrajectory, log_ratio: jax.Array) -> jax.Array:
    reduced = reduce(arrays.constant(log_ratio))
    arrays.check_same_shape(log_ratio=log_ratio, over_its_trajectory=reduced)
    return reduced
