"""Attention by cuDNN's flash kernel, for NVIDIA GPUs. It never holds the scores in memory, but it does hold their mask."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.typing import DTypeLike


def attend(query: jax.Array, keys: jax.Array, values: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Grouped-query attention, causal and inside segments: query [B,T,N,H], keys and values [B,T,K,H] -> [B,T,N,H].

    Scores and softmax are float32; operands bfloat16 or float16. cuDNN skips blocks past the causal diagonal. It
    gets the segments as a mask, which jax turns into a bias [B,1,T,T] of the operands' type: at 8,192 columns 128 MiB per
    row, and as much again for the gradient of that bias.

    Raises:
      ValueError: the type or the head size is one that cuDNN does not take.
    """
    check(query.dtype, query.shape[3])
    return _attend(query, keys, values, segment_ids, "cudnn")


def _attend(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    segment_ids: jax.Array,
    implementation: Literal["cudnn", "xla"],
) -> jax.Array:
    length = query.shape[1]
    # With a mask the backward kernel takes an even number of columns. No other column sees the added one.
    padding = ((0, 0), (0, length % 2))
    query, keys, values = (jnp.pad(heads, (*padding, (0, 0), (0, 0))) for heads in (query, keys, values))
    segment_ids = jnp.pad(segment_ids, padding)
    is_same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    attended = jax.nn.dot_product_attention(
        query, keys, values, mask=is_same, is_causal=True, implementation=implementation
    )
    return attended[:, :length]


def refusal(dtype: DTypeLike, head_size: int) -> str | None:
    """Why cuDNN cannot attend to such heads; None if it can."""
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return (
            f"computes in bfloat16 or float16 only, but model.compute_dtype is {jnp.dtype(dtype).name}. Use"
            " model.compute_dtype=bfloat16, or model.attention=xla"
        )
    if head_size % 8 or head_size > 128:
        return (
            f"takes head sizes that are multiples of 8 up to 128, but this model's is {head_size}. Use"
            " model.attention=xla"
        )
    return None


def check(dtype: DTypeLike, head_size: int) -> None:
    """Raise a ValueError if cuDNN cannot attend to such heads."""
    if why := refusal(dtype, head_size):
        raise ValueError(f"model.attention=cudnn cannot run: cuDNN's attention {why}.")


def is_forward(primitive: Primitive) -> bool:
    """Whether a primitive is the forward kernel. A remat policy has to keep it so, because jax gives its outputs no name."""
    return primitive.name == "dot_product_attention_fwd_wrapper"
