"""What a loop over layers keeps for its backward pass, as XLA's CPU backend moves it without converting it.

XLA's CPU backend computes in float32 whatever it does to bfloat16 numbers, moving them included: each layer's residuals would be
converted on their way into the stack, and the whole stack to float32, at twice its size, before the backward loop. Integers it
moves as they are. Other backends move 16 bits either way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def kept_as_bits(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of arrays, whose bfloat16 residuals are uint16 between its forward and its backward pass; no bit changes.

    `function` may close over what it is not differentiated by. It has no uint16 arguments or residuals of its own.
    """

    @jax.custom_vjp
    def kept(*arguments: Any) -> Any:
        return function(*arguments)

    def forward(*arguments: Any) -> tuple[Any, Any]:
        made, pullback = jax.vjp(function, *arguments)
        return made, jax.tree.map(_as_bits, pullback)

    def backward(pullback: Any, cotangent: Any) -> Any:
        return jax.tree.map(_as_numbers, pullback)(cotangent)

    kept.defvjp(forward, backward)
    return kept


def _as_bits(leaf: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(leaf, jnp.uint16) if leaf.dtype == jnp.bfloat16 else leaf


def _as_numbers(leaf: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(leaf, jnp.bfloat16) if leaf.dtype == jnp.uint16 else leaf
