"""The algorithm that `update.objective` names."""

from __future__ import annotations

from reval_jax import config as config_lib
from reval_jax.algorithms import own, value_based
from reval_jax.algorithms.policy_gradient import policy_gradient
from reval_jax.algorithms.ppo import ppo
from reval_jax.algorithms.record import Algorithm
from reval_jax.algorithms.rover import rover


def choose(config: config_lib.Config) -> Algorithm:
    """The algorithm that `update.objective` names.

    Raises:
      ValueError: it cannot train with these settings; or it is a function of the user's that cannot be imported, or whose
        algorithm does not do as `Algorithm` says.
    """
    algorithm = _named(config)
    if config.rollout.pool and algorithm.token_values and algorithm.fill is None:
        raise ValueError(
            f"rollout.pool={config.rollout.pool} with update.objective={config.update.objective}, which reads numbers that the "
            f"sampler records ({', '.join(algorithm.token_values)}): stored responses have none. Leave rollout.pool empty, or "
            "use another objective."
        )
    if config.rollout.policy == "reference" and not algorithm.has_reference:
        raise ValueError(
            f"rollout.policy=reference with update.objective={config.update.objective}, which has no reference policy to "
            "sample from. Set rollout.policy=learner."
        )
    return algorithm


def _named(config: config_lib.Config) -> Algorithm:
    match config.update.objective:
        case "reval":
            return value_based.value_based(config, value_based.reval)
        case "tbrm":
            return value_based.value_based(config, value_based.tbrm, reads=frozenset({"reference_log_prob"}))
        case "regression":
            return value_based.value_based(config, value_based.regression, reads=frozenset({"reference_log_prob"}))
        case "policy_gradient" | "grpo":
            return policy_gradient(config)
        case "rover":
            return rover(config)
        case "ppo":
            return ppo(config)
        case _:
            return own.own(config)
