"""The table of published tensors and parameter arrays, for reading, exporting and checking.

A published matrix is [out, in], as in torch's Linear. A parameter array is [in, out], with heads as a separate axis, stacked over
layers. Reading transposes, reshapes and stacks; exporting does the reverse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy import typing as npt

from reval_jax import model
from reval_jax.weights import families


class PublishedTensor(NamedTuple):
    """One published tensor and its place in the parameter tree."""

    name: str  # Hugging Face name
    shape: tuple[int, ...]  # published shape
    path: tuple[str, ...]  # keys into the parameter tree
    layer: int | None  # index on the stacked axis; None outside the layers
    is_transposed: bool  # the array is the published tensor's transpose, reshaped


def tensors(architecture: model.Architecture) -> list[PublishedTensor]:
    """Every tensor of a checkpoint of this architecture, in file order."""
    family = families.FAMILIES[architecture.family]
    shapes = _layer_shapes(architecture)
    outer = {key: name.huggingface for key, name in family.outer_tensors.items()}
    vocabulary = (architecture.vocab_size, architecture.width)
    table = [PublishedTensor(outer["embedding"], vocabulary, ("embedding",), None, False)]
    for layer in range(architecture.num_layers):
        for key, names in family.layer_tensors.items():
            if key in shapes:
                name = f"model.layers.{layer}.{names.huggingface}"
                table.append(PublishedTensor(name, shapes[key], ("layers", key), layer, True))
    table.append(PublishedTensor(outer["final_norm"], (architecture.width,), ("final_norm",), None, False))
    if not architecture.tied_head:
        table.append(PublishedTensor(outer["head"], vocabulary, ("head",), None, True))
    return table


def _layer_shapes(architecture: model.Architecture) -> dict[str, tuple[int, ...]]:
    """The published shape of each array of a layer, by key of params["layers"]."""
    width, size, mlp = architecture.width, architecture.head_size, architecture.mlp_width
    query_rows, kv_rows = architecture.num_heads * size, architecture.num_kv_heads * size
    shapes: dict[str, tuple[int, ...]] = {
        "query": (query_rows, width),
        "key": (kv_rows, width),
        "value": (kv_rows, width),
        "output": (width, query_rows),
        "gate": (mlp, width),
        "up": (mlp, width),
        "down": (width, mlp),
        "attention_norm": (width,),
        "mlp_norm": (width,),
    }
    if architecture.qkv_bias:
        shapes |= {"query_bias": (query_rows,), "key_bias": (kv_rows,), "value_bias": (kv_rows,)}
    if architecture.qk_norm:
        shapes |= {"query_norm": (size,), "key_norm": (size,)}
    return shapes


def check(stored: Mapping[str, tuple[int, ...]], architecture: model.Architecture, source: str) -> None:
    """Refuse a checkpoint whose tensors differ from the architecture's in Hugging Face name or shape."""
    expected = {tensor.name: tensor.shape for tensor in tensors(architecture)}
    for problem, names in (("lacks", expected.keys() - stored), ("also has", stored.keys() - expected)):
        if names:
            raise ValueError(
                f"{source} was read as {architecture.family} with {architecture.num_layers} layers, but it {problem}"
                f" {_some(names)}, so it is an incomplete or a different model. Use a complete checkpoint that matches"
                " its configuration."
            )
    for name, shape in expected.items():
        if tuple(stored[name]) != shape:
            raise ValueError(
                f"{source}: tensor {name} has shape {tuple(stored[name])}, but the configuration implies {shape}. Use"
                " weights and a configuration that belong together."
            )


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:4]) + (f" and {len(ordered) - 4} more" if len(ordered) > 4 else "")


def assemble(
    architecture: model.Architecture, read: Callable[[str], np.ndarray], *, dtype: npt.DTypeLike, source: str
) -> model.Params:
    """The parameter tree in `dtype`, filled one tensor at a time from `read(Hugging Face name)`; call `check` first."""
    params = jax.tree.map(lambda leaf: np.empty(leaf.shape, dtype), model.abstract_params(architecture))
    for tensor in tensors(architecture):
        stored = read(tensor.name)
        if not np.isfinite(stored).all():
            raise ValueError(
                f"{source}: tensor {tensor.name} contains NaN or infinite numbers, so the file is damaged or the model"
                " diverged. Download it again, or use an earlier checkpoint."
            )
        array = _array(params, tensor)
        array[...] = (stored.T if tensor.is_transposed else stored).reshape(array.shape)
    return params


def published(tensor: PublishedTensor, params: model.Params) -> np.ndarray:
    """The published form of one tensor, as a contiguous host array."""
    array = np.asarray(_array(params, tensor))
    return np.ascontiguousarray(array.reshape(tensor.shape[::-1]).T if tensor.is_transposed else array)


def _array(params: model.Params, tensor: PublishedTensor) -> np.ndarray:
    """The part of the parameter tree that corresponds to one tensor; a view if the arrays are on the host."""
    leaf: Any = params
    for key in tensor.path:
        leaf = leaf[key]
    return leaf if tensor.layer is None else leaf[tensor.layer]
