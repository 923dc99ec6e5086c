"""A user-defined objective: Huber's loss of ReVal's residual, so that no residual has a larger gradient than DELTA.

At a small beta the residual of a right answer is hundreds of nats (r / beta), and its square dominates the batch. Huber's loss is
the square up to DELTA and a line beyond it:

    h(x) = x^2 where |x| <= DELTA, else 2 DELTA |x| - DELTA^2          (Huber, 1964; times 2, so that it begins as ReVal's)

    reval train --config configs/one_shot_medium.yaml --update.objective own_objective:huber --update.objective_path docs/examples

reval_jax calls only `huber`, a function of the config that returns an Algorithm; the other functions are its parts.

    python docs/examples/own_objective.py        prints h and the square
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from reval_jax import algorithms, batch, config, objective, policy

DELTA = 10.0  # nats


def huber(settings: config.Config) -> algorithms.Algorithm:
    """ReVal's rows, rewards and reference with `huber_loss` in place of the mean of squares."""

    def loss(scores: policy.PolicyScores, rows: batch.Batch) -> tuple[jax.Array, algorithms.Metrics]:
        residual = objective.reval_residual(
            scores.soft_value,
            rows.reference_value,
            scores.trajectory_log_prob,
            rows.reference_log_prob,
            rows.reward,
            beta=settings.update.beta,
        )
        is_real = rows.response_length > 0  # False in an empty slot
        is_line = is_real & (jnp.abs(residual) > DELTA)
        # Divided by the whole batch's count, because the losses and metrics of the micro-batches are added.
        return (
            jnp.where(is_real, huber_loss(residual), 0.0).sum() / rows.num_trajectories,
            {"huber/line_fraction": is_line.sum(dtype=jnp.float32) / rows.num_trajectories},
        )

    return algorithms.replayed(settings, loss)


def huber_loss(residual: jax.Array) -> jax.Array:
    """H of each residual, in nats squared."""
    size = jnp.abs(residual)
    return jnp.where(size <= DELTA, jnp.square(residual), 2 * DELTA * size - DELTA**2)


if __name__ == "__main__":
    print(f"{'residual':>10}{'square':>10}{'huber':>10}")
    for value in (0.0, 1.0, 10.0, 100.0, 500.0):
        print(f"{value:>10g}{value**2:>10g}{float(huber_loss(jnp.float32(value))):>10g}")
