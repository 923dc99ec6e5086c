"""ROVER: a token-level Bellman residual whose next value is the mean log-probability over the vocabulary."""

from __future__ import annotations

import functools

import jax

from reval_jax import batch, objective, policy, types
from reval_jax import config as config_lib
from reval_jax.algorithms import policy_gradient, value_based
from reval_jax.algorithms.record import Algorithm, Metrics


def rover(config: config_lib.Config) -> Algorithm:
    """ROVER on mini-batches of the fresh batch, with the group's standardized reward at every token.

    The sampling policy's mean log-probability over the vocabulary is recorded with every token. The first update of a round
    finds residuals that equal the negative advantage, as in REINFORCE: it takes several mini-batches, or passes, to differ.

    Raises:
      ValueError: the settings cannot be used together.
    """
    policy_gradient.check_sampling(config)
    value_based.refuse_unread(config, value_based.UNREAD)
    algorithm = policy_gradient.on_policy(config, functools.partial(_loss, config.update))
    return algorithm._replace(token_values=("mean_log_prob",), reads=algorithm.reads | {"mean_log_prob"})


def _loss(settings: config_lib.Update, scores: policy.PolicyScores, rows: batch.Batch) -> tuple[jax.Array, Metrics]:
    gap = types.present(scores.mean_log_prob) - rows.token_values[..., 0]
    residual = objective.rover_residual(
        scores.log_prob,
        rows.behaviour_log_prob,
        objective.next_in_trajectory(gap, rows.slot),
        policy_gradient.token_advantage(rows),
        scale=settings.bellman_scale,
    )
    loss = objective.squared_token_mean(residual, scores.response_mask, num_tokens=rows.num_response_tokens)
    return loss, {}
