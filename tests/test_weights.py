"""Reading and writing published weights: every format gives the same model, and everything not handled is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import test_model
from support import hf_checkpoints

from reval_jax import model, weights

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = ("llama", "qwen2", "qwen3")


@pytest.fixture
def checkpoint(tmp_path):
    """A fresh tiny llama directory, free to be damaged."""
    return Path(hf_checkpoints.tiny_checkpoint(tmp_path / "checkpoint"))


def assert_same_params(found, expected, **tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **({"rtol": 0, "atol": 0} | tolerance)), found, expected)


def edit_config(directory, **changes):
    file = directory / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value != "DELETE"}))


def edit_tensors(directory, change):
    file = directory / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    change(tensors)
    safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})


# --- round trips -----------------------------------------------------------------------------------------------------

SCALINGS = {
    "none": None,
    "linear": model.RopeScaling("linear", 2.0),
    "llama3": model.RopeScaling("llama3", 8.0, 32),
    "yarn": model.RopeScaling("yarn", 4.0, 32, attention_factor=1.1, beta_fast=16.0, truncate=False),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_what_is_exported_loads_back_bit_for_bit(family, scaling, tmp_path):
    overrides = {"rope_scaling": SCALINGS[scaling], "tied_head": scaling == "none", "norm_eps": 1e-5, "rope_theta": 5e5}
    path = hf_checkpoints.tiny_checkpoint(tmp_path / "checkpoint", family, **overrides)
    loaded = weights.load(path)
    expected = hf_checkpoints.tiny_architecture(family, **overrides)
    assert loaded.architecture == expected == weights.read_architecture(path)
    assert_same_params(loaded.params, hf_checkpoints.tiny_params(expected))
    assert loaded.eos_token_ids == (2,)
    assert loaded.source == path


def test_many_shards_equal_one_file(tmp_path):
    architecture, tokenizer = (
        hf_checkpoints.tiny_architecture("qwen2", tied_head=False),
        hf_checkpoints.tiny_tokenizer(),
    )
    params = hf_checkpoints.tiny_params(architecture)
    weights.export(tmp_path / "many", architecture, params, tokenizer, eos_token_ids=(2, 0), shard_bytes=20_000)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    loaded = weights.load(str(tmp_path / "many"))
    assert_same_params(loaded.params, params)
    assert loaded.eos_token_ids == (2, 0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_exports_round_once_and_load_as_float32(dtype, tmp_path):
    path = hf_checkpoints.tiny_checkpoint(tmp_path / "checkpoint", dtype=dtype)
    narrow = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[dtype]
    rounded = jax.tree.map(
        lambda leaf: leaf.astype(narrow).astype(np.float32),
        hf_checkpoints.tiny_params(hf_checkpoints.tiny_architecture()),
    )
    loaded = weights.load(path).params
    assert_same_params(loaded, rounded)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(loaded))
    kept = weights.load(path, dtype=narrow).params
    assert all(leaf.dtype == narrow for leaf in jax.tree.leaves(kept))


def test_the_tokenizer_and_its_chat_template_survive_export(tmp_path):
    path = hf_checkpoints.tiny_checkpoint(tmp_path / "checkpoint")
    original, loaded = hf_checkpoints.tiny_tokenizer(), weights.load_tokenizer(path)
    text = "What is 5 times 5? 12  34\n\\boxed{é}"
    assert loaded(text)["input_ids"] == original(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    messages = [{"role": "user", "content": "2+2="}]
    rendered = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == "<|im_start|>user\n2+2=<|im_end|>\n<|im_start|>assistant\n"
    assert (loaded.eos_token, loaded.pad_token, loaded.bos_token) == ("<|im_end|>", "<|pad|>", "<|bos|>")


def test_end_tokens_of_both_configs_and_the_tokenizer_are_joined_in_order(checkpoint):
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    edit_config(checkpoint, eos_token_id=[7, 9])
    assert weights.load(str(checkpoint)).eos_token_ids == (5, 7, 9, 2)


def test_a_tied_checkpoint_may_repeat_its_head_and_carry_rotary_buffers(checkpoint):
    expected = weights.load(str(checkpoint)).params

    def add(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)

    edit_tensors(checkpoint, add)
    assert_same_params(weights.load(str(checkpoint)).params, expected)


def test_loading_and_exporting_run_without_torch(tmp_path):
    program = (
        "import sys; sys.modules['torch'] = None\n"  # makes every import and search for torch fail
        "from support import hf_checkpoints\nfrom reval_jax import weights\n"
        "loaded = weights.load(hf_checkpoints.tiny_checkpoint(sys.argv[1]))\n"
        "print(loaded.tokenizer.decode(loaded.tokenizer('1+1=2')['input_ids']))"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x")],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "1+1=2"


# --- the oracle: transformers ----------------------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_gives_an_exported_model_the_same_logits(family, tmp_path):
    scaling = {"llama": "llama3", "qwen2": "yarn", "qwen3": "linear"}[family]
    overrides = {"rope_scaling": SCALINGS[scaling], "tied_head": family == "qwen2"}
    path = hf_checkpoints.tiny_checkpoint(tmp_path / "checkpoint", family, **overrides)
    architecture = hf_checkpoints.tiny_architecture(family, **overrides)
    tokens = test_model.random_tokens(2, 80)
    found = test_model.logits_of(architecture, hf_checkpoints.tiny_params(architecture), tokens)
    np.testing.assert_allclose(found, hf_checkpoints.transformers_logits(path, tokens), rtol=0, atol=1e-4)


@pytest.mark.parity
def test_a_sharded_transformers_checkpoint_loads(tmp_path):
    settings = {"tie_word_embeddings": False}
    one = hf_checkpoints.transformers_checkpoint(tmp_path / "one", "qwen3", **settings)
    many = hf_checkpoints.transformers_checkpoint(tmp_path / "many", "qwen3", max_shard_size="30KB", **settings)
    assert (Path(many) / "model.safetensors.index.json").exists()
    assert_same_params(weights.load(many).params, weights.load(one).params)


# --- GGUF ------------------------------------------------------------------------------------------------------------


def write_gguf(file, family="llama", *, quantisation=gguf.GGMLQuantizationType.F32, change=None, **metadata):
    """A tiny GGUF of checkpoints.tiny_params, written as llama.cpp's converter does; returns (architecture, params)."""
    sizes = {"width": 64, "head_size": 16, "mlp_width": 96}  # rows of whole quantisation blocks
    architecture = hf_checkpoints.tiny_architecture(family, tied_head=False, **sizes)
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


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gguf_gives_architecture_params_and_tokenizer(family, tmp_path):
    file = tmp_path / "tiny.gguf"
    architecture, params = write_gguf(file, family)
    loaded = weights.load(str(file))
    assert loaded.architecture == architecture == weights.read_architecture(str(file))
    assert_same_params(loaded.params, params)
    assert loaded.eos_token_ids == (2,)
    original = hf_checkpoints.tiny_tokenizer()
    text = "<|im_start|>user\nWhat is  12 times 5?<|im_end|>é"
    assert loaded.tokenizer(text)["input_ids"] == original(text)["input_ids"]
    assert loaded.tokenizer.chat_template == original.chat_template
    assert loaded.tokenizer.pad_token_id == 0


def test_a_quantised_gguf_is_dequantised(tmp_path):
    file = tmp_path / "tiny.gguf"
    _, params = write_gguf(file, quantisation=gguf.GGMLQuantizationType.Q8_0)
    found = weights.load(str(file)).params
    assert_same_params(found, params, atol=5e-3)
    assert np.abs(found["layers"]["query"] - params["layers"]["query"]).max() > 0


def test_a_hub_id_is_downloaded_and_then_read_like_a_directory(checkpoint, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda hub_id, **_: asked.append(hub_id) or str(checkpoint)
    )
    loaded = weights.load("org/name-1.5B")
    assert set(asked) == {"org/name-1.5B"}
    assert_same_params(loaded.params, weights.load(str(checkpoint)).params)


# The keys of published configurations that are not in the tiny checkpoints, with their published values.
PUBLISHED = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": (
        "llama",
        {"is_llama_config": True, "rope_interleaved": False, "initializer_range": 0.041666666666666664}
        | {"pretraining_tp": 1, "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}, "use_cache": True},
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": (
        "qwen2",
        {"use_mrope": False, "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 21}
        | {"attention_dropout": 0.0, "transformers_version": "4.44.0", "use_cache": True},
    ),
    "Qwen/Qwen3-0.6B": (
        "qwen3",
        {"attention_bias": False, "sliding_window": None, "max_window_layers": 28, "rope_scaling": None}
        | {"use_sliding_window": False, "bos_token_id": 1, "eos_token_id": 2},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configuration_keys_are_accepted(name, tmp_path):
    family, settings = PUBLISHED[name]
    directory = Path(hf_checkpoints.tiny_checkpoint(tmp_path / "checkpoint", family))
    edit_config(directory, **settings)
    assert weights.read_architecture(str(directory)) == hf_checkpoints.tiny_architecture(family)


def test_a_gguf_with_linear_scaling_keeps_it(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", llama__rope__scaling__type="linear", llama__rope__scaling__factor=4.0)
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
        ({"change": break_gguf_values}, "mlp.up_proj.weight holds NaN"),
        ({"change": lambda tensors: tensors.pop("token_embd.weight")}, "token_embd.weight"),
    ],
)
def test_a_gguf_that_is_not_handled_is_refused(settings, message, tmp_path):
    file = tmp_path / "bad.gguf"
    write_gguf(file, **settings)
    with pytest.raises(ValueError, match=message):
        weights.load(str(file))


@pytest.mark.parametrize("kept", [0, 3, 100, 5_000, 0.5, 0.99])
def test_a_truncated_gguf_is_refused(kept, tmp_path):
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match="truncated, damaged or not GGUF"):
        weights.load(str(file))


# --- refusals --------------------------------------------------------------------------------------------------------


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
        ({"rope_scaling": {"type": "linear"}}, "lacks 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "mrope_section": [1]}}, "'mrope_section'"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
            "contradict",
        ),
        ({"vocab_size": 330}, "shape .320, 32., but the configuration implies .330, 32."),
        ({"vocab_size": 300}, "tokenizer has 320 tokens .* vocabulary only 300"),
        ({"eos_token_id": 320}, "end tokens .2, 320., but the model's vocabulary only 320"),
        ({"tie_word_embeddings": False}, "lacks lm_head.weight"),
        ({"num_hidden_layers": 3}, "lacks model.layers.2"),
        ({"num_hidden_layers": 1}, "also holds model.layers.1"),
        (
            {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
            "lacks model.layers.0.self_attn.k_norm.weight",
        ),
        ({"head_dim": 16}, "tensor model.layers.0.self_attn.q_proj.weight has shape .32, 32."),
    ],
)
def test_a_configuration_that_is_not_handled_is_refused(changes, message, checkpoint):
    edit_config(checkpoint, **changes)
    with pytest.raises(ValueError, match=message):
        weights.load(str(checkpoint))


@pytest.mark.parametrize(
    "changes",
    [
        {"use_sliding_window": True, "sliding_window": 64},
        {"use_mrope": True},
    ],
)
def test_a_qwen2_window_in_use_is_refused_and_one_switched_off_is_not(changes, tmp_path):
    directory = Path(hf_checkpoints.tiny_checkpoint(tmp_path / "checkpoint", "qwen2"))
    edit_config(directory, **changes)
    with pytest.raises(ValueError, match="only"):
        weights.read_architecture(str(directory))
    edit_config(directory, use_sliding_window=False, sliding_window=64, max_window_layers=1, use_mrope=False)
    assert weights.read_architecture(str(directory)).family == "qwen2"


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
        (set_nan, "model.norm.weight holds NaN or infinite"),
        (set_infinite, "down_proj.weight holds NaN or infinite"),
        (make_integer, "number type I8"),
        (add_head, "lm_head.weight differs from the embedding"),
        (cut_rows, "has shape .319, 32."),
        (lambda tensors: tensors.pop("model.norm.weight"), "lacks model.norm.weight"),
        (lambda tensors: tensors.update({"extra.weight": np.ones(1, np.float32)}), "also holds extra.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, message, checkpoint):
    edit_tensors(checkpoint, change)
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
        (break_config, "not readable"),
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


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
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


def test_an_export_into_a_file_or_an_unwritable_place_is_refused(tmp_path):
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


# --- the real model --------------------------------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.slow
def test_smollm2_equals_transformers_and_so_does_its_export(smollm2, tmp_path):
    loaded = weights.load(str(smollm2))
    texts = [
        "Q: What is 5 times 5?\nA: 5 times 5 is 25. The quick brown fox",
        "2+2=4 and 1+1=2, so 3+3=6 because of arithmetic",
    ]
    rows = [loaded.tokenizer(text)["input_ids"] for text in texts]
    tokens = np.array([row[: min(map(len, rows))] for row in rows])
    found = test_model.logits_of(loaded.architecture, loaded.params, tokens)
    published = hf_checkpoints.transformers_gguf_logits(smollm2, tokens)
    np.testing.assert_allclose(found, published, rtol=0, atol=2e-3)
    path = weights.export(
        tmp_path / "smollm2", loaded.architecture, loaded.params, loaded.tokenizer, eos_token_ids=loaded.eos_token_ids
    )
    np.testing.assert_allclose(found, hf_checkpoints.transformers_logits(path, tokens), rtol=0, atol=2e-3)


@pytest.mark.slow
def test_smollm2_tokenizer_splits_digits_and_knows_its_template(smollm2):
    tokenizer = weights.load_tokenizer(str(smollm2))
    split = tokenizer.convert_ids_to_tokens(tokenizer("a  12<|im_end|>")["input_ids"])
    assert split == ["a", "ĠĠ", "1", "2", "<|im_end|>"]  # digits are split off before spaces are merged
    text = "é ñ 日本 \t\n don't"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert rendered.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
