"""Checks and conversions that every equation starts with: float32, constants without a gradient, equal shapes."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def float32(array: float | jax.Array) -> jax.Array:
    """The numbers as float32, with their gradient."""
    return jnp.asarray(array).astype(jnp.float32)


def constant(array: float | jax.Array) -> jax.Array:
    """The numbers as float32, without a gradient."""
    return jax.lax.stop_gradient(float32(array))


def denominator(count: int | jax.Array | None, mask: jax.Array) -> jax.Array:
    """f32 scalar, the count or else the mask's, at least 1 so that an empty part costs 0 and not NaN."""
    if count is None:
        return jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1.0)
    return jnp.maximum(float32(count), 1.0)


def per_token(advantage: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """f32[B, T] from an advantage per trajectory, [B], or per token, [B, T].

    Raises:
      ValueError: it is neither.
    """
    if advantage.shape == shape:
        return advantage
    if advantage.shape == shape[:1]:
        return jnp.broadcast_to(advantage[:, None], shape)
    raise ValueError(
        f"A policy gradient takes an advantage per trajectory, [B], or per token, [B, T], but got {list(advantage.shape)} with "
        f"log_prob {list(shape)}, which is neither. Reshape the advantage."
    )


def check_same_shape(**arrays: jax.Array) -> None:
    """Refuses arrays that an equation combines element by element and that have different shapes.

    Raises:
      ValueError: shapes differ.
    """
    shapes = {name: list(jnp.shape(array)) for name, array in arrays.items()}
    if any(shape != next(iter(shapes.values())) for shape in shapes.values()):
        described = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"{', '.join(shapes)} are combined element by element, but their shapes are {described}, and broadcasting "
            "them would mix trajectories. Give all of them the same shape."
        )
