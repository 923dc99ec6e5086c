"""Sampling: prompts to responses with their log-probabilities.

`interface` says what a sampler promises, `engines` lists the choices. This package's own: `sampler` and `scheduler` run on the
host, `steps` are the compiled programs, `engine` is what they are compiled for, `sampling_op` samples one token.
"""

from __future__ import annotations

from reval_jax.sampler import engines, sampling_op, scheduler, steps
from reval_jax.sampler.engine import (
    CacheSetting,
    Engine,
    from_config,
    make,
)
from reval_jax.sampler.interface import (
    Chunk,
    Generate,
    Hooks,
    Interrupted,
    Sampler,
    Sampling,
    SamplingPolicy,
    joined_mean_log_prob,
)
from reval_jax.sampler.sampler import generate, num_programs, sampling_of
from reval_jax.sampler.steps import abstract_prompts, abstract_state, lower_prefill, lower_window
from reval_jax.sampler.sync import abstract_copy, lower_sync_weights, sync_weights

__all__ = [
    "CacheSetting",
    "Chunk",
    "Engine",
    "Generate",
    "Hooks",
    "Interrupted",
    "Sampler",
    "Sampling",
    "SamplingPolicy",
    "abstract_copy",
    "abstract_prompts",
    "abstract_state",
    "engines",
    "from_config",
    "generate",
    "joined_mean_log_prob",
    "lower_prefill",
    "lower_sync_weights",
    "lower_window",
    "make",
    "num_programs",
    "sampling_of",
    "sampling_op",
    "scheduler",
    "steps",
    "sync_weights",
]
