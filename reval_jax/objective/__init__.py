"""Every loss equation: arrays in, arrays out, computed in float32.

`residuals` value-based losses · `surrogates`, `corrections` and `means`, the choices of `policy_gradient` · `baselines` rewards
compared with a baseline · `second_moment` M2PO's threshold · `ppo` advantages and loss of a value function · `endogenous` the
reward that a model implies.

The reference's numbers, rewards, behaviour log-probabilities and advantages are constants: their gradient is stopped
here, so that no caller can differentiate them by accident. The policy's soft_value and log_prob are differentiated in
full. The paper's Eq. 4 leaves the gradient of V out; to reproduce it, pass `jax.lax.stop_gradient(soft_value)`.

Log-probabilities and values are in nats, and beta > 0 is in units of reward per nat. B trajectories, T tokens; in packed use
R rows of C response tokens. Inputs may have any real dtype. Shapes must be equal and are never broadcast: [B] against [B, 1]
would give a [B, B] loss that trains on nonsense without an error. This package imports jax only, for use in other trainers.
"""

from __future__ import annotations

from reval_jax.objective.baselines import (
    ADVANTAGE_EPSILON,
    greedy_reward_gap,
    group_advantage,
    group_normalized_reward,
    leave_one_out_reward,
    one_sided_reward,
    optimal_value_reward,
)
from reval_jax.objective.corrections import sequence_mask, sequence_weight, token_mask, token_weight
from reval_jax.objective.endogenous import endogenous_return, endogenous_reward
from reval_jax.objective.means import constant_mean, token_mean, trajectory_mean
from reval_jax.objective.policy_gradient import Correction, Mean, Surrogate, grpo_loss, policy_gradient_loss
from reval_jax.objective.ppo import generalized_advantage, value_loss, whitened
from reval_jax.objective.residuals import (
    bellman_loss,
    next_in_trajectory,
    regression_residual,
    reval_residual,
    rover_residual,
    squared_token_mean,
    tbrm_residual,
)
from reval_jax.objective.second_moment import THRESHOLDS, second_moment_sums, second_moment_threshold
from reval_jax.objective.surrogates import (
    LOG_RATIO_BOUND,
    PerTrajectory,
    clipped,
    quadratic,
    reinforce,
    reweighted,
    second_moment_clipped,
    sequence_clipped,
)

__all__ = [
    "ADVANTAGE_EPSILON",
    "LOG_RATIO_BOUND",
    "THRESHOLDS",
    "Correction",
    "Mean",
    "PerTrajectory",
    "Surrogate",
    "bellman_loss",
    "clipped",
    "constant_mean",
    "endogenous_return",
    "endogenous_reward",
    "generalized_advantage",
    "greedy_reward_gap",
    "group_advantage",
    "group_normalized_reward",
    "grpo_loss",
    "leave_one_out_reward",
    "next_in_trajectory",
    "one_sided_reward",
    "optimal_value_reward",
    "policy_gradient_loss",
    "quadratic",
    "regression_residual",
    "reinforce",
    "reval_residual",
    "reweighted",
    "rover_residual",
    "second_moment_clipped",
    "second_moment_sums",
    "second_moment_threshold",
    "sequence_clipped",
    "sequence_mask",
    "sequence_weight",
    "squared_token_mean",
    "tbrm_residual",
    "token_mask",
    "token_mean",
    "token_weight",
    "trajectory_mean",
    "value_loss",
    "whitened",
]
