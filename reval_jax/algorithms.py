"""What distinguishes one algorithm from another, as one record of functions; other modules read only its fields.

`choose` builds the record that `update.objective` names. A name is a built-in, or MODULE:FUNCTION of your own: a function
of the config that returns an `Algorithm`, as the built-ins' do. One contract serves both, because a loss alone is not an
algorithm: which rows it trains on, how rewards are shaped and whether there is a reference belong to it. Three helpers
build the usual records, so that your own part is a few lines:

    value_based(config, residual)     a residual a trajectory; its squares are averaged; fresh batch, then replay draws
    replayed(config, loss)            any loss; fresh batch, then replay draws; reference scores
    on_policy(config, loss, ...)      any loss; mini-batches of the fresh batch; no reference

    def scaled(config):               # my_objectives.py
        def residual(scores, rows, beta):
            return scores.trajectory_log_prob - rows.reference_log_prob - rows.reward / beta

        return algorithms.value_based(config, residual)

    reval train --config configs/NAME.yaml --update.objective my_objectives:scaled --update.objective_path .

docs/examples/own_objective.py is a complete one, with a loss of its own. The function may raise ValueError for settings that
it cannot train with. Its module runs inside the training process, unlike `verifier.function`: it is your code, not a model's
text. It is imported and its loss is traced on a tiny batch of shapes before anything is loaded, so that a wrong name,
signature or result is one message and exit code 2. A run's settings record the function's name and not its text: keep the
file beside the run if you want to resume or repeat it.

A built-in needs its equation in `objective`, its name in `config.BuiltIn` and one case in `choose`. What another algorithm
needs beyond these fields is one more field here with one reader: a greedy response a prompt (ReMax, read by `rollout`),
statistics of the whole step before its gradient (M2PO, read by `update`), parameters beside the policy's (PPO's value head,
read by `setup`). Importance weights between sampler and learner (TIS) need none: a batch holds the sampler's
log-probabilities.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reval_jax import batch, keys, objective, plugins, policy, replay, types
from reval_jax import config as config_lib

Metrics = dict[str, jax.Array]

Loss = Callable[[policy.PolicyScores, batch.Batch], tuple[jax.Array, Metrics]]
"""(scores, one micro-batch) → (loss f32[], metrics f32[]). Both are divided by the whole batch's counts
(`num_trajectories`, `num_response_tokens`), so that the micro-batches' sum is the batch's loss and the batch's mean."""

Residual = Callable[[policy.PolicyScores, batch.Batch, float], jax.Array]
"""(scores, one micro-batch, beta) → residual f32[R, S] in nats, one a trajectory; any number in an empty slot."""

ShapeReward = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(reward f32[B], group i32[B]) → f32[B]. The reward is the verifier's by `update.reward_design` less the penalty for
length. Responses to one prompt share a group, and groups come whole; a call holds one process's share of one wave, not the
round."""


class Algorithm(NamedTuple):
    """Everything that is particular to one algorithm."""

    loss: Loss
    draw: Callable[[replay.Buffer, int], Iterator[np.ndarray]]  # (buffer, round) → rows i64[n] of each of its updates
    step_size: int  # trajectories of one update, at most: bounds the compiled batch
    may_train: Callable[[types.Trajectories], np.ndarray]  # bool[B], False for trajectories left out of the loss
    shape_reward: ShapeReward  # called when responses are graded, once for each: a replayed group is incomplete
    has_reference: bool  # keep pi_ref, and score rows with it before they are trained on


def choose(config: config_lib.Config) -> Algorithm:
    """The algorithm that `update.objective` names.

    Raises:
      ValueError: it cannot train with these settings; or it is a function of the user's that cannot be imported, or whose
        algorithm does not do as `Algorithm` says.
    """
    match config.update.objective:
        case "reval":
            return value_based(config, _reval)
        case "tbrm":
            return value_based(config, _tbrm)
        case "regression":
            return value_based(config, _regression)
        case "grpo":
            return _grpo(config)
        case _:
            return _own(config)


# --- Records ---


def value_based(config: config_lib.Config, residual: Residual) -> Algorithm:
    """The mean of squared residuals, on the fresh batch and on replay draws."""
    return replayed(config, functools.partial(_value_loss, config.update, residual))


def replayed(config: config_lib.Config, loss: Loss) -> Algorithm:
    """A loss that may train on old trajectories: the fresh batch first (App. A of the paper), then uniform replay draws."""
    return Algorithm(
        loss=loss,
        draw=functools.partial(_draw_with_replay, config),
        step_size=config.update.batch_size,
        may_train=functools.partial(_may_train, config.rollout),
        shape_reward=_group_normalized if config.update.reward_design == "group_normalized" else _unchanged,
        has_reference=True,
    )


def on_policy(config: config_lib.Config, loss: Loss, *, shape_reward: ShapeReward) -> Algorithm:
    """A loss for fresh trajectories only, which are split into `update.updates_per_round` equal mini-batches.

    Args:
      shape_reward: centres or scales the round's rewards, if the loss wants that; `update.reward_design: group_normalized` is
        left to it.

    Raises:
      ValueError: the settings ask for replay or a reference, or the fresh batch does not split.
    """
    _check_on_policy(config)
    return Algorithm(
        loss=loss,
        draw=functools.partial(_draw_mini_batches, config),
        step_size=config.update.batch_size // config.update.updates_per_round,
        may_train=functools.partial(_may_train, config.rollout),
        shape_reward=shape_reward,
        has_reference=False,
    )


def _check_on_policy(config: config_lib.Config) -> None:
    update, name = config.update, f"update.objective={config.update.objective}"
    if update.reference_reset_every:
        raise ValueError(
            f"{name} with update.reference_reset_every={update.reference_reset_every}: this objective has no reference "
            "policy, so there is nothing to reset. Set update.reference_reset_every=0."
        )
    if not update.fresh_first:
        raise ValueError(
            f"{name} with update.fresh_first=false: this objective compares with the policy that sampled, so it trains on "
            "fresh trajectories only. Set update.fresh_first=true."
        )
    if update.batch_size % update.updates_per_round:
        raise ValueError(
            f"update.updates_per_round={update.updates_per_round} does not divide update.batch_size={update.batch_size}: "
            f"{name} splits the fresh batch into that many equal mini-batches. Use a divisor."
        )


# --- Rows and rewards ---


def _draw_with_replay(config: config_lib.Config, buffer: replay.Buffer, round: int) -> Iterator[np.ndarray]:
    settings = config.update
    for index in range(settings.updates_per_round):
        if index == 0 and settings.fresh_first:
            yield replay.newest(buffer, config.fresh_size)
        else:
            yield replay.sample(buffer, keys.named_key(config.run.seed, "replay", round, index), settings.batch_size)


def _draw_mini_batches(config: config_lib.Config, buffer: replay.Buffer, round: int) -> Iterator[np.ndarray]:
    fresh = replay.newest(buffer, config.fresh_size)
    order = keys.host_permutation(keys.named_key(config.run.seed, "mini_batches", round), fresh.size)
    yield from np.split(fresh[order], config.update.updates_per_round)


def _may_train(settings: config_lib.Rollout, trajectories: types.Trajectories) -> np.ndarray:
    """With `rollout.truncated=mask` responses that were cut are left out."""
    if settings.truncated == "mask":
        return ~trajectories.is_truncated
    return np.ones(trajectories.size, np.bool_)


def _unchanged(reward: np.ndarray, group: np.ndarray) -> np.ndarray:
    return reward


def _group_normalized(reward: np.ndarray, group: np.ndarray) -> np.ndarray:
    return np.asarray(objective.group_normalized_reward(jnp.asarray(reward), jnp.asarray(group, jnp.int32)))


def _group_advantage(reward: np.ndarray, group: np.ndarray) -> np.ndarray:
    return np.asarray(objective.group_advantage(jnp.asarray(reward), jnp.asarray(group, jnp.int32)))


# --- Losses: `objective`'s equations on a batch's fields ---


def _reval(s: policy.PolicyScores, b: batch.Batch, beta: float) -> jax.Array:
    return objective.reval_residual(
        s.soft_value, b.reference_value, s.trajectory_log_prob, b.reference_log_prob, b.reward, beta=beta
    )


def _tbrm(s: policy.PolicyScores, b: batch.Batch, beta: float) -> jax.Array:
    return objective.tbrm_residual(s.soft_value, s.trajectory_log_prob, b.reference_log_prob, b.reward, beta=beta)


def _regression(s: policy.PolicyScores, b: batch.Batch, beta: float) -> jax.Array:
    return objective.regression_residual(s.trajectory_log_prob, b.reference_log_prob, b.reward, beta=beta)


def _value_loss(
    settings: config_lib.Update, residual: Residual, scores: policy.PolicyScores, rows: batch.Batch
) -> tuple[jax.Array, Metrics]:
    if settings.stop_value_gradient:
        scores = scores._replace(soft_value=jax.lax.stop_gradient(scores.soft_value))
    is_real = rows.response_length > 0
    delta = residual(scores, rows, settings.beta)
    loss = objective.bellman_loss(delta, is_real=is_real, num_trajectories=rows.num_trajectories)
    per_trajectory = {
        "reval/residual_mean": delta,
        "reval/residual_abs": jnp.abs(delta),
        "reval/value_gap": scores.soft_value - rows.reference_value,
        "reval/log_ratio": scores.trajectory_log_prob - rows.reference_log_prob,
    }
    return loss, {
        name: jnp.where(is_real, values, 0.0).sum() / rows.num_trajectories for name, values in per_trajectory.items()
    }


def _grpo(config: config_lib.Config) -> Algorithm:
    algorithm = on_policy(config, functools.partial(_grpo_loss, config.update), shape_reward=_group_advantage)
    rollout = config.rollout
    if rollout.top_k or rollout.top_p < 1:
        raise ValueError(
            f"update.objective=grpo with rollout.top_k={rollout.top_k}, rollout.top_p={rollout.top_p}: the ratio would "
            "compare a truncated distribution with a whole one. Set top_k=0 and top_p=1."
        )
    return algorithm


def _grpo_loss(
    settings: config_lib.Update, scores: policy.PolicyScores, rows: batch.Batch
) -> tuple[jax.Array, Metrics]:
    loss = objective.grpo_loss(
        scores.log_prob,
        rows.behaviour_log_prob,
        batch.per_response_token(rows.reward, rows),
        scores.response_mask,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        clip_dual=settings.clip_dual,
        num_tokens=rows.num_response_tokens,
    )
    return loss, {}


# --- An objective of the user's own ---

_CONTRACT = (
    "An objective is a function of the config that returns an Algorithm, for example algorithms.value_based(config, residual); "
    "docs/examples/own_objective.py is one."
)


def _own(config: config_lib.Config) -> Algorithm:
    """The algorithm that the user's function returns.

    Raises:
      ValueError: the function cannot be imported or fails, or does not return an algorithm.
    """
    name = f"update.objective={config.update.objective}"
    make = plugins.load(
        "update.objective",
        config.update.objective,
        directory=config.update.objective_path,
        directory_setting="update.objective_path",
    )
    algorithm = _call(name, make, config)
    if not isinstance(algorithm, Algorithm):
        raise ValueError(f"{name} returned {type(algorithm).__name__}. {_CONTRACT}")
    reward = _call(f"shape_reward of {name}", algorithm.shape_reward, np.zeros(4, np.float32), np.zeros(4, np.int32))
    if np.shape(reward) != (4,):
        raise ValueError(
            f"shape_reward of {name} returned an array of shape {list(np.shape(reward))} for 4 rewards. Return one number each."
        )
    _check_loss(name, algorithm.loss)
    return algorithm


def _call(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function of the user's, its errors as a message."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    except Exception as error:  # the user's code may fail in any way
        raise ValueError(f"{name} raised {type(error).__name__}: {str(error)[:500]}. {_CONTRACT}") from error


def _check_loss(name: str, loss: Loss) -> None:
    """Traces a loss on the shapes of a tiny micro-batch.

    Raises:
      ValueError: it fails, or does not return a scalar and a dict of scalars, float32.
    """
    # Sizes that are all different, so that axes cannot be confused unseen.
    rows = batch.abstract_micro_batch(batch.Shape(micro_batches=1, rows=2, tokens=7, responses=5, slots=3))
    mask = jax.ShapeDtypeStruct(rows.slot.shape, np.bool_)
    per_token, per_trajectory = rows.behaviour_log_prob, rows.reward
    scores = policy.PolicyScores(per_token, per_trajectory, per_trajectory, mask, soft_values=per_token)  # type: ignore[arg-type]
    result = _call(f"the loss of {name}", jax.eval_shape, loss, scores, rows)
    expected = "(loss, metrics): a float32 scalar, and a dict of name to float32 scalar"
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        raise ValueError(f"the loss of {name} returned {_described(result)}, not {expected}.")
    for each, value in {"loss": result[0], **result[1]}.items():
        if getattr(value, "shape", None) != () or value.dtype != np.float32:
            raise ValueError(f"the loss of {name} returned {each} as {_described(value)}, not {expected}.")


def _described(value: Any) -> str:
    """A result of `jax.eval_shape` in a few words."""
    if hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(_described(item) for item in value)})"
    return type(value).__name__
