"""Reading and exporting weights: every format gives the same model, and every family round-trips."""

from __future__ import annotations

import os
import subprocess
import sys
import typing
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import test_model
from support import hf_checkpoints, weight_files

from reval_jax import model, weights

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = tuple(weights.families.FAMILIES)


@pytest.fixture
def checkpoint(tmp_path):
    """A new tiny llama directory, which the test may damage."""
    return Path(hf_checkpoints.tiny_checkpoint(tmp_path / "checkpoint"))


# --- round trips -----------------------------------------------------------------------------------------------------

SCALINGS = {
    "none": None,
    "linear": model.RopeScaling("linear", 2.0),
    "llama3": model.RopeScaling("llama3", 8.0, 32),
    "yarn": model.RopeScaling("yarn", 4.0, 32, attention_factor=1.1, beta_fast=16.0, truncate=False),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_an_exported_model_loads_back_bit_for_bit(family, scaling, tmp_path):
    overrides = {"rope_scaling": SCALINGS[scaling], "tied_head": scaling == "none", "norm_eps": 1e-5, "rope_theta": 5e5}
    path = hf_checkpoints.tiny_checkpoint(tmp_path / "checkpoint", family, **overrides)
    loaded = weights.load(path)
    expected = hf_checkpoints.tiny_architecture(family, **overrides)
    assert loaded.architecture == expected == weights.read_architecture(path)
    weight_files.assert_same_params(loaded.params, hf_checkpoints.tiny_params(expected))
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
    weight_files.assert_same_params(loaded.params, params)
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
    weight_files.assert_same_params(loaded, rounded)
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
    weight_files.edit_config(checkpoint, eos_token_id=[7, 9])
    assert weights.load(str(checkpoint)).eos_token_ids == (5, 7, 9, 2)


def test_a_tied_checkpoint_may_repeat_its_head_and_carry_rotary_buffers(checkpoint):
    expected = weights.load(str(checkpoint)).params

    def add(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)

    weight_files.edit_tensors(checkpoint, add)
    weight_files.assert_same_params(weights.load(str(checkpoint)).params, expected)


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


# --- families --------------------------------------------------------------------------------------------------------


def test_every_family_that_the_architecture_names_has_a_record():
    assert set(weights.families.FAMILIES) == set(typing.get_args(model.FamilyName))
    assert all(family.name == name for name, family in weights.families.FAMILIES.items())
    assert len(weights.families.BY_GGUF_NAME) == len(weights.families.FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_names_every_array_of_its_parameters_in_both_formats(family):
    record, params = (
        weights.families.FAMILIES[family],
        hf_checkpoints.tiny_params(hf_checkpoints.tiny_architecture(family, tied_head=False)),
    )
    assert params["layers"].keys() <= record.layer_tensors.keys()
    assert params.keys() - {"layers"} == record.outer_tensors.keys()
    for names in (record.layer_tensors.values(), record.outer_tensors.values()):
        assert len({each.huggingface for each in names}) == len({each.gguf for each in names}) == len(names)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_read_exported_and_read_again(family, tmp_path):
    first = weights.load(hf_checkpoints.tiny_checkpoint(tmp_path / "first", family))
    settings = {"eos_token_ids": first.eos_token_ids}
    path = weights.export(tmp_path / "second", first.architecture, first.params, first.tokenizer, **settings)
    second = weights.load(str(path))
    assert second.architecture == first.architecture
    assert second.architecture.family == family
    weight_files.assert_same_params(second.params, first.params)
    assert (path / "config.json").read_bytes() == (tmp_path / "first" / "config.json").read_bytes()


# --- configurations shipped with the package -------------------------------------------------------------------------

SHIPPED = {
    "Qwen/Qwen2.5-Math-7B": ("qwen2", 152064, 3584, 28, 28, 4, 128, 18944, 10000.0, 1e-6, False, 4096),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": (
        "qwen2",
        151936,
        1536,
        28,
        12,
        2,
        128,
        8960,
        10000.0,
        1e-6,
        False,
        131072,
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llama", 49152, 576, 30, 9, 3, 64, 1536, 100000.0, 1e-5, True, 8192),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_configuration_is_the_published_model(name):
    family, vocabulary, width, layers, heads, kv_heads, size, mlp, theta, eps, tied, positions = SHIPPED[name]
    assert weights.published.architecture(name) == model.Architecture(
        vocab_size=vocabulary,
        width=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=size,
        mlp_width=mlp,
        rope_theta=theta,
        rope_scaling=None,
        norm_eps=eps,
        qkv_bias=family == "qwen2",
        qk_norm=False,
        tied_head=tied,
        max_positions=positions,
        family=family,
    )


def test_every_shipped_configuration_is_selected_by_its_hub_id():
    assert set(weights.published.names()) == set(SHIPPED)


def test_a_hub_id_is_downloaded_and_then_read_like_a_directory(checkpoint, monkeypatch):
    requested = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda hub_id, **_: requested.append(hub_id) or str(checkpoint)
    )
    loaded = weights.load("org/name-1.5B")
    assert set(requested) == {"org/name-1.5B"}
    weight_files.assert_same_params(loaded.params, weights.load(str(checkpoint)).params)


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
    weight_files.edit_config(directory, **settings)
    assert weights.read_architecture(str(directory)) == hf_checkpoints.tiny_architecture(family)


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
    logits = test_model.logits_of(architecture, hf_checkpoints.tiny_params(architecture), tokens)
    np.testing.assert_allclose(logits, hf_checkpoints.transformers_logits(path, tokens), rtol=0, atol=1e-4)


@pytest.mark.parity
def test_a_sharded_transformers_checkpoint_loads(tmp_path):
    settings = {"tie_word_embeddings": False}
    one = hf_checkpoints.transformers_checkpoint(tmp_path / "one", "qwen3", **settings)
    many = hf_checkpoints.transformers_checkpoint(tmp_path / "many", "qwen3", max_shard_size="30KB", **settings)
    assert (Path(many) / "model.safetensors.index.json").exists()
    weight_files.assert_same_params(weights.load(many).params, weights.load(one).params)


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
    logits = test_model.logits_of(loaded.architecture, loaded.params, tokens)
    published = hf_checkpoints.transformers_gguf_logits(smollm2, tokens)
    np.testing.assert_allclose(logits, published, rtol=0, atol=2e-3)
    path = weights.export(
        tmp_path / "smollm2", loaded.architecture, loaded.params, loaded.tokenizer, eos_token_ids=loaded.eos_token_ids
    )
    np.testing.assert_allclose(logits, hf_checkpoints.transformers_logits(path, tokens), rtol=0, atol=2e-3)


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
