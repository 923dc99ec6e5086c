"""The reader of compiled GPU programs, on programs written by hand and on compiled ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from support import gpu_programs

from reval_jax.tools.plan import gpu_topology

HAND_MADE = """HloModule jit_window, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%fused_add (param_0: f32[64,64]) -> f32[64,64] {
  %param_0 = f32[64,64]{1,0} parameter(0)
  ROOT %large.1 = f32[64,64]{1,0} multiply(%param_0, %param_0)
}

%layer (arg: (s32[], f32[8])) -> (s32[], f32[8]) {
  %arg = (s32[], /*index=1*/f32[8]{0}) parameter(0)
  %gte = f32[8]{0} get-tuple-element(%arg), index=1
  %product = f32[8]{0} custom-call(%gte), custom_call_target="__cublas$gemm"
  %kernel.2 = (u16[8]{0}, f32[8]{0}) fusion(%product), kind=kLoop, calls=%fused_add
  ROOT %tuple = (s32[], f32[8]{0}) tuple(%gte, %product)
}

%is_left (arg.1: (s32[], f32[8])) -> pred[] {
  %arg.1 = (s32[], f32[8]{0}) parameter(0)
  ROOT %compare = pred[] compare(%arg.1, %arg.1), direction=LT
}

%token (arg.2: (s32[], f32[8])) -> (s32[], f32[8]) {
  %arg.2 = (s32[], f32[8]{0}) parameter(0)
  %layers = (s32[], f32[8]{0}) while(%arg.2), condition=%is_left, body=%layer, backend_config={"known_trip_count":{"n":"28"}}
  %sum-start = f32[8]{0} all-reduce-start(%arg.2), to_apply=%add
  %sum-done = f32[8]{0} all-reduce-done(%sum-start)
  %branch = f32[8]{0} conditional(%sum-done, %arg.2, %arg.2), branch_computations={%short, %long}
  ROOT %tuple.1 = (s32[], f32[8]{0}) tuple(%branch, %branch)
}

%short (x: f32[8]) -> f32[8] {
  ROOT %x = f32[8]{0} parameter(0)
}

%long (x.1: f32[8]) -> f32[8] {
  %x.1 = f32[8]{0} parameter(0)
  %copy = bf16[128,3,96]{2,1,0} copy(%x.1)
  ROOT %copy.1 = f32[8]{0} copy(%copy)
}

ENTRY %main.1_spmd (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %start = (s32[], f32[8]{0}) fusion(%p), kind=kLoop, calls=%fused_add
  %tokens = (s32[], f32[8]{0}) while(%start), condition=%is_left, body=%token
  ROOT %out = f32[8]{0} get-tuple-element(%tokens), index=1
}
"""


def test_kernels_of_loops_count_as_often_as_they_run():
    program = gpu_programs.read(HAND_MADE)
    layer, token = 2, 2 * 28 + 1 + 2  # a product and a fusion; the layers, a sum over devices, the longer branch
    assert program.kernels("layer") == layer
    assert program.kernels("token") == token
    assert program.kernels(unknown_trips=0) == 1
    assert program.kernels(unknown_trips=5) == 1 + 5 * (token + 1)  # with the loop's condition
    assert program.host_waits() == 2


def test_loops_are_listed_with_the_loops_of_unknown_length_inside_them():
    program = gpu_programs.read(HAND_MADE)
    tokens, layers = program.loops()
    assert (tokens.body, tokens.trips, tokens.unknown_loops_inside) == ("token", None, ())
    assert (layers.body, layers.trips, layers.kernels) == ("layer", 28, 2)
    unknown = gpu_programs.read(HAND_MADE.replace('backend_config={"known_trip_count":{"n":"28"}}', "metadata={}"))
    assert unknown.loops()[0].unknown_loops_inside == ("layer",)
    assert unknown.loops()[0].kernels == 2 + 1 + 1 + 2


def test_arrays_of_fusions_are_not_in_memory_and_those_of_tuples_and_branches_are():
    program = gpu_programs.read(HAND_MADE)
    assert [array.shape for array in program.square_arrays(96)] == [(128, 3, 96)]
    assert program.square_arrays(97) == []
    assert [array.shape for array in program.arrays_of("u16")] == [(8,)]
    assert not [array for array in program.arrays() if array.shape == (64, 64)]


def test_text_of_something_else_is_refused():
    with pytest.raises(ValueError, match="no entry computation"):
        gpu_programs.read("module @jit_f {\n}")


def tokens_and_layers(start, weights, count):
    """`count` steps, or as many as there are until all are small, of three layers."""

    def layer(rows, weight):
        return jnp.tanh(rows @ weight), None

    def step(_, rows):
        return jax.lax.scan(layer, rows, weights)[0] + 1

    if count is None:
        return jax.lax.while_loop(lambda rows: rows.max() > 0, lambda rows: step(0, rows), start)
    return jax.lax.fori_loop(0, count, step, start)


@pytest.mark.parametrize("count", [None, 5])
def test_loops_of_a_compiled_program_have_their_length(h100_8, count):
    one = jax.sharding.SingleDeviceSharding(h100_8[0])
    start = jax.ShapeDtypeStruct((256, 256), jnp.float32, sharding=one)
    weights = jax.ShapeDtypeStruct((3, 256, 256), jnp.float32, sharding=one)
    with gpu_topology.lowering_for(h100_8):
        compiled = jax.jit(tokens_and_layers, static_argnums=2).lower(start, weights, count).compile()
    program = gpu_programs.read(compiled.as_text())
    tokens, layers = program.loops()
    assert (tokens.trips, layers.trips) == (count, 3)
    assert tokens.unknown_loops_inside == ()
    assert tokens.kernels >= 3 * layers.kernels
    assert program.host_waits() == (count is None)
    assert (256, 256) in {array.shape for array in program.square_arrays(256)}
    assert program.square_arrays(257) == []


def test_attention_over_whole_rows_is_found_by_its_square_array(h100_8):
    one = jax.sharding.SingleDeviceSharding(h100_8[0])
    rows = jax.ShapeDtypeStruct((512, 64), jnp.bfloat16, sharding=one)

    def attend(rows):
        return jax.nn.softmax(rows @ rows.T, axis=-1) @ rows

    with gpu_topology.lowering_for(h100_8):
        compiled = jax.jit(attend).lower(rows).compile()
    assert gpu_programs.read(compiled.as_text()).square_arrays(512)
