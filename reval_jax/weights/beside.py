"""Digests of what is read beside the weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from reval_jax.weights import gguf_container, loading

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
_WITHOUT_TOKENIZER_JSON = ("vocab.json", "merges.txt", "vocab.txt", "*.model", "*.tiktoken")


def tokenizer_digests(path: str) -> dict[str, str]:
    """16 hex digits of each file that the tokenizer of the model at `path` is read from, by name.

    In a GGUF file that is its metadata about the tokenizer.

    Raises:
      ValueError: as `loading.resolve`.
    """
    local = loading.resolve(path)
    if local.is_file():
        metadata = gguf_container.read(local).metadata
        about = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
        return {local.name: _digest(json.dumps(about, sort_keys=True).encode())}
    has_file = (local / "tokenizer.json").is_file()
    names = [*_TOKENIZER_FILES, *(() if has_file else _WITHOUT_TOKENIZER_JSON)]
    files = sorted({file for name in names for file in _matching(local, name) if file.is_file()})
    return {str(file.relative_to(local)): _digest(file.read_bytes()) for file in files}


def _matching(directory: Path, name: str) -> list[Path]:
    """Files of a name or pattern; the directory itself is never a pattern."""
    return list(directory.glob(name)) if "*" in name else [directory / name]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
