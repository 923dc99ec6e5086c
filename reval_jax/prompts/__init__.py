"""Data set rows to prompt tokens, in an endless order that one integer resumes.

A data set is a `.jsonl` file with the fields `question` and `answer`, a TFDS directory of array_record files, which is
read without TensorFlow, or `procedural:NAME,…`. Every row is checked before any is used.
"""

from __future__ import annotations

from reval_jax.data import rows
from reval_jax.data.rows import Row, name, only_split, read
from reval_jax.prompts import templates
from reval_jax.prompts.dataset import Dataset, decode, from_question, load, take
from reval_jax.prompts.templates import stop_ids

__all__ = [
    "Dataset",
    "Row",
    "decode",
    "from_question",
    "load",
    "name",
    "only_split",
    "read",
    "rows",
    "stop_ids",
    "take",
    "templates",
]
