"""The decoder against `transformers`, and against itself: cached, packed, padded, rematerialised, sharding names."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import hf_checkpoints

from reval_jax import model, weights
from reval_jax.model import cache as cache_lib
from reval_jax.model import cpu

FAMILIES = ("llama", "qwen2", "qwen3")


def logits_of(architecture, params, tokens, positions=None, segment_ids=None, *, dtype=jnp.float32, remat="none"):
    tokens = jnp.asarray(tokens, jnp.int32)
    columns = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
    positions = columns if positions is None else jnp.asarray(positions, jnp.int32)
    segment_ids = jnp.ones_like(tokens) if segment_ids is None else jnp.asarray(segment_ids, jnp.int32)

    @jax.jit
    def run(params):
        hidden = model.hidden_states(
            architecture, params, tokens, positions, segment_ids, compute_dtype=dtype, remat=remat
        )
        return jnp.dot(
            hidden, model.head(architecture, params, compute_dtype=dtype), preferred_element_type=jnp.float32
        )

    return np.asarray(run(params))


def random_tokens(rows, length, seed=0):
    return np.random.default_rng(seed).integers(0, hf_checkpoints.VOCABULARY, (rows, length)).astype(np.int32)


@functools.lru_cache
def tiny(family="llama", **overrides):
    architecture = hf_checkpoints.tiny_architecture(family, **overrides)
    return architecture, hf_checkpoints.tiny_params(architecture)


# --- the oracle: transformers ----------------------------------------------------------------------------------------

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
CASES = {
    "llama tied": ("llama", {}),
    "llama untied": ("llama", {"tie_word_embeddings": False}),
    "llama, head size not width / heads": ("llama", {"head_dim": 16}),
    "llama, one key head a query head": ("llama", {"num_key_value_heads": 4}),
    "qwen2 tied": ("qwen2", {}),
    "qwen2 untied": ("qwen2", {"tie_word_embeddings": False, "num_key_value_heads": 1}),
    "qwen3 tied": ("qwen3", {}),
    "qwen3 untied": ("qwen3", {"tie_word_embeddings": False, "head_dim": 16}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}}),
    "llama3": ("llama", {"rope_parameters": LLAMA3 | {"rope_theta": 500.0}}),
    "yarn": ("qwen2", {"rope_parameters": YARN | {"rope_theta": 1000.0}}),
    "yarn with mscale, not truncated": (
        "qwen3",
        {
            "rope_parameters": YARN
            | {"rope_theta": 1e6, "mscale": 0.707, "mscale_all_dim": 1.2, "truncate": False, "beta_fast": 16}
        },
    ),
}


@pytest.mark.parametrize(
    "case",
    [
        case
        if case in ("llama tied", "qwen2 untied", "qwen3 tied", "yarn")
        else pytest.param(case, marks=pytest.mark.slow)
        for case in CASES
    ],
)
@pytest.mark.parity
def test_logits_equal_transformers(case, tmp_path):
    family, config = CASES[case]
    directory = hf_checkpoints.transformers_checkpoint(tmp_path / "checkpoint", family, **config)
    tokens = random_tokens(2, 100)
    expected = hf_checkpoints.transformers_logits(directory, tokens)
    loaded = weights.load(directory)
    result = logits_of(loaded.architecture, loaded.params, tokens)
    assert np.abs(expected).max() > 0.5  # makes the compared values nonzero
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_rope_frequencies_of_a_real_size_equal_transformers(kind):
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
    import transformers

    settings = {
        "linear": {"rope_type": "linear", "factor": 3.0},
        "llama3": LLAMA3 | {"original_max_position_embeddings": 8192},
        "yarn": YARN | {"original_max_position_embeddings": 32768},
    }[kind]
    config = transformers.LlamaConfig(
        hidden_size=4096,
        num_attention_heads=32,
        max_position_embeddings=131072,
        rope_parameters=settings | {"rope_theta": 5e5},
    )
    expected, attention_factor = rope_utils.ROPE_INIT_FUNCTIONS[kind](config)
    from reval_jax.weights import rope

    theta, scaling = rope.from_config({"rope_scaling": settings, "rope_theta": 5e5}, 131072, "config.json")
    architecture = hf_checkpoints.tiny_architecture(head_size=128, rope_theta=theta, rope_scaling=scaling)
    np.testing.assert_allclose(model.rope.inverse_frequencies(architecture), expected.numpy(), rtol=5e-7, atol=0)
    assert scaling.attention_factor == pytest.approx(attention_factor, rel=1e-12)


# --- cached decoding -------------------------------------------------------------------------------------------------


def filled_cache(architecture, params, prompts, length, *, dtype=jnp.float32, cache_dtype="float32", **kernels):
    """A cache of `length` positions a row that begins with the prompts."""
    padded = jnp.pad(prompts, ((0, 0), (0, length - prompts.shape[1])), constant_values=77)
    return model.prefill(architecture, params, padded, compute_dtype=dtype, cache_dtype=cache_dtype, **kernels)


def decoded_logits(family, *, length=cache_lib.BLOCK, cache_dtype="float32"):
    """Logits of five more tokens after prompts of unequal lengths, and those of the full forward pass."""
    architecture, params = tiny(family)
    lengths, steps, prompt_columns = np.array([3, 7, 1, 6], np.int32), 5, 7
    full = random_tokens(4, prompt_columns + steps)
    prompts = np.zeros((4, prompt_columns), np.int32)
    for row, prompt_length in enumerate(lengths):
        prompts[row, :prompt_length] = full[row, :prompt_length]
        prompts[row, prompt_length:] = 99  # padding that would be seen if it were not masked
    expected = logits_of(architecture, params, full)
    output_head = np.asarray(model.head(architecture, params, compute_dtype=jnp.float32))
    cache = filled_cache(architecture, params, prompts, length, cache_dtype=cache_dtype)
    decode = jax.jit(functools.partial(model.decode, architecture, compute_dtype=jnp.float32), donate_argnums=1)
    rows, result, exact = np.arange(4), [], []
    # Decoding begins at the prompt's last token, whose keys and values it writes again.
    for step in range(-1, steps):
        positions = lengths + step
        hidden, cache = decode(params, cache, full[rows, positions], positions)
        result.append(np.asarray(hidden) @ output_head)
        exact.append(expected[rows, positions])
    return np.array(result), np.array(exact)


@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_and_decode_equal_the_full_forward_with_unequal_prompt_lengths(family):
    result, exact = decoded_logits(family)
    np.testing.assert_allclose(result, exact, rtol=0, atol=1e-5)


def test_an_int8_cache_changes_logits_little_and_an_exact_one_not_at_all_with_its_length():
    whole, exact = decoded_logits("llama")
    np.testing.assert_array_equal(decoded_logits("llama", length=3 * cache_lib.BLOCK)[0], whole)
    rounded, _ = decoded_logits("llama", cache_dtype="int8")
    assert 0 < np.abs(rounded - exact).max() < 0.02 * np.abs(exact).max()


def test_attention_over_several_blocks_is_the_softmax_over_all_of_them():
    rng = np.random.default_rng(0)
    rows, heads, kv_heads, size, length = 3, 4, 2, 8, 3 * cache_lib.BLOCK
    query = rng.normal(size=(rows, heads, size)).astype(np.float32)
    keys, values = rng.normal(size=(2, 2, rows, length, kv_heads, size)).astype(np.float32)
    positions = np.array([0, 200, 383], np.int32)
    cache = cache_lib.from_prefill(jnp.asarray(keys), jnp.asarray(values), "float32")
    layer, lengths = jax.tree.map(lambda leaf: leaf[1], cache), jnp.asarray(positions + 1)
    result = cache_lib.batched(jnp.asarray(query), cache, lengths, jnp.int32(1))
    np.testing.assert_array_equal(result, cache_lib.batched(jnp.asarray(query), layer, lengths))
    np.testing.assert_array_equal(result, cpu.per_row(jnp.asarray(query), cache, lengths, jnp.int32(1)))
    np.testing.assert_array_equal(result, cpu.per_row(jnp.asarray(query), layer, lengths))
    for row in range(rows):
        for head in range(heads):
            seen_keys, seen_values = (
                stored[1, row, : positions[row] + 1, head // 2].astype(np.float64) for stored in (keys, values)
            )
            scores = seen_keys @ query[row, head] / np.sqrt(size)
            weights = np.exp(scores - scores.max())
            np.testing.assert_allclose(result[row, head], weights @ seen_values / weights.sum(), atol=1e-5)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 1), (2, 2), (1, 1)])
@pytest.mark.parametrize(
    ("dtype", "cache_dtype"), [("float32", "float32"), ("float32", "int8"), ("bfloat16", "bfloat16")]
)
def test_attention_per_row_is_that_of_all_rows_together(heads, kv_heads, dtype, cache_dtype):
    rng = np.random.default_rng(0)
    rows, size, length = 5, 8, 3 * cache_lib.BLOCK
    query = jnp.asarray(rng.normal(size=(rows, heads, size)), dtype)
    keys, values = jnp.asarray(rng.normal(size=(2, rows, length, kv_heads, size)), dtype)
    cache = cache_lib.from_prefill(keys, values, cache_dtype)
    lengths = jnp.array([1, 128, 0, 129, 384])
    batched, per_row = (
        np.asarray(attend(query, cache, lengths), np.float32) for attend in (cache_lib.batched, cpu.per_row)
    )
    assert np.isfinite(batched).all()
    assert np.isfinite(per_row).all()
    is_used = np.asarray(lengths) > 0
    np.testing.assert_allclose(per_row[is_used], batched[is_used], rtol=0, atol=1e-6 if dtype == "float32" else 1e-2)


def test_decode_reads_nothing_after_its_position_and_writes_only_there():
    architecture, params = tiny()
    rng = np.random.default_rng(0)
    shape = (architecture.num_layers, 2, cache_lib.BLOCK, architecture.num_kv_heads, architecture.head_size)
    arrays = [rng.normal(size=shape).astype(np.float32) for _ in range(2)]
    is_later = np.arange(cache_lib.BLOCK)[None, None, :, None, None] >= 5
    tokens, positions = jnp.array([4, 5]), jnp.array([5, 5])
    (hidden, written), (other, _) = (
        model.decode(
            architecture,
            params,
            cache_lib.from_prefill(*(jnp.asarray(array) for array in each), "float32"),
            tokens,
            positions,
            compute_dtype=jnp.float32,
        )
        for each in (arrays, [np.where(is_later, np.float32(1e4), array) for array in arrays])
    )
    np.testing.assert_array_equal(hidden, other)
    kept = [index for index in range(cache_lib.BLOCK) if index != 5]
    by_position = np.moveaxis(np.asarray(written.keys), -1, 2)
    np.testing.assert_array_equal(by_position[:, :, kept], arrays[0][:, :, kept])
    assert np.abs(by_position[:, :, 5] - arrays[0][:, :, 5]).min() > 0


# --- masks -----------------------------------------------------------------------------------------------------------


def test_padding_changes_nothing_and_is_finite():
    architecture, params = tiny("qwen2")
    tokens = random_tokens(2, 6)
    alone = logits_of(architecture, params, tokens)
    padded = np.concatenate([tokens, random_tokens(2, 3, seed=1)], axis=1)
    segments = np.repeat([[1] * 6 + [0] * 3], 2, axis=0)
    result = logits_of(architecture, params, padded, None, segments)
    np.testing.assert_allclose(result[:, :6], alone, rtol=0, atol=1e-6)
    assert np.isfinite(result).all()
    assert np.isfinite(logits_of(architecture, params, tokens, None, np.zeros_like(tokens))).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_equal_unpacked_rows(family):
    architecture, params = tiny(family)
    first, second = random_tokens(1, 5), random_tokens(1, 4, seed=1)
    packed = np.concatenate([first, second, [[0, 0]]], axis=1)
    positions = np.array([[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 0]])
    segments = np.array([[1] * 5 + [2] * 4 + [0] * 2])
    result = logits_of(architecture, params, packed, positions, segments)
    np.testing.assert_allclose(result[:, :5], logits_of(architecture, params, first), rtol=0, atol=1e-5)
    np.testing.assert_allclose(result[:, 5:9], logits_of(architecture, params, second), rtol=0, atol=1e-5)


def test_no_gradient_flows_from_the_future_nor_from_another_segment():
    architecture, params = tiny()
    positions = jnp.arange(8, dtype=jnp.int32)[None]
    segments = jnp.array([[1, 1, 1, 1, 2, 2, 2, 0]], jnp.int32)

    def hidden_of_column(embedding, column):
        changed = params | {"embedding": embedding}
        # Every column's token is its own row of the table, so a row's gradient is that column's.
        hidden = model.hidden_states(architecture, changed, positions, positions, segments, compute_dtype=jnp.float32)
        return jnp.sum(jnp.square(hidden[0, column]) * jnp.linspace(-1, 1, architecture.width))

    gradient = jax.jit(jax.grad(hidden_of_column))
    reached = np.stack([np.abs(gradient(params["embedding"], column)[:8]).sum(-1) > 0 for column in range(8)])
    same = np.asarray(segments)[0][:, None] == np.asarray(segments)[0][None, :]
    np.testing.assert_array_equal(reached, same & np.tri(8, dtype=bool))


# --- gradients and number types --------------------------------------------------------------------------------------


def loss_and_gradient(architecture, params, remat, dtype):
    tokens = jnp.asarray(random_tokens(2, 6))
    positions = jnp.broadcast_to(jnp.arange(6, dtype=jnp.int32)[None], tokens.shape)

    def loss(params):
        hidden = model.hidden_states(
            architecture, params, tokens, positions, jnp.ones_like(tokens), compute_dtype=dtype, remat=remat
        )
        return jnp.mean(jnp.square(hidden.astype(jnp.float32)) * jnp.linspace(-1, 1, architecture.width)[None, None])

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["dots", "attention", "full"])
def test_rematerialisation_changes_nothing(remat):
    architecture, params = tiny("qwen3")
    expected, expected_gradient = loss_and_gradient(architecture, params, "none", jnp.float32)
    result, gradient = loss_and_gradient(architecture, params, remat, jnp.float32)
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient, expected_gradient)


@pytest.mark.parametrize("remat", ["none", "dots", "attention", "full"])
def test_the_remat_policies_keep_less_and_less(remat):
    architecture, params = tiny(mlp_width=256)
    tokens = jnp.ones((8, 32), jnp.int32)

    def loss(params, remat):
        hidden = model.hidden_states(
            architecture, params, tokens, tokens, tokens, compute_dtype=jnp.float32, remat=remat
        )
        return jnp.sum(jnp.square(hidden))

    def num_kept(remat):
        _, pullback = jax.eval_shape(lambda params: jax.vjp(lambda params: loss(params, remat), params), params)
        return sum(leaf.size for leaf in jax.tree.leaves(pullback))

    order = ["full", "attention", "dots", "none"]
    assert all(num_kept(less) < num_kept(remat) for less in order[: order.index(remat)])


def test_an_unknown_remat_policy_is_refused():
    architecture, params = tiny()
    with pytest.raises(ValueError, match="remat='most'"):
        loss_and_gradient(architecture, params, "most", jnp.float32)


@pytest.mark.slow
def test_gradients_equal_finite_differences():
    # No family has both biases and head norms; with both, one compilation differentiates every term.
    architecture, params = tiny("qwen3", qkv_bias=True)
    tokens = jnp.asarray(random_tokens(1, 5))
    positions = jnp.arange(5, dtype=jnp.int32)[None]
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        direction = jax.tree.map(
            lambda leaf: jnp.asarray(np.random.default_rng(leaf.size).normal(size=leaf.shape)), params
        )

        @jax.jit
        def loss(scale):
            moved = jax.tree.map(lambda leaf, step: (leaf + scale * step).astype(jnp.float32), wide, direction)
            hidden = model.hidden_states(
                architecture, moved, tokens, positions, jnp.ones_like(tokens), compute_dtype=jnp.float32
            )
            return jnp.sum(jnp.sin(hidden.astype(jnp.float64) * 3))

        step = 3e-4
        numeric = (loss(step) - loss(-step)) / (2 * step)
        np.testing.assert_allclose(jax.grad(loss)(jnp.float64(0.0)), numeric, rtol=2e-2)


@pytest.mark.slow
def test_bfloat16_is_close_to_float32_and_its_gradients_are_float32():
    architecture, params = tiny("qwen3", qkv_bias=True)
    tokens = random_tokens(2, 12)
    exact = logits_of(architecture, params, tokens)
    result = logits_of(architecture, params, tokens, dtype=jnp.bfloat16)
    assert np.abs(result - exact).max() < 0.05 * np.abs(exact).max()
    _, gradient = loss_and_gradient(architecture, params, "dots", jnp.bfloat16)
    _, exact_gradient = loss_and_gradient(architecture, params, "dots", jnp.float32)
    for leaf, truth in zip(jax.tree.leaves(gradient), jax.tree.leaves(exact_gradient), strict=True):
        assert leaf.dtype == jnp.float32
        assert np.linalg.norm(leaf - truth) < 0.1 * np.linalg.norm(truth) + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("storage", "held"), [(cache_lib.PLAIN, jnp.bfloat16), (cpu.UINT16, jnp.uint16)])
def test_bfloat16_decoding_keeps_the_cache_as_its_kernels_hold_it(storage, held):
    architecture, params = tiny()
    kernels = model.kernels.PLAIN._replace(storage=storage)
    tokens, lengths = jnp.asarray(random_tokens(2, 4)), jnp.array([4, 2])
    numbers = {"dtype": jnp.bfloat16, "cache_dtype": "bfloat16"}
    cache = filled_cache(architecture, params, tokens, cache_lib.BLOCK, **numbers, kernels=kernels)
    hidden, cache = model.decode(
        architecture, params, cache, tokens[:, 0], lengths, compute_dtype=jnp.bfloat16, kernels=kernels
    )
    assert hidden.dtype == jnp.bfloat16
    assert cache.keys.dtype == cache.values.dtype == held


def test_bfloat16_traces_under_strict_promotion_in_every_family():
    tokens, lengths = jnp.ones((2, 4), jnp.int32), jnp.array([4, 2], jnp.int32)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for family in FAMILIES:
            architecture, params = tiny(family)
            for dtype in (jnp.float32, jnp.bfloat16):
                settings = {"compute_dtype": dtype}
                fill = functools.partial(filled_cache, architecture, length=cache_lib.BLOCK, dtype=dtype)
                cache = jax.eval_shape(functools.partial(fill, cache_dtype=jnp.dtype(dtype).name), params, tokens)
                jax.eval_shape(
                    functools.partial(model.decode, architecture, **settings), params, cache, lengths, lengths
                )
                jax.eval_shape(functools.partial(loss_and_gradient, architecture, remat="dots", dtype=dtype), params)


# --- the parameter tree ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied_head", [True, False])
def test_logical_axes_match_the_tree_ranks_and_sizes(family, tied_head):
    architecture = hf_checkpoints.tiny_architecture(family, tied_head=tied_head)
    params, axes = model.abstract_params(architecture), model.logical_axes(architecture)
    is_axes = lambda node: isinstance(node, tuple)  # noqa: E731
    assert jax.tree.structure(params) == jax.tree.structure(axes, is_leaf=is_axes)
    sizes = {
        "layers": 2, "vocab": hf_checkpoints.VOCABULARY, "width": 32, "heads": 4, "kv_heads": 2, "head_size": 8, "mlp": 48,
    }  # fmt: skip
    for leaf, names in zip(jax.tree.leaves(params), jax.tree.leaves(axes, is_leaf=is_axes), strict=True):
        assert len(names) == len(leaf.shape)
        assert all(name is None or sizes[name] == size for name, size in zip(names, leaf.shape, strict=True))


def test_init_params_is_plain_float32_random_by_key_and_matches_the_abstract_tree():
    architecture = hf_checkpoints.tiny_architecture("qwen2", tied_head=False)
    params = model.init_params(architecture, jax.random.key(1))
    abstract = model.abstract_params(architecture)
    assert jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), params) == abstract
    assert type(params) is dict
    assert type(params["layers"]) is dict
    again, other = (model.init_params(architecture, jax.random.key(seed)) for seed in (1, 2))
    np.testing.assert_array_equal(params["layers"]["query"], again["layers"]["query"])
    assert np.abs(params["layers"]["query"] - other["layers"]["query"]).max() > 0
    assert np.asarray(params["head"]).std() == pytest.approx(0.02, rel=0.05)
    assert np.all(np.asarray(params["final_norm"]) == 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"num_kv_heads": 3}, "not a multiple"), ({"head_size": 7}, "odd"), ({"num_layers": 0}, "num_layers=0")],
)
def test_impossible_architectures_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        hf_checkpoints.tiny_architecture(**change)
