"""Tokenizers and questions for tests of prompts: one token a byte, with the special tokens of a model family."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import tokenizers
import transformers

from reval_jax import config

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def ends(bos: str, eos: str) -> dict[str, str]:
    return {"bos_token": bos, "eos_token": eos}


def byte_tokenizer(special: list[str], **options: Any) -> transformers.PreTrainedTokenizerFast:
    """One token a byte, after the special ones; `added` are added tokens that are not marked special."""
    added, bos = options.pop("added", []), options.pop("adds_bos", False)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[])
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.add_special_tokens(special)
    inner.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in added])
    if bos:
        token = options["bos_token"]
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{token} $A {options['eos_token']}",
            special_tokens=[(name, inner.token_to_id(name)) for name in (token, options["eos_token"])],
        )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **options)


def chatml_tokenizer() -> transformers.PreTrainedTokenizerFast:
    return byte_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        **ends("<|im_start|>", "<|im_end|>"),
        chat_template=CHATML,
        added=["<b>"],
    )


def write(path: Path, rows: list[Any]) -> str:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def questions(*texts: str) -> list[dict[str, str]]:
    return [{"question": text, "answer": str(i)} for i, text in enumerate(texts)]


def task(dataset: str, **fields: Any) -> config.Task:
    return dataclasses.replace(config.Task(dataset=dataset, template="raw"), **fields)
