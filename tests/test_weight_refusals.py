"""Model files that are missing, damaged or not handled are refused with a message that names the problem."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from support import hf_checkpoints, weight_files

from reval_jax import model, weights
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
        ({"layer_types": 5}, "layer_types=5"),
        ({"rope_theta": 10**400}, "rope_theta=10000"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps=10000"),
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
        (
            {
                "rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": 1e4},
                "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 2e4},
            },
            "contradict",
        ),
        ({"vocab_size": 330}, "shape .320, 32., but the configuration implies .330, 32."),
        ({"vocab_size": 300}, "tokenizer has 320 tokens .* vocabulary has only 300"),
        ({"eos_token_id": 320}, "end tokens .2, 320., but the model's vocabulary has only 320"),
        ({"eos_token_id": -1}, "eos_token_id=-1"),
        ({"eos_token_id": True}, "eos_token_id=True"),
        ({"rms_norm_eps": 0}, r"config\.json: norm_eps=0.0"),
        ({"rms_norm_eps": -1}, r"norm_eps=-1\.0"),
        ({"rms_norm_eps": float("nan")}, "norm_eps=nan"),
        ({"rms_norm_eps": float("inf")}, "norm_eps=inf"),
        ({"rms_norm_eps": True}, "rms_norm_eps=True"),
        ({"rope_theta": float("inf")}, "rope_theta=inf"),
        ({"num_hidden_layers": 10**9}, "num_layers=1000000000, but no model has more"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings='false'"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings=1"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": "false"}}, "truncate='false'"),
        ({"rope_scaling": {"type": ["linear"], "factor": 2.0}}, r"scaling \['linear'\] is not implemented"),
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
    (directory / "model.safetensors").rename(directory / "another.safetensors")


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
NORM = "model.norm.weight"


def write_index(directory, **weight_map):
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def name_missing_shard(directory):
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {"model.norm.weight": "gone.safetensors"}}')


def list_as_file(directory):
    write_index(directory, a=["model.safetensors"])


def number_as_file(directory):
    write_index(directory, a=1)


def empty_map(directory):
    write_index(directory)


def name_file_above(directory):
    shutil.copy(directory / "model.safetensors", directory.parent / "above.safetensors")
    write_index(directory, a="../above.safetensors")


def name_absolute_file(directory):
    write_index(directory, a=str(directory / "model.safetensors"))


def keep_one_embedding(directory):
    """A tied model that has only the head."""
    weight_files.edit_tensors(
        directory, lambda tensors: tensors.update({"lm_head.weight": tensors.pop("model.embed_tokens.weight")})
    )


def stale_shards(directory):
    """An older save in shards, its index still there."""
    tensors = safetensors.numpy.load_file(directory / "model.safetensors")
    safetensors.numpy.save_file(tensors, directory / "model-00001-of-00001.safetensors")
    write_index(directory, **dict.fromkeys(tensors, "model-00001-of-00001.safetensors"))


def unnamed_shard(directory):
    stale_shards(directory)
    (directory / "model.safetensors").rename(directory / "model-00002-of-00002.safetensors")


def wrong_file(directory):
    two_shards(directory, extra=SECOND)


def missing_in_map(directory):
    two_shards(directory)
    weight_files.edit_tensors(directory, lambda each: each.update({"other": each["model.norm.weight"]}), SECOND)


def two_shards(directory, **others):
    """All tensors in one shard; in a second the embedding, which the index finds there, and another last norm."""
    tensors = safetensors.numpy.load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    safetensors.numpy.save_file(tensors, directory / FIRST)
    again = {"model.embed_tokens.weight": tensors["model.embed_tokens.weight"], NORM: tensors[NORM] + 7}
    safetensors.numpy.save_file(again, directory / SECOND)
    write_index(directory, **dict.fromkeys(tensors, FIRST) | {"model.embed_tokens.weight": SECOND} | others)
    return tensors


def huge_header(directory):
    (directory / "model.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")


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
        (list_as_file, r"names \['model.safetensors'\] as the file of a"),
        (number_as_file, "names 1 as the file of a"),
        (empty_map, "has no weight_map"),
        (name_file_above, r"names '\.\./above\.safetensors'"),
        (name_absolute_file, "no .safetensors file of this directory"),
        (keep_one_embedding, "lacks model.embed_tokens.weight"),
        (stale_shards, "two sets of weights: .*index.json, and model.safetensors,"),
        (unnamed_shard, "two sets of weights: .*index.json, and model-00002-of-00002.safetensors,"),
        (wrong_file, "model-00002-of-00002.safetensors has the tensor extra, but it has not"),
        (missing_in_map, "does not name the tensor other"),
        (huge_header, "truncated or damaged"),
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


@pytest.mark.parametrize("name", ["consolidated", "adapter_model", "optimizer", "model.fp16", "._model"])
def test_model_safetensors_is_read_whatever_lies_beside_it(name, checkpoint):
    (checkpoint / f"{name}.safetensors").write_bytes(b"another")
    assert weights.load(str(checkpoint)).architecture == hf_checkpoints.tiny_architecture()


def test_rotary_frequencies_that_the_index_does_not_name_are_left_out(checkpoint):
    two_shards(checkpoint)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    weight_files.edit_tensors(checkpoint, lambda each: each.update({name: np.ones(4, np.float32)}), SECOND)
    assert weights.load(str(checkpoint)).architecture == hf_checkpoints.tiny_architecture()


def test_rope_settings_that_say_nothing_are_read(checkpoint):
    weight_files.edit_config(checkpoint, rope_scaling={"rope_type": "default", "factor": 1.0})
    assert weights.load(str(checkpoint)).architecture.rope_scaling is None


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "1" * 5000 + "}"])
def test_json_that_python_cannot_hold_is_refused_by_name(text, checkpoint):
    (checkpoint / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json was read as JSON, but it is unreadable"):
        weights.load(str(checkpoint))


@pytest.mark.parametrize(("file", "added"), [(FIRST, 0), (SECOND, 7)])
def test_the_index_decides_which_file_a_tensor_is_read_from(file, added, checkpoint):
    tensors = two_shards(checkpoint, **{NORM: file})
    np.testing.assert_array_equal(weights.load(str(checkpoint)).params["final_norm"], tensors[NORM] + added)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 5e3, "rope_scaling": {"type": "linear", "factor": 2}},
        {"rope_theta": 5e3, "rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": None}},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e3}},
        {"rope_theta": "DELETE", "rope_scaling": {"type": "linear", "factor": 2.0}},
    ],
)
def test_two_forms_of_the_rope_settings_that_agree_are_read(changes, checkpoint):
    new = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e3, "partial_rotary_factor": 1.0}
    weight_files.edit_config(checkpoint, **changes, rope_parameters=new)
    architecture = weights.read_architecture(str(checkpoint))
    assert (architecture.rope_theta, architecture.rope_scaling) == (5e3, model.RopeScaling("linear", 2.0))


def test_a_token_beyond_the_vocabulary_is_refused_even_where_the_ids_have_holes(checkpoint):
    file = checkpoint / "tokenizer.json"
    tree = json.loads(file.read_text())
    flags = dict.fromkeys(("special", "single_word", "lstrip", "rstrip", "normalized"), False)
    tree["added_tokens"].append({"id": 5000, "content": "<far>", **flags})
    tree["model"]["vocab"]["<far>"] = 5000
    file.write_text(json.dumps(tree))
    weight_files.edit_config(checkpoint, vocab_size=328)  # padded rows, as published models have
    with pytest.raises(ValueError, match=r"321 tokens with ids up to 5000 \('<far>'\).*vocabulary has only 328"):
        weights.read(str(checkpoint))


@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_code_in_a_model_directory_is_never_run(file, has_tokenizer, checkpoint, monkeypatch):
    canary = checkpoint / "canary"
    (checkpoint / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Evil: pass\n")
    tree = json.loads((checkpoint / file).read_text())
    tree["auto_map"] = {"AutoTokenizer": ["evil.Evil", "evil.Evil"], "AutoConfig": "evil.Evil"}
    (checkpoint / file).write_text(json.dumps(tree | {"tokenizer_class": "Evil"}))
    if not has_tokenizer:
        (checkpoint / "tokenizer.json").unlink()
    monkeypatch.chdir(checkpoint)
    if has_tokenizer and file == "tokenizer_config.json":
        assert len(weights.load_tokenizer(str(checkpoint))) == hf_checkpoints.VOCABULARY
    else:
        with pytest.raises(ValueError, match=r"auto_map|tokenizer could not be read"):
            weights.load(str(checkpoint))
    assert not canary.exists()


@pytest.mark.parametrize(("dtype", "number"), [("float16", 7e4), ("bfloat16", 3.4e38), ("float32", np.inf)])
def test_an_export_of_numbers_that_do_not_fit_is_refused(dtype, number, tmp_path):
    architecture, tokenizer = hf_checkpoints.tiny_architecture(), hf_checkpoints.tiny_tokenizer()
    params = hf_checkpoints.tiny_params(architecture)
    params["final_norm"][3] = number
    with pytest.raises(ValueError, match=r"tensor model\.norm\.weight (has numbers up to|contains NaN or infinite)"):
        weights.export(tmp_path / "new", architecture, params, tokenizer, eos_token_ids=(2,), dtype=dtype)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_all_files_of_an_export_have_the_mode_of_new_files(umask, tmp_path):
    architecture, tokenizer = hf_checkpoints.tiny_architecture(), hf_checkpoints.tiny_tokenizer()
    head = {"weight": np.zeros(32, np.float32), "bias": np.zeros((), np.float32)}
    before = os.umask(umask)
    try:
        new = weights.export(
            tmp_path / "new",
            architecture,
            hf_checkpoints.tiny_params(architecture),
            tokenizer,
            eos_token_ids=(2,),
            value_head=head,
        )
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (new, *new.rglob("*"))}
    directories = {path.name for path in (new, *new.rglob("*")) if path.is_dir()}
    assert modes == {name: (0o777 if name in directories else 0o666) & ~umask for name in modes}
    assert {"model.safetensors", "value_head.safetensors", "tokenizer.json"} <= modes.keys()
