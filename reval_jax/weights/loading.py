"""Loads a model from a Hugging Face directory, a hub id or a GGUF file: architecture, parameters, tokenizer."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import transformers
from numpy import typing as npt

from reval_jax import model
from reval_jax.weights import gguf_container, gguf_model, huggingface, published, tokenization

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class Loaded(NamedTuple):
    """A model on the host, as read from disk."""

    architecture: model.Architecture
    params: model.Params  # nested dict of NumPy arrays
    tokenizer: transformers.PreTrainedTokenizerBase  # fast
    eos_token_ids: tuple[int, ...]  # tokens that end a response
    source: str  # the resolved path, for logs


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def resolve(path: str) -> Path:
    """The local directory or .gguf file that `path` names; a hub id is downloaded unless it is in the local hub cache."""
    if not path:
        raise ValueError(
            "model.path is empty. Set it to a Hugging Face directory, a hub id such as org/name, or a .gguf file."
        )
    local = Path(os.path.expanduser(path))
    if local.is_dir() or (local.is_file() and _is_gguf(local)):
        return local
    if local.is_file():
        raise ValueError(
            f"model.path={path!r} is a file without the ending .gguf, and no other single-file format is read. Name the"
            " directory with config.json and the safetensors files, or a .gguf file."
        )
    if _HUB_ID.fullmatch(path) and not _is_gguf(local):
        return huggingface.download(path)
    raise ValueError(
        f"model.path={path!r} does not exist on this machine, and it is not a hub id of the form org/name. Check the"
        " path, or name a Hugging Face directory, a hub id or a .gguf file."
    )


def read_architecture(path: str) -> model.Architecture:
    """The architecture of the model at `path`, without reading its weights."""
    local = resolve(path)
    if _is_gguf(local):
        return gguf_model.read_architecture(gguf_container.read(local))
    return huggingface.read_architecture(local)


def find_architecture(path: str) -> tuple[model.Architecture, str]:
    """The architecture of the model at `path`, and its source; for a hub id at most config.json is downloaded.

    A hub id is looked up in the local hub cache, then in the configurations shipped with this package, then on the hub.
    """
    if Path(os.path.expanduser(path)).exists() or not _HUB_ID.fullmatch(path):
        return read_architecture(path), path
    cached = huggingface.cached_config(path)
    if cached is None and path in published.names():
        return published.architecture(
            path
        ), f"{path}, its configuration shipped with reval_jax (it is not in the local hub cache)"
    directory = cached or huggingface.download_config(path)
    return huggingface.read_architecture(directory), f"{path}, its config.json"


def load_tokenizer(path: str) -> transformers.PreTrainedTokenizerBase:
    """The fast tokenizer of the model at `path`, with its chat template, without reading its weights."""
    local = resolve(path)
    if _is_gguf(local):
        return tokenization.from_gguf(gguf_container.read(local))
    return tokenization.from_directory(local)


def read(path: str) -> tuple[model.Architecture, transformers.PreTrainedTokenizerBase, tuple[int, ...]]:
    """The model at `path` without its weights: architecture, fast tokenizer, tokens that end a response.

    Raises:
      ValueError: something is missing, unknown or inconsistent; the message names it.
    """
    local = resolve(path)
    if _is_gguf(local):
        opened = gguf_container.read(local)
        architecture, tokenizer = gguf_model.read_architecture(opened), tokenization.from_gguf(opened)
        eos_token_ids = gguf_model.eos_token_ids(opened)
    else:
        architecture, tokenizer = huggingface.read_architecture(local), tokenization.from_directory(local)
        eos_token_ids = huggingface.eos_token_ids(local, tokenizer)
    if not eos_token_ids:
        raise ValueError(
            f"{local} has no end-of-sequence token in its configuration or tokenizer, so responses could not end. Add"
            " eos_token_id to its config.json."
        )
    # The ids of a tokenizer may have holes, so their number says nothing about the largest.
    largest, token = max((index, token) for token, index in tokenizer.get_vocab().items())
    if largest >= architecture.vocab_size or not all(0 <= index < architecture.vocab_size for index in eos_token_ids):
        raise ValueError(
            f"{local}: the tokenizer has {len(tokenizer)} tokens with ids up to {largest} ({token!r}) and end tokens"
            f" {eos_token_ids}, but the model's vocabulary has only {architecture.vocab_size}. Use the tokenizer that belongs to"
            " these weights."
        )
    return architecture, tokenizer, eos_token_ids


def load(path: str, *, dtype: npt.DTypeLike = np.float32) -> Loaded:
    """The model at `path`, on the host, with arrays in `dtype` (use float32 unless memory is short).

    Args:
      path: a Hugging Face directory (one or more safetensors files), a hub id, or a .gguf file that contains its
        tokenizer (quantised weights are de-quantised).

    Raises:
      ValueError: something is missing, damaged, unknown or not finite; the message names it.
    """
    architecture, tokenizer, eos_token_ids = read(path)
    local = resolve(path)
    if _is_gguf(local):
        params = gguf_model.read_params(gguf_container.read(local), architecture, dtype=dtype)
    else:
        params = huggingface.read_params(local, architecture, dtype=dtype)
    return Loaded(architecture, params, tokenizer, eos_token_ids, str(local))
