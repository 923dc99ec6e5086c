"""Names of hosts with GPUs, and programs compiled for GPUs that are absent."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from reval_jax.tools.plan import gpu_topology


@pytest.mark.parametrize(
    ("name", "full", "gpus", "of_host"),
    [
        ("h100:8", "h100:8", 8, 8),
        ("H200:8", "h200:8", 8, 8),
        ("a100-80gb:8", "a100-80gb:8", 8, 8),
        ("b200:4", "b200:4", 4, 4),
        ("h100:1", "h100:1", 1, 1),
        ("4x h100:8", "4x h100:8", 32, 8),
        ("4xh100:8", "4x h100:8", 32, 8),
        (" 2 x h200:4 ", "2x h200:4", 8, 4),
        ("1x h100:8", "h100:8", 8, 8),
    ],
)
def test_a_host_is_named_by_its_gpus(name, full, gpus, of_host):
    hosts = gpu_topology.named(name)
    assert (hosts.name, hosts.num_chips, hosts.host.num_chips) == (full, gpus, of_host)
    assert gpu_topology.named(hosts.name) == hosts
    assert gpu_topology.is_gpu_name(name)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("h100", "h100:8"),
        ("a100:8", "a100-80gb:8"),
        ("h100:3", "h100:8"),
        ("h100:0", "h100:8"),
        ("0x h100:8", "h100:8"),
        ("h100:16", "16 GPUs are '2x h100:8'"),
        ("2x h100:16", "32 GPUs are '4x h100:8'"),
        ("gb200:4", "b200:8"),
        ("", ":8"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"is not known.*Nearest: .*{re.escape(nearest)}"):
        gpu_topology.named(name)


@pytest.mark.parametrize("name", ["v5e-256", "v5litepod-8", "v5p:2x2x1", "v4-32", "v6e-8", "", "tpu"])
def test_names_of_tpu_slices_are_not_taken_for_gpus(name):
    assert not gpu_topology.is_gpu_name(name)


def test_missing_wheels_are_named_with_the_version_that_fits(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    command = f"pip install --no-deps jax-cuda13-plugin=={jax.__version__} jax-cuda13-pjrt=={jax.__version__}"
    with pytest.raises(ValueError, match=re.escape(command)):
        gpu_topology.devices(gpu_topology.named("h100:8"))


# --- a real compiler for GPUs ----------------------------------------------------------------------------------------


@pytest.mark.gpu_compile
@pytest.mark.parametrize("name", ["a100-80gb:8", "h100:8", "h200:8", "b200:8", "2x h100:8"])
def test_a_product_is_compiled_for_every_kind(name, h100_8):
    hosts = gpu_topology.named(name)
    devices = gpu_topology.devices(hosts)
    assert len(devices) == hosts.num_chips
    assert {device.process_index for device in devices} == set(range(hosts.hosts))
    assert devices[0].device_kind == hosts.chip.device_kind
    assert devices[0].compute_capability == ".".join(map(str, hosts.chip.capability))
    rows = NamedSharding(Mesh(np.array(devices), ("rows",)), PartitionSpec("rows"))
    array = jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16, sharding=rows)
    with gpu_topology.lowering_for(devices):
        compiled = jax.jit(lambda array: (array @ array.T).sum()).lower(array).compile()
    assert "all-reduce" in compiled.as_text()
    assert compiled.memory_analysis().argument_size_in_bytes == 1024 * 1024 * 2 // hosts.num_chips


def double(array):
    """A Pallas kernel of the Triton backend."""

    def kernel(rows, doubled):
        doubled[...] = rows[...] * 2

    rows = pl.BlockSpec((1, array.shape[1]), lambda row: (row, 0))
    shape = jax.ShapeDtypeStruct(array.shape, array.dtype)
    parameters = triton.CompilerParams(num_warps=1, num_stages=1)
    return pl.pallas_call(
        kernel, grid=array.shape[:1], in_specs=[rows], out_specs=rows, out_shape=shape, compiler_params=parameters
    )(array)


@pytest.mark.parametrize("is_split", [False, True])
def test_a_pallas_kernel_is_compiled_split_over_a_mesh_or_for_one_gpu(h100_8, is_split):
    mesh = Mesh(np.array(h100_8 if is_split else h100_8[:1]), ("rows",))
    rows = PartitionSpec("rows")
    program = jax.shard_map(double, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False) if is_split else double
    array = jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=NamedSharding(mesh, rows))
    with gpu_topology.lowering_for(h100_8):
        compiled = jax.jit(program).lower(array).compile()
    assert "__gpu$xla.gpu.triton" in compiled.as_text()
