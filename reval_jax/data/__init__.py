"""Prompt sets: other people's files in, a checked TFDS directory with a fingerprint out.

`prepare` writes what `task.dataset` and `eval.benchmarks` read; `inspect` says what is in a data set. TensorFlow is never
imported.
"""

from __future__ import annotations

from reval_jax.data import files, formats, rows, writing
from reval_jax.data.inspection import inspect, sentences
from reval_jax.data.preparation import BadRows, Prepared, Settings, prepare

__all__ = ["BadRows", "Prepared", "Settings", "files", "formats", "inspect", "prepare", "rows", "sentences", "writing"]
