"""Hugging Face checkpoints: hub download, config.json -> Architecture, safetensors -> parameters."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import safetensors
import transformers
from numpy import typing as npt

from reval_jax import model, types
from reval_jax.weights import families, layout, rope

INDEX = "model.safetensors.index.json"
_DTYPES = ("F32", "F16", "BF16")
_RECOMPUTED = re.compile(r"rotary_emb\.inv_freq$")  # old Llama checkpoints contain the rotary frequencies as buffers

# Keys that become part of the Architecture or are checked against it.
_HANDLED = frozenset(
    """
    model_type architectures vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
    num_key_value_heads head_dim rms_norm_eps rope_theta rope_scaling rope_parameters tie_word_embeddings
    max_position_embeddings layer_types sliding_window eos_token_id bos_token_id pad_token_id
    """.split()  # noqa: SIM905 - a list of quoted words is harder to read
)
# Keys with the values that are implemented; any other value would change the mathematics.
_ONLY_VALUE: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "pretraining_tp": (1, None),
    "attention_dropout": (0, None),
    "use_sliding_window": (False, None),
    "partial_rotary_factor": (1, None),
    "use_mrope": (False, None),
    "rope_interleaved": (False, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "quantization_config": (None,),
    "auto_map": (None,),
}
# Keys without effect on the model: bookkeeping, initialization, and generation settings (`rollout.*` replaces them).
_HARMLESS = frozenset(
    """
    _name_or_path transformers_version torch_dtype dtype initializer_range use_cache max_window_layers
    is_llama_config transformers.js_config attn_implementation _attn_implementation _attn_implementation_autoset
    unsloth_fixed unsloth_version return_dict output_hidden_states output_attentions torchscript use_bfloat16
    chunk_size_feed_forward id2label label2id problem_type task_specific_params finetuning_task
    architectures_version bos_token eos_token max_length min_length do_sample early_stopping num_beams
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    num_return_sequences is_decoder tokenizer_class prefix sep_token_id decoder_start_token_id pruned_heads
    tie_encoder_decoder cross_attention_hidden_size tf_legacy_loss use_return_dict output_scores
    return_dict_in_generate
    """.split()  # noqa: SIM905 - a list of quoted words is harder to read
)


def download(hub_id: str) -> Path:
    """The local directory with a hub repository's safetensors, configuration and tokenizer files."""
    return _from_hub(
        hub_id,
        lambda: huggingface_hub.snapshot_download(
            hub_id, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
        ),
    )


def download_config(hub_id: str) -> Path:
    """The local directory with a hub repository's config.json; other files may be missing."""
    return _from_hub(hub_id, lambda: huggingface_hub.hf_hub_download(hub_id, "config.json")).parent


def cached_config(hub_id: str) -> Path | None:
    """The directory of a hub repository's config.json in the local hub cache; None if it is not cached."""
    cached = huggingface_hub.try_to_load_from_cache(hub_id, "config.json")
    return Path(cached).parent if isinstance(cached, str) else None


def _from_hub(hub_id: str, fetch: Callable[[], str]) -> Path:
    try:
        return Path(fetch())
    except (OSError, huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.HFValidationError) as error:
        raise ValueError(
            f"model.path={hub_id!r} is neither on this machine nor reachable as a hub id ({type(error).__name__})."
            " Check the name and the network (a private model also needs `hf auth login`), or give a local directory"
            " or .gguf file."
        ) from error


def read_json(file: Path) -> types.Json:
    """The object in a JSON file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(
            f"{file.parent} was read as a Hugging Face model, but it has no {file.name}. Name the directory that has it."
        ) from error
    except (OSError, ValueError, RecursionError) as error:  # ValueError: also a number of too many digits
        raise ValueError(
            f"{file} was read as JSON, but it is unreadable or not JSON ({error}). Download it again."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{file} contains a JSON {type(content).__name__}, but an object was expected. Download it again."
        )
    return content


# --- configuration ---------------------------------------------------------------------------------------------------


def read_architecture(directory: Path) -> model.Architecture:
    """The architecture that a directory's config.json describes; see `parse_config`."""
    file = directory / "config.json"
    return parse_config(read_json(file), file)


def parse_config(config: types.Json, file: Path) -> model.Architecture:
    """The architecture that the content of a config.json describes.

    Args:
      file: names the configuration in messages.

    Raises:
      ValueError: a key or value that is not implemented exactly.
    """
    name = config.get("model_type")
    if not isinstance(name, str) or name not in families.FAMILIES:
        raise ValueError(
            f"{file}: model_type={name!r}, but only {', '.join(families.FAMILIES)} are implemented. Use a model of one of"
            " these families."
        )
    family = families.FAMILIES[name]
    _refuse_unhandled(config, family, file)

    def number(key: str, *, default: int | None = None, kind: type = int) -> Any:
        value = config.get(key) if config.get(key) is not None else default
        # An integer may be too large for a float.
        is_huge = kind is float and isinstance(value, int) and value > sys.float_info.max
        if is_huge or isinstance(value, bool) or not isinstance(value, (int, kind)):
            raise ValueError(
                f"{file}: {key}={value!r}, but the model needs a number of type {kind.__name__} there. Correct the file."
            )
        return value

    tied_head = config.get("tie_word_embeddings")
    if not isinstance(tied_head, bool | None):
        raise ValueError(f"{file}: tie_word_embeddings={tied_head!r}, but it is true or false. Correct the file.")
    num_heads, width = number("num_attention_heads"), number("hidden_size")
    default_head_size = family.default_head_size or width // max(num_heads, 1)
    max_positions = number("max_position_embeddings")
    rope_theta, rope_scaling = rope.from_config(config, max_positions, file, default_theta=family.default_rope_theta)
    fields: dict[str, Any] = {
        "vocab_size": number("vocab_size"),
        "width": width,
        "num_layers": number("num_hidden_layers"),
        "num_heads": num_heads,
        "num_kv_heads": number("num_key_value_heads", default=num_heads),
        "head_size": number("head_dim", default=default_head_size),
        "mlp_width": number("intermediate_size"),
        "rope_theta": rope_theta,
        "rope_scaling": rope_scaling,
        "norm_eps": float(number("rms_norm_eps", kind=float)),
        "qkv_bias": family.qkv_bias,
        "qk_norm": family.qk_norm,
        "tied_head": bool(tied_head),
        "max_positions": max_positions,
        "family": family.name,
    }
    try:
        return model.Architecture(**fields)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _refuse_unhandled(config: types.Json, family: families.Family, file: Path) -> None:
    only_values = {key: (value,) for key, value in family.only_values.items()} | _ONLY_VALUE
    unknown = sorted(config.keys() - _HANDLED - _HARMLESS - only_values.keys())
    if unknown:
        raise ValueError(
            f"{file}: the key {unknown[0]!r} (value {config[unknown[0]]!r}) is unknown to this {family.name} implementation,"
            " and it may change the mathematics. Remove it if it does not."
        )
    for key, allowed in only_values.items():
        if key in config and config[key] not in allowed:
            raise ValueError(
                f"{file}: {key}={config[key]!r}, but only {allowed[0]!r} is implemented. Use another model."
            )
    # Qwen configurations contain a window size that `use_sliding_window: false` disables; Llama's have no such key.
    is_disabled = "use_sliding_window" in family.only_values and not config.get("use_sliding_window", False)
    has_window = config.get("sliding_window") is not None and not is_disabled
    kinds = config.get("layer_types") or []
    if has_window or not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise ValueError(
            f"{file}: sliding_window={config.get('sliding_window')!r} with layer_types={config.get('layer_types')!r},"
            " but only full attention is implemented. Use a model without sliding windows."
        )
    if (config.get("architectures") or [family.huggingface_class]) != [family.huggingface_class]:
        raise ValueError(
            f"{file}: architectures={config['architectures']!r}, but only [{family.huggingface_class!r}] is a"
            f" {family.name} language model. Use the causal language model, not a model for another task."
        )


def eos_token_ids(directory: Path, tokenizer: transformers.PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end a response: those of generation_config.json, config.json and the tokenizer, without duplicates."""
    tokens: list[int | None] = []
    for name in ("generation_config.json", "config.json"):
        file = directory / name
        value = read_json(file).get("eos_token_id") if file.exists() else None
        values = value if isinstance(value, list) else [value]
        if any(isinstance(token, bool) or not isinstance(token, int | None) or (token or 0) < 0 for token in values):
            raise ValueError(f"{file}: eos_token_id={value!r}, but token ids are integers from 0. Correct the file.")
        tokens += values
    tokens.append(tokenizer.eos_token_id)
    return tuple(dict.fromkeys(token for token in tokens if token is not None))


# --- weights ---------------------------------------------------------------------------------------------------------


def _weight_map(directory: Path) -> dict[str, str] | None:
    """The file of each tensor, from the index of a model in several files; None without an index.

    Raises:
      ValueError: the index is damaged, names files outside the directory, or is not the only set of weights in it.
    """
    index = directory / INDEX
    if not index.exists():
        return None
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map, which says which file has which tensor. Download it again.")
    for tensor, name in weight_map.items():
        # A name with a directory in it could lead out of this one.
        if not isinstance(name, str) or not re.fullmatch(r"[^/\\\0]+\.safetensors", name):
            raise ValueError(
                f"{index} names {name!r} as the file of {tensor}, which is no .safetensors file of this directory."
                " Download it again."
            )
    others = sorted({file.name for file in directory.glob("model*.safetensors")} - set(weight_map.values()))
    if others:
        raise ValueError(
            f"{directory} holds two sets of weights: those of {index.name}, and {others[0]}, which it does not name. Remove the "
            "index with its files, or the other file, whichever is not the model."
        )
    return weight_map


def _single_file(directory: Path) -> str:
    """The file of a model in one file: model.safetensors, as transformers reads it, or the only one."""
    # macOS writes a file ._NAME beside NAME.
    names = sorted(file.name for file in directory.glob("*.safetensors") if not file.name.startswith("."))
    if "model.safetensors" in names:
        return "model.safetensors"
    if len(names) > 1:
        raise ValueError(
            f"{directory} has {len(names)} safetensors files but no {INDEX}, which says which of them belong"
            " together. Add the index, or remove the files that do not belong to the model."
        )
    if not names:
        raise ValueError(
            f"{directory} has no *.safetensors file, and no other format of weights is read (.bin files can run"
            " code). Convert it to safetensors, or download the safetensors files."
        )
    return names[0]


def _open(file: Path) -> safetensors.safe_open:
    try:
        return safetensors.safe_open(file, framework="numpy")
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"{file} was opened as safetensors, but it is missing, truncated or damaged ({error}). Download it again."
        ) from error


def _open_tensors(directory: Path, stack: contextlib.ExitStack) -> dict[str, tuple[Path, safetensors.safe_open]]:
    """The path of each tensor's file, and the open file; with an index the file that it names.

    Raises:
      ValueError: a file is damaged, or the index and the files do not hold the same tensors.
    """
    weight_map = _weight_map(directory)
    names = sorted(set(weight_map.values())) if weight_map else [_single_file(directory)]
    opened = {name: (directory / name, stack.enter_context(_open(directory / name))) for name in names}
    tensors = {name: set(shard.keys()) for name, (_, shard) in opened.items()}
    if weight_map is None:
        return dict.fromkeys(tensors[names[0]], opened[names[0]])
    for tensor, name in weight_map.items():
        if tensor not in tensors[name]:
            raise ValueError(
                f"{directory / INDEX} says that {name} has the tensor {tensor}, but it has not. Download the files again."
            )
    unnamed = sorted(
        name for name in set().union(*tensors.values()) - weight_map.keys() if not _RECOMPUTED.search(name)
    )
    if unnamed:
        raise ValueError(
            f"{directory / INDEX} does not name the tensor {unnamed[0]}, which one of its files has. Download the files again."
        )
    return {tensor: opened[name] for tensor, name in weight_map.items()}


def read_params(directory: Path, architecture: model.Architecture, *, dtype: npt.DTypeLike) -> model.Params:
    """The parameter tree in a directory's safetensors files, on the host, in `dtype`."""
    with contextlib.ExitStack() as stack:
        shards = _open_tensors(directory, stack)
        names = {name for name in shards if not _RECOMPUTED.search(name)}

        def read(name: str) -> np.ndarray:
            file, shard = shards[name]
            kind = shard.get_slice(name).get_dtype()
            if kind not in _DTYPES:
                raise ValueError(
                    f"{file}: tensor {name} has number type {kind}, but only {', '.join(_DTYPES)} are read (quantised"
                    " weights in safetensors are not). Use the unquantised checkpoint."
                )
            return shard.get_tensor(name)

        outer = families.FAMILIES[architecture.family].outer_tensors
        head, embedding = outer["head"].huggingface, outer["embedding"].huggingface
        if architecture.tied_head and head in names:
            if embedding in names and not np.array_equal(read(head), read(embedding)):
                raise ValueError(
                    f"{directory}: tie_word_embeddings is true, but {head} differs from the embedding, so the"
                    " two contradict each other. To use the head, set tie_word_embeddings to false in config.json."
                )
            names.remove(head)
        layout.check(
            {name: shards[name][1].get_slice(name).get_shape() for name in names}, architecture, str(directory)
        )
        return layout.assemble(architecture, read, dtype=dtype, source=str(directory))
