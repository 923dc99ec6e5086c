"""Options of the compiler for GPUs: which programs get which, and that the compilers of both windows take and obey them."""

from __future__ import annotations

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from support import gpu_programs

from reval_jax import mesh
from reval_jax.model import compiler, kernels


def mesh_of(platform):
    """A mesh with the attribute that the choice reads."""
    return types.SimpleNamespace(devices=np.array([[types.SimpleNamespace(platform=platform)]]), axis_names=mesh.AXES)


@pytest.mark.parametrize(
    ("deterministic", "has_gradient", "dtype", "expected"),
    [
        (True, True, "bfloat16", compiler.DETERMINISTIC),
        (True, True, "float32", compiler.DETERMINISTIC),
        (True, False, "bfloat16", compiler.UNTIMED),
        (False, True, "float32", compiler.CUBLAS),
        (False, False, "float32", compiler.CUBLAS),
        (False, True, "bfloat16", None),
    ],
)
def test_a_program_for_gpus_gets_options_and_no_other_does(deterministic, has_gradient, dtype, expected):
    choose = functools.partial(
        kernels.compiler_options, compute_dtype=dtype, deterministic=deterministic, has_gradient=has_gradient
    )
    assert choose(mesh_of("gpu")) == expected
    assert choose(mesh_of("cpu")) is None
    assert choose(mesh_of("tpu")) is None


def test_a_deterministic_program_times_nothing_and_excludes_what_does_not_repeat():
    assert compiler.DETERMINISTIC["xla_gpu_exclude_nondeterministic_ops"]
    for options in (compiler.DETERMINISTIC, compiler.UNTIMED):
        assert options["xla_gpu_autotune_level"] == 0
        assert not options["xla_gpu_enable_triton_gemm"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["CUBLAS", "UNTIMED", "DETERMINISTIC"])
def test_products_go_to_cublas_and_float32_keeps_its_precision(h100_8, name, dtype):
    on_gpu = SingleDeviceSharding(h100_8[0])
    shapes = [jax.ShapeDtypeStruct(shape, dtype, sharding=on_gpu) for shape in ((256, 512), (512, 128))]
    precision = jax.lax.Precision.HIGHEST if dtype == "float32" else jax.lax.Precision.DEFAULT
    program = jax.jit(
        lambda left, right: jnp.matmul(left, right, precision=precision) * 2, compiler_options=getattr(compiler, name)
    )
    text = program.lower(*shapes).compile().as_text()
    assert '"__cublas$lt$matmul"' in text or '"__cublas$gemm"' in text
    assert "triton_nested_gemm" not in text
    # XLA uses TF32 where no operand asks for HIGHEST.
    assert text.count('"operand_precision":["HIGHEST","HIGHEST"]') == (dtype == "float32")


def test_a_sum_of_gradients_by_index_is_not_sorted_number_by_number(h100_8):
    """What XLA does with jax's own gradient of a lookup in a deterministic program, and not with `lookup.REPEATABLE`."""
    on_gpu = SingleDeviceSharding(h100_8[0])
    table = jax.ShapeDtypeStruct((512, 64), jnp.float32, sharding=on_gpu)
    ids = jax.ShapeDtypeStruct((1, 256), jnp.int32, sharding=on_gpu)
    largest = {}
    for chosen in (kernels.lookup.PLAIN, kernels.lookup.REPEATABLE):
        gradient = jax.grad(lambda table, ids, chosen=chosen: jnp.sum(jnp.sin(chosen.rows(table, ids))))
        program = jax.jit(gradient, compiler_options=compiler.DETERMINISTIC).lower(table, ids).compile()
        assert not gpu_programs.read(program.as_text()).host_waits()
        sorts = [line for line in program.as_text().splitlines() if " sort(" in line]
        largest[chosen] = max(int(line.split("[")[1].split("]")[0]) for line in sorts)
    assert list(largest.values()) == [256 * 64, 256]
