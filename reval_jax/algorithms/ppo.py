"""PPO with a value head on the policy's last hidden states: the only method here with parameters beside the policy's."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from reval_jax import batch, objective, policy, types
from reval_jax import config as config_lib
from reval_jax.algorithms import baselines, policy_gradient, value_based
from reval_jax.algorithms.record import Algorithm, Metrics

COLUMNS = ("value", "advantage", "return")
"""Columns of `Trajectories.token_values`, all in units of reward; the advantage is whitened over the fresh batch."""


def ppo(config: config_lib.Config) -> Algorithm:
    """PPO on mini-batches of the fresh batch, whose values are scored once, when the round is collected.

    Raises:
      ValueError: the settings cannot be used together.
    """
    policy_gradient.check_sampling(config)
    value_based.refuse_unread(config, value_based.UNREAD)
    algorithm = policy_gradient.on_policy(config, functools.partial(_loss, config), auto="none")
    return algorithm._replace(
        token_values=COLUMNS,
        reads=algorithm.reads | {"value_head"},
        fill=functools.partial(_fill, config),
    )


def _fill(config: config_lib.Config, fresh: types.Trajectories, head: np.ndarray) -> np.ndarray:
    """f32[sum of response_length, 3]: the columns of the fresh batch, under the policy that sampled it.

    Advantages are whitened over the responses that may train.
    """
    length = fresh.response_length
    mask = np.arange(length.max()) < length[:, None]
    value = np.zeros(mask.shape, np.float32)
    value[mask] = head
    advantage, returns = objective.generalized_advantage(
        jnp.asarray(fresh.reward),
        jnp.asarray(value),
        jnp.asarray(mask),
        discount=config.update.gae_discount,
        decay=config.update.gae_decay,
    )
    trained_on = mask & baselines.may_train(config, fresh)[:, None]
    whitened = objective.whitened(advantage, jnp.asarray(trained_on))
    return np.stack([np.asarray(column)[mask] for column in (value, whitened, returns)], axis=1)


def _loss(config: config_lib.Config, scores: policy.PolicyScores, rows: batch.Batch) -> tuple[jax.Array, Metrics]:
    settings, new_value = config.update, types.present(scores.value)
    old_value, advantage, returns = (rows.token_values[..., column] for column in range(len(COLUMNS)))
    mean = functools.partial(objective.token_mean, num_tokens=rows.num_response_tokens)
    policy_loss = objective.policy_gradient_loss(
        scores.log_prob,
        rows.behaviour_log_prob,
        advantage,
        scores.response_mask,
        surrogate=policy_gradient.clipped(settings),
        mean=mean,
    )
    value_loss = objective.value_loss(
        new_value, old_value, returns, scores.response_mask, clip=settings.value_clip, mean=mean
    )
    error = (new_value - returns) ** 2
    metrics = {"critic/vf_loss": value_loss, "critic/squared_error": mean(error, scores.response_mask)}
    return policy_loss + settings.value_coefficient * value_loss, metrics
