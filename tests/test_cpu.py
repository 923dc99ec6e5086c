"""Workarounds for XLA:CPU change no bit, store nothing twice, have their intended effect, and are absent from other programs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import hf_checkpoints, tiny_programs

from reval_jax import batch, mesh, model, sampler, update
from reval_jax.model import cache as cache_lib
from reval_jax.model import cpu, linear
from reval_jax.sampler import steps
from reval_jax.tools.plan import gpu_topology

LAYERS, TOKENS, WIDTH = 3, 7, 5


def pulled_back(dtype, wrap):
    """A function to the gradients of a loop over layers, and its arguments."""

    def layer(bias, hidden, weight):
        mixing = jnp.outer(bias, bias).astype(dtype)  # the same in every layer
        mixed = jnp.tanh(mixing @ hidden) * hidden
        return (mixed @ weight.astype(dtype)).astype(dtype)

    def loss(hidden, weights):
        bias, wrapped = jnp.linspace(-1, 1, TOKENS), wrap(layer)
        outputs, _ = jax.lax.scan(lambda hidden, weight: (wrapped(bias, hidden, weight), None), hidden, weights)
        return outputs.astype(jnp.float32).sum()

    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(TOKENS, WIDTH)), dtype)
    weights = jnp.asarray(rng.normal(size=(LAYERS, WIDTH, WIDTH)), jnp.float32)
    return jax.value_and_grad(loss, (0, 1)), (hidden, weights)


def stacked(function, arguments):
    """Shapes and dtypes of the arrays that the forward loop saves for the backward loop, layer by layer."""
    loops = [eqn for eqn in jax.make_jaxpr(function)(*arguments).jaxpr.eqns if eqn.primitive.name == "scan"]
    forward, _ = loops
    return sorted((leaf.aval.shape, leaf.aval.dtype.name) for leaf in forward.outvars if leaf.aval.shape[0] == LAYERS)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_are_the_plain_ones_bit_for_bit(dtype):
    result, expected = (
        jax.jit(function)(*arguments)
        for function, arguments in (pulled_back(dtype, wrap) for wrap in (cpu.uint16_residuals, lambda layer: layer))
    )
    jax.tree.map(np.testing.assert_array_equal, result, expected)


def test_the_stacked_residuals_are_the_same_arrays_as_integers():
    result, plain = (stacked(*pulled_back(jnp.bfloat16, wrap)) for wrap in (cpu.uint16_residuals, lambda layer: layer))
    assert result == [(shape, dtype.replace("bfloat16", "uint16")) for shape, dtype in plain]
    shapes = [shape for shape, _ in result]
    assert (LAYERS, TOKENS, WIDTH) in shapes
    assert (LAYERS, TOKENS, TOKENS) not in shapes, "what is the same in every layer is kept once"


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_no_stack_is_converted_to_float32_on_cpu(remat):
    architecture = hf_checkpoints.tiny_architecture(num_layers=3)
    params = hf_checkpoints.tiny_params(architecture)
    tokens = jnp.ones((2, 24), jnp.int32)
    kernels = model.Kernels(residuals=cpu.uint16_residuals)

    def loss(params):
        hidden = model.hidden_states(
            architecture, params, tokens, tokens, tokens, compute_dtype=jnp.bfloat16, remat=remat, kernels=kernels
        )
        return jnp.sum(jnp.square(hidden.astype(jnp.float32)))

    text = jax.jit(jax.grad(loss)).lower(params).compile().as_text()
    rows = f"[{architecture.num_layers},2,24,"
    assert f"u16{rows}" in text
    assert not [line for line in text.splitlines() if f"f32{rows}{architecture.width}]" in line]
    assert not [line for line in text.splitlines() if f"f32{rows}{architecture.mlp_width}]" in line]


def test_writing_to_a_bfloat16_cache_converts_none_of_it_on_cpu():
    cache = jax.eval_shape(lambda: cache_lib.empty((4,), cache_lib.BLOCK, 2, 16, "bfloat16", cpu.UINT16))
    token, positions = jax.ShapeDtypeStruct((4, 2, 16), jnp.bfloat16), jax.ShapeDtypeStruct((4,), jnp.int32)
    text = (
        jax.jit(functools.partial(cache_lib.write, storage=cpu.UINT16), donate_argnums=0)
        .lower(cache, token, token, positions)
        .compile()
        .as_text()
    )
    assert f"u16[4,2,16,{cache_lib.BLOCK}]" in text
    assert f"f32[4,2,16,{cache_lib.BLOCK}]" not in text
    assert f"f32[4,2,{cache_lib.BLOCK},16]" not in text


@pytest.mark.parametrize("num_outputs", [6, 7])
def test_products_of_few_tokens_are_those_of_many(num_outputs):
    rng = np.random.default_rng(0)
    inputs, weight = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 5), (5, num_outputs)))
    few = cpu.decode_linear("bd,df->bf", inputs, weight.T)
    np.testing.assert_allclose(few, linear.linear("bd,df->bf", inputs, weight), rtol=1e-5)


# --- and nowhere else ------------------------------------------------------------------------------------------------


def lowered(tiny, platforms):
    """The text of the update, prefill and window that this mesh's platform would run."""
    optimizer = update.make_optimizer(tiny.config.optimizer)
    step = update.make_step(tiny.architecture, tiny.mesh, algorithm=tiny.algorithm, config=tiny.config)
    state = update.abstract(update.abstract_params(tiny.architecture, tiny.mesh), optimizer, tiny.mesh)
    rows = batch.abstract(batch.shape_of(32, mesh.num_row_shards(tiny.mesh), limits=tiny.limits), tiny.mesh)
    with jax.numpy_dtype_promotion("standard"):
        programs = [step.trace(state, rows)]
    decoding = jax.sharding.Mesh(tiny.mesh.devices.reshape(-1, tiny.mesh.shape["tensor"]), ("rows", "tensor"))
    engine = sampler.from_config(tiny.architecture, decoding, tiny.config, max_prompt_tokens=16)
    jitted = steps.compiled(engine)
    copy = sampler.abstract_copy(engine)
    tokens = jax.ShapeDtypeStruct((engine.prefill_rows(32), 32), jnp.int32)
    sampling = steps.sampling_params(1.0, 0, 1.0)
    settings = sampling, steps.padded_stop_ids(()), steps.case(engine, sampling)
    programs += [
        jitted.prefill.trace(copy, tokens),
        jitted.window.trace(copy, sampler.abstract_state(engine), *settings),
    ]
    with gpu_topology.lowering_for(list(tiny.mesh.devices.flat)):
        return [program.lower(lowering_platforms=platforms).as_text() for program in programs]


def bfloat16_on(devices, **model_settings):
    """Abstract parameters of a bfloat16 policy on a mesh."""
    config = tiny_programs.settings(model={"compute_dtype": "bfloat16", **model_settings})
    return tiny_programs.Tiny(config, hf_checkpoints.tiny_architecture(head_size=64), devices, None)


def test_programs_for_cpu_hold_bfloat16_as_integers():
    devices = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), mesh.AXES)
    assert all("ui16" in text for text in lowered(bfloat16_on(devices), ("cpu",)))


def test_no_program_lowered_for_a_tpu_holds_bfloat16_as_integers(v5e):
    devices = jax.sharding.Mesh(np.array(v5e).reshape(2, 2, 2), mesh.AXES)
    texts = lowered(bfloat16_on(devices), ("tpu",))
    for text in texts:
        assert "bf16" in text
        assert "ui16" not in text
    # Splash attends to whole rows, in the update and in prefill; decoding has rows of one token.
    assert ["tpu_custom_call" in text for text in texts] == [True, True, False]


def test_no_program_lowered_for_a_gpu_holds_bfloat16_as_integers(h100_8):
    """Without cuDNN, which is lowered only where its library is installed."""
    devices = jax.sharding.Mesh(np.array(h100_8).reshape(2, 2, 2), mesh.AXES)
    texts = lowered(bfloat16_on(devices, attention="xla"), ("cuda",))
    for text in texts:
        assert "bf16" in text
        assert "ui16" not in text
    # The decode kernel is the sampler's alone.
    assert ["xla.gpu.triton" in text for text in texts] == [False, False, True]
