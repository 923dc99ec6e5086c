"""Prompts: rows of a data set, rendered by a template, tokenized, and taken in an endless order that one integer resumes.

`dataset` loads the rows and takes prompts · `templates` renders questions and finds the tokens that end a response.
"""

from __future__ import annotations

from reval_jax.prompts import templates
from reval_jax.prompts.dataset import Dataset, decode, from_question, load, take
from reval_jax.prompts.templates import encode, encode_rendered, stop_ids, today

__all__ = [
    "Dataset",
    "decode",
    "encode",
    "encode_rendered",
    "from_question",
    "load",
    "stop_ids",
    "take",
    "templates",
    "today",
]
