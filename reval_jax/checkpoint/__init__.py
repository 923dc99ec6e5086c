"""Orbax save and restore of everything that resume needs, in one commit with checksums of its files."""

from __future__ import annotations

from reval_jax.checkpoint.manifest import problem
from reval_jax.checkpoint.saving import SaveError
from reval_jax.checkpoint.state import CheckpointState, Progress
from reval_jax.checkpoint.store import UNCHECKED, Store, check

__all__ = ["UNCHECKED", "CheckpointState", "Progress", "SaveError", "Store", "check", "problem"]
