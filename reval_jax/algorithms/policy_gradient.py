"""Policy gradients: a baseline, a surrogate, a correction and a mean, each chosen by its setting; GRPO is all four defaults."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from reval_jax import batch, objective, policy
from reval_jax import config as config_lib
from reval_jax.algorithms import baselines, draws, value_based
from reval_jax.algorithms.record import Algorithm, Loss, Metrics, ShapeReward

WEIGHTS = ("token", "sequence")
"""Corrections that multiply by the ratio, which a surrogate with a ratio of its own would count twice."""
MASKS = ("token_mask", "sequence_mask")
"""Corrections that leave out tokens whose ratio is far from 1."""


def policy_gradient(config: config_lib.Config) -> Algorithm:
    """The policy gradient of these settings, on mini-batches of the fresh batch unless `update.draws` says otherwise.

    Raises:
      ValueError: the settings cannot be used together.
    """
    update = config.update
    check_sampling(config)
    _check_correction(update)
    algorithm = on_policy(config, functools.partial(_loss, config))
    if update.surrogate == "second_moment":
        return algorithm._replace(loss=functools.partial(_second_moment_loss, config), prepare=_second_moment_sums)
    return algorithm


def on_policy(
    config: config_lib.Config, loss: Loss, *, shape_reward: ShapeReward | None = None, auto: str = "group_standardized"
) -> Algorithm:
    """A loss without a reference: `update.updates_per_round` mini-batches of the fresh batch, `update.passes` times.

    Args:
      shape_reward: centres or scales the round's rewards; `update.reward_design: group_normalized` is left to it. None takes
        `update.baseline`.
      auto: with shape_reward None, what `update.baseline: auto` stands for.

    Raises:
      ValueError: the settings ask for a reference or for prioritized replay, or the fresh batch does not split.
    """
    check_no_reference(config)
    if shape_reward is not None:
        value_based.refuse_unread(config, ("baseline", "endogenous_weight"))
    return Algorithm(
        **draws.choose(config, auto="fresh")._asdict(),
        loss=loss,
        may_train=functools.partial(baselines.may_train, config),
        shape_reward=baselines.shape_reward(config, auto=auto) if shape_reward is None else shape_reward,
        reads=baselines.reads(config),
    )


def check_no_reference(config: config_lib.Config) -> None:
    """Refuses settings that need a reference, or residuals, of an objective without them.

    Raises:
      ValueError: naming the setting.
    """
    update, name = config.update, f"update.objective={config.update.objective}"
    if not update.endogenous_weight:
        for setting in ("reference_reset_every", "reference_reset_pull"):
            if value := getattr(update, setting):
                raise ValueError(
                    f"{name} with update.{setting}={value}: this objective has no reference policy, so there is nothing to "
                    f"reset. Set update.{setting}=0."
                )
        if config.rollout.policy == "reference":
            raise ValueError(
                f"{name} with rollout.policy=reference: this objective has no reference policy to sample from. Set "
                "rollout.policy=learner."
            )
    if config.replay.priority != "uniform":
        raise ValueError(
            f"{name} with replay.priority={config.replay.priority}: importance weights apply to squared residuals, which this "
            "objective does not have. Set replay.priority=uniform."
        )
    if update.max_updates_per_round or update.reference_reset_pull:
        raise ValueError(
            f"{name} with update.max_updates_per_round={update.max_updates_per_round} and update.reference_reset_pull="
            f"{update.reference_reset_pull}: both read residuals, which this objective does not have. Set both to 0."
        )


def check_sampling(config: config_lib.Config) -> None:
    """Refuses truncated sampling.

    Raises:
      ValueError: the ratio to the sampling policy would be of two different kinds of distribution.
    """
    rollout = config.rollout
    if rollout.top_k or rollout.top_p < 1:
        raise ValueError(
            f"update.objective={config.update.objective} with rollout.top_k={rollout.top_k}, rollout.top_p={rollout.top_p}: "
            "the ratio would compare a truncated distribution with a whole one. Set top_k=0 and top_p=1."
        )


def _check_correction(update: config_lib.Update) -> None:
    if update.correction in WEIGHTS and update.surrogate not in ("reinforce", "quadratic"):
        raise ValueError(
            f"update.correction={update.correction} with update.surrogate={update.surrogate}, whose ratio is to the sampling "
            "policy already: the weight would count it twice. Use a mask, or update.surrogate=reinforce."
        )
    if update.correction in MASKS and update.correction_low >= update.correction_high:
        raise ValueError(
            f"update.correction_low={update.correction_low} is not below update.correction_high={update.correction_high}, so "
            "no token would be kept. Use bounds around 1."
        )


def token_advantage(rows: batch.Batch) -> jax.Array:
    """f32[R, C]: each response token's advantage, that of its trajectory."""
    return batch.per_response_token(rows.reward, rows)


def trajectory_sum(rows: batch.Batch) -> Callable[[jax.Array], jax.Array]:
    """f32[R, C] → f32[R, C]: each token gets the sum over its own trajectory."""

    def sum_(values: jax.Array) -> jax.Array:
        return batch.per_response_token(policy.sum_by_slot(values, rows.slot, rows.first.shape[1]), rows)

    return sum_


def trajectory_mean(rows: batch.Batch) -> Callable[[jax.Array], jax.Array]:
    """f32[R, C] → f32[R, C]: each token gets the mean over its own trajectory."""
    total, length = trajectory_sum(rows), token_length(rows)
    return lambda values: total(values) / length


def token_length(rows: batch.Batch) -> jax.Array:
    """f32[R, C]: tokens of the response that each response token belongs to, at least 1."""
    return batch.per_response_token(rows.response_length.clip(1).astype("float32"), rows)


def mean_of(config: config_lib.Config, rows: batch.Batch) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`update.mean` over the whole batch, of which `rows` is one micro-batch: (loss f32[R, C], mask bool[R, C]) → f32[]."""
    match config.update.mean:
        case "token":
            return functools.partial(objective.token_mean, num_tokens=rows.num_response_tokens)
        case "trajectory":
            return functools.partial(
                objective.trajectory_mean, length=token_length(rows), num_trajectories=rows.num_trajectories
            )
        case "constant":
            return functools.partial(
                objective.constant_mean,
                constant=config.rollout.max_response_tokens,
                num_trajectories=rows.num_trajectories,
            )


def clipped(update: config_lib.Update) -> Callable[..., jax.Array]:
    """The clipped surrogate of these settings."""
    return functools.partial(
        objective.clipped, clip_low=update.clip_low, clip_high=update.clip_high, clip_dual=update.clip_dual
    )


def _surrogate(update: config_lib.Update, rows: batch.Batch) -> Callable[..., jax.Array]:
    low, high = update.clip_low, update.clip_high
    match update.surrogate:
        case "sequence_clipped":
            return functools.partial(
                objective.sequence_clipped, trajectory_mean=trajectory_mean(rows), clip_low=low, clip_high=high
            )
        case "reweighted":
            return functools.partial(objective.reweighted, clip_low=low, clip_high=high)
        case "reinforce":
            return objective.reinforce
        case "quadratic":
            return functools.partial(objective.quadratic, strength=update.quadratic_strength)
        case _:
            return clipped(update)


def _correction(update: config_lib.Update, rows: batch.Batch) -> Callable[[jax.Array], jax.Array] | None:
    low, high = update.correction_low, update.correction_high
    match update.correction:
        case "token":
            return functools.partial(objective.token_weight, high=high)
        case "sequence":
            return functools.partial(objective.sequence_weight, trajectory_sum=trajectory_sum(rows), high=high)
        case "token_mask":
            return functools.partial(objective.token_mask, low=low, high=high)
        case "sequence_mask":
            return functools.partial(objective.sequence_mask, trajectory_mean=trajectory_mean(rows), low=low, high=high)
        case _:
            return None


def _loss(config: config_lib.Config, scores: policy.PolicyScores, rows: batch.Batch) -> tuple[jax.Array, Metrics]:
    return _gradient(config, scores, rows, _surrogate(config.update, rows)), _shares(config.update, scores, rows)


def _shares(update: config_lib.Update, scores: policy.PolicyScores, rows: batch.Batch) -> Metrics:
    """The share of tokens that the clip stops, and the correction's mean weight, as far as these settings have them."""
    mask = scores.response_mask
    log_ratio = jax.lax.stop_gradient(jnp.where(mask, scores.log_prob - rows.behaviour_log_prob, 0.0))

    def share(is_stopped: jax.Array) -> jax.Array:
        return jnp.sum(mask & is_stopped, dtype=jnp.float32) / rows.num_response_tokens

    shares: Metrics = {}
    if update.surrogate in ("clipped", "sequence_clipped"):
        of_token = log_ratio if update.surrogate == "clipped" else trajectory_mean(rows)(log_ratio)
        ratio, advantage = jnp.exp(of_token), token_advantage(rows)
        is_beyond = jnp.where(advantage > 0, ratio > 1 + update.clip_high, ratio < 1 - update.clip_low)
        shares["actor/pg_clipfrac"] = share(is_beyond & (advantage != 0))
    correction = _correction(update, rows)
    if correction is not None:
        total = jnp.sum(jnp.where(mask, correction(log_ratio), 0.0))
        shares["actor/correction_weight"] = total / rows.num_response_tokens
    return shares


def _gradient(
    config: config_lib.Config, scores: policy.PolicyScores, rows: batch.Batch, surrogate: Callable[..., jax.Array]
) -> jax.Array:
    return objective.policy_gradient_loss(
        scores.log_prob,
        rows.behaviour_log_prob,
        token_advantage(rows),
        scores.response_mask,
        surrogate=surrogate,
        mean=mean_of(config, rows),
        correction=_correction(config.update, rows),
    )


# --- M2PO: the clip of a step is chosen by the second moment of all its log-ratios ---


def _second_moment_sums(scores: policy.PolicyScores, rows: batch.Batch) -> tuple[jax.Array, ...]:
    return objective.second_moment_sums(
        scores.log_prob, rows.behaviour_log_prob, token_advantage(rows), scores.response_mask
    )


def _second_moment_loss(
    config: config_lib.Config, scores: policy.PolicyScores, rows: batch.Batch, sums: tuple[jax.Array, ...]
) -> tuple[jax.Array, Metrics]:
    threshold = objective.second_moment_threshold(*sums, budget=config.update.second_moment_budget)
    surrogate = functools.partial(objective.second_moment_clipped, threshold=threshold)
    # Each micro-batch adds its share of a number that is the same for all, so that the sum is that number.
    share = scores.response_mask.sum(dtype="float32") / rows.num_response_tokens
    _, num_harmful, uncapped = sums
    metrics = {
        "m2po/second_moment": share * uncapped / num_harmful.clip(1.0),
        "m2po/harmful_fraction": share * num_harmful / rows.num_response_tokens,
    }
    return _gradient(config, scores, rows, surrogate), metrics | _shares(config.update, scores, rows)
