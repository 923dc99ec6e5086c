"""Products that leave in the operands' dtype: the plain ones, rounded once, with a weight's gradient that is not rounded."""

from __future__ import annotations

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from support import hf_checkpoints

from reval_jax import mesh
from reval_jax.model import kernels, linear

ULP = 2.0**-8  # of bfloat16: the largest relative difference of a number and its rounding


def operands(seed=0):
    """Inputs [B,T,D] in bfloat16, a float32 weight [D,F] and a cotangent [B,T,F] in bfloat16."""
    generator = np.random.default_rng(seed)
    shapes = (((2, 9, 48), jnp.bfloat16), ((48, 40), jnp.float32), ((2, 9, 40), jnp.bfloat16))
    return [jnp.asarray(generator.normal(size=shape), dtype) for shape, dtype in shapes]


def with_gradients(multiply):
    """The product of inputs and a weight, and the gradients of both under a cotangent."""

    @jax.jit
    def run(inputs, weight, cotangent):
        outputs, pullback = jax.vjp(functools.partial(multiply, "btd,df->btf"), inputs, weight)
        return outputs, *pullback(cotangent)

    return run


def test_a_rounded_product_is_the_exact_one_rounded_once_and_the_gradient_of_the_weight_is_not_rounded():
    inputs, weight, cotangent = operands()
    outputs, to_inputs, to_weight = with_gradients(linear.rounded_linear)(inputs, weight, cotangent)
    assert (outputs.dtype, to_inputs.dtype, to_weight.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    # The weight is multiplied in bfloat16, so the exact result is that of the rounded weight.
    x, w, g = (np.asarray(array.astype(jnp.bfloat16), np.float64) for array in (inputs, weight, cotangent))
    for result, expected in ((outputs, x @ w), (to_inputs, g @ w.T)):
        np.testing.assert_allclose(np.asarray(result, np.float64), expected, rtol=ULP, atol=1e-5)
    np.testing.assert_allclose(to_weight, np.einsum("btd,btf->df", x, g), rtol=1e-5, atol=1e-5)


def test_a_rounded_product_is_the_plain_one_within_one_rounding():
    plain, rounded = (with_gradients(multiply)(*operands()) for multiply in (linear.linear, linear.rounded_linear))
    for one, other in zip(rounded[:2], plain[:2], strict=True):
        np.testing.assert_allclose(one.astype(np.float32), other.astype(np.float32), rtol=2 * ULP, atol=1e-5)
    np.testing.assert_array_equal(rounded[2], plain[2])


def test_in_float32_a_rounded_product_is_the_plain_one():
    arrays = [array.astype(jnp.float32) for array in operands()]
    plain, rounded = (with_gradients(multiply)(*arrays) for multiply in (linear.linear, linear.rounded_linear))
    jax.tree.map(np.testing.assert_array_equal, rounded, plain)


def test_a_gathered_rounded_product_is_that_of_the_whole_weight():
    devices = Mesh(np.array(jax.devices()).reshape(1, 8, 1), mesh.AXES)
    inputs, weight, cotangent = operands()
    rows, split = PartitionSpec(), PartitionSpec("fsdp")
    gathered = jax.shard_map(
        with_gradients(linear.rounded_gathered_linear),
        mesh=devices,
        in_specs=(rows, split, rows),
        out_specs=(rows, rows, split),
        check_vma=False,
    )
    outputs, to_inputs, to_weight = jax.jit(gathered)(inputs, weight, cotangent)
    expected = with_gradients(linear.rounded_linear)(inputs, weight, cotangent)
    np.testing.assert_array_equal(outputs, expected[0])
    np.testing.assert_array_equal(to_inputs, expected[1])
    np.testing.assert_allclose(to_weight, 8 * expected[2], rtol=1e-6)  # each device multiplied the same rows


def results_of_products(function, *arguments):
    """Dtypes of the results of every product in the program, in its order."""
    text = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    return [line.rsplit("x", 1)[1].rstrip(">") for line in text.splitlines() if "stablehlo.dot_general" in line]


@pytest.mark.parametrize(
    ("platform", "results"), [("gpu", ["bf16", "bf16", "f32"]), ("cpu", ["f32"] * 3), ("tpu", ["f32"] * 3)]
)
def test_only_the_learner_on_a_gpu_has_products_that_leave_in_bfloat16(platform, results):
    devices = np.array([[types.SimpleNamespace(platform=platform)]])
    one = types.SimpleNamespace(devices=devices, shape=dict.fromkeys(mesh.AXES, 1))
    chosen = kernels.for_learner("xla", one, hf_checkpoints.tiny_architecture(), jnp.dtype(jnp.bfloat16))
    assert results_of_products(with_gradients(chosen.linear), *operands()) == results
