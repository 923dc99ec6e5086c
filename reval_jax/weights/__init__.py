"""Model weights: read from Hugging Face directories, hub ids and GGUF files; exported for `transformers`.

`families` one record per model family · `loading` reads a model · `huggingface`, `gguf_model`, `gguf_container`,
`tokenization`, `rope` the formats · `layout` maps tensors to arrays · `exporting` writes · `published` configurations
shipped with the package.

A configuration key, tensor name, shape or number type that would change the mathematics and is not implemented is refused with
a ValueError that names it. Tensors are read one at a time into the stacked host arrays of `model.abstract_params`, so peak host
memory is the parameters plus one tensor. torch is never imported.
"""

from __future__ import annotations

from reval_jax.weights import families, published, rope
from reval_jax.weights.beside import tokenizer_digests
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
    "tokenizer_digests",
]
