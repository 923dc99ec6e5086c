"""Attention: every implementation against the plain one, chosen by platform, and compiled for a TPU."""

from __future__ import annotations

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from support import hf_checkpoints, pretended_cudnn

from reval_jax import mesh, model
from reval_jax.model import attention, cpu, kernels

SPLASH = functools.partial(attention.splash.attend, interpret=True)
CUDNN = functools.partial(attention.cudnn._attend, implementation="xla")  # cuDNN's mask and padding, without a GPU


def heads(rows, length, num_heads, num_kv_heads, size, dtype=jnp.float32):
    """Random query, keys and values, and segments of unequal lengths that end in padding."""
    generator = np.random.default_rng(length + size)
    arrays = [generator.normal(size=(rows, length, count, size)) for count in (num_heads, num_kv_heads, num_kv_heads)]
    segments = np.sort(generator.integers(1, 4, (rows, length)), axis=1)
    segments[:, length - length // 8 :] = 0
    return *(jnp.asarray(array, dtype) for array in arrays), jnp.asarray(segments, jnp.int32)


def output_and_gradients(attend, query, keys, values, segment_ids):
    """The output, and the gradients by query, keys and values under a random cotangent."""
    cotangent = jnp.asarray(np.random.default_rng(9).normal(size=query.shape), query.dtype)

    @jax.jit
    def run(query, keys, values):
        attended, pullback = jax.vjp(lambda *operands: attend(*operands, segment_ids), query, keys, values)
        return attended, *pullback(cotangent)

    return run(query, keys, values)


def assert_close(result, expected, tolerance):
    """Largest difference relative to the largest entry, array by array."""
    for one, other in zip(result, expected, strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= tolerance * np.abs(other).max()


def exact_attention(query, keys, values, segment_ids):
    """Attention by loops, in float64."""
    query, keys, values = (np.asarray(array, np.float64) for array in (query, keys, values))
    segments, attended = np.asarray(segment_ids), np.zeros_like(query)
    rows, length, num_heads, size = query.shape
    for row, column, head in np.ndindex(rows, length, num_heads):
        visible = [other for other in range(column + 1) if segments[row, other] == segments[row, column]]
        shared = head * keys.shape[2] // num_heads
        scores = np.array([query[row, column, head] @ keys[row, other, shared] for other in visible]) / np.sqrt(size)
        weights = np.exp(scores - scores.max())
        attended[row, column, head] = (weights / weights.sum()) @ values[row, visible, shared]
    return attended


# --- implementations -------------------------------------------------------------------------------------------------


def test_attention_equals_loops_in_float64():
    inputs = heads(2, 24, 6, 2, 8)
    np.testing.assert_allclose(attention.xla.attend(*inputs), exact_attention(*inputs), rtol=0, atol=1e-6)


@pytest.mark.parametrize("length", [257, pytest.param(600, marks=pytest.mark.slow)])
def test_attention_by_blocks_of_queries_equals_attention_to_the_whole_row(length, monkeypatch):
    inputs = heads(1, length, 2, 1, 8)
    by_blocks = output_and_gradients(attention.xla.attend, *inputs)
    monkeypatch.setattr(attention.xla, "_WHOLE", length)
    assert_close(by_blocks, output_and_gradients(attention.xla.attend, *inputs), 1e-5)


@pytest.mark.slow
def test_attention_to_a_long_row_never_holds_its_square_of_scores():
    shapes = [jax.ShapeDtypeStruct((1, 2048, count, 8), jnp.float32) for count in (2, 1, 1)]
    segments = jnp.ones((1, 2048), jnp.int32)
    gradient = jax.jit(jax.grad(lambda *inputs: jnp.sum(attention.xla.attend(*inputs, segments)), (0, 1, 2)))
    # Two heads' scores would be 32 MiB, and their gradient as much again.
    temporary = gradient.lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    assert temporary < 2 * 2048 * 2048 * 4 / 2


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((2, 160, 9, 3, 64), id="grouped, head size 64, 160 columns"),
        pytest.param((1, 130, 4, 1, 128), id="one key head, head size 128, 130 columns", marks=pytest.mark.slow),
        pytest.param(
            (1, 24, 2, 2, 8), id="a key head a query head, a row shorter than a block", marks=pytest.mark.slow
        ),
        pytest.param((1, 600, 2, 1, 16), id="several blocks", marks=pytest.mark.slow),
    ],
)
def test_splash_equals_the_plain_implementation_and_so_do_its_gradients(shape):
    inputs = heads(*shape)
    assert_close(output_and_gradients(SPLASH, *inputs), output_and_gradients(attention.xla.attend, *inputs), 3e-6)


@pytest.mark.slow
def test_splash_in_bfloat16_rounds_as_the_plain_implementation_does():
    inputs = heads(1, 128, 4, 2, 64, jnp.bfloat16)
    exact = output_and_gradients(attention.xla.attend, *(array.astype(jnp.float32) for array in inputs[:3]), inputs[3])
    for result in (output_and_gradients(attend, *inputs) for attend in (SPLASH, attention.xla.attend)):
        assert all(array.dtype == jnp.bfloat16 for array in result)
        assert_close(result, exact, 0.02)


def test_splash_uses_full_precision_in_float32_forward_and_backward():
    def text_of(dtype):
        inputs = heads(1, 128, 1, 1, 128, dtype)
        return str(jax.make_jaxpr(functools.partial(output_and_gradients, SPLASH))(*inputs))

    text = text_of(jnp.float32)
    # 2 products forward and, in the backward kernels, 5 and 3.
    assert text.count("dot_general[") == text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") >= 10
    assert "HIGHEST" not in text_of(jnp.bfloat16)


@pytest.mark.parametrize("length", [1, 128, 129, 512, 640, 1152, 4736, 8192, 9000])
def test_splash_pads_a_row_by_less_than_a_block_that_is_whole_lanes(length):
    block = attention.splash._block(length)
    assert block % 128 == 0
    assert block <= 512
    assert -length % block < (128 if length <= 512 else 256)


@pytest.mark.parametrize("length", [24, pytest.param(25, marks=pytest.mark.slow)])
def test_cudnn_gets_the_mask_of_the_plain_implementation_and_odd_rows_are_padded_to_even(length):
    inputs = heads(2, length, 6, 2, 8)
    assert_close(output_and_gradients(CUDNN, *inputs), output_and_gradients(attention.xla.attend, *inputs), 3e-6)


def test_cudnn_refuses_float32_and_head_sizes_it_has_no_kernel_for():
    with pytest.raises(ValueError, match=r"bfloat16 or float16 only, but model\.compute_dtype is float32"):
        attention.cudnn.attend(*heads(1, 8, 2, 1, 8))
    with pytest.raises(ValueError, match="multiples of 8 up to 128, but this model's is 12"):
        attention.cudnn.attend(*heads(1, 8, 2, 1, 12, jnp.bfloat16))


@pytest.mark.parametrize(
    "attend",
    [
        pytest.param(attention.xla.attend, id="xla"),
        pytest.param(SPLASH, id="splash", marks=pytest.mark.slow),
        pytest.param(CUDNN, id="cudnn"),
    ],
)
def test_no_gradient_flows_from_the_future_nor_from_another_segment(attend):
    segments = jnp.array([[1, 1, 1, 2, 2, 3, 0, 0]], jnp.int32)
    query, keys, values, _ = heads(1, 8, 2, 1, 8)

    @jax.jit
    @jax.jacrev
    def influence(shift):
        # Each column's own shift moves its query, key and value; the result of each column is summed.
        moved = [array * (1 + shift[None, :, None, None]) for array in (query, keys, values)]
        return jnp.sum(jnp.sin(attend(*moved, segments)), axis=(0, 2, 3))

    reached = np.abs(influence(jnp.zeros(8))) > 0
    same = np.asarray(segments)[0][:, None] == np.asarray(segments)[0][None, :]
    np.testing.assert_array_equal(reached, same & np.tri(8, dtype=bool))


# --- the choice ------------------------------------------------------------------------------------------------------


def mesh_of(platform):
    """A mesh with the attributes that the choice reads."""
    devices = np.array([[types.SimpleNamespace(platform=platform)]])
    return types.SimpleNamespace(devices=devices, shape=dict.fromkeys(mesh.AXES, 1))


@pytest.mark.parametrize(
    ("setting", "platform", "dtype", "size", "chosen"),
    [
        ("auto", "cpu", "float32", 64, "xla"),
        ("auto", "cpu", "bfloat16", 64, "xla"),
        ("auto", "tpu", "float32", 64, "splash"),
        ("auto", "tpu", "bfloat16", 128, "splash"),
        ("auto", "gpu", "bfloat16", 64, "cudnn"),
        ("auto", "gpu", "float32", 64, "xla"),
        ("auto", "gpu", "bfloat16", 36, "xla"),
        ("auto", "gpu", "bfloat16", 256, "xla"),
        ("xla", "tpu", "bfloat16", 64, "xla"),
        ("xla", "gpu", "bfloat16", 64, "xla"),
        ("splash", "tpu", "bfloat16", 64, "splash"),
        ("cudnn", "gpu", "bfloat16", 64, "cudnn"),
    ],
)
def test_the_implementation_follows_the_platform_of_the_mesh(setting, platform, dtype, size, chosen):
    architecture, expected = hf_checkpoints.tiny_architecture(head_size=size), getattr(attention, chosen).attend
    learner = kernels.for_learner(setting, mesh_of(platform), architecture, jnp.dtype(dtype))
    sampler = kernels.for_sampler(setting, mesh_of(platform), architecture, jnp.dtype(dtype), cache_length=256)
    assert sampler.attend is (attention.cudnn.attend_causal if chosen == "cudnn" else expected)
    is_packed = chosen == "cudnn" and jax.__version_info__ >= attention.cudnn.RIGHT_SINCE
    assert learner.attend is (attention.cudnn.attend_packed if is_packed else expected)
    assert (learner.residuals is cpu.uint16_residuals) == (platform == "cpu")
    assert (sampler == kernels.PLAIN._replace(attend=expected)) == (platform == "tpu")


@pytest.mark.parametrize(
    ("setting", "platform", "dtype", "message"),
    [
        ("splash", "cpu", "bfloat16", "'splash' cannot run: the mesh's devices are 'cpu'"),
        ("splash", "gpu", "bfloat16", "'splash' cannot run: the mesh's devices are 'gpu'"),
        ("cudnn", "tpu", "bfloat16", "'cudnn' cannot run: the mesh's devices are 'tpu'"),
        ("cudnn", "gpu", "float32", "bfloat16 or float16 only"),
        ("flash", "tpu", "bfloat16", "'flash' is not a known implementation"),
    ],
)
def test_an_attention_that_the_mesh_cannot_run_is_refused(setting, platform, dtype, message):
    architecture = hf_checkpoints.tiny_architecture()
    with pytest.raises(ValueError, match=message):
        kernels.for_learner(setting, mesh_of(platform), architecture, jnp.dtype(dtype))


# --- compiled for a TPU, lowered for a GPU ---------------------------------------------------------------------------


def model_gradient(architecture, attend, remat, shape, dtype=jnp.bfloat16):
    """A function of the parameters whose gradient runs the whole decoder forward and backward."""
    tokens = jnp.ones(shape, jnp.int32)

    def loss(params):
        hidden = model.hidden_states(
            architecture,
            params,
            tokens,
            tokens,
            tokens,
            compute_dtype=dtype,
            remat=remat,
            kernels=model.Kernels(attend=attend),
        )
        return jnp.sum(jnp.square(hidden.astype(jnp.float32)))

    return jax.jit(jax.grad(loss))


@pytest.mark.slow
@pytest.mark.parametrize(("remat", "runs"), [("none", 1), ("dots", 1), ("attention", 1), ("full", 2)])
def test_the_backward_pass_runs_the_splash_kernel_again_only_when_nothing_is_kept(v5e, remat, runs):
    # The layers are one loop forward and one backward: a kernel is in the text once for each loop that runs it.
    architecture = hf_checkpoints.tiny_architecture(head_size=64)
    on_chip = SingleDeviceSharding(v5e[0])
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on_chip), model.abstract_params(architecture)
    )
    text = model_gradient(architecture, attention.splash.attend, remat, (4, 256)).lower(params).compile().as_text()
    kernels = re.findall(r"%(splash_mha_\w+?)(?:\.\d+)? = .*tpu_custom_call", text)
    assert sum("_fwd_" in name for name in kernels) == runs
    assert sum("_dkv_" in name for name in kernels) == sum("_dq_" in name for name in kernels) == 1


@pytest.fixture
def pretended_a100(monkeypatch):
    pretended_cudnn.patch(monkeypatch, version=91000, is_at_least_hopper=False)


@pytest.mark.usefixtures("pretended_a100")
@pytest.mark.parametrize(("remat", "runs"), [("none", 1), ("dots", 1), ("attention", 1), ("full", 2)])
def test_lowered_for_a_gpu_the_backward_pass_runs_cudnn_again_only_when_nothing_is_kept(remat, runs):
    architecture = hf_checkpoints.tiny_architecture(head_size=64)
    gradient = model_gradient(architecture, attention.cudnn.attend, remat, (2, 16))
    lowered = gradient.trace(model.abstract_params(architecture)).lower(lowering_platforms=("cuda",)).as_text()
    assert lowered.count("@__cudnn$fmhaScaleBiasSoftmax(") == runs
    assert lowered.count("@__cudnn$fmhaScaleBiasSoftmaxBackward(") == 1
