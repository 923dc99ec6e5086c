"""Prompts → sampled responses with their log-probabilities: slots that are refilled, on a copy of the parameters.

`generate` is the contract; another engine may stand behind it. What it promises:

- Every response is drawn from softmax(logits / temperature), or from what top-k and top-p leave of it, and its
  log-probabilities are recorded under both. It ends with a stop token, which belongs to it, or is cut at the limit.
- Every random number is named by (key, prompt cursor, sample, position): neither slots, nor the order of admission, nor windows,
  nor processes, nor an interruption change it. With the same parameters and `Engine` the responses are the same, bit for bit.
- Nothing leaves the process: hosts decode their own prompts.

How: a fixed number of slots decode together for a window of tokens (one program); between windows the host takes
finished responses out and fills their slots with the next (prompt, sample). A prompt is prefilled once, and copied into
each sample's slot.
"""

from __future__ import annotations

from reval_jax.sampler import sampling_op, scheduler, steps
from reval_jax.sampler.engine import (
    AttentionSetting,
    CacheSetting,
    Engine,
    LayersSetting,
    abstract_copy,
    from_config,
    hand_over,
    lower_hand_over,
    make,
)
from reval_jax.sampler.sampler import Sampling, generate, num_programs, sampling_of
from reval_jax.sampler.scheduler import Interrupted, Tokens
from reval_jax.sampler.steps import abstract_prompts, abstract_state, lower_prefill, lower_window

__all__ = [
    "AttentionSetting",
    "CacheSetting",
    "Engine",
    "Interrupted",
    "LayersSetting",
    "Sampling",
    "Tokens",
    "abstract_copy",
    "abstract_prompts",
    "abstract_state",
    "from_config",
    "generate",
    "hand_over",
    "lower_hand_over",
    "lower_prefill",
    "lower_window",
    "make",
    "num_programs",
    "sampling_of",
    "sampling_op",
    "scheduler",
    "steps",
]
