"""Export of a model as a Hugging Face directory, which `transformers` (and this package) loads."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import transformers
from safetensors import numpy as safetensors_numpy

from reval_jax import model, types
from reval_jax.weights import families, layout, rope

VALUE_HEAD = "value_head/value_head.safetensors"
"""File of the value head in an exported directory: `weight` f32[D] and `bias` f32[] of V(s) = hidden · weight + bias, with the
hidden states after the final norm. In a directory of its own, because some readers take every .safetensors file beside
config.json for a part of the model."""

_SHARD_BYTES = 4 * 2**30  # a shard is assembled in host memory; Hugging Face's limit is 5 GB
_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}


def export(
    directory: str | Path,
    architecture: model.Architecture,
    params: model.Params,
    tokenizer: transformers.PreTrainedTokenizerBase,
    *,
    eos_token_ids: tuple[int, ...],
    value_head: model.Params | None = None,
    dtype: str = "float32",
    shard_bytes: int = _SHARD_BYTES,
) -> Path:
    """Write config.json, generation_config.json, safetensors, tokenizer and chat template; returns the directory.

    The files are written next to the directory and then renamed, so it either holds a whole model or is unchanged.

    Args:
      params: host or fully addressable device arrays.
      eos_token_ids: the tokens that end a response.
      value_head: written as VALUE_HEAD, in float32.
      dtype: number type of the model's files, "float32", "bfloat16" or "float16".
      shard_bytes: a larger model is split over several files with an index.

    Raises:
      ValueError: the directory is not empty, params do not belong to the architecture, or a number does not fit `dtype`.
    """
    target = Path(os.path.expanduser(directory))
    if dtype not in _DTYPES:
        raise ValueError(f"export dtype {dtype!r} is not one of {', '.join(_DTYPES)}. Use one of them.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(
            f"{target} already exists and is not an empty directory; an export overwrites nothing. Choose a new"
            " directory."
        )
    _check_params(architecture, params)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Not tempfile, whose directories are private: others may read an exported model, as far as the umask lets them.
        partial = target.parent / f".{target.name}.{secrets.token_hex(4)}"
        partial.mkdir()
    except OSError as error:
        raise ValueError(f"{target} cannot be created ({error}). Choose a directory you may write to.") from error
    try:
        tokenizer.save_pretrained(partial)
        _write_json(partial / "config.json", _config(architecture, tokenizer, eos_token_ids, dtype))
        _write_json(partial / "generation_config.json", _token_ids(tokenizer, eos_token_ids))
        _write_weights(partial, architecture, params, _DTYPES[dtype], shard_bytes)
        if value_head is not None:
            _write_value_head(partial / VALUE_HEAD, value_head)
        try:
            os.replace(partial, target)
        except OSError as error:
            raise ValueError(
                f"{target} cannot be created ({error.strerror}): another process may have written it. Choose another directory."
            ) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target


def _write_value_head(file: Path, value_head: model.Params) -> None:
    file.parent.mkdir()
    _save({name: np.asarray(leaf) for name, leaf in value_head.items()}, file)


def _save(arrays: dict[str, np.ndarray], file: Path, **metadata: dict[str, str]) -> None:
    """Writes a safetensors file, which the library makes private, with the mode of other new files."""
    file.touch()
    mode = file.stat().st_mode
    safetensors_numpy.save_file(arrays, file, **metadata)
    file.chmod(mode)


def _check_params(architecture: model.Architecture, params: model.Params) -> None:
    expected = _shapes(model.abstract_params(architecture))
    actual = _shapes(params)
    for path in sorted(expected.keys() | actual.keys()):
        if expected.get(path) != actual.get(path):
            raise ValueError(
                f"params[{path}] has shape {actual.get(path)}, but the architecture implies {expected.get(path)}."
                " Export the params with the architecture they were loaded with."
            )


def _shapes(tree: model.Params, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Shapes of a parameter tree by dotted path."""
    shapes: dict[str, tuple[int, ...]] = {}
    for key, value in tree.items():
        shapes |= (
            _shapes(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": tuple(value.shape)}
        )
    return shapes


def _token_ids(
    tokenizer: transformers.PreTrainedTokenizerBase, eos_token_ids: tuple[int, ...]
) -> dict[str, int | list[int]]:
    eos = list(eos_token_ids) if len(eos_token_ids) > 1 else eos_token_ids[0]
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": eos, "pad_token_id": tokenizer.pad_token_id}
    return {key: value for key, value in ids.items() if value is not None}


def _config(
    architecture: model.Architecture,
    tokenizer: transformers.PreTrainedTokenizerBase,
    eos_token_ids: tuple[int, ...],
    dtype: str,
) -> types.Json:
    """The content of config.json, in the form that transformers 4 and 5 both read."""
    family = families.FAMILIES[architecture.family]
    config: types.Json = {
        "architectures": [family.huggingface_class],
        "model_type": architecture.family,
        "vocab_size": architecture.vocab_size,
        "hidden_size": architecture.width,
        "intermediate_size": architecture.mlp_width,
        "num_hidden_layers": architecture.num_layers,
        "num_attention_heads": architecture.num_heads,
        "num_key_value_heads": architecture.num_kv_heads,
        "head_dim": architecture.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": architecture.norm_eps,
        "rope_theta": architecture.rope_theta,
        "rope_scaling": rope.to_config(architecture.rope_scaling),
        "tie_word_embeddings": architecture.tied_head,
        "max_position_embeddings": architecture.max_positions,
        "torch_dtype": dtype,
        **family.only_values,
    }
    return config | _token_ids(tokenizer, eos_token_ids)


def _write_json(file: Path, content: types.Json) -> None:
    file.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _write_weights(
    directory: Path, architecture: model.Architecture, params: model.Params, dtype: np.dtype, shard_bytes: int
) -> None:
    """model.safetensors, or numbered shards of at most `shard_bytes` (or one tensor) with their index."""
    shards: list[list[layout.PublishedTensor]] = [[]]
    shard_size = 0
    for tensor in layout.tensors(architecture):
        num_bytes = int(np.prod(tensor.shape)) * dtype.itemsize
        if shards[-1] and shard_size + num_bytes > shard_bytes:
            shards.append([])
            shard_size = 0
        shards[-1].append(tensor)
        shard_size += num_bytes
    weight_map: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards, start=1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        arrays = {tensor.name: _converted(tensor.name, layout.published(tensor, params), dtype) for tensor in shard}
        _save(arrays, directory / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(arrays, name)
        total += sum(array.nbytes for array in arrays.values())
    if len(shards) > 1:
        _write_json(
            directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
        )


def _converted(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array in `dtype`; refuses numbers that become infinite in it, and those that are not finite."""
    with np.errstate(over="ignore"):
        converted = array.astype(dtype, copy=False)
    if np.isfinite(converted).all():
        return converted
    if not np.isfinite(array).all():
        raise ValueError(
            f"tensor {name} contains NaN or infinite numbers: the model diverged. Export an earlier round."
        )
    raise ValueError(
        f"tensor {name} has numbers up to {np.abs(array).max():.6g}, but {dtype.name} ends at"
        f" {float(ml_dtypes.finfo(dtype).max):.6g}. Export another dtype, for example bfloat16 or float32."
    )
