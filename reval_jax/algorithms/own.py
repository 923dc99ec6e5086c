"""An algorithm of the user's: `update.objective: MODULE:FUNCTION`, checked before anything is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from reval_jax import batch, plugins, policy, replay, types
from reval_jax import config as config_lib
from reval_jax.algorithms.record import Algorithm

_CONTRACT = (
    "An objective is a function of the config that returns an Algorithm, for example algorithms.value_based(config, residual); "
    "docs/examples/own_objective.py is one."
)

_RESERVED = (
    *("actor/loss", "actor/grad_norm", "actor/lr", "actor/entropy", "actor/kl_ref", "critic/score/", "filter_groups/"),
    *("overlong/", "perf/", "pool/", "replay/", "reset/", "response_length/", "reuse/", "reval/age/", "reval/fresh/"),
    *("timing_s/", "training/", "val-core/", "verifier/"),
)
"""Names of the trainer's own metrics, and beginnings of names."""


def is_reserved(metric: str) -> bool:
    """Whether the trainer writes a metric of this name, or one that begins like it, itself."""
    return any(metric.startswith(each) if each.endswith("/") else metric == each for each in _RESERVED)


def own(config: config_lib.Config) -> Algorithm:
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
    reward = _call(f"shape_reward of {name}", algorithm.shape_reward, _four_trajectories())
    if np.shape(reward) != (4,):
        raise ValueError(
            f"shape_reward of {name} returned an array of shape {list(np.shape(reward))} for 4 trajectories. Return one "
            f"number each."
        )
    try:
        inspect.signature(algorithm.draw).bind("buffer", "round", "index")
    except TypeError as error:
        raise ValueError(
            f"draw of {name} does not take (buffer, round, index of the update): {error}. It returns one algorithms.Draw; "
            "algorithms.value_based, replayed and on_policy make one."
        ) from error
    _check_loss(name, algorithm)
    return algorithm


def _call(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function of the user's, its errors as a message."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    except (Exception, SystemExit) as error:  # the user's code may fail in any way
        raise ValueError(f"{name} raised {type(error).__name__}: {str(error)[:500]}. {_CONTRACT}") from error


def _four_trajectories() -> types.Trajectories:
    """Two groups of two trajectories of one prompt token and one response token."""
    fields = {}
    for field, model in replay.empty()._asdict().items():
        size = 8 if field == "tokens" else 4
        fields[field] = np.zeros((size, *model.shape[1:]), model.dtype)
    ones = np.ones(4, np.int32)
    return types.Trajectories(**fields)._replace(
        prompt_length=ones, response_length=ones, cursor=np.array([0, 0, 1, 1], np.int64)
    )


def _check_loss(name: str, algorithm: Algorithm) -> None:
    """Traces a loss on the shapes of a tiny micro-batch.

    Raises:
      ValueError: it fails, does not return a scalar and a dict of scalars, float32, or a metric has the name of a built-in one.
    """
    # Sizes that are all different, so that axes cannot be confused unseen.
    columns = len(algorithm.token_values)
    shape = batch.Shape(micro_batches=1, rows=2, tokens=7, responses=5, slots=3, token_values=columns)
    rows = batch.abstract_micro_batch(shape)
    tokens: Any = rows.behaviour_log_prob
    scores = policy.PolicyScores(
        log_prob=tokens,
        trajectory_log_prob=rows.reward,
        soft_value=rows.reward,
        response_mask=jax.ShapeDtypeStruct(rows.slot.shape, np.bool_),  # type: ignore[arg-type]
        soft_values=tokens,
        mean_log_prob=tokens if "mean_log_prob" in algorithm.reads else None,
        value=tokens if "value_head" in algorithm.reads else None,
    )
    arguments: tuple[Any, ...] = (scores, rows)
    if algorithm.prepare is not None:
        arguments += (_call(f"prepare of {name}", jax.eval_shape, algorithm.prepare, scores, rows),)
    result = _call(f"the loss of {name}", jax.eval_shape, algorithm.loss, *arguments)
    expected = "(loss, metrics): a float32 scalar, and a dict of name to float32 scalar"
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        raise ValueError(f"the loss of {name} returned {_described(result)}, not {expected}.")
    for each, value in {"loss": result[0], **result[1]}.items():
        if getattr(value, "shape", None) != () or value.dtype != np.float32:
            raise ValueError(f"the loss of {name} returned {each} as {_described(value)}, not {expected}.")
    if taken := sorted(each for each in result[1] if is_reserved(each)):
        raise ValueError(
            f"the loss of {name} returned the metric {taken[0]}, but the trainer writes a metric of that name itself. Give yours "
            "another name, for example one that begins with your objective's."
        )


def _described(value: Any) -> str:
    """A result of `jax.eval_shape` in a few words."""
    if hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(_described(item) for item in value)})"
    return type(value).__name__
