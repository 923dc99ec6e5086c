"""Model weights: read from Hugging Face directories, hub ids and GGUF files; exported for `transformers`.

`families` one record per model family · `loading` reads a model · `huggingface`, `gguf_model`, `gguf_container`,
`tokenization`, `rope` the formats · `layout` which tensor is which array · `exporting` writes · `published` configurations
shipped with the package.

Anything that would change the mathematics and is not implemented (a configuration key, a tensor name, a shape, a number type) is
refused with one ValueError that names it; nothing is guessed. Tensors are read one at a time into the stacked host arrays of
`model.abstract_params`, so peak host memory is the parameters plus one tensor. torch is never imported here.
"""

from __future__ import annotations

from reval_jax.weights import families, published, rope
from reval_jax.weights.exporting import export
from reval_jax.weights.loading import Loaded, find_architecture, load, load_tokenizer, read, read_architecture, resolve

__all__ = [
    "Loaded",
    "export",
    "families",
    "find_architecture",
    "load",
    "load_tokenizer",
    "published",
    "read",
    "read_architecture",
    "resolve",
    "rope",
]
