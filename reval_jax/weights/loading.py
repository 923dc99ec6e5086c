"""Published weights in and out: Hugging Face directories and hub ids, GGUF files, and export for `transformers`.

Anything that would change the mathematics and is not handled (a configuration key, a tensor name, a shape, a number
type) is refused with one ValueError that names it; nothing is guessed. Arrays are read one tensor at a time into the
stacked host arrays of `model.abstract_params`, so the peak host memory is the parameters themselves plus one tensor.
torch is never imported here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reval_jax import model
from reval_jax.weights import gguf_file, gguf_reader, huggingface, published, tokenization

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class Loaded(NamedTuple):
    """A model as read from disk, on the host."""

    architecture: model.Architecture
    params: model.Params  # nested dict of NumPy arrays
    tokenizer: Any  # a fast `transformers` tokenizer
    eos_token_ids: tuple[int, ...]  # tokens that end a response: those of the generation config, config and tokenizer
    source: str  # what was read, for logs: the resolved path


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def resolve(path: str) -> Path:
    """The local directory or .gguf file that `path` names; a hub id is downloaded first, or found in the hub's cache."""
    if not path:
        raise ValueError(
            "model.path is empty. Set it to a Hugging Face directory, a hub id such as org/name, or a .gguf file."
        )
    local = Path(path).expanduser()
    if local.is_dir() or (local.is_file() and _is_gguf(local)):
        return local
    if local.is_file():
        raise ValueError(
            f"model.path={path!r} is a file without the ending .gguf, and no other single-file format is read. Give the"
            " directory that holds config.json and the safetensors, or a .gguf file."
        )
    if _HUB_ID.fullmatch(path) and not _is_gguf(local):
        return huggingface.download(path)
    raise ValueError(
        f"model.path={path!r} was not found on this machine, and it is not a hub id of the form org/name. Check the"
        " path, or give a Hugging Face directory, a hub id or a .gguf file."
    )


def read_architecture(path: str) -> model.Architecture:
    """The architecture of the model at `path`, without reading its weights."""
    local = resolve(path)
    if _is_gguf(local):
        return gguf_file.read_architecture(gguf_reader.read(local))
    return huggingface.read_architecture(local)


def find_architecture(path: str) -> tuple[model.Architecture, str]:
    """The architecture of the model at `path`, and where it was found; of a hub id, no more than config.json is fetched.

    The hub's cache on this machine comes first, then the shapes of published models known here, then the hub.
    """
    if Path(path).expanduser().exists() or not _HUB_ID.fullmatch(path):
        return read_architecture(path), path
    cached = huggingface.cached_config(path)
    if cached is None and path in published.ARCHITECTURES:
        return published.ARCHITECTURES[path], f"{path}, its shape as known here (it is not on this machine)"
    directory = cached or huggingface.download_config(path)
    return huggingface.read_architecture(directory), f"{path}, its config.json"


def load_tokenizer(path: str) -> Any:
    """The fast tokenizer of the model at `path`, with its chat template, without reading its weights."""
    local = resolve(path)
    if _is_gguf(local):
        return tokenization.from_gguf(gguf_reader.read(local))
    return tokenization.from_directory(local)


def read(path: str) -> tuple[model.Architecture, Any, tuple[int, ...]]:
    """Everything about the model at `path` but its weights: architecture, fast tokenizer, tokens that end a response.

    Raises ValueError for anything missing, unknown or inconsistent.
    """
    local = resolve(path)
    if _is_gguf(local):
        opened = gguf_reader.read(local)
        architecture, tokenizer = gguf_file.read_architecture(opened), tokenization.from_gguf(opened)
        eos_token_ids = gguf_file.eos_token_ids(opened)
    else:
        architecture, tokenizer = huggingface.read_architecture(local), tokenization.from_directory(local)
        eos_token_ids = huggingface.eos_token_ids(local, tokenizer)
    if not eos_token_ids:
        raise ValueError(
            f"{local} names no end-of-sequence token (neither its configuration nor its tokenizer), so responses could"
            " not end. Add eos_token_id to its config.json."
        )
    if max(len(tokenizer) - 1, *eos_token_ids) >= architecture.vocab_size:
        raise ValueError(
            f"{local}: the tokenizer has {len(tokenizer)} tokens and end tokens {eos_token_ids}, but the model's"
            f" vocabulary only {architecture.vocab_size}. Use the tokenizer that belongs to these weights."
        )
    return architecture, tokenizer, eos_token_ids


def load(path: str, *, dtype: Any = np.float32) -> Loaded:
    """The model at `path` on the host, its arrays in `dtype` (float32 unless memory is short).

    Args:
      path: a Hugging Face directory (one or many safetensors files), a hub id, or a .gguf file with its tokenizer
        inside (quantised weights are de-quantised).

    Raises ValueError, naming what was found, for anything missing, damaged, unknown or not finite.
    """
    architecture, tokenizer, eos_token_ids = read(path)
    local = resolve(path)
    if _is_gguf(local):
        params = gguf_file.read_params(gguf_reader.read(local), architecture, dtype=dtype)
    else:
        params = huggingface.read_params(local, architecture, dtype=dtype)
    return Loaded(architecture, params, tokenizer, eos_token_ids, str(local))
