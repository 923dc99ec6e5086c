"""Tiny random checkpoints for tests: written by this package (no torch), and by `transformers` (torch) as the oracle."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

from reval_jax import model, weights

_TEXT = [
    "Q: What is 5 times 5?\nA: 5 times 5 is 25. Let's think step by step and output the final answer within \\boxed{}.",
    "2+2=4, 1+1=2; the quick brown fox jumps over the lazy dog! (A [simple] {test}: 0123456789 - yes/no?) * user"
    " assistant",
]
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 320  # tokens of the tiny tokenizer and model
EOS = "<|im_end|>"


def tiny_tokenizer() -> transformers.PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer of 320 tokens: any text round-trips, digits single, ChatML template, ids 0-3 special."""
    built = tokenizers.Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    built.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|bos|>", EOS, "<|im_start|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    built.train_from_iterator(_TEXT, trainer)
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=built,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = _CHAT_TEMPLATE
    return wrapped


def tiny_architecture(family: str = "llama", **overrides: Any) -> model.Architecture:
    """A two-layer decoder with grouped queries; any field of `model.Architecture` can be overridden."""
    record = weights.families.FAMILIES[family]
    base = model.Architecture(
        vocab_size=VOCABULARY,
        width=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_size=8,
        mlp_width=48,
        rope_theta=10000.0,
        rope_scaling=None,
        norm_eps=1e-6,
        qkv_bias=record.qkv_bias,
        qk_norm=record.qk_norm,
        tied_head=True,
        max_positions=128,
        family=record.name,
    )
    return dataclasses.replace(base, **overrides)


def tiny_params(architecture: model.Architecture, seed: int = 0) -> model.Params:
    """Random host parameters whose norms and biases differ from their initial values, so that no term goes untested."""
    params = jax.tree.map(np.asarray, model.init_params(architecture, jax.random.key(seed)))
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: (leaf + 0.1 * generator.standard_normal(leaf.shape)).astype(np.float32), params)


def tiny_checkpoint(
    directory: str | Path, family: str = "llama", *, seed: int = 0, dtype: str = "float32", **overrides: Any
) -> str:
    """Write a tiny random Hugging Face directory without torch; returns its path for `weights.load`.

    `overrides` are fields of `model.Architecture`.
    """
    architecture, tokenizer = tiny_architecture(family, **overrides), tiny_tokenizer()
    target = weights.export(
        directory,
        architecture,
        tiny_params(architecture, seed),
        tokenizer,
        eos_token_ids=(tokenizer.eos_token_id,),
        dtype=dtype,
    )
    return str(target)


def _torch() -> Any:
    return pytest.importorskip("torch", reason="torch is not installed, on which transformers computes")


def transformers_checkpoint(
    directory: str | Path, family: str, *, seed: int = 0, max_shard_size: str = "5GB", **config: Any
) -> str:
    """Write a tiny random checkpoint with `transformers` itself (needs torch); `config` are its config keys."""
    torch = _torch()

    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
        "bos_token_id": 1,
        "pad_token_id": 0,
    } | config
    built = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(family, **settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in built.parameters():
            base = 1.0 if parameter.ndim == 1 else 0.0
            parameter.copy_(base + 0.1 * torch.randn(parameter.shape, generator=generator))
    built.save_pretrained(directory, max_shard_size=max_shard_size)
    tiny_tokenizer().save_pretrained(directory)
    return str(directory)


def transformers_logits(directory: str | Path, tokens: np.ndarray) -> np.ndarray:
    """Float32 logits [B,T,V] of `transformers` (needs torch) on unpadded rows."""
    torch = _torch()

    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    with torch.no_grad():
        return loaded(torch.asarray(np.asarray(tokens, np.int64))).logits.numpy()


def transformers_gguf_logits(file: str | Path, tokens: np.ndarray) -> np.ndarray:
    """Float32 logits [B,T,V] of a GGUF file that `transformers` reads and de-quantises (needs torch)."""
    # from_pretrained(gguf_file=...) would need accelerate too; the functions it calls do not.
    torch = _torch()
    from transformers import modeling_gguf_pytorch_utils

    config = modeling_gguf_pytorch_utils.load_gguf_checkpoint(file)["config"]
    empty = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**config), dtype=torch.float32, attn_implementation="eager"
    )
    read = modeling_gguf_pytorch_utils.load_gguf_checkpoint(file, return_tensors=True, model_to_load=empty)
    missing, unexpected = empty.load_state_dict(read["tensors"], strict=False)
    assert set(missing) <= {"lm_head.weight"}  # tied to the embedding
    assert not unexpected
    with torch.no_grad():
        return empty.eval()(torch.asarray(np.asarray(tokens, np.int64))).logits.numpy()
