"""Value-based algorithms: squared trajectory-level residuals, on the fresh batch and on replay draws."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from reval_jax import batch, objective, policy
from reval_jax import config as config_lib
from reval_jax.algorithms import baselines, draws
from reval_jax.algorithms.record import Algorithm, Loss, Metrics, PerTrajectory, Reading, Residual

REFERENCE: frozenset[Reading] = frozenset({"reference_log_prob", "reference_value"})
UNREAD = ("surrogate", "mean", "correction")
"""Settings of policy gradients, which a residual does not have."""


def value_based(config: config_lib.Config, residual: Residual, *, reads: frozenset[Reading] = REFERENCE) -> Algorithm:
    """The mean of squared residuals, on the fresh batch and on replay draws.

    Args:
      reads: which of the reference's two numbers the residual reads.
    """
    refuse_unread(config, UNREAD)
    is_weighted = config.replay.priority != "uniform"
    has_reference_value = "reference_value" in _computed(config, reads)

    def per_trajectory(scores: policy.PolicyScores, rows: batch.Batch) -> PerTrajectory:
        gap = scores.soft_value - rows.reference_value if has_reference_value else None
        return PerTrajectory(residual(scores, rows, config.update.beta), gap)

    loss = functools.partial(_value_loss, config, residual, is_weighted, has_reference_value)
    return replayed(config, loss)._replace(reads=reads | baselines.reads(config), per_trajectory=per_trajectory)


def replayed(config: config_lib.Config, loss: Loss) -> Algorithm:
    """A loss that may train on old trajectories: the fresh batch first (App. A of the paper), then replay draws.

    A loss of your own has to apply the importance weights `rows.weight` itself, if `replay.priority` may be set.
    """
    return Algorithm(
        **draws.choose(config, auto="replay")._asdict(),
        loss=loss,
        may_train=functools.partial(baselines.may_train, config),
        shape_reward=baselines.shape_reward(config, auto="none"),
        reads=REFERENCE | baselines.reads(config),
    )


def reval(scores: policy.PolicyScores, rows: batch.Batch, beta: float) -> jax.Array:
    """ReVal's residual of a micro-batch."""
    return objective.reval_residual(
        scores.soft_value,
        rows.reference_value,
        scores.trajectory_log_prob,
        rows.reference_log_prob,
        rows.reward,
        beta=beta,
    )


def tbrm(scores: policy.PolicyScores, rows: batch.Batch, beta: float) -> jax.Array:
    """TBRM's residual of a micro-batch."""
    return objective.tbrm_residual(
        scores.soft_value, scores.trajectory_log_prob, rows.reference_log_prob, rows.reward, beta=beta
    )


def regression(scores: policy.PolicyScores, rows: batch.Batch, beta: float) -> jax.Array:
    """The residual of Eq. 8; with `update.baseline: optimal_value`, OAPL's."""
    return objective.regression_residual(scores.trajectory_log_prob, rows.reference_log_prob, rows.reward, beta=beta)


def refuse_unread(config: config_lib.Config, names: tuple[str, ...]) -> None:
    """Refuses settings of `update` that this objective does not read, unless they have their defaults.

    Raises:
      ValueError: naming the setting.
    """
    for name in names:
        value, default = getattr(config.update, name), getattr(config_lib.Update(), name)
        if value != default:
            raise ValueError(
                f"update.{name}={value} with update.objective={config.update.objective}, which does not read it. Leave "
                f"update.{name}={default}, or use another objective."
            )


def _computed(config: config_lib.Config, reads: frozenset[Reading]) -> frozenset[Reading]:
    """Which of the reference's numbers the rows have, whether the residual reads them or not: both, if a pass scores them."""
    return REFERENCE if config.rollout.policy == "learner" else reads


def _value_loss(
    config: config_lib.Config,
    residual: Residual,
    is_weighted: bool,
    has_reference_value: bool,
    scores: policy.PolicyScores,
    rows: batch.Batch,
) -> tuple[jax.Array, Metrics]:
    settings = config.update
    if settings.stop_value_gradient:
        scores = scores._replace(soft_value=jax.lax.stop_gradient(scores.soft_value))
    is_real = rows.response_length > 0
    delta = residual(scores, rows, settings.beta)
    weight = rows.weight if is_weighted else None
    loss = objective.bellman_loss(delta, is_real=is_real, num_trajectories=rows.num_trajectories, weight=weight)
    per_trajectory = {
        "reval/residual_mean": delta,
        "reval/residual_abs": jnp.abs(delta),
        "reval/log_ratio": scores.trajectory_log_prob - rows.reference_log_prob,
    }
    if has_reference_value:
        per_trajectory["reval/value_gap"] = scores.soft_value - rows.reference_value
    return loss, {
        name: jnp.where(is_real, values, 0.0).sum() / rows.num_trajectories for name, values in per_trajectory.items()
    }
