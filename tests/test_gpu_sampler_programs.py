"""The sampler's programs, compiled for GPUs that are not here: kernels, waits for the host, memory, collectives."""

from __future__ import annotations

import dataclasses

import pytest
from support import gpu_programs

from reval_jax import config as config_lib
from reval_jax import mesh, model, sampler, weights
from reval_jax.sampler import sampling_op, steps
from reval_jax.tools.plan import compilation, gpu_topology

DISTILL = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
pytestmark = [pytest.mark.gpu_compile, pytest.mark.slow]


def engine_for(devices, *, name=DISTILL, layers=2, dtype="bfloat16", cache="compute", slots=256, tensor=1):
    architecture = dataclasses.replace(weights.published.architecture(name), num_layers=layers)
    learner = mesh.make(config_lib.Mesh(tensor=tensor), devices)
    return sampler.make(
        architecture,
        mesh.local(learner),
        compute_dtype=dtype,
        max_prompt_tokens=256,
        max_response_tokens=1792,
        decode_slots=slots,
        decode_window=16,
        cache=cache,
        attention="xla",  # cuDNN cannot be compiled for without the library
    )


def compiled_window(engine):
    with gpu_topology.lowering_for(list(engine.mesh.devices.flat)):
        return sampler.lower_window(engine).compile()


def token_loop(compiled):
    """The window's loop over tokens."""
    loop = gpu_programs.read(compiled.as_text()).loops()[0]
    assert loop.trips is None  # It ends early when no slot is active.
    return loop


@pytest.mark.parametrize(
    ("name", "dtype", "cache"),
    [
        (DISTILL, "bfloat16", "compute"),
        (DISTILL, "bfloat16", "int8"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "float32", "compute"),
    ],
)
def test_a_token_takes_few_kernels_and_the_host_waits_for_none_of_them(h100_8, name, dtype, cache):
    layers = weights.published.architecture(name).num_layers
    engine = engine_for(h100_8[:1], name=name, layers=layers, dtype=dtype, cache=cache)
    assert engine.kernels.attend_cached is model.attention.decode_triton.attend
    compiled = compiled_window(engine)
    loop = token_loop(compiled)
    assert loop.kernels <= 16 * layers + 40
    assert not loop.unknown_loops_inside
    program = gpu_programs.read(compiled.as_text())
    assert program.host_waits() == 1  # at the end of each token, by the loop itself
    assert not program.arrays_of("u16")


def test_a_window_holds_the_logits_and_little_else_beside_the_cache_which_it_writes_in_place(h100_8):
    engine = engine_for(h100_8[:1])
    memory = compiled_window(engine).memory_analysis()
    architecture = engine.architecture
    per_token = 2 * 2 * architecture.num_layers * architecture.num_kv_heads * architecture.head_size
    assert memory.alias_size_in_bytes >= engine.decode_slots * engine.cache_length * per_token
    logits = 4 * engine.decode_slots * architecture.vocab_size
    assert memory.temp_size_in_bytes <= 1.25 * logits


@pytest.mark.parametrize(("tensor", "collectives"), [(2, {"all-reduce"}), (4, {"all-reduce", "all-gather"})])
def test_a_window_on_eight_gpus_communicates_sums_and_gathers_only_what_heads_it_cannot_split(
    h100_8, tensor, collectives
):
    """Two key/value heads are split over two GPUs, not over four: each of those attends with all heads."""
    engine = engine_for(h100_8, tensor=tensor)
    compiled = compiled_window(engine)
    assert set(compilation.count_collectives(compiled.as_text())) == collectives
    assert not token_loop(compiled).unknown_loops_inside


def test_truncated_sampling_does_not_wait_for_the_host_either(h100_8):
    engine = engine_for(h100_8[:1])
    with gpu_topology.lowering_for(h100_8[:1]):
        compiled = (
            steps.compiled(engine)
            .window.lower(
                steps.abstract_copy(engine),
                steps.abstract_state(engine),
                steps.sampling_params(1.0, 20, 0.9),
                steps.padded_stop_ids(()),
                sampling_op.Case(truncates=True),
            )
            .compile()
        )
    assert gpu_programs.read(compiled.as_text()).host_waits() == 1
    assert not token_loop(compiled).unknown_loops_inside


@pytest.mark.parametrize("deterministic", [True, False])
def test_only_a_deterministic_sampler_is_compiled_without_timing(h100_8, deterministic):
    engine = dataclasses.replace(engine_for(h100_8[:1]), deterministic=deterministic)
    text = compiled_window(engine).as_text()
    assert ("cublas" in text) == deterministic
    assert ("gemm_fusion" in text) != deterministic


def test_admission_waits_for_no_loop_and_copies_the_cache_nowhere(h100_8):
    engine = engine_for(h100_8[:1])
    with gpu_topology.lowering_for(h100_8[:1]):
        compiled = steps.lower_admit(engine, 256).compile()
    program = gpu_programs.read(compiled.as_text())
    assert program.host_waits() == 0
    assert compiled.memory_analysis().temp_size_in_bytes <= 2**20


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_prefill_never_holds_scores_of_a_whole_long_prompt(h100_8, dtype):
    engine = engine_for(h100_8[:1], dtype=dtype)
    narrow = dataclasses.replace(engine.architecture, mlp_width=2048)  # so that only scores could be 8,192 wide
    engine = dataclasses.replace(engine, architecture=narrow, max_prompt_tokens=8192)
    compiled = sampler.lower_prefill(engine, 8192).compile()
    program = gpu_programs.read(compiled.as_text())
    assert not program.square_arrays(8192)
