"""The decoder: Llama, Qwen2 and Qwen3, their weights, forward pass and cached decoding.

Parameters travel as one plain nested dict of arrays; every public function is a pure function of it, so callers drive
it with `jax.jit`. The layers are stacked on a leading axis L and run under `jax.lax.scan`, so one layer is traced and
compiled whatever the depth. The flax modules (`modules`) hold one layer's equations; they are split once into a graph
definition, cached per architecture, and merged with the caller's arrays while tracing. Only `modules` imports flax.

Dimension letters: B rows, T tokens, P prompt tokens, S cache positions, V vocabulary, D width, N query heads, K
key/value heads, G = N / K query heads per key/value head, H head size, F feed-forward width, L layers.

Numbers: matrix products take `compute_dtype` operands, accumulate in float32 and are cast back to `compute_dtype`;
RMSNorm, RoPE tables and the attention softmax are float32. With `compute_dtype=float32` products ask for
`jax.lax.Precision.HIGHEST`, because TPU (bfloat16 passes) and GPU (TF32) would otherwise keep only 8 to 10 bits of each
operand; on CPU it changes nothing.
"""

from __future__ import annotations

from reval_jax.model import arithmetic, attention, bits, rope
from reval_jax.model.architecture import Architecture, RopeScaling
from reval_jax.model.attention.cached import Cache
from reval_jax.model.forward import (
    compute_dtypes,
    decode,
    head,
    head_weight,
    hidden_states,
    prefill,
    turned_layer,
    turned_order,
)
from reval_jax.model.modules import Params, abstract_params, init_params, logical_axes

__all__ = [
    "Architecture",
    "Cache",
    "Params",
    "RopeScaling",
    "abstract_params",
    "arithmetic",
    "attention",
    "bits",
    "compute_dtypes",
    "decode",
    "head",
    "head_weight",
    "hidden_states",
    "init_params",
    "logical_axes",
    "prefill",
    "rope",
    "turned_layer",
    "turned_order",
]
