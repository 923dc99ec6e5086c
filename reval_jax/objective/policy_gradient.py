"""Policy-gradient losses: three choices, a surrogate, a correction and a mean, each a function of arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from reval_jax.objective import arrays, means, surrogates

Surrogate = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(log_prob, log_ratio, advantage), f32[R, C] each → loss f32[R, C]: a function of `surrogates` with its settings bound."""

Correction = Callable[[jax.Array], jax.Array]
"""log_ratio f32[R, C] → weight f32[R, C], a constant: a function of `corrections` with its settings bound."""

Mean = Callable[[jax.Array, jax.Array], jax.Array]
"""(loss f32[R, C], mask bool[R, C]) → f32 scalar: a function of `means` with its counts bound."""


def policy_gradient_loss(
    log_prob: jax.Array,
    behaviour_log_prob: jax.Array,
    advantage: jax.Array,
    response_mask: jax.Array,
    *,
    surrogate: Surrogate,
    mean: Mean,
    correction: Correction | None = None,
) -> jax.Array:
    """A policy-gradient loss: masked, then per token by the surrogate, then weighted, then averaged.

    loss = mean(surrogate(log pi, log pi - log pi_behaviour, A) * correction(log pi - log pi_behaviour))

        objective.policy_gradient_loss(
            log_prob, behaviour_log_prob, advantage, response_mask,
            surrogate=functools.partial(objective.reweighted, clip_low=1.0, clip_high=4.0), mean=objective.token_mean,
        )

    Args:
      log_prob: [R, C], the policy's, per token.
      behaviour_log_prob: [R, C], the sampler's; a constant.
      advantage: [R], the same for every token of a row, or [R, C]; a constant.
      response_mask: bool[R, C], True on response tokens. The contents of the others, NaN and infinity included, reach
        neither the loss nor its gradient: the surrogate gets 0 for their log_prob and log_ratio.
      surrogate: the loss of each token.
      mean: the mean of the losses; it must not read masked tokens.
      correction: the weight of each token, a constant; None for 1.

    Returns:
      f32 scalar.

    Raises:
      ValueError: shapes do not fit.
    """
    arrays.check_same_shape(log_prob=log_prob, behaviour_log_prob=behaviour_log_prob, response_mask=response_mask)
    mask = jnp.asarray(response_mask, jnp.bool_)
    # Mask before exp: 0 times the infinity or NaN of a masked-out token would still be NaN in the gradient.
    log_ratio = jnp.where(mask, arrays.float32(log_prob) - arrays.constant(behaviour_log_prob), 0.0)
    kept_log_prob = jnp.where(mask, arrays.float32(log_prob), 0.0)
    token_advantage = arrays.per_token(arrays.constant(advantage), mask.shape)
    loss = surrogate(kept_log_prob, log_ratio, token_advantage)
    if correction is not None:
        weight = arrays.constant(correction(log_ratio))
        arrays.check_same_shape(loss=loss, weight=weight)
        loss = loss * weight
    return mean(loss, mask)


def grpo_loss(
    log_prob: jax.Array,
    behaviour_log_prob: jax.Array,
    advantage: jax.Array,
    response_mask: jax.Array,
    *,
    clip_low: float | jax.Array,
    clip_high: float | jax.Array,
    clip_dual: float | jax.Array,
    num_tokens: int | jax.Array | None = None,
) -> jax.Array:
    """Clipped policy-gradient loss of GRPO as the ReVal paper runs it, a mean over response tokens.

    ratio = exp(clip(log pi - log pi_behaviour, -20, 20))
    loss  = max(-A * ratio, -A * clip(ratio, 1 - clip_low, 1 + clip_high)), and where A < 0 at most -A * clip_dual
                  (GRPO, arXiv 2402.03300; its two bounds: DAPO, arXiv 2503.14476; the dual one: arXiv 1912.09729)

    No KL term, no entropy term. The mean is over all response tokens of the global batch, so long responses weigh more.
    Where the two branches are equal the gradient is the unclipped one's.

    Args:
      log_prob: [B, T], the policy's, per token.
      behaviour_log_prob: [B, T], the sampler's; a constant.
      advantage: [B], the same for every token of a response, or [B, T]; a constant.
      response_mask: bool[B, T], True on response tokens. The contents of the others, NaN and infinity included, reach
        neither the loss nor its gradient.
      clip_low: scalar in [0, 1), how far the ratio may fall below 1 before its gradient stops, paper 0.2.
      clip_high: scalar >= 0, how far it may rise above 1, paper 0.28.
      clip_dual: scalar > 1, the c of dual clipping, paper 3; infinity turns it off.
      num_tokens: scalar, response tokens of the whole batch of which these may be one part: the losses and gradients of
        the parts then add up to the batch's. None: the tokens masked in here.

    Returns:
      f32 scalar; 0 where no token is masked in.

    Raises:
      ValueError: shapes do not fit.
    """
    surrogate = functools.partial(surrogates.clipped, clip_low=clip_low, clip_high=clip_high, clip_dual=clip_dual)
    mean = functools.partial(means.token_mean, num_tokens=num_tokens)
    return policy_gradient_loss(log_prob, behaviour_log_prob, advantage, response_mask, surrogate=surrogate, mean=mean)
