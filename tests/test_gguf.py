"""Models in GGUF files: every family and quantisation is read, and an unknown one is refused."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from support import hf_checkpoints, weight_files

from reval_jax import model, weights

FAMILIES = tuple(weights.families.FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gguf_gives_architecture_params_and_tokenizer(family, tmp_path):
    file = tmp_path / "tiny.gguf"
    architecture, params = weight_files.write_gguf(file, family)
    loaded = weights.load(str(file))
    assert loaded.architecture == architecture == weights.read_architecture(str(file))
    weight_files.assert_same_params(loaded.params, params)
    assert loaded.eos_token_ids == (2,)
    original = hf_checkpoints.tiny_tokenizer()
    text = "<|im_start|>user\nWhat is  12 times 5?<|im_end|>é"
    assert loaded.tokenizer(text)["input_ids"] == original(text)["input_ids"]
    assert loaded.tokenizer.chat_template == original.chat_template
    assert loaded.tokenizer.pad_token_id == 0


def test_a_quantised_gguf_is_dequantised(tmp_path):
    file = tmp_path / "tiny.gguf"
    _, params = weight_files.write_gguf(file, quantisation=gguf.GGMLQuantizationType.Q8_0)
    loaded = weights.load(str(file)).params
    weight_files.assert_same_params(loaded, params, atol=5e-3)
    assert np.abs(loaded["layers"]["query"] - params["layers"]["query"]).max() > 0


def test_a_gguf_with_linear_scaling_keeps_it(tmp_path):
    weight_files.write_gguf(
        tmp_path / "tiny.gguf", llama__rope__scaling__type="linear", llama__rope__scaling__factor=4.0
    )
    assert weights.read_architecture(str(tmp_path / "tiny.gguf")).rope_scaling == model.RopeScaling("linear", 4.0)


def break_gguf_name(tensors):
    tensors["blk.0.attn_gate.weight"] = tensors.pop("blk.0.attn_q.weight")


def break_gguf_values(tensors):
    tensors["blk.1.ffn_up.weight"][3, 5] = np.nan


def break_gguf_shape(tensors):
    tensors["blk.0.attn_q.weight"] = tensors["blk.0.attn_q.weight"][:-2]


def break_gguf_rope(tensors):
    tensors["rope_freqs.weight"] = np.ones(8, np.float32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"family": "gpt2"}, "general.architecture='gpt2'"),
        ({"llama__attention__head_count": "four"}, "head_count='four'"),
        ({"llama__attention__sliding_window": 16.0}, "llama.attention.sliding_window"),
        ({"llama__rope__scaling__type": "yarn", "llama__rope__scaling__factor": 2.0}, "RoPE scaling 'yarn'"),
        ({"llama__rope__dimension_count": 8.0}, "rope.dimension_count"),
        ({"change": break_gguf_rope}, "rope_freqs"),
        ({"change": break_gguf_name}, "lacks model.layers.0.self_attn.q_proj.weight"),
        ({"change": break_gguf_shape}, "q_proj.weight has shape .62, 64."),
        ({"change": break_gguf_values}, "mlp.up_proj.weight contains NaN"),
        ({"change": lambda tensors: tensors.pop("token_embd.weight")}, "token_embd.weight"),
    ],
)
def test_a_gguf_that_is_not_implemented_is_refused(settings, message, tmp_path):
    file = tmp_path / "bad.gguf"
    weight_files.write_gguf(file, **settings)
    with pytest.raises(ValueError, match=message):
        weights.load(str(file))


@pytest.mark.parametrize("kept", [0, 3, 100, 5_000, 0.5, 0.99])
def test_a_truncated_gguf_is_refused(kept, tmp_path):
    file = tmp_path / "tiny.gguf"
    weight_files.write_gguf(file)
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match="truncated, damaged or not GGUF"):
        weights.load(str(file))
