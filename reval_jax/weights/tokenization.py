"""Tokenizers: read from a Hugging Face directory, or rebuilt from a GGUF file's metadata.

`transformers` reads a tokenizer from a GGUF file only with torch installed, and without SmolLM's rule for splitting text, so
"a  12" would become different tokens than the model was trained on. This module builds it with the `tokenizers` library, for
the byte-level vocabularies in `families.TEXT_SPLITS`; others are refused by name.
"""

from __future__ import annotations

from pathlib import Path

import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from reval_jax.weights import families, gguf_container

_CONTROL, _USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type


def from_directory(directory: Path) -> transformers.PreTrainedTokenizerBase:
    """The fast tokenizer of a Hugging Face directory, exactly as in its tokenizer.json."""
    # The generic class reads tokenizer.json unchanged; a model's specific class may replace splitting and normalisation by its
    # defaults. Older checkpoints without the file need that class.
    has_file = (directory / "tokenizer.json").exists()
    loader = transformers.PreTrainedTokenizerFast if has_file else transformers.AutoTokenizer
    try:
        loaded = loader.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    # For a damaged file the tokenizers library raises plain Exception, and transformers several kinds.
    except Exception as error:
        raise ValueError(
            f"{directory}: its tokenizer could not be read ({type(error).__name__}: {str(error)[:200]}). The directory"
            " needs tokenizer.json and tokenizer_config.json; download them again."
        ) from error
    if not loaded.is_fast:
        raise ValueError(
            f"{directory} has only a slow tokenizer. Convert it so that the directory holds a tokenizer.json."
        )
    return loaded


def from_gguf(opened: gguf_container.Gguf) -> transformers.PreTrainedTokenizerBase:
    """The fast tokenizer in a GGUF file, with its special tokens and chat template."""
    file = opened.file
    kind, pre = opened.metadata.get("tokenizer.ggml.model"), opened.metadata.get("tokenizer.ggml.pre", "default")
    tokens, merges = opened.metadata.get("tokenizer.ggml.tokens"), opened.metadata.get("tokenizer.ggml.merges")
    if kind != "gpt2" or not tokens or merges is None:
        raise ValueError(
            f"{file}: its tokenizer is of type {kind!r}, but only byte-level BPE ('gpt2') with its merges is read"
            " from GGUF files. Use the model's Hugging Face directory, where every fast tokenizer is read."
        )
    split = _text_split(pre, file)
    try:
        return _built(opened, split, tokens, merges)
    # For damaged metadata the tokenizers library raises plain Exception.
    except Exception as error:
        raise ValueError(
            f"{file}: its tokenizer could not be read ({type(error).__name__}: {str(error)[:200]}). Download it again."
        ) from error


def _built(
    opened: gguf_container.Gguf, split: families.TextSplit, tokens: list[str], merges: list[str]
) -> transformers.PreTrainedTokenizerBase:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    built = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[(left, right) for left, right in (merge.split(" ") for merge in merges)],
            fuse_unk=False,
            ignore_merges=split.keeps_whole_words,
        )
    )
    built.pre_tokenizer = _pre_tokenizer(split)
    if split.is_normalised:
        built.normalizer = normalizers.NFC()
    built.decoder = decoders.ByteLevel()
    types = opened.metadata.get("tokenizer.ggml.token_type", [])
    for index, token_type in enumerate(types):
        if token_type in (_CONTROL, _USER_DEFINED):
            added = tokenizers.AddedToken(tokens[index], normalized=False, special=token_type == _CONTROL)
            (built.add_special_tokens if token_type == _CONTROL else built.add_tokens)([added])
    special = _special_tokens(opened, tokens)
    if opened.metadata.get("tokenizer.ggml.add_bos_token", split.adds_bos) and "bos_token" in special:
        bos = special["bos_token"]
        built.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary[bos])]
        )
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=built, clean_up_tokenization_spaces=False, **special
    )
    wrapped.chat_template = opened.metadata.get("tokenizer.chat_template")
    wrapped.name_or_path = str(opened.file)  # for messages
    return wrapped


def _special_tokens(opened: gguf_container.Gguf, tokens: list[str]) -> dict[str, str]:
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    indices = {name: opened.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    return {name: tokens[index] for name, index in indices.items() if index is not None}


def _text_split(pre: str, file: Path) -> families.TextSplit:
    """The rule that `tokenizer.ggml.pre` names."""
    if pre not in families.TEXT_SPLITS:
        raise ValueError(
            f"{file}: its tokenizer splits text by the rule {pre!r}, but from GGUF files only"
            f" {', '.join(families.TEXT_SPLITS)} are read. Use the model's Hugging Face directory, which contains the rule."
        )
    return families.TEXT_SPLITS[pre]


def _pre_tokenizer(split: families.TextSplit) -> pre_tokenizers.PreTokenizer:
    steps: list[pre_tokenizers.PreTokenizer] = []
    if split.is_digit_split:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if split.pattern:
        steps.append(pre_tokenizers.Split(tokenizers.Regex(split.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split.pattern))
    return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
