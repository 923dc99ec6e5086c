"""Objectives that only the figures need, by `update.objective: benchmarks.figures.objectives:NAME`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from reval_jax import algorithms, batch, config, objective, policy, types
from reval_jax.algorithms.value_based import reval


def regression_huber(settings: config.Config) -> algorithms.Algorithm:
    """Eq. 8 with Huber's loss for the square, so that an anomalous log π/π_ref cannot dominate the gradient of a batch.

    h(x) = x² where |x| ≤ δ, else 2δ|x| − δ², with δ = 1/β nats: no residual of the start is larger, since log π/π_ref is 0 and
    the reward less its group's mean below 1. Its metrics are `huber/line_fraction`, and `reval/log_ratio` and
    `reval/residual_abs` as of `regression`.
    """
    delta = 1 / settings.update.beta

    def loss(scores: policy.PolicyScores, rows: batch.Batch) -> tuple[jax.Array, algorithms.Metrics]:
        residual = objective.regression_residual(
            scores.trajectory_log_prob, rows.reference_log_prob, rows.reward, beta=settings.update.beta
        )
        is_real = rows.response_length > 0
        size = jnp.abs(residual)
        per_trajectory = {
            "loss": jnp.where(size <= delta, jnp.square(residual), 2 * delta * size - delta**2),
            "huber/line_fraction": (size > delta).astype(jnp.float32),
            "reval/residual_abs": size,
            "reval/log_ratio": scores.trajectory_log_prob - rows.reference_log_prob,
        }
        means = {
            name: jnp.where(is_real, values, 0.0).sum() / rows.num_trajectories
            for name, values in per_trajectory.items()
        }
        return means.pop("loss"), means

    return algorithms.replayed(settings, loss)


def reval_batch_mean(settings: config.Config) -> algorithms.Algorithm:
    """ReVal whose 0/1 reward is compared with the mean of the round, where groups of one have no mean of their own."""
    algorithm = algorithms.value_based(settings, reval)
    return algorithm._replace(shape_reward=functools.partial(_less_mean, algorithm.shape_reward))


def _less_mean(shape_reward: algorithms.ShapeReward, trajectories: types.Trajectories) -> np.ndarray:
    reward = shape_reward(trajectories)
    return (reward - reward.mean()).astype(np.float32)
