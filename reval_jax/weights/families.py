"""Model families, one record each: all differences between the published files of the families.

To add a family, add its record here and its name to `model.architecture.FamilyName`; new mathematics goes into `model.layer`.
The readers, the exporter and their tests read these records and name no family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from reval_jax import model


class TensorName(NamedTuple):
    """The name of one array of the parameter tree in each published format."""

    huggingface: str  # within a layer: after "model.layers.<index>."
    gguf: str  # within a layer: after "blk.<index>."


class Family(NamedTuple):
    """One model family."""

    name: model.FamilyName  # `model_type` in config.json
    huggingface_class: str  # class of the language model, `architectures` in config.json
    gguf_name: str  # `general.architecture` of a GGUF file, and the prefix of its metadata keys
    layer_tensors: Mapping[str, TensorName]  # by key of params["layers"], in file order
    outer_tensors: Mapping[str, TensorName]  # outside the layers, by key of params
    qkv_bias: bool = False  # biases on query, key and value
    qk_norm: bool = False  # RMSNorm over each query and key head
    default_head_size: int | None = None  # `head_dim` where config.json omits it; None: width / heads
    default_rope_theta: float = 10000.0  # `rope_theta` where config.json or the GGUF metadata omits it
    only_values: Mapping[str, bool | float | None] = {}  # config.json keys, each with its only implemented value
    gguf_interleaves_heads: bool = False  # GGUF stores query and key rows in llama.cpp's order, see `gguf_model`


LAYER_TENSORS = {
    "query": TensorName("self_attn.q_proj.weight", "attn_q.weight"),
    "key": TensorName("self_attn.k_proj.weight", "attn_k.weight"),
    "value": TensorName("self_attn.v_proj.weight", "attn_v.weight"),
    "output": TensorName("self_attn.o_proj.weight", "attn_output.weight"),
    "gate": TensorName("mlp.gate_proj.weight", "ffn_gate.weight"),
    "up": TensorName("mlp.up_proj.weight", "ffn_up.weight"),
    "down": TensorName("mlp.down_proj.weight", "ffn_down.weight"),
    "attention_norm": TensorName("input_layernorm.weight", "attn_norm.weight"),
    "mlp_norm": TensorName("post_attention_layernorm.weight", "ffn_norm.weight"),
    "query_bias": TensorName("self_attn.q_proj.bias", "attn_q.bias"),
    "key_bias": TensorName("self_attn.k_proj.bias", "attn_k.bias"),
    "value_bias": TensorName("self_attn.v_proj.bias", "attn_v.bias"),
    "query_norm": TensorName("self_attn.q_norm.weight", "attn_q_norm.weight"),
    "key_norm": TensorName("self_attn.k_norm.weight", "attn_k_norm.weight"),
}
"""The names that Llama, Qwen2 and Qwen3 share; `layout.tensors` uses those that the architecture has."""
OUTER_TENSORS = {
    "embedding": TensorName("model.embed_tokens.weight", "token_embd.weight"),
    "final_norm": TensorName("model.norm.weight", "output_norm.weight"),
    "head": TensorName("lm_head.weight", "output.weight"),
}

_RECORDS = (
    Family(
        name="llama",
        huggingface_class="LlamaForCausalLM",
        gguf_name="llama",
        layer_tensors=LAYER_TENSORS,
        outer_tensors=OUTER_TENSORS,
        only_values={"attention_bias": False, "mlp_bias": False},
        gguf_interleaves_heads=True,
    ),
    Family(
        name="qwen2",
        huggingface_class="Qwen2ForCausalLM",
        gguf_name="qwen2",
        layer_tensors=LAYER_TENSORS,
        outer_tensors=OUTER_TENSORS,
        qkv_bias=True,
        only_values={"use_sliding_window": False},
    ),
    Family(
        name="qwen3",
        huggingface_class="Qwen3ForCausalLM",
        gguf_name="qwen3",
        layer_tensors=LAYER_TENSORS,
        outer_tensors=OUTER_TENSORS,
        qk_norm=True,
        default_head_size=128,  # a constant of transformers' configuration class, whatever the width
        only_values={"use_sliding_window": False},
    ),
)
FAMILIES: Mapping[str, Family] = {family.name: family for family in _RECORDS}
"""By `model_type`."""
BY_GGUF_NAME: Mapping[str, Family] = {family.gguf_name: family for family in _RECORDS}
"""By `general.architecture`."""


class TextSplit(NamedTuple):
    """How a byte-level tokenizer splits text before it merges; a GGUF file holds only the name of this rule."""

    pattern: str | None = None  # regular expression of a piece, from the model's tokenizer.json; None: GPT-2's
    is_digit_split: bool = False  # each digit is one piece, split off before the pattern applies
    is_normalised: bool = False  # text is normalised to Unicode NFC first
    keeps_whole_words: bool = False  # a piece in the vocabulary is one token, even if the merges would not form it
    adds_bos: bool = False  # default of add_bos_token: whether a beginning-of-sequence token is added


_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_PATTERN = _LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
TEXT_SPLITS = {
    "smollm": TextSplit(is_digit_split=True),
    "gpt-2": TextSplit(),
    "llama-bpe": TextSplit(_LLAMA3_PATTERN, keeps_whole_words=True, adds_bos=True),
    "qwen2": TextSplit(_QWEN2_PATTERN, is_normalised=True),
    "deepseek-r1-qwen": TextSplit(_QWEN2_PATTERN),
}
"""By `tokenizer.ggml.pre`; models of one family may differ."""
