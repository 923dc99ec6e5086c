"""GGUF files: metadata -> Architecture, tensors (de-quantised) -> parameters.

Key and tensor names: the GGUF specification (ggml/docs/gguf.md). The `gguf` package de-quantises.
"""

from __future__ import annotations

import re
from typing import Any

import gguf
import numpy as np

from reval_jax import model
from reval_jax.weights import gguf_reader, layout

_FAMILIES = ("llama", "qwen2", "qwen3")
# Keys under "<family>." that become the Architecture or are compared with it.
_HANDLED = frozenset(
    """
    block_count context_length embedding_length feed_forward_length attention.head_count attention.head_count_kv
    attention.key_length attention.value_length attention.layer_norm_rms_epsilon rope.freq_base
    rope.dimension_count rope.scaling.type rope.scaling.factor rope.scaling.original_context_length
    rope.scaling.finetuned vocab_size expert_count expert_used_count
    """.split()  # noqa: SIM905 - a list of quoted words is harder to read
)
_TENSORS = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_OUTER_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INTEGER_TYPES = {"I8", "I16", "I32", "I64"}


def read_architecture(opened: gguf_reader.Gguf) -> model.Architecture:
    """The architecture that a file's metadata describes; ValueError for any key or value not handled exactly."""
    where, family = opened.file, opened.metadata.get("general.architecture")
    if family not in _FAMILIES:
        raise ValueError(
            f"{where}: general.architecture={family!r}, but only {', '.join(_FAMILIES)} are implemented. Use a model"
            " of one of these."
        )
    _refuse_unhandled(opened, family)

    def value(key: str, default: float | None = None) -> Any:
        found = opened.metadata.get(f"{family}.{key}", default)
        if isinstance(found, bool) or not isinstance(found, (int, float)):
            raise ValueError(
                f"{where}: {family}.{key}={found!r}, but one number is needed to build the model. Use another file."
            )
        return found

    num_heads, width = value("attention.head_count"), value("embedding_length")
    head_size = value("attention.key_length", width // max(num_heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        if value(key, head_size) != head_size:
            raise ValueError(
                f"{where}: {family}.{key}={value(key)} differs from the head size {head_size}, which is not implemented."
                " Use another model."
            )
    # The published float32 epsilon reads back as 9.999999747e-06; the shortest decimal is the number that was meant.
    norm_eps = float(str(np.float32(value("attention.layer_norm_rms_epsilon"))))
    if "token_embd.weight" not in opened.tensors:
        raise ValueError(f"{where} holds no tensor token_embd.weight, so it is not a whole model. Use a complete file.")
    return model.Architecture(
        vocab_size=opened.tensors["token_embd.weight"].shape[0],
        width=width,
        num_layers=value("block_count"),
        num_heads=num_heads,
        num_kv_heads=value("attention.head_count_kv", num_heads),
        head_size=head_size,
        mlp_width=value("feed_forward_length"),
        rope_theta=float(value("rope.freq_base", 10000.0)),
        rope_scaling=_rope_scaling(opened, family),
        norm_eps=norm_eps,
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        tied_head="output.weight" not in opened.tensors,
        max_positions=value("context_length"),
        family=family,
    )


def _refuse_unhandled(opened: gguf_reader.Gguf, family: str) -> None:
    where = opened.file
    keys = {key.removeprefix(f"{family}.") for key in opened.metadata if key.startswith(f"{family}.")}
    unknown = sorted(keys - _HANDLED)
    if unknown:
        raise ValueError(
            f"{where}: the metadata key {family}.{unknown[0]} is not one this {family} implementation knows, and it"
            " may change the mathematics. Use the model's Hugging Face directory instead."
        )
    if opened.metadata.get(f"{family}.expert_count", 0):
        raise ValueError(f"{where} is a mixture of experts, but only dense models are implemented. Use a dense model.")
    if opened.metadata.get("split.count", 1) > 1:
        raise ValueError(
            f"{where} is one part of a split GGUF, but only whole files are read. Merge it with gguf-split first."
        )


def _rope_scaling(opened: gguf_reader.Gguf, family: str) -> model.RopeScaling | None:
    where = opened.file
    kind = opened.metadata.get(f"{family}.rope.scaling.type", "none")
    if "rope_freqs.weight" in opened.tensors:
        kind = "llama3 (tensor rope_freqs.weight)"
    if kind == "none":
        return None
    factor = opened.metadata.get(f"{family}.rope.scaling.factor")
    if kind != "linear" or not factor:
        raise ValueError(
            f"{where}: RoPE scaling {kind!r} (factor {factor!r}) is not read from GGUF files; only 'linear' is. Use"
            " the model's Hugging Face directory, where llama3 and yarn are read too."
        )
    return model.RopeScaling("linear", float(factor))


def eos_token_ids(opened: gguf_reader.Gguf) -> tuple[int, ...]:
    """The tokens that end a response: end of sequence, then end of turn where the file names one."""
    found = [opened.metadata.get(f"tokenizer.ggml.{key}") for key in ("eos_token_id", "eot_token_id")]
    return tuple(dict.fromkeys(token for token in found if token is not None))


def _published_name(name: str) -> str:
    """The Hugging Face name of a GGUF tensor; an unknown one is returned as it is, and refused by the name check."""
    match = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
    if match and match[2] in _TENSORS:
        return f"model.layers.{match[1]}.{_TENSORS[match[2]]}"
    return _OUTER_TENSORS.get(name, name)


def _unpermute(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Query or key rows back in Hugging Face order.

    llama.cpp rotates neighbouring dimensions, so its converter interleaves the two halves of every head of the llama
    family (`permute` in convert_hf_to_gguf.py); Qwen files keep the Hugging Face order.
    """
    halves = rows.reshape(num_heads, rows.shape[0] // num_heads // 2, 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def read_params(opened: gguf_reader.Gguf, architecture: model.Architecture, *, dtype: Any) -> model.Params:
    """The parameter tree of the file, de-quantised, on the host, in `dtype`."""
    where = opened.file
    stored = {_published_name(name): tensor for name, tensor in opened.tensors.items()}
    layout.check({name: tensor.shape for name, tensor in stored.items()}, architecture, str(where))

    def read(name: str) -> np.ndarray:
        tensor = stored[name]
        try:
            if tensor.kind.name in _INTEGER_TYPES:
                raise NotImplementedError
            numbers = gguf.dequantize(tensor.stored, tensor.kind)
        except NotImplementedError as error:
            raise ValueError(
                f"{where}: tensor {name} has number type {tensor.kind.name}, which cannot be de-quantised here. Use a"
                " file of another quantisation, for example Q8_0 or F16."
            ) from error
        if architecture.family == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            num_heads = architecture.num_heads if name.endswith("q_proj.weight") else architecture.num_kv_heads
            numbers = _unpermute(numbers, num_heads)
        return numbers

    return layout.assemble(architecture, read, dtype=dtype, source=str(where))
