"""Model files for tests of `weights`: directories to damage, GGUF files as llama.cpp's converter writes them."""

from __future__ import annotations

import json

import gguf
import jax
import numpy as np
import safetensors.numpy

from reval_jax import weights
from support import hf_checkpoints


def assert_same_params(actual, expected, **tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **({"rtol": 0, "atol": 0} | tolerance)), actual, expected
    )


def edit_config(directory, **changes):
    file = directory / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value != "DELETE"}))


def edit_tensors(directory, change, name="model.safetensors"):
    file = directory / name
    tensors = safetensors.numpy.load_file(file)
    change(tensors)
    safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})


def write_gguf(file, family="llama", *, quantisation=gguf.GGMLQuantizationType.F32, change=None, **metadata):
    """A tiny GGUF of hf_checkpoints.tiny_params, written as llama.cpp's converter does; returns (architecture, params)."""
    sizes = {"width": 64, "head_size": 16, "mlp_width": 96}  # rows of whole quantisation blocks
    known = family if family in weights.families.FAMILIES else "llama"
    architecture = hf_checkpoints.tiny_architecture(known, tied_head=False, **sizes)
    params, tokenizer = hf_checkpoints.tiny_params(architecture), hf_checkpoints.tiny_tokenizer()
    writer = gguf.GGUFWriter(file, family)
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    add_gguf_tokenizer(writer, tokenizer)
    for key, value in metadata.items():
        (writer.add_string if isinstance(value, str) else writer.add_float32)(key.replace("__", "."), value)
    tensors = gguf_tensors(architecture, params)
    if change is not None:
        change(tensors)
    for name, array in tensors.items():
        kind = quantisation if array.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return architecture, params


def add_gguf_tokenizer(writer, tokenizer):
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if index < 4 else 1 for _, index in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in backend["model"]["merges"]])
    writer.add_eos_token_id(2)
    writer.add_bos_token_id(1)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)


def gguf_tensors(architecture, params):
    """Our parameters as GGUF tensors, by their own rules: [out, in], and for llama each head's halves interleaved."""
    layers, out = (
        params["layers"],
        {"token_embd.weight": params["embedding"], "output_norm.weight": params["final_norm"]},
    )
    out["output.weight"] = params["head"].T

    def interleave(heads):  # [D, N, H] -> [N * H, D] with dimensions 0, H/2, 1, H/2 + 1, ...
        half = heads.shape[-1] // 2
        order = np.arange(2 * half).reshape(2, half).T.ravel() if architecture.family == "llama" else slice(None)
        return heads[:, :, order].reshape(heads.shape[0], -1).T

    for layer in range(architecture.num_layers):
        block = {key: value[layer] for key, value in layers.items()}
        names = {
            "attn_norm.weight": block["attention_norm"],
            "ffn_norm.weight": block["mlp_norm"],
            "attn_q.weight": interleave(block["query"]),
            "attn_k.weight": interleave(block["key"]),
            "attn_v.weight": block["value"].reshape(architecture.width, -1).T,
            "attn_output.weight": block["output"].reshape(-1, architecture.width).T,
            "ffn_gate.weight": block["gate"].T,
            "ffn_up.weight": block["up"].T,
            "ffn_down.weight": block["down"].T,
        }
        if architecture.qkv_bias:
            names |= {f"attn_{key[0]}.bias": block[f"{key}_bias"].ravel() for key in ("query", "key", "value")}
        if architecture.qk_norm:
            names |= {f"attn_{key[0]}_norm.weight": block[f"{key}_norm"] for key in ("query", "key")}
        out |= {f"blk.{layer}.{name}": array for name, array in names.items()}
    return {name: np.ascontiguousarray(array) for name, array in out.items()}
