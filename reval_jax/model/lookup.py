"""Reads of rows and columns by index, whose gradients add to what was read.

XLA adds with atomics on GPUs, in an order that changes from run to run. Asked for repeatable sums, it sorts every number of the
gradient by its place instead: 25 million at 16,384 tokens of width 1,536. `REPEATABLE` sorts the tokens' ids alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Lookup(NamedTuple):
    """The two reads of the learner that have a gradient."""

    rows: Callable[[jax.Array, jax.Array], jax.Array]
    """(table [V,D], ids int[...]) → [...,D]: ids may repeat, their gradients are summed."""
    columns: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    """(values [R,T] or [R,T,D], index i32[R,C], is_used bool[R,C]) → [R,C] or [R,C,D].

    Of a row, no index may repeat where it is used. What is read elsewhere is finite if `values` is, and must not matter."""


def _rows(table: jax.Array, ids: jax.Array) -> jax.Array:
    return table[ids]


def _columns(values: jax.Array, index: jax.Array, is_used: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, index[:, :, None] if values.ndim == 3 else index, axis=1)


PLAIN = Lookup(_rows, _columns)
"""As jax.numpy reads."""


def repeatable_rows(table: jax.Array, ids: jax.Array) -> jax.Array:
    """`table[ids]`; its gradient adds the rows of an id in a fixed tree, in float32 for a float32 table."""
    return _repeatable_rows(table.shape[0], table, ids)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _repeatable_rows(num_rows: int, table: jax.Array, ids: jax.Array) -> jax.Array:
    return table[ids]


def _forward(num_rows: int, table: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    return table[ids], ids


def _backward(num_rows: int, ids: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, None]:
    flat = ids.reshape(-1)
    order = jnp.argsort(flat, stable=True)
    ids, sums = flat[order], cotangent.reshape(flat.size, -1)[order]
    # Each entry comes to hold the sum of the last 1, 2, 4, … entries of its id up to itself.
    step = 1
    while step < flat.size:
        is_same = ids[step:] == ids[:-step]
        before = jnp.where(is_same[:, None], sums[:-step], jnp.zeros((), sums.dtype))
        # A barrier, because XLA would compute a step again for each of its two uses in the next.
        sums = jax.lax.optimization_barrier(sums + jnp.pad(before, ((step, 0), (0, 0))))
        step *= 2
    is_last = jnp.concatenate([ids[1:] != ids[:-1], jnp.ones(1, bool)])
    # Entries that are not the last of their id go past the end, each to a place of its own, and are dropped.
    place = jnp.where(is_last, ids, num_rows + jnp.arange(flat.size, dtype=ids.dtype))
    gradient = jnp.zeros((num_rows, sums.shape[1]), sums.dtype)
    return gradient.at[place].set(sums, mode="drop", unique_indices=True), None


_repeatable_rows.defvjp(_forward, _backward)


def repeatable_columns(values: jax.Array, index: jax.Array, is_used: jax.Array) -> jax.Array:
    """The columns that are used, zero elsewhere; no place of the gradient is added to twice."""
    past_the_end = values.shape[1] + jnp.arange(index.shape[1], dtype=index.dtype)
    place = jnp.where(is_used, index, past_the_end[None])
    rows = jnp.arange(values.shape[0], dtype=index.dtype)[:, None]
    return values.at[rows, place].get(mode="fill", fill_value=0, unique_indices=True)


REPEATABLE = Lookup(repeatable_rows, repeatable_columns)
"""For GPUs."""
