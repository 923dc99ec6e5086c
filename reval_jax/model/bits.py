"""bfloat16 numbers at rest, as 16-bit integers.

XLA's CPU backend does in float32 whatever is done to bfloat16 numbers, moving them included: to write one layer's residuals into
their stack, or one token into the cache, the whole of it would be converted there and back. Integers it moves as they are. Other
backends move 16 bits either way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def kept_as_bits(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose bfloat16 residuals are uint16 between its forward and its backward pass; no bit changes.

    Its first argument is what it is not differentiated by, and it closes over no traced array. Nothing in it is uint16.
    """

    @jax.custom_vjp
    def kept(fixed: Any, *arguments: Any) -> Any:
        return function(fixed, *arguments)

    def forward(fixed: Any, *arguments: Any) -> tuple[Any, Any]:
        made, pullback = jax.vjp(functools.partial(function, fixed), *arguments)
        return made, jax.tree.map(as_bits, pullback)

    def backward(pullback: Any, cotangent: Any) -> Any:
        return None, *jax.tree.map(as_numbers, pullback)(cotangent)

    kept.defvjp(forward, backward)
    return kept


def as_bits(leaf: jax.Array) -> jax.Array:
    """bfloat16 as uint16; others as they are."""
    return jax.lax.bitcast_convert_type(leaf, jnp.uint16) if leaf.dtype == jnp.bfloat16 else leaf


def as_numbers(leaf: jax.Array) -> jax.Array:
    """uint16 as bfloat16; others as they are."""
    return jax.lax.bitcast_convert_type(leaf, jnp.bfloat16) if leaf.dtype == jnp.uint16 else leaf
