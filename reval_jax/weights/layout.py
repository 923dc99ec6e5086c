"""Which published tensor is which of our arrays: one table for reading, exporting and checking.

A published matrix is [out, in] (torch's Linear); ours is [in, out] with heads split, stacked over layers. So reading is
transpose, reshape, place; exporting the reverse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from reval_jax import model


class Tensor(NamedTuple):
    """One published tensor and where it lives in the parameter tree."""

    name: str  # Hugging Face name
    shape: tuple[int, ...]  # published shape
    path: tuple[str, ...]  # keys into the parameter tree
    layer: int | None  # index on the stacked axis; None outside the layers
    is_transposed: bool  # ours is the transpose, reshaped


def tensors(architecture: model.Architecture) -> list[Tensor]:
    """Every tensor a checkpoint of this architecture must hold, in file order."""
    width, size, mlp = architecture.width, architecture.head_size, architecture.mlp_width
    query_rows, kv_rows = architecture.num_heads * size, architecture.num_kv_heads * size
    matrices = {
        "self_attn.q_proj.weight": ("query", (query_rows, width)),
        "self_attn.k_proj.weight": ("key", (kv_rows, width)),
        "self_attn.v_proj.weight": ("value", (kv_rows, width)),
        "self_attn.o_proj.weight": ("output", (width, query_rows)),
        "mlp.gate_proj.weight": ("gate", (mlp, width)),
        "mlp.up_proj.weight": ("up", (mlp, width)),
        "mlp.down_proj.weight": ("down", (width, mlp)),
        "input_layernorm.weight": ("attention_norm", (width,)),
        "post_attention_layernorm.weight": ("mlp_norm", (width,)),
    }
    if architecture.qkv_bias:
        matrices["self_attn.q_proj.bias"] = ("query_bias", (query_rows,))
        matrices["self_attn.k_proj.bias"] = ("key_bias", (kv_rows,))
        matrices["self_attn.v_proj.bias"] = ("value_bias", (kv_rows,))
    if architecture.qk_norm:
        matrices["self_attn.q_norm.weight"] = ("query_norm", (size,))
        matrices["self_attn.k_norm.weight"] = ("key_norm", (size,))
    table = [Tensor("model.embed_tokens.weight", (architecture.vocab_size, width), ("embedding",), None, False)]
    for layer in range(architecture.num_layers):
        for suffix, (ours, shape) in matrices.items():
            table.append(Tensor(f"model.layers.{layer}.{suffix}", shape, ("layers", ours), layer, True))
    table.append(Tensor("model.norm.weight", (width,), ("final_norm",), None, False))
    if not architecture.tied_head:
        table.append(Tensor("lm_head.weight", (architecture.vocab_size, width), ("head",), None, True))
    return table


def check(found: Mapping[str, tuple[int, ...]], architecture: model.Architecture, source: str) -> None:
    """Refuse a checkpoint whose tensor names (Hugging Face's) and shapes are not exactly the architecture's."""
    expected = {tensor.name: tensor.shape for tensor in tensors(architecture)}
    for problem, names in (("lacks", expected.keys() - found), ("also holds", found.keys() - expected)):
        if names:
            raise ValueError(
                f"{source} was read as {architecture.family} with {architecture.num_layers} layers, but it {problem}"
                f" {_some(names)}, so it is another or an incomplete model. Use a complete checkpoint whose"
                " configuration describes it."
            )
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            raise ValueError(
                f"{source}: tensor {name} has shape {tuple(found[name])}, but the configuration implies {shape}. Use"
                " weights and a configuration that belong together."
            )


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:4]) + (f" and {len(ordered) - 4} more" if len(ordered) > 4 else "")


def assemble(
    architecture: model.Architecture, read: Callable[[str], np.ndarray], *, dtype: Any, source: str
) -> model.Params:
    """The parameter tree in `dtype`, filled one tensor at a time from `read(Hugging Face name)`, after `check`."""
    params = jax.tree.map(lambda leaf: np.empty(leaf.shape, dtype), model.abstract_params(architecture))
    for tensor in tensors(architecture):
        stored = read(tensor.name)
        if not np.isfinite(stored).all():
            raise ValueError(
                f"{source}: tensor {tensor.name} holds NaN or infinite numbers, so the file is damaged or the model"
                " diverged. Download it again, or use an earlier checkpoint."
            )
        target = _leaf(params, tensor.path)
        ours = target if tensor.layer is None else target[tensor.layer]
        ours[...] = (stored.T if tensor.is_transposed else stored).reshape(ours.shape)
    return params


def published(tensor: Tensor, params: model.Params) -> np.ndarray:
    """The published form of one tensor, as a contiguous host array."""
    leaf = _leaf(params, tensor.path)
    ours = np.asarray(leaf if tensor.layer is None else leaf[tensor.layer])
    return np.ascontiguousarray(ours.reshape(tensor.shape[::-1]).T if tensor.is_transposed else ours)


def _leaf(params: model.Params, path: tuple[str, ...]) -> Any:
    for key in path:
        params = params[key]
    return params
