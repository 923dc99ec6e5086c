"""The arithmetic of one product and one norm: compute_dtype operands, float32 accumulation."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import ad_checkpoint

from reval_jax import parallel

SAVED_PRODUCT = "product"  # the checkpoint name of a layer's weight products, kept by remat="dots"
SAVED_ATTENTION = "attention"  # of its attention's output, with the kernel's residuals; kept by "attention" and "dots"

# A finite stand-in for minus infinity: a row with every score masked then has a softmax (uniform), not NaN.
MASKED_SCORE = -1e30


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product(spec: str, compute_dtype: Any, left: jax.Array, right: jax.Array) -> jax.Array:
    """The two-operand einsum `spec` with `compute_dtype` operands and a float32 accumulator and result.

    Its gradient is defined here because JAX's own would multiply a float32 cotangent with a bfloat16 operand, a product
    that CPU and GPU run at float32 speed; here the cotangent is cast too, and a float32 weight's gradient leaves the
    accumulator without rounding. Every index of one operand must occur in the other operand or the result.
    """
    precision = jax.lax.Precision.HIGHEST if jnp.dtype(compute_dtype) == jnp.float32 else jax.lax.Precision.DEFAULT
    left_axes, right_axes, result = _letters(spec)
    shared = [axis for axis in left_axes if axis in right_axes]
    batch = [axis for axis in shared if axis in result]
    # In the left operand's order: jnp.einsum sums over axes in the alphabet's, and copies both operands to have them so.
    summed = [axis for axis in shared if axis not in result]
    made = jax.lax.dot_general(
        left.astype(compute_dtype),
        right.astype(compute_dtype),
        (
            ([left_axes.index(axis) for axis in summed], [right_axes.index(axis) for axis in summed]),
            ([left_axes.index(axis) for axis in batch], [right_axes.index(axis) for axis in batch]),
        ),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    found = batch + [axis for axes in (left_axes, right_axes) for axis in axes if axis not in shared]
    return jnp.transpose(made, [found.index(axis) for axis in result])


def _product_forward(spec: str, compute_dtype: Any, left: jax.Array, right: jax.Array) -> tuple[jax.Array, Any]:
    return product(spec, compute_dtype, left, right), (left, right)


def _product_backward(
    spec: str, compute_dtype: Any, operands: Any, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    left, right = operands
    left_axes, right_axes, result = _letters(spec)
    left_cotangent = product(f"{result},{right_axes}->{left_axes}", compute_dtype, cotangent, right)
    right_cotangent = _weight_cotangent(spec, compute_dtype, left, cotangent)
    return left_cotangent.astype(left.dtype), right_cotangent.astype(right.dtype)


def _weight_cotangent(spec: str, compute_dtype: Any, left: jax.Array, cotangent: jax.Array) -> jax.Array:
    """The cotangent of the right operand, f32.

    Both factors are summed over their leading axes, and a CPU's product wants the first one transposed: the smaller one
    is put first, and the result, a weight's size, is transposed instead of the larger. Not in bfloat16, where XLA's CPU
    backend may fold that transposition into a product that it then cannot run.
    """
    left_axes, right_axes, result = _letters(spec)
    if left.size > cotangent.size and jnp.dtype(compute_dtype) == jnp.float32:
        return product(f"{result},{left_axes}->{right_axes}", compute_dtype, cotangent, left)
    return product(f"{left_axes},{result}->{right_axes}", compute_dtype, left, cotangent)


product.defvjp(_product_forward, _product_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _gathered_product(spec: str, compute_dtype: Any, dimension: int, inputs: jax.Array, weight: jax.Array) -> jax.Array:
    """`product` with a weight whose `dimension` is spread over the fsdp axis: gathered for each use, never kept.

    The wire carries `compute_dtype` forward and float32 backward: each device's gradient is summed and scattered unrounded.
    """
    whole = parallel.gather(weight.astype(compute_dtype), parallel.FSDP, dimension)
    return product(spec, compute_dtype, inputs, whole)


def _gathered_product_forward(
    spec: str, compute_dtype: Any, dimension: int, inputs: jax.Array, weight: jax.Array
) -> tuple[jax.Array, Any]:
    return _gathered_product(spec, compute_dtype, dimension, inputs, weight), (inputs, weight)


def _gathered_product_backward(
    spec: str, compute_dtype: Any, dimension: int, operands: Any, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    inputs, weight = operands
    whole = parallel.gather(weight.astype(compute_dtype), parallel.FSDP, dimension)
    left, right, result = _letters(spec)
    inputs_cotangent = product(f"{result},{right}->{left}", compute_dtype, cotangent, whole)
    weight_cotangent = _weight_cotangent(spec, compute_dtype, inputs, cotangent)
    mine = parallel.scatter_sum(weight_cotangent, parallel.FSDP, dimension)
    return inputs_cotangent.astype(inputs.dtype), mine.astype(weight.dtype)


_gathered_product.defvjp(_gathered_product_forward, _gathered_product_backward)


def project(
    spec: str, compute_dtype: Any, inputs: jax.Array, weight: jax.Array, width: int, *, is_part: bool = False
) -> jax.Array:
    """`inputs` times a weight, in compute_dtype; saved when the layer is rematerialised with "dots".

    Args:
      spec: einsum in which the letter d is the model's width.
      width: its size. A weight with less is one device's part, and is gathered over the fsdp axis.
      is_part: the devices of the tensor axis share the sum: their results are added up.
    """
    _, right, _ = _letters(spec)
    dimension = right.index("d")
    if weight.shape[dimension] < width:
        outputs = _gathered_product(spec, compute_dtype, dimension, inputs, weight)
    else:
        outputs = product(spec, compute_dtype, inputs, weight)
    outputs = outputs.astype(compute_dtype)
    if is_part:
        outputs = parallel.total(outputs, parallel.TENSOR)
    return ad_checkpoint.checkpoint_name(outputs, SAVED_PRODUCT)


def project_few(
    spec: str, compute_dtype: Any, inputs: jax.Array, weight: jax.Array, width: int, *, is_part: bool = False
) -> jax.Array:
    """`project` of few inputs with a weight that lies turned in memory, the axes it is summed over last; no gradient.

    The weight is the left operand and is read in its order, and the inputs are what is copied: a CPU's product wants its right
    operand in another order than memory's, whichever that is. Inputs and result whose tokens come last are not turned at
    all. The barriers keep XLA from turning the operands again.
    """
    if is_part or weight.shape[_letters(spec)[1].index("d")] < width:
        raise ValueError(f"a part of a weight, {weight.shape} of width {width}, is for `project`")
    left, right, result = _letters(spec)
    summed = [axis for axis in right if axis in left]
    made = [axis for axis in right if axis not in summed]
    rows = [axis for axis in left if axis not in summed]
    few = jax.lax.optimization_barrier(jnp.transpose(inputs, [left.index(axis) for axis in summed + rows]))
    turned = jnp.transpose(weight, [right.index(axis) for axis in made + summed])
    # Of three axes: of two, XLA's CPU backend makes a float32 product of a bfloat16 one whose operand was turned.
    num_summed = math.prod(few.shape[: len(summed)])
    halves = turned.reshape(math.gcd(2, turned.size // num_summed), -1, num_summed)
    outputs = product("xym,mr->xyr", compute_dtype, halves, few.reshape(num_summed, -1))
    outputs = outputs.reshape(*turned.shape[: len(made)], *few.shape[len(summed) :])
    outputs = jax.lax.optimization_barrier(outputs.astype(compute_dtype))
    return jnp.transpose(outputs, [(made + rows).index(axis) for axis in result])


def _letters(spec: str) -> tuple[str, str, str]:
    """The letters of the left operand, the right one and the result."""
    inputs, result = spec.split("->")
    left, right = inputs.split(",")
    return left, right, result


@jax.custom_vjp
def masked_softmax(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax over the last axis of f32 `scores` where `mask`, which has the same shape; never NaN.

    Some entry of each row must be unmasked: the backward pass keeps the weights alone, and takes those that are 0 for masked.
    """
    return jax.nn.softmax(jnp.where(mask, scores, MASKED_SCORE), axis=-1)


def _masked_softmax_forward(scores: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    weights = masked_softmax(scores, mask)
    return weights, weights


def _masked_softmax_backward(weights: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, None]:
    weighted = weights * cotangent
    return weighted - weights * weighted.sum(axis=-1, keepdims=True), None


masked_softmax.defvjp(_masked_softmax_forward, _masked_softmax_backward)


def trailing(vector: jax.Array, rank: int) -> jax.Array:
    """`vector` with leading axes of size one up to `rank`, so that no product relies on implicit rank promotion."""
    return vector.reshape((1,) * (rank - vector.ndim) + vector.shape)


# What these two make on the way is made again in the backward pass: cheaper than to keep it.
@functools.partial(jax.checkpoint, prevent_cse=False)
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) · up, computed in float32, in their dtype."""
    return (jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)).astype(gate.dtype)


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def rms_norm(inputs: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """RMSNorm over the last axis, computed in float32, in the dtype of `inputs`."""
    wide = inputs.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    normed = wide * jax.lax.rsqrt(mean_square + eps) * trailing(scale.astype(jnp.float32), inputs.ndim)
    return normed.astype(inputs.dtype)
