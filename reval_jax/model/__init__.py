"""The decoder: Llama, Qwen2 and Qwen3, their weights, forward pass and cached decoding.

`architecture` its shape · `parameters` its weights (the only flax import) · `layer` the equations of one layer ·
`forward` the three passes · `cache`, `attention`, `linear`, `rope`, `embedding` their parts · `kernels` what a platform
chooses · `layout` how the sampler holds layers · `gpu` how it does on GPUs · `cpu` all that exists for XLA:CPU alone.
"""

from __future__ import annotations

from reval_jax.model import attention, cache, cpu, gpu, kernels, rope
from reval_jax.model.architecture import Architecture, FamilyName, RopeScaling
from reval_jax.model.cache import Cache
from reval_jax.model.forward import decode, hidden_states, prefill
from reval_jax.model.kernels import Kernels
from reval_jax.model.layout import Caches
from reval_jax.model.parameters import (
    Params,
    abstract_params,
    compute_dtypes,
    head,
    head_weight,
    init_params,
    logical_axes,
    value,
    with_value_head,
    without_value_head,
)

__all__ = [
    "Architecture",
    "Cache",
    "Caches",
    "FamilyName",
    "Kernels",
    "Params",
    "RopeScaling",
    "abstract_params",
    "attention",
    "cache",
    "compute_dtypes",
    "cpu",
    "decode",
    "gpu",
    "head",
    "head_weight",
    "hidden_states",
    "init_params",
    "kernels",
    "logical_axes",
    "prefill",
    "rope",
    "value",
    "with_value_head",
    "without_value_head",
]
