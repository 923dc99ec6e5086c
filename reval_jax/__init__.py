"""ReVal, value-based reinforcement learning for language models with replay, on JAX."""

from __future__ import annotations

from reval_jax import xla_guard

__version__ = "0.1.0"

xla_guard.install()
