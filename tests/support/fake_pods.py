"""A TPU slice of fake CPU devices for tests of `reval plan`, and a model and settings large enough to search over."""

from __future__ import annotations

import jax

from reval_jax.tools.plan import compilation, topology
from support import hf_checkpoints, tiny_programs

GIB = 2**30
BIG = hf_checkpoints.tiny_architecture(
    width=512, num_heads=8, num_kv_heads=8, head_size=64, mlp_width=2048, num_layers=4
)


def fake_pod(capacity: int = 10 * GIB) -> compilation.Pod:
    """A slice of one host whose 8 chips are the fake CPU devices: all but the TPU compiler works on it."""
    return compilation.Pod(topology.named("v5e-8"), jax.devices(), jax.devices(), capacity)


def search_settings(**sections):
    defaults = {
        "task": {"max_prompt_tokens": 128},
        "rollout": {"prompts_per_round": 16, "max_response_tokens": 384, "decode_slots": 64},
        "update": {"batch_size": 64, "micro_batch_tokens": 512, "fresh_first": False},
    }
    merged = {name: defaults.get(name, {}) | sections.get(name, {}) for name in defaults | sections}
    return tiny_programs.settings(**merged)
