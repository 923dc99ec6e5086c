"""The endogenous reward: the reward for which a language model, as it stands, is the soft-optimal policy.

Li et al., arXiv 2506.23235: with Q = the logits, the soft Bellman equation is inverted for the reward. Both functions read a
reference, so nothing here has a gradient. In nats.
"""

from __future__ import annotations

import jax

from reval_jax.objective import arrays


def endogenous_reward(log_prob: jax.Array, value: jax.Array, next_value: jax.Array) -> jax.Array:
    """Endogenous reward of each token, in nats.

    r_h = Q(s_h, a_h) - V(s_{h+1}) = log pi(a_h | s_h) + V(s_h) - V(s_{h+1}),  V(s_{H+1}) = 0          (arXiv 2506.23235)

    Over a trajectory it telescopes to `endogenous_return`: the values of single tokens matter only to other sums of it, such as
    discounted ones or means.

    Args:
      log_prob: [R, C], log-probability of each token; a constant.
      value: [R, C], V = logsumexp of the logits that predict it; a constant.
      next_value: [R, C], V at the next token of the same trajectory, 0 after its last: `next_in_trajectory` of value; a
        constant.

    Returns:
      f32[R, C], no gradient.

    Raises:
      ValueError: shapes differ.
    """
    arrays.check_same_shape(log_prob=log_prob, value=value, next_value=next_value)
    # The values are large and near each other: their difference first, before a small log-probability is rounded away.
    return arrays.constant(log_prob) + (arrays.constant(value) - arrays.constant(next_value))


def endogenous_return(log_prob: jax.Array, value: jax.Array) -> jax.Array:
    """Endogenous return of each trajectory, in nats: the sum of its endogenous rewards.

    R(tau) = log pi(tau) + V(s1)          (arXiv 2506.23235; telescoped)

    ReVal's residual is the difference of the policy's and the reference's, less r / beta. Within a prompt V(s1) is the same for
    all responses, so it ranks them as log pi does.

    Args:
      log_prob: [B], sum over the response of log pi; a constant.
      value: [B], V at the last prompt token; a constant.

    Returns:
      f32[B], no gradient.

    Raises:
      ValueError: shapes differ.
    """
    arrays.check_same_shape(log_prob=log_prob, value=value)
    return arrays.constant(log_prob) + arrays.constant(value)
