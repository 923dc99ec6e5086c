"""Published weights in and out: Hugging Face directories and hub ids, GGUF files, and export for `transformers`.

Anything that would change the mathematics and is not handled (a configuration key, a tensor name, a shape, a number
type) is refused with one ValueError that names it; nothing is guessed. Arrays are read one tensor at a time into the
stacked host arrays of `model.abstract_params`, so the peak host memory is the parameters themselves plus one tensor.
torch is never imported here.
"""

from __future__ import annotations

from reval_jax.weights import published, rope
from reval_jax.weights.loading import Loaded, find_architecture, load, load_tokenizer, read, read_architecture, resolve
from reval_jax.weights.writer import export

__all__ = [
    "Loaded",
    "export",
    "find_architecture",
    "load",
    "load_tokenizer",
    "published",
    "read",
    "read_architecture",
    "resolve",
    "rope",
]
