"""Reads by index whose gradients repeat: their values, and their gradients against a loop in float64."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reval_jax.model import lookup


@pytest.mark.parametrize("num_tokens", [1, 2, 37, 64])
def test_the_gradient_of_rows_is_the_sum_over_the_tokens_that_read_them(num_tokens):
    rng = np.random.default_rng(num_tokens)
    table = jnp.asarray(rng.normal(size=(11, 5)), jnp.float32)
    ids = jnp.asarray(rng.integers(0, 7, (1, num_tokens)), jnp.int32)
    cotangent = jnp.asarray(rng.normal(size=(1, num_tokens, 5)), jnp.float32)

    @jax.jit
    def run(table):
        values, pullback = jax.vjp(lambda table: lookup.REPEATABLE.rows(table, ids), table)
        return values, *pullback(cotangent)

    values, gradient = run(table)
    np.testing.assert_array_equal(values, np.asarray(table)[np.asarray(ids)])
    expected = np.zeros((11, 5))
    np.add.at(expected, np.asarray(ids)[0], np.asarray(cotangent, np.float64)[0])
    np.testing.assert_allclose(gradient, expected, atol=1e-5)
    assert not gradient[7:].any(), "rows that no token read"


@pytest.mark.parametrize("shape", [(2, 9), (2, 9, 3)])
def test_columns_and_their_gradient_are_the_plain_ones_where_they_are_used(shape):
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.normal(size=shape), jnp.float32)
    index = jnp.asarray([[1, 2, 5, 8, 0, 0], [0, 3, 4, 0, 0, 0]], jnp.int32)
    is_used = jnp.asarray([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]], bool)
    kept = is_used.reshape(is_used.shape + (1,) * (len(shape) - 2))
    cotangent = jnp.where(kept, jnp.asarray(rng.normal(size=(2, 6, *shape[2:])), jnp.float32), 0.0)

    def run(columns):
        read, pullback = jax.vjp(lambda values: columns(values, index, is_used), values)
        return jnp.where(kept, read, 0.0), *pullback(cotangent)

    repeatable, plain = (jax.jit(run, static_argnums=0)(each.columns) for each in (lookup.REPEATABLE, lookup.PLAIN))
    jax.tree.map(np.testing.assert_array_equal, repeatable, plain)


def test_no_gradient_adds_to_a_place_twice():
    """So that XLA need not sort all of its numbers for a deterministic program."""
    table, ids = jnp.ones((7, 3)), jnp.zeros((1, 4), jnp.int32)
    values, is_used = jnp.ones((1, 6, 3)), jnp.ones((1, 4), bool)
    for function, argument in (
        (lambda table: lookup.REPEATABLE.rows(table, ids), table),
        (lambda values: lookup.REPEATABLE.columns(values, ids, is_used), values),
    ):
        gradient = jax.jit(jax.grad(lambda argument, function=function: function(argument).sum()))
        scatters = re.findall(r'"stablehlo.scatter".*', gradient.lower(argument).as_text())
        assert [("unique_indices = true" in scatter) for scatter in scatters] == [True]
