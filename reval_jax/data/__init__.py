"""Data sets of questions with answers: rows read and checked, other publishers' files prepared as a TFDS directory.

`rows` reads and checks · `tfds_directory` opens a TFDS directory · `files` and `formats` read publishers' files · `preparation`
checks and writes them as a data set, `writing` its directory · `inspection` describes a data set · `special_tokens` texts that no
question may contain.

`prepare` writes what `task.dataset` and `eval.benchmarks` read. TensorFlow is never imported.
"""

from __future__ import annotations

from reval_jax.data import files, formats, rows, tfds_directory, writing
from reval_jax.data.inspection import inspect, summary
from reval_jax.data.preparation import BadRowsError, Prepared, PrepareSettings, prepare

__all__ = [
    "BadRowsError",
    "PrepareSettings",
    "Prepared",
    "files",
    "formats",
    "inspect",
    "prepare",
    "rows",
    "summary",
    "tfds_directory",
    "writing",
]
