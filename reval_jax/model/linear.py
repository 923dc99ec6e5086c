"""Matrix products, RMSNorm, SwiGLU and the masked softmax: compute_dtype operands, float32 accumulation."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import ad_checkpoint
from jax.typing import DTypeLike

from reval_jax import parallel

Linear = Callable[..., jax.Array]  # `linear`, or a function with its signature
Operands = tuple[jax.Array, jax.Array]

SAVED_PRODUCT = "product"  # checkpoint name of a layer's products with weights; kept by remat="dots"
SAVED_ATTENTION = "attention"  # of its attention's output and the kernel's residuals; kept by "attention" and "dots"

# A finite stand-in for minus infinity: the softmax of a fully masked row is then uniform, not NaN.
MASKED_SCORE = -1e30


def product(spec: str, compute_dtype: DTypeLike, left: jax.Array, right: jax.Array) -> jax.Array:
    """The two-operand einsum `spec` with `compute_dtype` operands and a float32 accumulator and result.

    It defines its own gradient, because JAX's would multiply a float32 cotangent by a bfloat16 operand, which CPU and
    GPU run at float32 speed. Here the cotangent is cast too, and a float32 weight's gradient leaves the accumulator
    unrounded. Every index of one operand must occur in the other operand or in the result.
    """
    return _product(spec, compute_dtype, jnp.float32, left, right)


def rounded_product(spec: str, compute_dtype: DTypeLike, left: jax.Array, right: jax.Array) -> jax.Array:
    """`product` cast to `compute_dtype`, the cast being part of the product: on GPU it saves a float32 array and a kernel.

    The left operand's cotangent leaves so too; the right operand's, a weight's gradient, leaves in float32.
    """
    return _product(spec, compute_dtype, compute_dtype, left, right)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _product(
    spec: str, compute_dtype: DTypeLike, result_dtype: DTypeLike, left: jax.Array, right: jax.Array
) -> jax.Array:
    """`product`, whose result and left cotangent leave in `result_dtype`."""
    return _multiply(spec, compute_dtype, result_dtype, left, right)


def _multiply(
    spec: str, compute_dtype: DTypeLike, result_dtype: DTypeLike, left: jax.Array, right: jax.Array
) -> jax.Array:
    """`product` without a gradient of its own; the accumulator, float32, leaves in `result_dtype`."""
    precision = jax.lax.Precision.HIGHEST if jnp.dtype(compute_dtype) == jnp.float32 else jax.lax.Precision.DEFAULT
    left_axes, right_axes, result = axes_of(spec)
    shared = [axis for axis in left_axes if axis in right_axes]
    batch = [axis for axis in shared if axis in result]
    # Summed axes in the left operand's order: jnp.einsum takes them in alphabetical order and copies both operands.
    summed = [axis for axis in shared if axis not in result]
    outputs = jax.lax.dot_general(
        left.astype(compute_dtype),
        right.astype(compute_dtype),
        (
            ([left_axes.index(axis) for axis in summed], [right_axes.index(axis) for axis in summed]),
            ([left_axes.index(axis) for axis in batch], [right_axes.index(axis) for axis in batch]),
        ),
        precision=precision,
        preferred_element_type=result_dtype,
    )
    order = batch + [axis for axes in (left_axes, right_axes) for axis in axes if axis not in shared]
    return jnp.transpose(outputs, [order.index(axis) for axis in result])


def _product_forward(
    spec: str, compute_dtype: DTypeLike, result_dtype: DTypeLike, left: jax.Array, right: jax.Array
) -> tuple[jax.Array, Operands]:
    return _product(spec, compute_dtype, result_dtype, left, right), (left, right)


def _product_backward(
    spec: str, compute_dtype: DTypeLike, result_dtype: DTypeLike, operands: Operands, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    left, right = operands
    left_axes, right_axes, result = axes_of(spec)
    left_cotangent = _product(f"{result},{right_axes}->{left_axes}", compute_dtype, result_dtype, cotangent, right)
    right_cotangent = _weight_cotangent(spec, compute_dtype, left, cotangent)
    return left_cotangent.astype(left.dtype), right_cotangent.astype(right.dtype)


def _weight_cotangent(spec: str, compute_dtype: DTypeLike, left: jax.Array, cotangent: jax.Array) -> jax.Array:
    """The cotangent of the right operand, f32.

    The smaller factor goes first, because XLA:CPU transposes the first factor of a sum over leading axes in memory: the
    result, of a weight's size, is transposed instead of the larger factor. Not in bfloat16, where XLA:CPU may fold that
    transposition into a product that it cannot run. Other backends choose layouts themselves. Remove the first branch
    when a profile on CPU shows no such copy any more (seen with jaxlib 0.10.2).
    """
    left_axes, right_axes, result = axes_of(spec)
    if left.size > cotangent.size and jnp.dtype(compute_dtype) == jnp.float32:
        return product(f"{result},{left_axes}->{right_axes}", compute_dtype, cotangent, left)
    return product(f"{left_axes},{result}->{right_axes}", compute_dtype, left, cotangent)


_product.defvjp(_product_forward, _product_backward)

Product = Callable[[str, DTypeLike, jax.Array, jax.Array], jax.Array]
"""`product` or `rounded_product`."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _gathered_product(
    multiply: Product, spec: str, compute_dtype: DTypeLike, dimension: int, inputs: jax.Array, weight: jax.Array
) -> jax.Array:
    """`multiply` with a weight whose `dimension` is split over the fsdp axis: gathered for each use, never kept.

    The wire carries `compute_dtype` forward and float32 backward: gradients are summed and scattered unrounded.
    """
    whole = parallel.all_gather(weight.astype(compute_dtype), parallel.FSDP, dimension)
    return multiply(spec, compute_dtype, inputs, whole)


def _gathered_product_forward(
    multiply: Product, spec: str, compute_dtype: DTypeLike, dimension: int, inputs: jax.Array, weight: jax.Array
) -> tuple[jax.Array, Operands]:
    return _gathered_product(multiply, spec, compute_dtype, dimension, inputs, weight), (inputs, weight)


def _gathered_product_backward(
    multiply: Product,
    spec: str,
    compute_dtype: DTypeLike,
    dimension: int,
    operands: Operands,
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    inputs, weight = operands
    whole = parallel.all_gather(weight.astype(compute_dtype), parallel.FSDP, dimension)
    left, right, result = axes_of(spec)
    inputs_cotangent = multiply(f"{result},{right}->{left}", compute_dtype, cotangent, whole)
    weight_cotangent = _weight_cotangent(spec, compute_dtype, inputs, cotangent)
    local = parallel.reduce_scatter(weight_cotangent, parallel.FSDP, dimension)
    return inputs_cotangent.astype(inputs.dtype), local.astype(weight.dtype)


_gathered_product.defvjp(_gathered_product_forward, _gathered_product_backward)


def linear(spec: str, inputs: jax.Array, weight: jax.Array, *, row_parallel: bool = False) -> jax.Array:
    """`inputs` times a weight, in the dtype of `inputs`; saved when the layer is rematerialised with "dots".

    Args:
      spec: einsum of inputs and weight, in which the letter d is the model's width.
      row_parallel: the summed axis of the weight is split over the tensor axis, so the devices' results are summed.
    """
    return _finish(product(spec, inputs.dtype, inputs, weight), inputs.dtype, row_parallel)


def rounded_linear(spec: str, inputs: jax.Array, weight: jax.Array, *, row_parallel: bool = False) -> jax.Array:
    """`linear` by `rounded_product`."""
    return _finish(rounded_product(spec, inputs.dtype, inputs, weight), inputs.dtype, row_parallel)


def gathered_linear(spec: str, inputs: jax.Array, weight: jax.Array, *, row_parallel: bool = False) -> jax.Array:
    """`linear` with a weight whose axis d is split over the fsdp axis."""
    return _gathered_linear(product, spec, inputs, weight, row_parallel)


def rounded_gathered_linear(
    spec: str, inputs: jax.Array, weight: jax.Array, *, row_parallel: bool = False
) -> jax.Array:
    """`gathered_linear` by `rounded_product`."""
    return _gathered_linear(rounded_product, spec, inputs, weight, row_parallel)


def _gathered_linear(
    multiply: Product, spec: str, inputs: jax.Array, weight: jax.Array, row_parallel: bool
) -> jax.Array:
    dimension = axes_of(spec)[1].index("d")
    outputs = _gathered_product(multiply, spec, inputs.dtype, dimension, inputs, weight)
    return _finish(outputs, inputs.dtype, row_parallel)


def _finish(outputs: jax.Array, dtype: DTypeLike, row_parallel: bool) -> jax.Array:
    outputs = outputs.astype(dtype)
    if row_parallel:
        outputs = parallel.reduce_from_tensor(outputs)
    return ad_checkpoint.checkpoint_name(outputs, SAVED_PRODUCT)


def axes_of(spec: str) -> tuple[str, str, str]:
    """The axis letters of an einsum's left operand, right operand and result."""
    inputs, result = spec.split("->")
    left, right = inputs.split(",")
    return left, right, result


@jax.custom_vjp
def masked_softmax(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax over the last axis of f32 `scores` where `mask`, which has the same shape; never NaN.

    Each row needs an unmasked entry: the backward pass keeps only the weights, and takes zero weights for masked.
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


# The backward pass of these two recomputes the intermediate values, which costs less than keeping them.
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
