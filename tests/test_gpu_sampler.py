"""The sampler's kernels for GPUs, run on CPU: the decode kernel interpreted, its fused layers, and admission without a loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import hf_checkpoints, tiny_programs
from support.tiny_sampler import LONG_PROMPTS, STOPS, engine_of, generate

from reval_jax import model, sampler
from reval_jax.model import cache as cache_lib
from reval_jax.model import gpu
from reval_jax.model.attention import decode_triton

LENGTHS = np.array([1, 384, 0, 128, 129, 200], np.int32)
ERROR = {"float32": 1e-6, "bfloat16": 0.01, "int8": 0.02}  # of the norm


def random_cache(*, heads, kv_heads, size, dtype, cache_dtype):
    """A query, keys and values as float64, and the cache that holds the latter two, three blocks long."""
    rng = np.random.default_rng(0)
    rows, length = len(LENGTHS), 3 * cache_lib.BLOCK
    query = jnp.asarray(rng.normal(size=(rows, heads, size)), dtype)
    keys, values = jnp.asarray(rng.normal(size=(2, rows, length, kv_heads, size)), dtype)
    cache = cache_lib.from_prefill(keys, values, cache_dtype, cache_lib.ROWS)
    return query, np.asarray(keys, np.float64), np.asarray(values, np.float64), cache


def softmax_of(query, keys, values, lengths):
    """Attention by its formula, one row and head after the other, in float64."""
    query = np.asarray(query, np.float64)
    rows, heads, size = query.shape
    attended = np.zeros(query.shape)
    for row, head in np.ndindex(rows, heads):
        kv_head = head // (heads // keys.shape[2])
        seen = slice(0, lengths[row])
        scores = keys[row, seen, kv_head] @ query[row, head] / np.sqrt(size)
        if len(scores):
            weights = np.exp(scores - scores.max())
            attended[row, head] = weights @ values[row, seen, kv_head] / weights.sum()
    return attended


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(12, 2, 128), (9, 3, 64), (4, 4, 80), (7, 1, 8), (20, 1, 16)])
@pytest.mark.parametrize(
    ("dtype", "cache_dtype"),
    [("float32", "float32"), ("bfloat16", "bfloat16"), ("float32", "int8"), ("bfloat16", "int8")],
)
def test_the_decode_kernel_is_the_softmax_over_a_rows_valid_positions(heads, kv_heads, size, dtype, cache_dtype):
    query, keys, values, cache = random_cache(
        heads=heads, kv_heads=kv_heads, size=size, dtype=dtype, cache_dtype=cache_dtype
    )
    expected = softmax_of(query, keys, values, LENGTHS)
    lengths = jnp.asarray(LENGTHS)
    results = {
        "kernel": decode_triton.attend(query, cache, lengths, interpret=True),
        "whole": cache_lib.whole(query, cache, lengths),
    }
    is_used = LENGTHS > 0
    for name, result in results.items():
        assert result.dtype == dtype, name
        error = np.linalg.norm(np.asarray(result, np.float64)[is_used] - expected[is_used])
        assert error <= ERROR[cache_dtype] * np.linalg.norm(expected[is_used]), name
    np.testing.assert_array_equal(results["kernel"][2], 0)


@pytest.mark.parametrize("cache_dtype", ["bfloat16", "int8"])
def test_a_rows_bits_depend_on_no_other_rows_length_or_content(cache_dtype):
    query, _, _, cache = random_cache(heads=6, kv_heads=2, size=64, dtype="bfloat16", cache_dtype=cache_dtype)
    expected = decode_triton.attend(query, cache, jnp.asarray(LENGTHS), interpret=True)
    for row in (0, 4, 5):
        rng = np.random.default_rng(row)
        lengths = rng.integers(0, 3 * cache_lib.BLOCK + 1, len(LENGTHS)).astype(np.int32)
        lengths[row] = LENGTHS[row]
        order = rng.permutation(len(LENGTHS))
        others = jax.tree.map(lambda leaf, order=order, row=row: leaf[order].at[row].set(leaf[row]), (query, cache))
        actual = decode_triton.attend(*others, jnp.asarray(lengths), interpret=True)
        np.testing.assert_array_equal(actual[row], expected[row])


@pytest.mark.parametrize("attend", [decode_triton.attend, cache_lib.whole])
def test_a_cache_that_the_kernel_cannot_read_is_refused(attend):
    query, _, _, cache = random_cache(heads=6, kv_heads=2, size=64, dtype="bfloat16", cache_dtype="bfloat16")
    for layer, storage in ((jnp.int32(0), cache_lib.ROWS), (None, cache_lib.PLAIN)):
        with pytest.raises(ValueError, match=r"one layer's cache, held as cache\.ROWS"):
            attend(query, cache, jnp.asarray(LENGTHS), layer, storage)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_token_is_written_at_its_position_only(dtype):
    """Prefilled and written one token after the other, a cache holds the same."""
    rng = np.random.default_rng(0)
    keys, values = jnp.asarray(rng.normal(size=(2, 3, 2 * cache_lib.BLOCK, 2, 8)), jnp.float32)
    expected = cache_lib.from_prefill(keys, values, dtype, cache_lib.ROWS)
    cache = cache_lib.empty((3,), 2 * cache_lib.BLOCK, 2, 8, dtype, cache_lib.ROWS)
    assert jax.tree.map(jnp.shape, cache) == jax.tree.map(jnp.shape, expected)
    write = jax.jit(lambda cache, *token: cache_lib.write(cache, *token, storage=cache_lib.ROWS))
    for position in range(2 * cache_lib.BLOCK):
        at = (position + jnp.array([0, 7, 100])) % (2 * cache_lib.BLOCK)
        rows = jnp.arange(3)
        cache = write(cache, keys[rows, at], values[rows, at], at)
    jax.tree.map(np.testing.assert_array_equal, cache, expected)


@pytest.mark.parametrize("row_axis", [0, 1])
@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_rows_copied_at_once_are_those_copied_in_turn(row_axis, count):
    rng = np.random.default_rng(0)
    leading = (2,) * row_axis
    caches = {"keys": rng.normal(size=(*leading, 5, 2, 8, 4)), "scale": rng.normal(size=(*leading, 5, 2, 8))}
    source = {"keys": rng.normal(size=(*leading, 3, 2, 6, 4)), "scale": rng.normal(size=(*leading, 3, 2, 6))}
    to_rows, from_rows = np.array([4, 0, 2, 1, 3], np.int32), np.array([2, 2, 0, 1, 1], np.int32)
    arguments = (*jax.tree.map(jnp.asarray, (caches, source, to_rows, from_rows)), jnp.int32(count))
    in_turn, at_once = (
        jax.jit(copy, static_argnames="row_axis")(*arguments, row_axis=row_axis)
        for copy in (cache_lib.copy_rows_in_turn, cache_lib.copy_rows_at_once)
    )
    jax.tree.map(np.testing.assert_array_equal, at_once, in_turn)
    for name, whole in caches.items():
        expected = np.moveaxis(whole.astype(np.float32).copy(), row_axis, 0)
        for to, row in zip(to_rows[:count], from_rows[:count], strict=True):
            part = np.moveaxis(source[name], row_axis, 0)[row]
            index = (to, *(slice(0, size) for size in part.shape))
            expected[index] = part
        np.testing.assert_array_equal(np.moveaxis(np.asarray(in_turn[name]), row_axis, 0), expected)


def test_query_key_and_value_come_out_of_the_fused_product_as_they_went_in():
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(3, heads, 4)).astype(np.float32) for heads in (6, 2, 2))
    layer = {"query": query, "key": key, "value": value, "gate": np.ones((3, 5)), "up": np.zeros((3, 5))}
    fused = gpu.fuse(jax.tree.map(jnp.asarray, layer), fuses_heads=True)
    assert fused[gpu.QUERY_KEY_VALUE].shape == (3, 2, 5, 4)
    assert fused[gpu.GATE_UP].shape == (3, 2, 5)
    for actual, expected in zip(gpu.split_heads(fused[gpu.QUERY_KEY_VALUE]), (query, key, value), strict=True):
        np.testing.assert_array_equal(actual, expected)
    apart = gpu.fuse(jax.tree.map(jnp.asarray, layer), fuses_heads=False)
    assert set(apart) == {"query", "key", "value", gpu.GATE_UP}


@pytest.mark.parametrize("family", ["llama", *(pytest.param(f, marks=pytest.mark.slow) for f in ("qwen2", "qwen3"))])
def test_the_gpus_kernels_sample_what_the_cpus_do(family):
    """Prompts of several blocks, fewer slots than responses, truncated by top-k or not."""
    tiny = tiny_programs.tiny(family=family)
    long = {"prompts": LONG_PROMPTS, "prompt_tokens": 256, "limit": 16, "slots": 6}
    for sampling in (sampler.Sampling(0.8, stop_ids=STOPS), sampler.Sampling(1.0, top_k=5, stop_ids=STOPS)):
        expected, actual = (generate(tiny, layers=layers, sampling=sampling, **long) for layers in ("auto", "gpu"))
        np.testing.assert_array_equal(actual.tokens, expected.tokens)
        np.testing.assert_allclose(actual.log_prob, expected.log_prob, atol=1e-5)
        np.testing.assert_allclose(actual.truncated_log_prob, expected.truncated_log_prob, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [2, 4])
def test_on_eight_devices_the_gpus_kernels_sample_what_they_do_on_one(tensor):
    """With two key/value heads, four devices cannot split them: queries, keys and values are then separate products."""
    long = {"prompts": LONG_PROMPTS, "prompt_tokens": 256, "limit": 16, "slots": 16, "samples": 4, "layers": "gpu"}
    one = generate(tiny_programs.tiny(), **long)
    many_tiny = tiny_programs.tiny(fsdp=8 // tensor, tensor=tensor)
    layer = sampler.sync_weights(many_tiny.params, engine_of(many_tiny, slots=16, layers="gpu"))["layers"][0]
    assert (gpu.QUERY_KEY_VALUE in layer) == (tensor == 2)
    many = generate(many_tiny, **long)
    np.testing.assert_array_equal(many.tokens, one.tokens)
    np.testing.assert_allclose(many.log_prob, one.log_prob, atol=1e-4)


@pytest.mark.slow
def test_with_the_gpus_kernels_no_response_depends_on_window_or_neighbours_bit_for_bit():
    tiny = tiny_programs.tiny(model={"compute_dtype": "bfloat16"})
    settings = {"samples": 4, "slots": 6, "layers": "gpu", "sampling": sampler.Sampling(stop_ids=STOPS)}
    expected = generate(tiny, **settings)
    for window in (1, 5, 8):
        actual = generate(tiny, **settings, window=window)
        for name, one, other in zip(actual._fields, actual, expected, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=name)


def test_truncated_and_full_sampling_are_two_programs_and_other_settings_none():
    tiny = tiny_programs.tiny()
    engine = engine_of(tiny, layers="gpu", window=4)
    before = sampler.num_programs(engine)
    counts = []
    for settings in (
        sampler.Sampling(1.0),
        sampler.Sampling(0.5),
        sampler.Sampling(1.0, top_k=3),
        sampler.Sampling(0.7, 9, 0.5),
    ):
        generate(tiny, layers="gpu", window=4, sampling=settings)
        counts.append(sampler.num_programs(engine) - before)
    # The first run also makes the slots, and prefills and admits prompts.
    assert counts == [4, 4, 5, 5]


def test_an_int8_cache_that_the_kernel_cannot_count_is_refused(monkeypatch):
    """512 slots of 8 heads of 64 numbers in 8,192 positions are 2^31."""
    monkeypatch.setattr(model.kernels, "platform_of", lambda mesh: "gpu")
    architecture = hf_checkpoints.tiny_architecture(num_heads=8, num_kv_heads=8, head_size=64)
    one = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("rows", "tensor"))

    def make(slots, cache):
        return sampler.make(
            architecture,
            one,
            compute_dtype="bfloat16",
            max_prompt_tokens=1024,
            max_response_tokens=7168,
            decode_slots=slots,
            decode_window=8,
            cache=cache,
            attention="xla",
        )

    assert make(511, "int8").cache_length == make(512, "compute").cache_length == 8192
    with pytest.raises(ValueError, match="Use at most 511 slots"):
        make(512, "int8")


def test_the_kernels_of_a_gpu_are_these():
    kernels = model.kernels.gpu_sampler(model.attention.xla.attend, fuses_heads=True)
    assert decode_triton.is_available()
    assert kernels.attend_cached is decode_triton.attend
    assert kernels.layout is gpu.fused(fuses_heads=True)
    assert kernels.branches_on_host
