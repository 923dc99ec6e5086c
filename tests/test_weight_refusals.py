"""Model files that are missing, damaged or not handled are refused with a message that names the problem."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from support import hf_checkpoints, weight_files

from reval_jax import weights
from reval_jax.weights import families


@pytest.fixture
def checkpoint(tmp_path):
    """A new tiny llama directory, which the test may damage."""
    return Path(hf_checkpoints.tiny_checkpoint(tmp_path / "checkpoint"))


@pytest.mark.parametrize("path", ["", "/nowhere/model", "nowhere", "a/b/c", "./a/b", "org/model.gguf"])
def test_a_missing_path_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"model\.path"):
        weights.load(path)


def test_an_unreachable_hub_id_is_refused_with_one_message():
    with pytest.raises(ValueError, match="neither on this machine nor reachable as a hub id"):
        weights.load("no-such-org/no-such-model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt_neox"}, "model_type='gpt_neox'"),
        ({"model_type": "DELETE"}, "model_type=None"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"pretraining_tp": 2}, "pretraining_tp=2"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"sliding_window": 64}, "sliding_window=64"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"logit_scale": 2.0}, "'logit_scale'"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"hidden_size": "32"}, "hidden_size='32'"),
        ({"num_hidden_layers": "DELETE"}, "num_hidden_layers=None"),
        ({"rms_norm_eps": "DELETE"}, "rms_norm_eps=None"),
        ({"num_key_value_heads": 3}, "num_kv_heads=3"),
        ({"rope_theta": -1.0}, "rope_theta=-1.0"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic' is not implemented"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "'longrope' is not implemented"),
        ({"rope_scaling": "linear"}, "the RoPE settings are 'linear'"),
        ({"eos_token_id": "</s>"}, "eos_token_id='</s>'"),
        ({"rope_scaling": {"type": "linear"}}, "requires 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "mrope_section": [1]}}, "'mrope_section'"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
            "contradict",
        ),
        ({"vocab_size": 330}, "shape .320, 32., but the configuration implies .330, 32."),
        ({"vocab_size": 300}, "tokenizer has 320 tokens .* vocabulary has only 300"),
        ({"eos_token_id": 320}, "end tokens .2, 320., but the model's vocabulary has only 320"),
        ({"tie_word_embeddings": False}, "lacks lm_head.weight"),
        ({"num_hidden_layers": 3}, "lacks model.layers.2"),
        ({"num_hidden_layers": 1}, "also has model.layers.1"),
        (
            {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
            "lacks model.layers.0.self_attn.k_norm.weight",
        ),
        ({"head_dim": 16}, "tensor model.layers.0.self_attn.q_proj.weight has shape .32, 32."),
    ],
)
def test_a_configuration_that_is_not_implemented_is_refused(changes, message, checkpoint):
    weight_files.edit_config(checkpoint, **changes)
    with pytest.raises(ValueError, match=message):
        weights.load(str(checkpoint))


@pytest.mark.parametrize(
    "changes",
    [
        {"use_sliding_window": True, "sliding_window": 64},
        {"use_mrope": True},
    ],
)
def test_an_active_qwen2_window_is_refused_and_a_disabled_one_is_accepted(changes, tmp_path):
    directory = Path(hf_checkpoints.tiny_checkpoint(tmp_path / "checkpoint", "qwen2"))
    weight_files.edit_config(directory, **changes)
    with pytest.raises(ValueError, match="only"):
        weights.read_architecture(str(directory))
    weight_files.edit_config(
        directory, use_sliding_window=False, sliding_window=64, max_window_layers=1, use_mrope=False
    )
    assert weights.read_architecture(str(directory)).family == "qwen2"


def test_every_other_value_than_a_familys_only_value_is_refused(checkpoint, monkeypatch):
    family = families.FAMILIES["llama"]._replace(only_values={"logit_scale": 1.0})
    monkeypatch.setitem(families.FAMILIES, "llama", family)
    weight_files.edit_config(checkpoint, logit_scale=1.0)
    assert weights.read_architecture(str(checkpoint)).family == "llama"
    weight_files.edit_config(checkpoint, logit_scale=2.0)
    with pytest.raises(ValueError, match=r"logit_scale=2\.0, but only 1\.0 is implemented"):
        weights.read_architecture(str(checkpoint))


def set_nan(tensors):
    tensors["model.norm.weight"][3] = np.nan


def set_infinite(tensors):
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = np.inf


def make_integer(tensors):
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].astype(np.int8)


def add_head(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1


def cut_rows(tensors):
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_nan, "model.norm.weight contains NaN or infinite"),
        (set_infinite, "down_proj.weight contains NaN or infinite"),
        (make_integer, "number type I8"),
        (add_head, "lm_head.weight differs from the embedding"),
        (cut_rows, "has shape .319, 32."),
        (lambda tensors: tensors.pop("model.norm.weight"), "lacks model.norm.weight"),
        (lambda tensors: tensors.update({"extra.weight": np.ones(1, np.float32)}), "also has extra.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, message, checkpoint):
    weight_files.edit_tensors(checkpoint, change)
    with pytest.raises(ValueError, match=message):
        weights.load(str(checkpoint))


@pytest.mark.parametrize("kept", [0, 5, 200, 0.5, 0.999])
def test_truncated_safetensors_are_refused(kept, checkpoint):
    file = checkpoint / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match="truncated or damaged"):
        weights.load(str(checkpoint))


def remove_config(directory):
    (directory / "config.json").unlink()


def break_config(directory):
    (directory / "config.json").write_text("{")


def list_config(directory):
    (directory / "config.json").write_text("[]")


def remove_weights(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def copy_weights(directory):
    shutil.copy(directory / "model.safetensors", directory / "other.safetensors")


def name_missing_shard(directory):
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {"model.norm.weight": "gone.safetensors"}}')


def break_tokenizer(directory):
    (directory / "tokenizer.json").write_text("{}")


def remove_tokenizer(directory):
    (directory / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_config, "no config.json"),
        (break_config, "unreadable"),
        (list_config, "JSON list"),
        (remove_weights, "no ..safetensors"),
        (copy_weights, "2 safetensors files but no model.safetensors.index.json"),
        (name_missing_shard, "gone.safetensors was opened"),
        (break_tokenizer, "tokenizer could not be read"),
        (remove_tokenizer, "tokenizer could not be read"),
    ],
)
def test_a_damaged_directory_is_refused(damage, message, checkpoint):
    damage(checkpoint)
    with pytest.raises(ValueError, match=message):
        weights.load(str(checkpoint))


def test_a_file_that_is_not_gguf_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"without the ending \.gguf"):
        weights.load(str(tmp_path / "model.bin"))


def test_an_export_overwrites_nothing_and_leaves_nothing_behind(checkpoint, tmp_path):
    architecture, tokenizer = hf_checkpoints.tiny_architecture(), hf_checkpoints.tiny_tokenizer()
    params = hf_checkpoints.tiny_params(architecture)
    before = {file: file.read_bytes() for file in checkpoint.iterdir()}
    with pytest.raises(ValueError, match="overwrites nothing"):
        weights.export(checkpoint, architecture, params, tokenizer, eos_token_ids=(2,))
    assert {file: file.read_bytes() for file in checkpoint.iterdir()} == before
    with pytest.raises(ValueError, match="dtype 'int8'"):
        weights.export(tmp_path / "new", architecture, params, tokenizer, eos_token_ids=(2,), dtype="int8")
    with pytest.raises(ValueError, match=r"params\[head\]"):
        weights.export(tmp_path / "new", architecture, params | {"head": np.ones(3)}, tokenizer, eos_token_ids=(2,))
    with pytest.raises(AttributeError):  # a failure halfway, after the directory was begun
        weights.export(tmp_path / "new", architecture, params, None, eos_token_ids=(2,))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_an_export_to_a_file_or_an_unwritable_directory_is_refused(tmp_path):
    architecture, tokenizer = hf_checkpoints.tiny_architecture(), hf_checkpoints.tiny_tokenizer()
    params = hf_checkpoints.tiny_params(architecture)
    (tmp_path / "file").write_text("kept")
    for target in ("file", "file/new"):
        with pytest.raises(ValueError, match="file"):
            weights.export(tmp_path / target, architecture, params, tokenizer, eos_token_ids=(2,))
    assert (tmp_path / "file").read_text() == "kept"


def test_an_export_fills_an_empty_directory(tmp_path):
    (tmp_path / "empty").mkdir()
    assert (
        weights.load(hf_checkpoints.tiny_checkpoint(tmp_path / "empty")).architecture
        == hf_checkpoints.tiny_architecture()
    )
