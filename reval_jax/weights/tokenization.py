"""Tokenizers: from a Hugging Face directory as published, or rebuilt from a GGUF file's metadata.

`transformers` can read a tokenizer out of a GGUF file too, but only with torch installed, and without the splitting
rule of SmolLM ("a  12" then becomes other tokens than the model was trained on). So it is built here, with the
`tokenizers` library, for the byte-level vocabularies whose splitting rule is known; others are refused by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from reval_jax.weights import gguf_reader

_CONTROL, _USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type

# The regular expressions that split text before merging, as the models' own tokenizer.json state them.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


def from_directory(directory: Path) -> Any:
    """The fast tokenizer of a Hugging Face directory, exactly as its tokenizer.json states it."""
    # The generic class takes tokenizer.json as it is; a model's own class may rebuild splitting and normalisation from
    # defaults. Older checkpoints without the file still need that class.
    is_published = (directory / "tokenizer.json").exists()
    loader = transformers.PreTrainedTokenizerFast if is_published else transformers.AutoTokenizer
    try:
        loaded = loader.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    # The tokenizers library raises plain Exception for a damaged file, and transformers several kinds.
    except Exception as error:
        raise ValueError(
            f"{directory}: its tokenizer could not be read ({type(error).__name__}: {str(error)[:200]}). The directory"
            " needs a tokenizer.json and tokenizer_config.json; download them again."
        ) from error
    if not loaded.is_fast:
        raise ValueError(
            f"{directory} has only a slow tokenizer. Convert it so that the directory holds a tokenizer.json."
        )
    return loaded


def from_gguf(opened: gguf_reader.Gguf) -> Any:
    """The fast tokenizer inside a GGUF file, with its special tokens and chat template."""
    where = opened.file
    kind, pre = opened.metadata.get("tokenizer.ggml.model"), opened.metadata.get("tokenizer.ggml.pre", "default")
    tokens, merges = opened.metadata.get("tokenizer.ggml.tokens"), opened.metadata.get("tokenizer.ggml.merges")
    if kind != "gpt2" or not tokens or merges is None:
        raise ValueError(
            f"{where}: its tokenizer is of type {kind!r}, but only byte-level BPE ('gpt2') with its merges is read"
            " from GGUF files. Use the model's Hugging Face directory, where every fast tokenizer is read."
        )
    vocabulary = {token: index for index, token in enumerate(tokens)}
    built = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[tuple(merge.split(" ")) for merge in merges],
            fuse_unk=False,
            # Llama 3 takes a whole word that is in the vocabulary before it tries any merge.
            ignore_merges=pre == "llama-bpe",
        )
    )
    built.pre_tokenizer = _pre_tokenizer(pre, where)
    if pre == "qwen2":
        built.normalizer = normalizers.NFC()
    built.decoder = decoders.ByteLevel()
    types = opened.metadata.get("tokenizer.ggml.token_type", [])
    for index, token_type in enumerate(types):
        if token_type in (_CONTROL, _USER_DEFINED):
            added = tokenizers.AddedToken(tokens[index], normalized=False, special=token_type == _CONTROL)
            (built.add_special_tokens if token_type == _CONTROL else built.add_tokens)([added])
    special = _special_tokens(opened, tokens)
    if opened.metadata.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe") and "bos_token" in special:
        bos = special["bos_token"]
        built.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary[bos])]
        )
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=built, clean_up_tokenization_spaces=False, **special
    )
    wrapped.chat_template = opened.metadata.get("tokenizer.chat_template")
    return wrapped


def _special_tokens(opened: gguf_reader.Gguf, tokens: list[str]) -> dict[str, str]:
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    indices = {name: opened.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    return {name: tokens[index] for name, index in indices.items() if index is not None}


def _pre_tokenizer(pre: str, where: Path) -> pre_tokenizers.PreTokenizer:
    """The splitting rule that `tokenizer.ggml.pre` names."""
    if pre in ("smollm", "gpt-2"):
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return (
            byte_level
            if pre == "gpt-2"
            else pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        )
    splits = {"llama-bpe": _LLAMA3_SPLIT, "qwen2": _QWEN2_SPLIT, "deepseek-r1-qwen": _QWEN2_SPLIT}
    if pre not in splits:
        raise ValueError(
            f"{where}: its tokenizer splits text by the rule {pre!r}, but from GGUF files only smollm, gpt-2,"
            f" {', '.join(splits)} are known. Use the model's Hugging Face directory, where the rule is stated."
        )
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(splits[pre]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
