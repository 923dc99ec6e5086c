"""Every loss equation: arrays in, arrays out, computed in float32.

A residual function returns one number per trajectory, and `bellman_loss` is the mean of their squares. `grpo_loss` is the
policy-gradient baseline. The reward designs and GRPO's advantage, which compare the responses to one prompt, are here too.

The reference's numbers, rewards, behaviour log-probabilities and advantages are constants: their gradient is stopped
here, so that no caller can differentiate them by accident. The policy's soft_value and log_prob are differentiated in
full. The paper's Eq. 4 leaves the gradient of V out; to reproduce it, pass `jax.lax.stop_gradient(soft_value)`.

Log-probabilities and values are in nats, and beta > 0 is in units of reward per nat. B trajectories, T tokens. Inputs may
have any real dtype. Shapes must be equal and are never broadcast: [B] against [B, 1] would give a [B, B] loss that trains
on nonsense without an error. This module imports jax only, for use in other trainers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

LOG_RATIO_BOUND = 20.0  # nats; exp of more would leave float32's useful range. verl's bound.
ADVANTAGE_EPSILON = 1e-6  # units of reward; keeps a group of equal rewards from dividing 0 by 0. verl's value.


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
    _check_same_shape(
        soft_value=soft_value,
        reference_soft_value=reference_soft_value,
        log_prob=log_prob,
        reference_log_prob=reference_log_prob,
        reward=reward,
    )
    # Subtract like from like first: thousands of nats cancel here, before a small term could be rounded away.
    value_gap = _float32(soft_value) - _constant(reference_soft_value)
    log_ratio = _float32(log_prob) - _constant(reference_log_prob)
    return value_gap + log_ratio - _constant(reward) / _float32(beta)


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
    _check_same_shape(soft_value=soft_value, log_prob=log_prob, reference_log_prob=reference_log_prob, reward=reward)
    log_ratio = _float32(log_prob) - _constant(reference_log_prob)
    return _float32(soft_value) + log_ratio - _constant(reward) / _float32(beta)


def regression_residual(
    log_prob: jax.Array, reference_log_prob: jax.Array, reward: jax.Array, *, beta: float | jax.Array
) -> jax.Array:
    """Residual of the regression of log-ratios on rewards, in nats, one per trajectory.

    delta = log pi(tau) - log pi_ref(tau) - r / beta          (Eq. 8; ReVal, arXiv 2603.23355)

    The equation's reward is centred on its group: pass `group_normalized_reward`. Arguments, result and errors as in
    `reval_residual`.
    """
    _check_same_shape(log_prob=log_prob, reference_log_prob=reference_log_prob, reward=reward)
    log_ratio = _float32(log_prob) - _constant(reference_log_prob)
    return log_ratio - _constant(reward) / _float32(beta)


def bellman_loss(
    residual: jax.Array, *, is_real: jax.Array | None = None, num_trajectories: int | jax.Array | None = None
) -> jax.Array:
    """Mean over trajectories of the squared residual, in nats squared.

    loss = sum over real trajectories of delta^2 / num_trajectories          (Eq. 2; ReVal, arXiv 2603.23355)

    Args:
      residual: [B].
      is_real: bool[B], False on empty slots; None if all are real. The contents of an empty slot, NaN and infinity
        included, reach neither the loss nor its gradient.
      num_trajectories: scalar, trajectories of the whole batch of which `residual` may be one part: the losses and
        gradients of the parts then add up to the batch's. None: the real ones of `residual`.

    Returns:
      f32 scalar; 0 for a batch of empty slots.

    Raises:
      ValueError: is_real has another shape than residual.
    """
    residual = _float32(residual)
    if is_real is None:
        is_real = jnp.ones(residual.shape, jnp.bool_)
    _check_same_shape(residual=residual, is_real=is_real)
    is_real = jnp.asarray(is_real, jnp.bool_)
    # Mask before the square: 0 times the NaN of a masked-out square is still NaN in the gradient.
    kept = jnp.where(is_real, residual, 0.0)
    return jnp.sum(jnp.square(kept)) / _denominator(num_trajectories, is_real)


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
    _check_same_shape(log_prob=log_prob, behaviour_log_prob=behaviour_log_prob, response_mask=response_mask)
    mask = jnp.asarray(response_mask, jnp.bool_)
    # Mask before exp: 0 times the infinity or NaN of a masked-out token would still be NaN in the gradient.
    log_ratio = jnp.where(mask, _float32(log_prob) - _constant(behaviour_log_prob), 0.0)
    token_advantage = _per_token(_constant(advantage), mask.shape)
    ratio = jnp.exp(jnp.clip(log_ratio, -LOG_RATIO_BOUND, LOG_RATIO_BOUND))
    clipped_ratio = jnp.clip(ratio, 1.0 - _float32(clip_low), 1.0 + _float32(clip_high))

    unclipped_loss = -token_advantage * ratio
    clipped_loss = -token_advantage * clipped_ratio
    loss = jnp.where(clipped_loss > unclipped_loss, clipped_loss, unclipped_loss)
    ceiling = -token_advantage * _float32(clip_dual)
    loss = jnp.where((token_advantage < 0.0) & (ceiling < loss), ceiling, loss)
    return jnp.sum(loss, where=mask) / _denominator(num_tokens, mask)


def group_normalized_reward(reward: jax.Array, group: jax.Array) -> jax.Array:
    """Reward minus the mean reward of its group, in units of reward.

    r~_i = r_i - mean of r over the group of i          (ReVal, arXiv 2603.23355, Fig. 9)

    Exactly 0 where all rewards of a group are equal, hence always 0 for a group of one: such a batch teaches nothing.
    It compares every pair, so it needs memory of order B^2; the order of the rows does not matter.

    Args:
      reward: [B]; a constant.
      group: int[B], any labels; equal labels mean the same prompt. Give empty slots a label of their own, so that they
        affect no other row.

    Returns:
      f32[B], no gradient.

    Raises:
      ValueError: shapes differ, or group is not an integer array.
    """
    is_same = _is_same_group(reward, group)
    return _centred(_constant(reward), is_same)


def group_advantage(reward: jax.Array, group: jax.Array) -> jax.Array:
    """GRPO's advantage: the reward in standard deviations from the mean of its group.

    A_i = (r_i - mean) / (std + 1e-6), std with n - 1 in the denominator          (GRPO, arXiv 2402.03300)

    A group of one has mean 0 and std 1, as in GRPO's usual code: A = r, so only positives teach. Exactly 0 where all
    rewards of a larger group are equal. Arguments, memory and errors as in `group_normalized_reward`.

    Returns:
      f32[B], dimensionless, no gradient.
    """
    is_same = _is_same_group(reward, group)
    reward = _constant(reward)
    centred = _centred(reward, is_same)
    group_size = jnp.sum(is_same, axis=1, dtype=jnp.float32)
    sum_of_squares = jnp.sum(jnp.where(is_same, jnp.square(centred)[None, :], 0.0), axis=1)
    std = jnp.sqrt(sum_of_squares / jnp.maximum(group_size - 1.0, 1.0))
    return jnp.where(group_size == 1.0, reward, centred / (std + ADVANTAGE_EPSILON))


def _is_same_group(reward: jax.Array, group: jax.Array) -> jax.Array:
    """bool[B, B], True where two rows carry the same label."""
    _check_same_shape(reward=reward, group=group)
    group = jnp.asarray(group)
    if group.ndim != 1 or not jnp.issubdtype(group.dtype, jnp.integer):
        raise ValueError(
            f"group takes one integer label per trajectory, int[B], but got {group.dtype}{list(group.shape)}, which "
            "does not name the group of each row exactly. Pass the prompts' integer ids."
        )
    return group[:, None] == group[None, :]


def _centred(reward: jax.Array, is_same: jax.Array) -> jax.Array:
    """f32[B], reward minus its group's mean, computed from distances to the group's largest reward.

    Equal rewards then have distance 0 exactly, whereas a float32 mean of them might be rounded.
    """
    largest = jnp.max(jnp.where(is_same, reward[None, :], -jnp.inf), axis=1)
    distance = jnp.where(is_same, reward[None, :] - largest[:, None], 0.0)
    mean_distance = jnp.sum(distance, axis=1) / jnp.sum(is_same, axis=1, dtype=jnp.float32)
    return (reward - largest) - mean_distance


def _per_token(advantage: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """f32[B, T] from an advantage per trajectory, [B], or per token, [B, T]."""
    if advantage.shape == shape:
        return advantage
    if advantage.shape == shape[:1]:
        return jnp.broadcast_to(advantage[:, None], shape)
    raise ValueError(
        f"grpo_loss takes an advantage per trajectory, [B], or per token, [B, T], but got {list(advantage.shape)} with "
        f"log_prob {list(shape)}, which is neither. Reshape the advantage."
    )


def _denominator(count: int | jax.Array | None, mask: jax.Array) -> jax.Array:
    """f32 scalar, the count or else the mask's, at least 1 so that an empty part costs 0 and not NaN."""
    if count is None:
        return jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1.0)
    return jnp.maximum(_float32(count), 1.0)


def _float32(array: float | jax.Array) -> jax.Array:
    return jnp.asarray(array).astype(jnp.float32)


def _constant(array: jax.Array) -> jax.Array:
    return jax.lax.stop_gradient(_float32(array))


def _check_same_shape(**arrays: jax.Array) -> None:
    shapes = {name: list(jnp.shape(array)) for name, array in arrays.items()}
    if any(shape != next(iter(shapes.values())) for shape in shapes.values()):
        described = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"{', '.join(shapes)} are combined element by element, but their shapes are {described}, and broadcasting "
            "them would mix trajectories. Give all of them the same shape."
        )
