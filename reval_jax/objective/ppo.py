"""What PPO needs besides the clipped surrogate: advantages from a value function, their whitening, and the value's loss.

Arrays are [B, T]: one response a row from column 0, padded at its end. The contents of masked tokens, NaN and infinity
included, reach neither results nor gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from reval_jax.objective import arrays

WHITENING_EPSILON = 1e-8  # added to the variance; verl's value


def generalized_advantage(
    reward: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    *,
    discount: float | jax.Array,
    decay: float | jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Generalized advantages and returns of responses that are rewarded at their last token, in units of reward.

    R_t = r_t + gamma * ((1 - lambda) * V_{t+1} + lambda * R_{t+1}),  A_t = R_t - V_t          (GAE, arXiv 1506.02438)

    This is the usual recursion of A_t = delta_t + gamma * lambda * A_{t+1}, written for A + V: with gamma = lambda = 1 the
    values of later tokens drop out without rounding, so that R is exactly r and A exactly r - V. V and R are 0 after the last
    token.

    Args:
      reward: [B], paid at the last token; a constant.
      value: [B, T], V of the state before each token, as the policy that sampled had it; a constant.
      mask: bool[B, T], True on response tokens, which fill a row from column 0 without a gap.
      discount: scalar gamma in [0, 1].
      decay: scalar lambda in [0, 1].

    Returns:
      (advantage, returns), f32[B, T] each, 0 on masked tokens, no gradient. The advantage is not whitened.

    Raises:
      ValueError: shapes do not fit.
    """
    arrays.check_same_shape(value=value, mask=mask)
    if jnp.ndim(mask) != 2 or jnp.shape(reward) != jnp.shape(mask)[:1]:
        raise ValueError(
            f"generalized_advantage takes a reward per response, [B], and values per token, [B, T], but got reward "
            f"{list(jnp.shape(reward))} and value {list(jnp.shape(value))}. Pass the reward of each row."
        )
    mask = jnp.asarray(mask, jnp.bool_)
    value = jnp.where(mask, arrays.constant(value), 0.0)
    one_column = ((0, 0), (0, 1))
    is_last = mask & ~jnp.pad(mask[:, 1:], one_column)
    token_reward = jnp.where(is_last, arrays.constant(reward)[:, None], 0.0)
    next_value = jnp.pad(value[:, 1:], one_column)
    discount, decay = arrays.constant(discount), arrays.constant(decay)

    def step(later: jax.Array, column: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        reward_here, value_after, is_real = column
        here = reward_here + discount * ((1.0 - decay) * value_after + decay * later)
        here = jnp.where(is_real, here, 0.0)
        return here, here

    columns = (token_reward.T, next_value.T, mask.T)
    _, returns = jax.lax.scan(step, jnp.zeros(mask.shape[:1], jnp.float32), columns, reverse=True)
    returns = returns.T
    return returns - value, returns


def whitened(advantage: jax.Array, mask: jax.Array) -> jax.Array:
    """Advantages with mean 0 and standard deviation 1 over all masked-in tokens of the batch, dimensionless.

    (A - mean) / sqrt(variance + 1e-8), the variance with n - 1 in the denominator

    That is verl's `masked_whiten`: its variance is the mean of squares times n / (n - 1). verl refuses a batch of no or one
    token; here it gives 0. Pass the whole batch: whitening each micro-batch would make the result depend on their cuts.

    Args:
      advantage: [B, T]; a constant.
      mask: bool[B, T], True on response tokens.

    Returns:
      f32[B, T], 0 on masked tokens, no gradient.

    Raises:
      ValueError: shapes differ.
    """
    arrays.check_same_shape(advantage=advantage, mask=mask)
    mask = jnp.asarray(mask, jnp.bool_)
    kept = jnp.where(mask, arrays.constant(advantage), 0.0)
    count = jnp.sum(mask, dtype=jnp.float32)
    mean = jnp.sum(kept) / jnp.maximum(count, 1.0)
    centred = jnp.where(mask, kept - mean, 0.0)
    variance = jnp.sum(jnp.square(centred)) / jnp.maximum(count - 1.0, 1.0)
    return centred * jax.lax.rsqrt(variance + WHITENING_EPSILON)


def value_loss(
    value: jax.Array,
    old_value: jax.Array,
    returns: jax.Array,
    mask: jax.Array,
    *,
    clip: float | jax.Array,
    mean: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """Clipped squared error of PPO's value function, in squared units of reward.

    loss = mean of 1/2 max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2)
                  (PPO's usual code, such as verl's; arXiv 2005.12729 describes it, with a minimum in print)

    A value that has moved by more than `clip` in the direction of its return has no gradient. Where both squares are equal the
    gradient is the unclipped one's.

    Args:
      value: [B, T], V of the state before each token.
      old_value: [B, T], the same before the step; a constant.
      returns: [B, T], from `generalized_advantage`; a constant.
      mask: bool[B, T], True on response tokens.
      clip: scalar > 0, units of reward, verl's default 0.5; infinity for none.
      mean: a function of `means` with its counts bound, such as `token_mean`.

    Returns:
      f32 scalar.

    Raises:
      ValueError: shapes differ.
    """
    arrays.check_same_shape(value=value, old_value=old_value, returns=returns, mask=mask)
    mask = jnp.asarray(mask, jnp.bool_)
    kept = jnp.where(mask, arrays.float32(value), 0.0)
    old, target = (jnp.where(mask, arrays.constant(array), 0.0) for array in (old_value, returns))
    clip = arrays.constant(clip)
    unclipped = jnp.square(kept - target)
    clipped = jnp.square(jnp.clip(kept, old - clip, old + clip) - target)
    return mean(0.5 * jnp.where(clipped > unclipped, clipped, unclipped), mask)
