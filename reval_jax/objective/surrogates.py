"""Surrogates of the policy gradient: the loss of each token, before any mean.

All have one signature, (log_prob, log_ratio, advantage) and keyword settings, so that `policy_gradient_loss` takes any of
them. Arguments are f32[R, C], R rows of C response tokens (or [B, T]), in nats: log_prob is the policy's, log_ratio is
log_prob less the sampler's, and advantage is a constant. Both of the first two are differentiated. The contents of masked
tokens must be finite; `policy_gradient_loss` sets them to 0. Shapes must be equal, else ValueError.

A ratio is r = exp(clip(log_ratio, -20, 20)). Where a loss is the larger of two equal branches, the gradient is that of the
unclipped one.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from reval_jax.objective import arrays

LOG_RATIO_BOUND = 20.0  # nats; exp of more would leave float32's useful range. verl's bound.
SECOND_MOMENT_LOW, SECOND_MOMENT_HIGH = 0.7, 1.5  # M2PO never clips a ratio between them

PerTrajectory = Callable[[jax.Array], jax.Array]
"""f32[R, C] → f32[R, C]: each token gets the sum, or the mean, over the tokens of its own trajectory. The caller supplies it,
because only the caller knows how trajectories are packed; for one trajectory a row it is a masked sum over the columns."""


def clipped(
    log_prob: jax.Array,
    log_ratio: jax.Array,
    advantage: jax.Array,
    *,
    clip_low: float | jax.Array,
    clip_high: float | jax.Array,
    clip_dual: float | jax.Array,
) -> jax.Array:
    """Clipped surrogate of PPO, GRPO and DAPO, per token.

    loss = max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)), and where A < 0 at most -A * clip_dual
                  (PPO, arXiv 1707.06347; two bounds: DAPO, arXiv 2503.14476; the dual one: arXiv 1912.09729)

    Args:
      log_prob: f32[R, C], not read.
      log_ratio: f32[R, C].
      advantage: f32[R, C]; a constant.
      clip_low: scalar in [0, 1), how far the ratio may fall below 1 before its gradient stops.
      clip_high: scalar >= 0, how far it may rise above 1.
      clip_dual: scalar > 1, the c of dual clipping; infinity turns it off.

    Returns:
      f32[R, C].

    Raises:
      ValueError: shapes differ.
    """
    token_advantage = _checked(log_prob, log_ratio, advantage)
    ratio = bounded_ratio(log_ratio)
    loss = _larger(token_advantage, ratio, 1.0 - arrays.float32(clip_low), 1.0 + arrays.float32(clip_high))
    ceiling = -token_advantage * arrays.float32(clip_dual)
    return jnp.where((token_advantage < 0.0) & (ceiling < loss), ceiling, loss)


def sequence_clipped(
    log_prob: jax.Array,
    log_ratio: jax.Array,
    advantage: jax.Array,
    *,
    trajectory_mean: PerTrajectory,
    clip_low: float | jax.Array,
    clip_high: float | jax.Array,
) -> jax.Array:
    """Surrogate of GSPO with the gradient of each token: one ratio a trajectory, the geometric mean of its tokens'.

    s = exp(sg(mean_t log r_t) + log pi - sg(log pi)),  loss = max(-A s, -A clip(s, 1 - clip_low, 1 + clip_high))
                  (GSPO-token, arXiv 2507.18071; sg stops the gradient)

    Pair it with `trajectory_mean` of the loss, as GSPO does. The ratio of a whole trajectory varies far less than a token's,
    so the paper's bounds are 3e-4 and 4e-4, not 0.2: with PPO's bounds hardly anything is clipped. No dual clip. For responses
    of one token it is `clipped` without its dual clip.

    Args:
      log_prob: f32[R, C].
      log_ratio: f32[R, C].
      advantage: f32[R, C], usually equal along a trajectory; a constant.
      trajectory_mean: f32[R, C] to the mean over each token's own trajectory, f32[R, C].
      clip_low: scalar in [0, 1), bound of s below 1.
      clip_high: scalar >= 0, bound of s above 1.

    Returns:
      f32[R, C].

    Raises:
      ValueError: shapes differ.
    """
    token_advantage = _checked(log_prob, log_ratio, advantage)
    mean_log_ratio = arrays.constant(trajectory_mean(arrays.float32(log_ratio)))
    arrays.check_same_shape(log_ratio=log_ratio, mean_of_log_ratio=mean_log_ratio)
    # The difference is 0 in value; it only carries the gradient of the token.
    ratio = bounded_ratio(mean_log_ratio + (arrays.float32(log_prob) - arrays.constant(log_prob)))
    return _larger(token_advantage, ratio, 1.0 - arrays.float32(clip_low), 1.0 + arrays.float32(clip_high))


def reweighted(
    log_prob: jax.Array,
    log_ratio: jax.Array,
    advantage: jax.Array,
    *,
    clip_low: float | jax.Array,
    clip_high: float | jax.Array,
) -> jax.Array:
    """Surrogate of CISPO, per token: REINFORCE with a clipped importance weight that has no gradient.

    loss = -sg(clip(r, 1 - clip_low, 1 + clip_high)) * A * log pi          (CISPO, arXiv 2506.13585; sg stops the gradient)

    Unlike with `clipped`, the gradient of a token never vanishes. clip_low = 1 leaves the weight without a lower bound:
    REINFORCE with truncated importance sampling, at most C = 1 + clip_high. Its value, unlike its gradient, means little.

    Args:
      log_prob: f32[R, C].
      log_ratio: f32[R, C].
      advantage: f32[R, C]; a constant.
      clip_low: scalar in [0, 1].
      clip_high: scalar >= 0; infinity for no upper bound but the ratio's own, exp(20).

    Returns:
      f32[R, C].

    Raises:
      ValueError: shapes differ.
    """
    token_advantage = _checked(log_prob, log_ratio, advantage)
    ratio = bounded_ratio(arrays.constant(log_ratio))
    weight = jnp.clip(ratio, 1.0 - arrays.float32(clip_low), 1.0 + arrays.float32(clip_high))
    return -weight * token_advantage * arrays.float32(log_prob)


def reinforce(log_prob: jax.Array, log_ratio: jax.Array, advantage: jax.Array) -> jax.Array:
    """REINFORCE's loss, per token.

    loss = -A log pi          (Williams, Machine Learning 8, 1992)

    Unbiased only for fresh responses: log_ratio is not read. For others multiply by `token_weight` or `sequence_weight`.

    Args:
      log_prob: f32[R, C].
      log_ratio: f32[R, C], not read.
      advantage: f32[R, C]; a constant.

    Returns:
      f32[R, C].

    Raises:
      ValueError: shapes differ.
    """
    return -_checked(log_prob, log_ratio, advantage) * arrays.float32(log_prob)


def quadratic(
    log_prob: jax.Array, log_ratio: jax.Array, advantage: jax.Array, *, strength: float | jax.Array
) -> jax.Array:
    """Off-policy loss of Direct Reward Optimisation, per token: REINFORCE with a quadratic pull to the sampler's policy.

    loss = -A log pi + strength / 2 * log_ratio^2          (DRO, arXiv 2405.19107; per token as Tinker's loss `dro`)

    DRO regresses log-ratios of whole trajectories on rewards, 1/2 (r - V - tau log(pi / pi_ref))^2. Up to a factor of tau and
    terms without a gradient that is -(r - V) log pi + tau / 2 log(pi / pi_ref)^2: this loss, with A = r - V and
    strength = tau, if a trajectory has one token and the sampler is the reference. Tinker applies it token by token, and so
    does this function, so the pull on a long response differs from the paper's: it bounds the sum of the squares of the
    tokens' log-ratios and not the square of their sum. For the paper's own loss use `regression_residual`.

    Args:
      log_prob: f32[R, C].
      log_ratio: f32[R, C]; not bounded.
      advantage: f32[R, C], A = r - V, not divided by a standard deviation; a constant.
      strength: scalar >= 0, units of reward per nat; Tinker's example has 0.05. 0 gives `reinforce`.

    Returns:
      f32[R, C].

    Raises:
      ValueError: shapes differ.
    """
    pull = 0.5 * arrays.float32(strength) * jnp.square(arrays.float32(log_ratio))
    return reinforce(log_prob, log_ratio, advantage) + pull


def second_moment_clipped(
    log_prob: jax.Array, log_ratio: jax.Array, advantage: jax.Array, *, threshold: float | jax.Array
) -> jax.Array:
    """Surrogate of M2PO, per token: clipped where the log-ratio's second moment over the whole step would exceed a budget.

    loss = max(-A r, -A clip(r, min(exp(-tau), 0.7), max(exp(tau), 1.5)))          (M2PO, arXiv 2510.01161, and its code)

    The bounds are never tighter than [0.7, 1.5], so a threshold below 0.36 nats changes nothing more. No dual clip.

    Args:
      log_prob: f32[R, C], not read.
      log_ratio: f32[R, C].
      advantage: f32[R, C]; a constant.
      threshold: scalar tau >= 0, nats, from `second_moment_threshold` over the whole step; infinity clips nothing.

    Returns:
      f32[R, C].

    Raises:
      ValueError: shapes differ.
    """
    token_advantage = _checked(log_prob, log_ratio, advantage)
    threshold = arrays.constant(threshold)
    low = jnp.minimum(jnp.exp(-threshold), SECOND_MOMENT_LOW)
    high = jnp.maximum(jnp.exp(threshold), SECOND_MOMENT_HIGH)
    return _larger(token_advantage, bounded_ratio(log_ratio), low, high)


def bounded_ratio(log_ratio: jax.Array) -> jax.Array:
    """exp(clip(log_ratio, -20, 20)), f32 of the same shape; the gradient is 0 beyond the bounds."""
    return jnp.exp(jnp.clip(arrays.float32(log_ratio), -LOG_RATIO_BOUND, LOG_RATIO_BOUND))


def _larger(token_advantage: jax.Array, ratio: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """max(-A r, -A clip(r, low, high)), with the first one's gradient where they are equal."""
    clipped_ratio = jnp.clip(ratio, low, high)
    unclipped_loss = -token_advantage * ratio
    clipped_loss = -token_advantage * clipped_ratio
    return jnp.where(clipped_loss > unclipped_loss, clipped_loss, unclipped_loss)


def _checked(log_prob: jax.Array, log_ratio: jax.Array, advantage: jax.Array) -> jax.Array:
    """The advantage as a constant, after a check of the three shapes."""
    arrays.check_same_shape(log_prob=log_prob, log_ratio=log_ratio, advantage=advantage)
    return arrays.constant(advantage)
