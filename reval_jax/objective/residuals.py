"""Residuals of the value-based losses and the means of their squares.

A residual of a trajectory is [B], or [R, S] in packed rows; one of a token is [R, C]. `bellman_loss` and `squared_token_mean`
are the means of their squares.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from reval_jax.objective import arrays


def reval_residual(
    soft_value: jax.Array,
    reference_soft_value: jax.Array,
    log_prob: jax.Array,
    reference_log_prob: jax.Array,
    reward: jax.Array,
    *,
    beta: float | jax.Array,
) -> jax.Array:
    """Trajectory-level Bellman residual of ReVal, in nats, one per trajectory.

    delta = V(s1) - V_ref(s1) + log pi(tau) - log pi_ref(tau) - r / beta          (Eq. 2; ReVal, arXiv 2603.23355)

    Args:
      soft_value: [B], logsumexp of the policy's logits at the last prompt token.
      reference_soft_value: [B], the same of the reference; a constant.
      log_prob: [B], sum over the response, its end-of-sequence token included, of log pi.
      reference_log_prob: [B], the same of the reference; a constant.
      reward: [B], as shaped by the reward design; a constant.
      beta: scalar > 0, strength of the pull to the reference.

    Returns:
      f32[B]. Exactly 0 where policy and reference agree to the bit and the reward is 0.

    Raises:
      ValueError: shapes differ.
    """
    arrays.check_same_shape(
        soft_value=soft_value,
        reference_soft_value=reference_soft_value,
        log_prob=log_prob,
        reference_log_prob=reference_log_prob,
        reward=reward,
    )
    # Subtract like from like first: thousands of nats cancel here, before a small term could be rounded away.
    value_gap = arrays.float32(soft_value) - arrays.constant(reference_soft_value)
    log_ratio = arrays.float32(log_prob) - arrays.constant(reference_log_prob)
    return value_gap + log_ratio - arrays.constant(reward) / arrays.float32(beta)


def tbrm_residual(
    soft_value: jax.Array,
    log_prob: jax.Array,
    reference_log_prob: jax.Array,
    reward: jax.Array,
    *,
    beta: float | jax.Array,
) -> jax.Array:
    """Trajectory-level Bellman residual of TBRM, in nats, one per trajectory.

    delta = V(s1) + log pi(tau) - log pi_ref(tau) - r / beta          (TBRM, arXiv 2505.15311; ReVal section 4.1)

    It equals ReVal's with reward r - beta * V_ref(s1), so at the start of training it is not 0 even if every reward is.
    Arguments, result and errors as in `reval_residual`.
    """
    arrays.check_same_shape(
        soft_value=soft_value, log_prob=log_prob, reference_log_prob=reference_log_prob, reward=reward
    )
    log_ratio = arrays.float32(log_prob) - arrays.constant(reference_log_prob)
    return arrays.float32(soft_value) + log_ratio - arrays.constant(reward) / arrays.float32(beta)


def regression_residual(
    log_prob: jax.Array, reference_log_prob: jax.Array, reward: jax.Array, *, beta: float | jax.Array
) -> jax.Array:
    """Residual of the regression of log-ratios on rewards, in nats, one per trajectory.

    delta = log pi(tau) - log pi_ref(tau) - r / beta          (Eq. 8; ReVal, arXiv 2603.23355)

    The equation's reward is centred on its group: pass `group_normalized_reward`. Arguments, result and errors as in
    `reval_residual`.
    """
    arrays.check_same_shape(log_prob=log_prob, reference_log_prob=reference_log_prob, reward=reward)
    log_ratio = arrays.float32(log_prob) - arrays.constant(reference_log_prob)
    return log_ratio - arrays.constant(reward) / arrays.float32(beta)


def bellman_loss(
    residual: jax.Array,
    *,
    is_real: jax.Array | None = None,
    num_trajectories: int | jax.Array | None = None,
    weight: jax.Array | None = None,
) -> jax.Array:
    """Mean over trajectories of the squared residual, in nats squared.

    loss = sum over real trajectories of delta^2 / num_trajectories          (Eq. 2; ReVal, arXiv 2603.23355)

    Args:
      residual: [B].
      is_real: bool[B], False on empty slots; None if all are real. The contents of an empty slot, NaN and infinity
        included, reach neither the loss nor its gradient.
      num_trajectories: scalar, trajectories of the whole batch of which `residual` may be one part: the losses and
        gradients of the parts then add up to the batch's. None: the real ones of `residual`.
      weight: [B], a factor of each square, such as the importance weights of prioritized replay (arXiv 1511.05952,
        section 3.4); a constant, any number in an empty slot. It does not change the denominator. None for 1.

    Returns:
      f32 scalar; 0 for a batch of empty slots.

    Raises:
      ValueError: is_real or weight has another shape than residual.
    """
    residual = arrays.float32(residual)
    if is_real is None:
        is_real = jnp.ones(residual.shape, jnp.bool_)
    arrays.check_same_shape(residual=residual, is_real=is_real)
    is_real = jnp.asarray(is_real, jnp.bool_)
    # Mask before the square: 0 times the NaN of a masked-out square is still NaN in the gradient.
    kept = jnp.where(is_real, residual, 0.0)
    squares = jnp.square(kept)
    if weight is not None:
        arrays.check_same_shape(residual=residual, weight=weight)
        squares = squares * jnp.where(is_real, arrays.constant(weight), 0.0)
    return jnp.sum(squares) / arrays.denominator(num_trajectories, is_real)


def rover_residual(
    log_prob: jax.Array,
    behaviour_log_prob: jax.Array,
    next_mean_gap: jax.Array,
    advantage: jax.Array,
    *,
    scale: float | jax.Array,
) -> jax.Array:
    """Token-level Bellman residual of ROVER, in units of reward, one per token.

    q_t   = scale * (log pi - log pi_behaviour)(a_t | s_t)
    delta = q_t - sg(A + scale * [mean_V log pi - mean_V log pi_behaviour](s_{t+1}))          (ROVER, arXiv 2509.24981)

    The value of the next state is a mean over the vocabulary, not a soft maximum: ROVER evaluates the uniform policy. The
    target has no gradient. On the policy that sampled, q and the gap are 0, so one update a batch leaves REINFORCE: the
    method needs mini-batches.

    Args:
      log_prob: [R, C], the policy's, per token.
      behaviour_log_prob: [R, C], the sampler's; a constant.
      next_mean_gap: [R, C], mean over the vocabulary of log pi less the same of the sampler, at the next token of the same
        trajectory, 0 after its last: `next_in_trajectory` of the gap at each token; a constant.
      advantage: [R, C], ROVER's is the reward standardized in its group, on every token; a constant.
      scale: scalar > 0, ROVER's rho, in units of reward per nat; the paper's is 1.

    Returns:
      f32[R, C]. Average its squares by `squared_token_mean`.

    Raises:
      ValueError: shapes differ.
    """
    arrays.check_same_shape(
        log_prob=log_prob, behaviour_log_prob=behaviour_log_prob, next_mean_gap=next_mean_gap, advantage=advantage
    )
    scale = arrays.constant(scale)
    q = scale * (arrays.float32(log_prob) - arrays.constant(behaviour_log_prob))
    return q - (arrays.constant(advantage) + scale * arrays.constant(next_mean_gap))


def next_in_trajectory(values: jax.Array, slot: jax.Array) -> jax.Array:
    """Each token's value at the next token of its trajectory, 0 at the last: packed rows are never read across trajectories.

    Args:
      values: [R, C], one per response token.
      slot: int[R, C] >= 0, the trajectory of each token, as `batch.Batch.slot` has it: equal on neighbours of the same
        trajectory, and a number of no trajectory past the last token.

    Returns:
      f32[R, C], with its gradient; meaningless past the last token.

    Raises:
      ValueError: shapes differ or are not [R, C], or slot is not an integer array.
    """
    arrays.check_same_shape(values=values, slot=slot)
    slot = jnp.asarray(slot)
    if slot.ndim != 2 or not jnp.issubdtype(slot.dtype, jnp.integer):
        raise ValueError(
            f"slot takes the trajectory of each token of packed rows, int[R, C], but got {slot.dtype}{list(slot.shape)}. "
            "Pass the batch's slot."
        )
    one_column = ((0, 0), (0, 1))
    next_values = jnp.pad(arrays.float32(values)[:, 1:], one_column)
    next_slot = jnp.pad(slot[:, 1:], one_column, constant_values=-1)
    return jnp.where(next_slot == slot, next_values, 0.0)


def squared_token_mean(residual: jax.Array, mask: jax.Array, *, num_tokens: int | jax.Array | None = None) -> jax.Array:
    """Mean over response tokens of the squared residual, the loss of ROVER.

    Args:
      residual: [R, C].
      mask: bool[R, C], True on response tokens. The contents of the others, NaN and infinity included, reach neither the loss
        nor its gradient.
      num_tokens: scalar, response tokens of the whole batch of which these may be one part. None: the tokens masked in here.

    Returns:
      f32 scalar; 0 where no token is masked in.

    Raises:
      ValueError: shapes differ.
    """
    return bellman_loss(residual, is_real=mask, num_trajectories=num_tokens)
