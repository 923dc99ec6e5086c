"""ReVal, value-based reinforcement learning for language models with replay, on JAX."""

from __future__ import annotations

import os

from reval_jax import xla_guard

__version__ = "0.1.0"

xla_guard.install()
# transformers is used for its tokenizers; it reports that there is no PyTorch to run its models, which is intended.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
