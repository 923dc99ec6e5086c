"""The sampler's engines, and the choice among them.

Another engine is a function like `jax_engine`, in a file of its own, and one more entry of `ENGINES`; one of your own
needs no entry: `rollout.engine` takes MODULE:FUNCTION too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from reval_jax import config as config_lib
from reval_jax import mesh as mesh_lib
from reval_jax import model, plugins
from reval_jax.sampler import engine as engine_lib
from reval_jax.sampler import sampler, sync
from reval_jax.sampler.interface import Sampler

Make = Callable[[model.Architecture, mesh_lib.Meshes, config_lib.Config, int], Sampler]
"""(architecture, meshes, config, tokens of the longest prompt) → the sampler. Raises ValueError for settings it cannot run."""


def jax_engine(
    architecture: model.Architecture, meshes: mesh_lib.Meshes, config: config_lib.Config, max_prompt_tokens: int
) -> Sampler:
    """This package's own sampler."""
    engine = engine_lib.from_config(architecture, meshes.sampler, config, max_prompt_tokens=max_prompt_tokens)
    return Sampler(
        sync_weights=lambda params: sync.sync_weights(params, engine),
        generate=functools.partial(sampler.generate, engine),
    )


ENGINES: dict[str, Make] = {"jax": jax_engine}


def choose(name: str) -> Make:
    """The engine that `rollout.engine` names: a key of ENGINES, or MODULE:FUNCTION.

    Raises:
      ValueError: there is no such engine.
    """
    return ENGINES[name] if name in ENGINES else plugins.load("rollout.engine", name)
