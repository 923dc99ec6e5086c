"""Models in GGUF files: metadata -> Architecture, de-quantised tensors -> parameters.

Key and tensor names are those of the GGUF specification (ggml/docs/gguf.md). The `gguf` package de-quantises.
"""

from __future__ import annotations

import re
from typing import Any

import gguf
import numpy as np
from numpy import typing as npt

from reval_jax import model
from reval_jax.weights import families, gguf_container, layout

# Metadata keys, after the family's prefix, that become part of the Architecture or are checked against it.
_HANDLED = frozenset(
    """
    block_count context_length embedding_length feed_forward_length attention.head_count attention.head_count_kv
    attention.key_length attention.value_length attention.layer_norm_rms_epsilon rope.freq_base
    rope.dimension_count rope.scaling.type rope.scaling.factor rope.scaling.original_context_length
    rope.scaling.finetuned vocab_size expert_count expert_used_count
    """.split()  # noqa: SIM905 - a list of quoted words is harder to read
)
_INTEGER_TYPES = {"I8", "I16", "I32", "I64"}


def read_architecture(opened: gguf_container.Gguf) -> model.Architecture:
    """The architecture that a file's metadata describes.

    Raises:
      ValueError: a key or value that is not implemented exactly.
    """
    file, name = opened.file, opened.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in families.BY_GGUF_NAME:
        raise ValueError(
            f"{file}: general.architecture={name!r}, but only {', '.join(families.BY_GGUF_NAME)} are implemented. Use a"
            " model of one of these families."
        )
    family = families.BY_GGUF_NAME[name]
    _refuse_unhandled(opened, name)

    def number(key: str, default: float | None = None) -> Any:
        value = opened.metadata.get(f"{name}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{file}: {name}.{key}={value!r}, but the model needs one number there. Use another file.")
        return value

    def count(key: str, default: float | None = None) -> int:
        value = number(key, default)
        if not float(value).is_integer():
            raise ValueError(f"{file}: {name}.{key}={value!r}, but it counts something. Use another file.")
        return int(value)

    num_heads, width = count("attention.head_count"), count("embedding_length")
    head_size = count("attention.key_length", width // max(num_heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        if number(key, head_size) != head_size:
            raise ValueError(
                f"{file}: {name}.{key}={number(key)} differs from the head size {head_size}, which is not implemented."
                " Use another model."
            )
    # A GGUF file stores 1e-5 as float32, which is 9.999999747e-06 in float64; its shortest decimal form is 1e-5 again.
    norm_eps = float(str(np.float32(number("attention.layer_norm_rms_epsilon"))))
    embedding = family.outer_tensors["embedding"].gguf
    if embedding not in opened.tensors:
        raise ValueError(f"{file} has no tensor {embedding}, so the model is incomplete. Use a complete file.")
    fields: dict[str, Any] = {
        "vocab_size": opened.tensors[embedding].shape[0],
        "width": width,
        "num_layers": count("block_count"),
        "num_heads": num_heads,
        "num_kv_heads": count("attention.head_count_kv", num_heads),
        "head_size": head_size,
        "mlp_width": count("feed_forward_length"),
        "rope_theta": float(number("rope.freq_base", family.default_rope_theta)),
        "rope_scaling": _rope_scaling(opened, name),
        "norm_eps": norm_eps,
        "qkv_bias": family.qkv_bias,
        "qk_norm": family.qk_norm,
        "tied_head": family.outer_tensors["head"].gguf not in opened.tensors,
        "max_positions": count("context_length"),
        "family": family.name,
    }
    try:
        return model.Architecture(**fields)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _refuse_unhandled(opened: gguf_container.Gguf, family: str) -> None:
    file = opened.file
    keys = {key.removeprefix(f"{family}.") for key in opened.metadata if key.startswith(f"{family}.")}
    unknown = sorted(keys - _HANDLED)
    if unknown:
        raise ValueError(
            f"{file}: the metadata key {family}.{unknown[0]} is unknown to this {family} implementation, and it"
            " may change the mathematics. Use the model's Hugging Face directory instead."
        )
    if opened.metadata.get(f"{family}.expert_count", 0):
        raise ValueError(f"{file} is a mixture of experts, but only dense models are implemented. Use a dense model.")
    if opened.metadata.get("split.count", 1) > 1:
        raise ValueError(
            f"{file} is one part of a split GGUF, but only whole files are read. Merge it with gguf-split first."
        )


def _rope_scaling(opened: gguf_container.Gguf, family: str) -> model.RopeScaling | None:
    kind = opened.metadata.get(f"{family}.rope.scaling.type", "none")
    if "rope_freqs.weight" in opened.tensors:
        kind = "llama3 (tensor rope_freqs.weight)"
    if kind == "none":
        return None
    factor = opened.metadata.get(f"{family}.rope.scaling.factor")
    if kind != "linear" or not factor:
        raise ValueError(
            f"{opened.file}: RoPE scaling {kind!r} (factor {factor!r}) is not read from GGUF files; only 'linear' is. Use"
            " the model's Hugging Face directory, where llama3 and yarn are read too."
        )
    return model.RopeScaling("linear", float(factor))


def eos_token_ids(opened: gguf_container.Gguf) -> tuple[int, ...]:
    """The tokens that end a response: end of sequence, then end of turn if the file names one."""
    tokens = [opened.metadata.get(f"tokenizer.ggml.{key}") for key in ("eos_token_id", "eot_token_id")]
    for token in tokens:
        if isinstance(token, bool) or not isinstance(token, int | None):
            raise ValueError(f"{opened.file}: the end token {token!r} is no token id. Use another file.")
    return tuple(dict.fromkeys(token for token in tokens if token is not None))


def _huggingface_name(name: str, family: families.Family) -> str:
    """The Hugging Face name of a GGUF tensor; an unknown name is returned unchanged, and `layout.check` refuses it."""
    layer_names = {each.gguf: each.huggingface for each in family.layer_tensors.values()}
    match = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
    if match and match[2] in layer_names:
        return f"model.layers.{match[1]}.{layer_names[match[2]]}"
    return {each.gguf: each.huggingface for each in family.outer_tensors.values()}.get(name, name)


def _unpermute(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Query or key rows in Hugging Face order, from the GGUF order of families with `gguf_interleaves_heads`.

    For these families llama.cpp rotates adjacent dimensions, so its converter interleaves the two halves of each head
    (`permute` in convert_hf_to_gguf.py).
    """
    halves = rows.reshape(num_heads, rows.shape[0] // num_heads // 2, 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def read_params(opened: gguf_container.Gguf, architecture: model.Architecture, *, dtype: npt.DTypeLike) -> model.Params:
    """The de-quantised parameter tree of the file, on the host, in `dtype`."""
    file, family = opened.file, families.FAMILIES[architecture.family]
    stored = {_huggingface_name(name, family): tensor for name, tensor in opened.tensors.items()}
    layout.check({name: tensor.shape for name, tensor in stored.items()}, architecture, str(file))
    interleaved = {}
    if family.gguf_interleaves_heads:
        names = family.layer_tensors
        interleaved = {
            names["query"].huggingface: architecture.num_heads,
            names["key"].huggingface: architecture.num_kv_heads,
        }

    def read(name: str) -> np.ndarray:
        tensor = stored[name]
        try:
            if tensor.kind.name in _INTEGER_TYPES:
                raise NotImplementedError
            numbers = gguf.dequantize(tensor.stored, tensor.kind)
        except NotImplementedError as error:
            raise ValueError(
                f"{file}: tensor {name} has number type {tensor.kind.name}, which cannot be de-quantised. Use a"
                " file of another quantisation, for example Q8_0 or F16."
            ) from error
        in_layer = re.sub(r"^model\.layers\.\d+\.", "", name)
        return _unpermute(numbers, interleaved[in_layer]) if in_layer in interleaved else numbers

    return layout.assemble(architecture, read, dtype=dtype, source=str(file))
