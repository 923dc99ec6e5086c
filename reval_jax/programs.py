"""The learner's compiled functions, shared by all runs of a process whose settings compile the same ones."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

from reval_jax import algorithms, model, reference, token_scores, update
from reval_jax import config as config_lib

UNREAD: Mapping[str, tuple[str, ...] | None] = {
    "model": ("path",),
    "task": ("dataset", "split", "template", "instruction", "long_prompts", "answer_format"),
    "verifier": None,
    "replay": ("capacity",),
    "eval": None,
    "checkpoint": None,
    "run": None,
}
"""Settings that no compiled function depends on, by section; None: all of it."""


class Compiled(NamedTuple):
    """The learner's compiled functions."""

    optimizer: optax.GradientTransformation
    step: Callable[..., Any]  # of update.make_step, at the run's learning rate
    score: reference.Scorer | None  # None where the algorithm has no reference
    score_tokens: jax.stages.Wrapped | None  # of token_scores.make_scorer; None where nothing is scored per token


class Programs:
    """What runs in this process have compiled for the learner; the sampler's programs are shared in any case."""

    def __init__(self) -> None:
        self._made: dict[object, Compiled] = {}

    def of(
        self,
        config: config_lib.Config,
        architecture: model.Architecture,
        algorithm: algorithms.Algorithm,
        devices: jax.sharding.Mesh,
        *,
        scores_tokens: bool,
    ) -> Compiled:
        """The functions for these settings on these devices, made now or by an earlier run."""
        tree = config_lib.to_tree(config)
        for section, fields in UNREAD.items():
            for field in fields or tuple(tree[section]):
                del tree[section][field]
        # A value, but for the value head, whose rate is a multiple of it.
        rate = None if architecture.has_value_head else tree["optimizer"].pop("learning_rate")
        key = (repr(tree), architecture, devices, scores_tokens)
        if key not in self._made:
            optimizer = update.make_optimizer(config.optimizer, has_value_head=architecture.has_value_head)
            scorer = token_scores.make_scorer(architecture, devices, config=config) if scores_tokens else None
            self._made[key] = Compiled(
                optimizer=optimizer,
                step=update.make_step(architecture, devices, algorithm=algorithm, config=config),
                score=reference.make_scorer(architecture, devices, config=config) if algorithm.has_reference else None,
                score_tokens=scorer,
            )
        made = self._made[key]
        return made if rate is None else made._replace(step=functools.partial(made.step, rate=rate))
