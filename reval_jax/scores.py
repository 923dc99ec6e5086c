"""What a language model's head says about given tokens: per token, its log-probability and the logsumexp of all logits.

One place holds the head, the temperature and the softmax, so that log pi(tau) and V(s1), of the policy and of the
reference, are read from the same logits. Importable without flax, for use in other trainers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def token_scores(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, *, temperature: float | jax.Array = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each target token, and logsumexp of the logits it was drawn from, in nats.

    Q(s, a) = (hidden @ head) / temperature,  logsumexp = V(s) = log sum_a exp Q(s, a),  log_prob = Q(s, target) - V(s)
                                                                                 (ReVal, arXiv 2603.23355, section 4.1)

    The product is taken in the operands' dtype and accumulated in float32; everything after it is float32. log_prob is
    formed around the row's maximum, never as a difference of two large numbers, so that rounding costs a token about
    1e-7 nat however large its logits are: thousands of tokens add up. Both results are differentiable in hidden, head
    and temperature.

    This version holds the [N, V] logits in memory.

    Args:
      hidden: [N, D], the decoder's last hidden states, one per scored token.
      head: [D, V], of the same dtype. Every column takes part in the logsumexp: cut off columns that were added for
        sharding.
      targets: int[N] in [0, V). Beyond V the log_prob is NaN; a negative id counts from the end and goes unnoticed. A
        masked position needs a valid id too.
      temperature: scalar > 0, possibly traced; the logits are divided by it, in float32. 1.0 in the paper.

    Returns:
      (log_prob f32[N], never above 0; logsumexp f32[N]).

    Raises:
      ValueError: hidden and head differ in dtype, or the shapes do not fit together.
    """
    hidden, head, targets = jnp.asarray(hidden), jnp.asarray(head), jnp.asarray(targets)
    _check_operands(hidden, head, targets)
    logits = head_product(hidden, head) / jnp.asarray(temperature, jnp.float32)
    row_max = jax.lax.stop_gradient(jnp.max(logits, axis=-1))  # Cancels in both results, so it carries no gradient.
    shifted = logits - row_max[:, None]
    log_normalizer = jnp.log(jnp.sum(jnp.exp(shifted), axis=-1))
    target_shifted = jnp.take_along_axis(shifted, targets[:, None], axis=-1)[:, 0]
    return target_shifted - log_normalizer, row_max + log_normalizer


def head_product(hidden: jax.Array, head: jax.Array) -> jax.Array:
    """The logits before the temperature, f32[N, V], of hidden [N, D] and head [D, V]: the sampler's and the learner's.

    The product is taken in the operands' dtype and accumulated in float32; on accelerators a float32 product is rounded to
    bfloat16 or TF32 unless it is asked for in full, as it is here.
    """
    precision = jax.lax.Precision.HIGHEST if hidden.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jnp.matmul(hidden, head, precision=precision, preferred_element_type=jnp.float32)


def _check_operands(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> None:
    if hidden.ndim != 2 or head.ndim != 2 or hidden.shape[1] != head.shape[0] or targets.shape != hidden.shape[:1]:
        raise ValueError(
            f"token_scores takes hidden [N, D], head [D, V] and targets [N], but got hidden {list(hidden.shape)}, head "
            f"{list(head.shape)} and targets {list(targets.shape)}, which do not fit together. Flatten batch and time "
            "into N; a tied embedding [V, D] has to be transposed."
        )
    if hidden.dtype != head.dtype:
        raise ValueError(
            f"token_scores multiplies hidden and head in one dtype, but found {hidden.dtype} and {head.dtype}, "
            "so the product's precision would be a guess. Cast both to the compute dtype."
        )
