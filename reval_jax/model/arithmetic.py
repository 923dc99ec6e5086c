"""The arithmetic of one product and one norm: compute_dtype operands, float32 accumulation."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import ad_checkpoint

SAVED_PRODUCT = "product"  # the checkpoint name of a layer's weight products, kept by remat="dots"


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product(spec: str, compute_dtype: Any, left: jax.Array, right: jax.Array) -> jax.Array:
    """The two-operand einsum `spec` with `compute_dtype` operands and a float32 accumulator and result.

    Its gradient is defined here because JAX's own would multiply a float32 cotangent with a bfloat16 operand, a product
    that CPU and GPU run at float32 speed; here the cotangent is cast too, and a float32 weight's gradient leaves the
    accumulator without rounding. Every index of one operand must occur in the other operand or the result.
    """
    precision = jax.lax.Precision.HIGHEST if jnp.dtype(compute_dtype) == jnp.float32 else jax.lax.Precision.DEFAULT
    return jnp.einsum(
        spec,
        left.astype(compute_dtype),
        right.astype(compute_dtype),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


def _product_forward(spec: str, compute_dtype: Any, left: jax.Array, right: jax.Array) -> tuple[jax.Array, Any]:
    return product(spec, compute_dtype, left, right), (left, right)


def _product_backward(
    spec: str, compute_dtype: Any, operands: Any, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    left, right = operands
    inputs, output_axes = spec.split("->")
    left_axes, right_axes = inputs.split(",")
    left_cotangent = product(f"{output_axes},{right_axes}->{left_axes}", compute_dtype, cotangent, right)
    right_cotangent = product(f"{left_axes},{output_axes}->{right_axes}", compute_dtype, left, cotangent)
    return left_cotangent.astype(left.dtype), right_cotangent.astype(right.dtype)


product.defvjp(_product_forward, _product_backward)


def project(spec: str, compute_dtype: Any, inputs: jax.Array, weight: jax.Array) -> jax.Array:
    """`inputs` times a weight, in compute_dtype; saved when the layer is rematerialised with "dots"."""
    return ad_checkpoint.checkpoint_name(
        product(spec, compute_dtype, inputs, weight).astype(compute_dtype), SAVED_PRODUCT
    )


def trailing(vector: jax.Array, rank: int) -> jax.Array:
    """`vector` with leading axes of size one up to `rank`, so that no product relies on implicit rank promotion."""
    return vector.reshape((1,) * (rank - vector.ndim) + vector.shape)


def rms_norm(inputs: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """RMSNorm over the last axis, computed in float32, in the dtype of `inputs`."""
    wide = inputs.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    normed = wide * jax.lax.rsqrt(mean_square + eps) * trailing(scale.astype(jnp.float32), inputs.ndim)
    return normed.astype(inputs.dtype)
