"""Models in GGUF files: every family and quantisation is read, and an unknown one is refused."""

from __future__ import annotations

import struct

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


def raw_gguf(*entries, num_keys=None, num_tensors=0, tensors=b""):
    """A file of these metadata entries: (key, value type, bytes of the value)."""
    body = b"".join(text(key) + struct.pack("<I", kind) + value for key, kind, value in entries)
    return (
        b"GGUF" + struct.pack("<IQQ", 3, num_tensors, len(entries) if num_keys is None else num_keys) + body + tensors
    )


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


UINT, STRING, ARRAY = 4, 8, 9
NESTED = struct.pack("<IQ", ARRAY, 1) * 100_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (raw_gguf(("a", ARRAY, struct.pack("<IQ", UINT, 2**61))), "is needed, but the file has"),
        (raw_gguf(("a", ARRAY, struct.pack("<IQ", STRING, 2**61))), "is needed, but the file has"),
        (raw_gguf(("a", STRING, struct.pack("<Q", 2**63))), "is needed, but the file has"),
        (raw_gguf(("a", ARRAY, NESTED)), "an array of arrays"),
        (raw_gguf(num_keys=2**63), "is needed, but the file has"),
        (raw_gguf(num_tensors=2**63), "is needed, but the file has"),
        (raw_gguf(num_tensors=1, tensors=text("t") + struct.pack("<I", 2**32 - 1)), "is needed, but the file has"),
        # 2^32 x 2^32 numbers: their count is 0 in 64 bits.
        (raw_gguf(num_tensors=1, tensors=text("t") + struct.pack("<IQQIQ", 2, 2**32, 2**32, 0, 0)), "is needed, but"),
        (raw_gguf(("general.alignment", UINT, struct.pack("<I", 0))), "general.alignment is 0"),
        (raw_gguf(("general.alignment", STRING, text("x"))), "general.alignment is 'x'"),
        (raw_gguf(("a", UINT, b"1234"), ("a", UINT, b"1234")), "key a stands twice"),
    ],
)
def test_a_gguf_that_claims_more_than_it_holds_is_refused_at_once(content, message, tmp_path):
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=f"truncated, damaged or not GGUF .*{message}"):
        weights.load(str(tmp_path / "bad.gguf"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"llama__block_count": 1.5}, r"gguf: llama\.block_count=1\.5, but it counts"),
        ({"tokenizer__ggml__eos_token_id": 1.5}, "tokenizer could not be read"),
        ({"tokenizer__ggml__eot_token_id": "x"}, "end token 'x' is no token id"),
        ({"tokenizer__ggml__eot_token_id": 7.5}, r"end token 7\.5 is no token id"),
        ({"tokenizer__ggml__unknown_token_id": 9e8}, "tokenizer could not be read"),
        ({"tokenizer__ggml__unknown_token_id": "x"}, "tokenizer could not be read"),
        ({"llama__block_count": float("nan")}, r"block_count=nan, but it counts"),
        ({"llama__block_count": 1e9}, "num_layers=1000000000, but no model has more"),
        ({"llama__attention__layer_norm_rms_epsilon": 0.0}, r"norm_eps=0\.0"),
        ({"llama__rope__freq_base": float("inf")}, "rope_theta=inf"),
        ({"llama__attention__value_length": float("nan")}, "value_length"),
    ],
)
def test_odd_metadata_is_refused_in_one_message(settings, message, tmp_path):
    weight_files.write_gguf(tmp_path / "bad.gguf", **settings)
    with pytest.raises(ValueError, match=message):
        weights.load(str(tmp_path / "bad.gguf"))


def test_a_gguf_whose_tokenizer_has_more_tokens_than_the_embedding_is_refused(tmp_path):
    def cut(tensors):
        for name in ("token_embd.weight", "output.weight"):
            tensors[name] = tensors[name][:-8]

    weight_files.write_gguf(tmp_path / "bad.gguf", change=cut)
    with pytest.raises(ValueError, match=r"ids up to 319 .*vocabulary has only 312"):
        weights.load(str(tmp_path / "bad.gguf"))
