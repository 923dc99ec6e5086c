"""Names of TPU slices, and real programs compiled for an absent TPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from support import fake_pods, hf_checkpoints, tiny_programs

from reval_jax import algorithms, batch, update, weights
from reval_jax import mesh as mesh_lib
from reval_jax.tools import plan
from reval_jax.tools.plan import compilation, topology


@pytest.mark.parametrize(
    ("name", "full", "chips", "of_host"),
    [
        ("v5e-256", "v5e:16x16", 256, 4),
        ("v5litepod-256", "v5e:16x16", 256, 4),
        ("v5e-16", "v5e:4x4", 16, 4),
        ("v5e-8", "v5e:2x4", 8, 8),
        ("v5e-1", "v5e:1x1", 1, 1),
        ("v6e-64", "v6e:8x8", 64, 4),
        ("v5p-128", "v5p:4x4x4", 64, 4),
        ("v5p-8", "v5p:2x2x1", 4, 4),
        ("v4-32", "v4:2x2x4", 16, 4),
        ("v5e:4x4", "v5e:4x4", 16, 4),
        ("V5P:2x2x2", "v5p:2x2x2", 8, 4),
    ],
)
def test_a_slice_has_a_common_name_and_a_topology_name(name, full, chips, of_host):
    slice_ = topology.named(name)
    assert (slice_.name, slice_.num_chips, slice_.host.num_chips) == (full, chips, of_host)


def test_common_names_count_chips_or_tensorcores():
    for name, slice_ in topology.common_names().items():
        generation, count = name.split("-")
        assert int(count) == slice_.num_chips * (2 if generation in ("v4", "v5p") else 1)


@pytest.mark.parametrize("name", ["v5e-255", "v5p-129", "v7e-8", "v5e:4x4x4", "v5p:4x4", "v5e:0x4", "a100", "", "v5e:"])
def test_an_unknown_slice_is_refused_with_the_nearest_names(name):
    with pytest.raises(ValueError, match=r"is not known.*Nearest: v\d"):
        topology.named(name)


def test_a_missing_compiler_is_named_with_the_version_that_fits(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(
        "importlib.metadata.requires",
        lambda name: ["numpy>=2", "libtpu==0.0.42.*; extra == 'tpu'", "x; extra == 'tpu'"],
    )
    with pytest.raises(ValueError, match=r"pip install 'libtpu==0\.0\.42\.\*'"):
        topology.require_compiler()


def test_sizes_are_read_as_xla_writes_them():
    assert topology.parse_bytes("15.75G") == int(15.75 * fake_pods.GIB)
    assert topology.parse_bytes("896.5M") == int(896.5 * 2**20)
    assert topology.parse_bytes("12") == 12


# --- a real TPU compiler ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def v5e_4():
    return compilation.open_pod(topology.named("v5e-4"))


SMALL = hf_checkpoints.tiny_architecture(
    width=256, num_heads=4, num_kv_heads=2, head_size=128, mlp_width=512, vocab_size=1024, tied_head=False
)


def real_settings(**sections):
    defaults = {
        "model": {"compute_dtype": "bfloat16", "remat": "full"},
        "rollout": {"decode_slots": 8, "max_response_tokens": 100},
        "task": {"max_prompt_tokens": 28},
    }
    merged = {name: defaults.get(name, {}) | sections.get(name, {}) for name in defaults | sections}
    return tiny_programs.settings(**merged)


@pytest.mark.tpu_compile
def test_the_compilers_memory_is_the_chips(v5e_4):
    assert len(v5e_4.devices) == len(v5e_4.host_devices) == 4
    assert v5e_4.devices[0].platform == "tpu"
    assert 15 * fake_pods.GIB < v5e_4.capacity < 16 * fake_pods.GIB


@pytest.mark.tpu_compile
def test_a_tpu_mesh_gets_its_own_attention(v5e_4):
    config = real_settings(mesh={"fsdp": 2, "tensor": 2})
    mesh = mesh_lib.make(config.mesh, v5e_4.devices)
    optimizer = update.make_optimizer(config.optimizer)
    state = update.abstract(update.abstract_params(SMALL, mesh), optimizer, mesh)
    rows = batch.abstract(compilation.largest_shape(2, config), mesh)
    with jax.numpy_dtype_promotion("standard"):  # as a user's process runs: optax's adamw promotes an integer
        lowered = update.make_step(SMALL, mesh, algorithm=algorithms.choose(config), config=config).lower(state, rows)
    assert "splash" in lowered.as_text(debug_info=True)
    assert "tpu_custom_call" in lowered.as_text()


@pytest.mark.tpu_compile
@pytest.mark.slow
def test_a_small_run_fits_four_chips_and_its_bytes_are_those_by_hand(v5e_4):
    config = real_settings(mesh={"fsdp": 2, "tensor": 2})
    with jax.numpy_dtype_promotion("standard"):
        result = plan.examine(SMALL, "small", v5e_4, config, compilation.compiler(SMALL, v5e_4, lambda _: None))
    assert result.fits
    assert result.advice == ""
    matrices = 2 * 1024 * 256 + 2 * (2 * 256 * 512 + 2 * 256 * 256 + 3 * 256 * 512)
    params = 4 * (matrices // 4 + 2 * 2 * 256 + 256)
    for phase in result.phases:
        assert phase.is_compiled
        assert phase.kinds["params"] == params
        assert phase.kinds["temporaries"] > 0
        assert phase.kinds["programs"] > 0
    compiled = result.update
    assert isinstance(compiled, compilation.ProgramMemory)
    kinds = {phase.name: phase.kinds for phase in result.phases}["update"]
    arguments = kinds["params"] + kinds["optimizer"] + kinds["batch"]
    # Arrays with few rows are padded to the chip's tiles; the new state is written over the old one.
    assert arguments <= compiled.arguments < 1.05 * arguments
    assert compiled.aliased >= params * 3
    assert compiled.collectives["all-gather"] > 0


@pytest.mark.tpu_compile
def test_a_model_that_is_too_large_is_ruled_out_without_compiling(v5e_4):
    seven = weights.published.architecture("Qwen/Qwen2.5-Math-7B")

    def never(program, config):
        pytest.fail(f"compiled {program}")

    result = plan.examine(seven, "7B", v5e_4, real_settings(), never)
    assert not result.fits
    assert result.update is None
    assert "--topology v5e-" in result.advice
    assert "by shapes alone" in plan.summary(result)


@pytest.mark.tpu_compile
def test_a_program_too_large_for_the_chip_is_a_result(v5e_4):
    array = jax.ShapeDtypeStruct((2**36,), jnp.int8, sharding=jax.sharding.SingleDeviceSharding(v5e_4.devices[0]))
    result = compilation.measure(jax.jit(lambda array: array + jnp.int8(1)).lower(array).compile)
    assert isinstance(result, compilation.TooLarge)
    assert result.needed > 2**36
    assert "available HBM" in result.reason
