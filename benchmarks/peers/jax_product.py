"""The matrix product whose rate is measured for the trainers on JAX."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.peers import peer


def make(shape: peer.Shape, dtype: str, *, rows: int) -> Callable[[], object]:
    """A function that computes one feed-forward product of `rows` rows, with `dtype` operands and a float32 result."""
    left = jnp.full((rows, shape.width), 0.5, dtype)
    right = jnp.full((shape.width, shape.mlp_width), 0.25, dtype)
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    return lambda: jax.block_until_ready(multiply(left, right))
