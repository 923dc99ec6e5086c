"""The head's scores against a NumPy float64 softmax that shares no code with them.

Tolerance in float32: relative 1e-6 of the row's largest logit, from which the product's rounding comes.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reval_jax import scores, scores_sharded

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


def operands(num_rows: int = 7, width: int = 16, vocabulary: int = 33, scale: float = 1.0, dtype: type = np.float32):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(num_rows, width)).astype(dtype)
    head = (scale * rng.normal(size=(width, vocabulary))).astype(dtype)
    return hidden, head, rng.integers(0, vocabulary, num_rows).astype(np.int32)


def loop_scores(
    hidden: np.ndarray, head: np.ndarray, targets: np.ndarray, temperature: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(log_prob, logsumexp, size of the largest logit) of each row, in float64."""
    rows = []
    for state, target in zip(hidden.astype(np.float64), targets, strict=True):
        logits = np.array([float(np.dot(state, column)) / temperature for column in head.astype(np.float64).T])
        largest = logits.max()
        logsumexp = largest + np.log(np.exp(logits - largest).sum())
        rows.append((logits[target] - logsumexp, logsumexp, np.abs(logits).max()))
    log_prob, logsumexp, size = np.array(rows).T
    return log_prob, logsumexp, size


def exact_scores(
    hidden: np.ndarray, head: np.ndarray, targets: np.ndarray, cotangents: np.ndarray, temperature: float
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """In float64: log_prob and logsumexp, and the gradients of their sum weighted with `cotangents` [2, N].

    By hidden, head and temperature.
    """
    hidden, head = hidden.astype(np.float64), head.astype(np.float64)
    logits = hidden @ head / temperature
    row_max = logits.max(axis=1)
    logsumexp = row_max + np.log(np.exp(logits - row_max[:, None]).sum(axis=1))
    rows = np.arange(len(hidden))
    d_logits = (cotangents[1] - cotangents[0])[:, None] * np.exp(logits - logsumexp[:, None])
    d_logits[rows, targets] += cotangents[0]
    gradients = [d_logits @ head.T / temperature, hidden.T @ d_logits / temperature]
    gradients.append(-np.sum(d_logits * logits) / temperature)
    return [logits[rows, targets] - logsumexp, logsumexp], gradients


def gradients_of(arrays: tuple, cotangents: np.ndarray, **settings: int | None) -> tuple[tuple, tuple]:
    """The same as `exact_scores`, by token_scores and JAX; `arrays` are hidden, head, targets and the temperature."""
    hidden, head, targets, temperature = arrays

    def score(hidden: jax.Array, head: jax.Array, temperature: jax.Array) -> tuple[jax.Array, jax.Array]:
        return scores.token_scores(hidden, head, targets, temperature=temperature, **settings)

    def run(*operands: jax.Array) -> tuple[tuple, tuple]:
        results, pull_back = jax.vjp(score, *operands)
        return results, pull_back(tuple(jnp.asarray(cotangent, jnp.float32) for cotangent in cotangents))

    return jax.jit(run)(hidden, head, jnp.float32(temperature))


def assert_close_to_the_largest(actual: tuple, expected: list[np.ndarray], bound: float) -> None:
    for array, exact in zip(actual, expected, strict=True):
        assert array.shape == np.shape(exact)
        assert np.max(np.abs(np.asarray(array, np.float64) - exact)) <= bound * np.max(np.abs(exact))


@pytest.mark.parametrize("chunk_tokens", [0, 1, 3, 7, None])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_gradients_equal_the_float64_ones_with_both_cotangents_at_once(chunk_tokens: int | None, temperature: float):
    hidden, head, targets = operands(width=32, vocabulary=501)
    cotangents = np.random.default_rng(1).normal(size=(2, 7))
    actual = gradients_of((hidden, head, targets, temperature), cotangents, chunk_tokens=chunk_tokens)
    expected = exact_scores(hidden, head, targets, cotangents, temperature)
    assert_close_to_the_largest(actual[0], expected[0], 1e-6)
    assert_close_to_the_largest(actual[1], expected[1], 1e-5)


@pytest.mark.parametrize("vocabulary", [151_936, 152_064])
def test_the_vocabularies_of_published_models_are_exact_in_chunks_that_do_not_divide_the_tokens(vocabulary: int):
    hidden, head, targets = operands(num_rows=5, width=8, vocabulary=vocabulary)
    targets[:2] = 0, vocabulary - 1
    cotangents = np.random.default_rng(1).normal(size=(2, 5))
    actual = gradients_of((hidden, head, targets, 1.0), cotangents, chunk_tokens=2)
    expected = exact_scores(hidden, head, targets, cotangents, 1.0)
    assert_close_to_the_largest(actual[0], expected[0], 1e-6)
    assert_close_to_the_largest(actual[1], expected[1], 1e-5)


@pytest.mark.parametrize(("num_tokens", "chunk"), [(8192, 512), (1000, 512), (545, 288), (544, 544), (3, 3)])
def test_a_default_chunk_stays_within_its_bytes(num_tokens: int, chunk: int):
    sizes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(num_tokens, 8), (8, 151_936)]]
    targets = jax.ShapeDtypeStruct((num_tokens,), jnp.int32)
    program = str(jax.make_jaxpr(scores.token_scores)(*sizes, targets))
    assert f"f32[{chunk},151936]" in program
    assert 4 * chunk * 151_936 <= scores.CHUNK_BYTES


@pytest.mark.parametrize("chunk_tokens", [0, 2])
@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e38])
def test_an_unused_row_with_any_content_adds_nothing_to_any_gradient(junk: float, chunk_tokens: int):
    hidden, head, targets = operands()
    cotangents = np.random.default_rng(1).normal(size=(2, 7))
    cotangents[:, 3] = 0.0
    _, clean = gradients_of((hidden, head, targets, 1.0), cotangents, chunk_tokens=chunk_tokens)
    hidden[3], targets[3] = junk, -1
    _, actual = gradients_of((hidden, head, targets, 1.0), cotangents, chunk_tokens=chunk_tokens)
    chex.assert_trees_all_equal(actual, clean)
    np.testing.assert_array_equal(actual[0][3], 0.0)


def test_a_float32_heads_gradient_is_summed_and_returned_in_float32():
    hidden, head, targets = operands(num_rows=1, width=16)
    hidden, cotangents = jnp.asarray(hidden, jnp.bfloat16), np.float64([[1.0], [0.5]])
    _, one = gradients_of((hidden, head, targets, 1.0), cotangents)
    chex.assert_type(one[:2], [jnp.bfloat16, jnp.float32])
    # In bfloat16 a sum of equal numbers stops growing at 256 of them.
    many = (jnp.repeat(hidden, 1024, axis=0), head, np.repeat(targets, 1024), 1.0)
    _, actual = gradients_of(many, np.repeat(cotangents, 1024, axis=1), chunk_tokens=2)
    assert_close_to_the_largest(actual[1:2], [1024.0 * np.asarray(one[1], np.float64)], 1e-6)
    assert np.any(one[1] != one[1].astype(jnp.bfloat16).astype(jnp.float32))


@pytest.mark.parametrize("head_dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("chunk_tokens", [0, 16])
def test_bfloat16_scores_depend_on_chunks_by_rounding_only(chunk_tokens: int, head_dtype: type):
    # Compiled, because without jit XLA's CPU backend chooses bfloat16 products that it cannot run.
    hidden, head, targets = operands(num_rows=40, width=64, vocabulary=257)
    hidden, head = jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(head, jnp.bfloat16).astype(head_dtype)
    cotangents = np.random.default_rng(1).normal(size=(2, 40))
    actual = gradients_of((hidden, head, targets, 1.0), cotangents, chunk_tokens=chunk_tokens)
    rounded = np.asarray(hidden, np.float64), np.asarray(head, np.float64)
    expected = exact_scores(*rounded, targets, cotangents, 1.0)
    assert_close_to_the_largest(actual[0], expected[0], 1e-5)
    assert_close_to_the_largest(actual[1][:2], expected[1][:2], 1e-2)  # the temperature's is only rough


@pytest.mark.parametrize("chunk_tokens", [0, 3])
def test_statistics_are_the_scores_and_the_float64_entropy_and_mean_logit(chunk_tokens: int):
    hidden, head, targets = operands(scale=2.0)
    settings = {"temperature": 0.7, "chunk_tokens": chunk_tokens}
    actual = jax.jit(lambda: scores_sharded.token_statistics(hidden, head, targets, **settings))()
    chex.assert_trees_all_equal(actual[:2], jax.jit(lambda: scores.token_scores(hidden, head, targets, **settings))())
    logits = hidden.astype(np.float64) @ head.astype(np.float64) / 0.7
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        actual.entropy, -np.sum(probabilities * np.log(probabilities), axis=1), rtol=0, atol=2e-6
    )
    np.testing.assert_allclose(actual.mean_logit, logits.mean(axis=1), rtol=0, atol=1e-6 * np.abs(logits).max())


def test_statistics_are_differentiable_in_the_scores_and_constant_otherwise():
    hidden, head, targets = operands()
    total = jax.grad(lambda hidden: sum(jnp.sum(s) for s in scores_sharded.token_statistics(hidden, head, targets)))
    expected = jax.grad(lambda hidden: sum(jnp.sum(s) for s in scores.token_scores(hidden, head, targets)))
    chex.assert_trees_all_equal(total(hidden), expected(hidden))


def full_logits_scores(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A direct token_scores: all logits in float32, gradients by JAX."""
    logits = jnp.matmul(hidden, head, preferred_element_type=jnp.float32)
    row_max = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    shifted = logits - row_max[:, None]
    log_normalizer = jnp.log(jnp.sum(jnp.exp(shifted), axis=-1))
    target_shifted = jnp.take_along_axis(shifted, targets[:, None], axis=-1)[:, 0]
    return target_shifted - log_normalizer, row_max + log_normalizer


@pytest.mark.slow
def test_temporary_memory_is_at_most_an_eighth_of_the_full_logits_programs():
    shapes = [((8192, 896), jnp.bfloat16), ((896, 151_936), jnp.bfloat16), ((8192,), jnp.int32)]
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    weights = jax.ShapeDtypeStruct((2, 8192), jnp.float32)

    def temporary_bytes(score) -> int:
        def loss(hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
            return jnp.sum(weights * jnp.stack(score(hidden, head, targets)))

        program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        return program.lower(*arguments, weights).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(scores.token_scores) <= temporary_bytes(full_logits_scores) / 8


@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.5])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_scores_equal_the_float64_softmax(temperature: float, scale: float):
    arrays = operands(scale=scale)
    log_prob, logsumexp = jax.jit(scores.token_scores)(*arrays, temperature=temperature)
    chex.assert_type([log_prob, logsumexp], jnp.float32)
    chex.assert_shape([log_prob, logsumexp], (7,))
    expected_log_prob, expected_logsumexp, size = loop_scores(*arrays, temperature)
    bound = 1e-6 * np.maximum(size, 1.0)
    assert np.all(np.abs(log_prob - expected_log_prob) <= bound)
    assert np.all(np.abs(logsumexp - expected_logsumexp) <= bound)


def test_bfloat16_operands_are_accumulated_in_float32():
    hidden, head, targets = operands(width=2048, scale=0.2)
    hidden, head = jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(head, jnp.bfloat16)
    log_prob, logsumexp = scores.token_scores(hidden, head, targets)
    chex.assert_type([log_prob, logsumexp], jnp.float32)
    expected_log_prob, expected_logsumexp, _ = loop_scores(np.asarray(hidden), np.asarray(head), targets)
    # The operands are exact here; a product rounded to bfloat16 would be off by 0.1 nat.
    np.testing.assert_allclose(log_prob, expected_log_prob, rtol=0, atol=1e-4)
    np.testing.assert_allclose(logsumexp, expected_logsumexp, rtol=0, atol=1e-4)


def test_gradients_equal_finite_differences_in_float64():
    hidden, head, targets = operands(num_rows=3, width=4, vocabulary=5)
    weight = np.float64([[0.3, -1.0, 2.0], [1.1, 0.4, -0.7]])  # of each row's log_prob and logsumexp

    def weighted(arrays: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        log_prob, logsumexp = scores.token_scores(arrays[0], arrays[1], targets, temperature=arrays[2])
        return jnp.sum(jnp.asarray(weight[0], jnp.float32) * log_prob + jnp.asarray(weight[1], jnp.float32) * logsumexp)

    point = [hidden.astype(np.float64), head.astype(np.float64), np.float64(0.7)]

    def loop_weighted(arrays: list[np.ndarray]) -> float:
        log_prob, logsumexp, _ = loop_scores(arrays[0], arrays[1], targets, float(arrays[2]))
        return float(weight[0] @ log_prob + weight[1] @ logsumexp)

    gradients = jax.jit(jax.grad(weighted))((jnp.asarray(hidden), jnp.asarray(head), jnp.float32(0.7)))
    step = 1e-6
    for which, gradient in enumerate(gradients):
        for index in np.ndindex(gradient.shape):
            ends = []
            for sign in (1.0, -1.0):
                moved = [np.array(array) for array in point]
                moved[which][index] += sign * step
                ends.append(loop_weighted(moved))
            np.testing.assert_allclose(gradient[index], (ends[0] - ends[1]) / (2 * step), rtol=1e-4, atol=1e-5)


def test_bfloat16_gradients_come_back_in_bfloat16_and_near_the_float32_ones():
    hidden, head, targets = operands(num_rows=5, width=64)

    def total(hidden: jax.Array, head: jax.Array) -> jax.Array:
        log_prob, logsumexp = scores.token_scores(hidden, head, targets)
        return jnp.sum(log_prob) + 0.5 * jnp.sum(logsumexp)

    rounded = jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(head, jnp.bfloat16)
    gradients = jax.grad(total, argnums=(0, 1))(*rounded)
    exact = jax.grad(total, argnums=(0, 1))(*(array.astype(jnp.float32) for array in rounded))
    for gradient, expected in zip(gradients, exact, strict=True):
        chex.assert_type(gradient, jnp.bfloat16)
        scale = float(jnp.max(jnp.abs(expected)))
        np.testing.assert_allclose(gradient.astype(jnp.float32), expected, rtol=0, atol=0.01 * scale)


def test_temperature_equals_dividing_the_hidden_states_by_a_power_of_two_bit_for_bit():
    hidden, head, targets = operands()
    warm = scores.token_scores(hidden, head, targets, temperature=2.0)
    chex.assert_trees_all_equal(warm, scores.token_scores(hidden / np.float32(2.0), head, targets))


def test_temperature_is_a_run_time_value_and_compiles_once():
    compiled = jax.jit(chex.assert_max_traces(scores.token_scores, n=1))
    for temperature in (1.0, 0.5):
        chex.assert_trees_all_close(
            compiled(*operands(), temperature=jnp.float32(temperature)),
            scores.token_scores(*operands(), temperature=temperature),
            rtol=1e-6,
        )


def test_probabilities_of_all_tokens_sum_to_one_and_value_plus_log_prob_is_the_logit():
    hidden, head, _ = operands(num_rows=1)
    every_token = np.arange(33, dtype=np.int32)
    log_prob, logsumexp = scores.token_scores(np.repeat(hidden, 33, axis=0), head, every_token)
    np.testing.assert_allclose(np.exp(np.asarray(log_prob, np.float64)).sum(), 1.0, rtol=1e-6)
    np.testing.assert_allclose(logsumexp + log_prob, (hidden.astype(np.float64) @ head)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1e2, 1e4, 3e37])
def test_huge_logits_neither_overflow_nor_give_a_probability_above_one(size: float):
    hidden, head = jnp.full((4, 1), size), jnp.array([[1.0, 0.5, -1.0, 1.0]])
    total, gradient = jax.value_and_grad(
        lambda hidden: sum(jnp.sum(score) for score in scores.token_scores(hidden, head, jnp.arange(4)))
    )(hidden)
    assert np.isfinite(total)
    assert np.all(np.isfinite(gradient))
    log_prob, _ = scores.token_scores(hidden, head, jnp.arange(4))
    assert np.all(np.asarray(log_prob) <= 0.0)
    np.testing.assert_allclose(log_prob[0], -np.log(2.0), rtol=1e-6)


def test_rounding_of_a_log_prob_does_not_grow_with_a_common_offset_of_the_logits():
    logits = np.float32([[0.0, -6.0, -7.0, -8.0]])  # exact with and without the offset
    identity, targets = np.eye(4, dtype=np.float32), np.zeros(1, np.int32)
    expected = -np.log1p(np.exp([-6.0, -7.0, -8.0]).sum())
    for offset in (0.0, 64.0, 4096.0):
        log_prob, _ = scores.token_scores(logits + np.float32(offset), identity, targets)
        assert abs(float(log_prob[0]) - expected) <= 1.2e-7


def test_the_log_prob_of_a_response_of_8192_tokens_is_good_to_a_thousandth_of_a_nat():
    hidden, head, _ = operands(num_rows=8192, width=64, vocabulary=128, scale=1.2)
    logits = hidden.astype(np.float64) @ head.astype(np.float64)
    assert logits.max() > 30.0  # of the size of a language model's logits
    # Sampled from the model by the Gumbel trick, like a trajectory: below 8192 nats float32 can represent the sum to 1e-3.
    targets = np.argmax(logits + np.random.default_rng(1).gumbel(size=logits.shape), axis=-1).astype(np.int32)
    log_prob, logsumexp = scores.token_scores(hidden, head, targets)
    exact = logits[np.arange(8192), targets] - np.log(np.exp(logits).sum(axis=-1))
    assert abs(float(jnp.sum(log_prob)) - exact.sum()) <= 1e-3
    np.testing.assert_allclose(logsumexp, np.log(np.exp(logits).sum(axis=-1)), rtol=1e-6)


def test_a_rows_scores_depend_on_that_row_alone():
    hidden, head, targets = operands()
    gradient = jax.grad(lambda hidden: sum(score[2] for score in scores.token_scores(hidden, head, targets)))(hidden)
    np.testing.assert_array_equal(np.delete(np.asarray(gradient), 2, axis=0), 0.0)
    assert np.any(np.asarray(gradient)[2] != 0.0)


def test_a_target_beyond_the_vocabulary_is_not_a_number():
    hidden, head, targets = operands()
    targets[3] = 33
    log_prob, logsumexp = scores.token_scores(hidden, head, targets)
    np.testing.assert_array_equal(np.isnan(log_prob), np.arange(7) == 3)
    assert np.all(np.isfinite(logsumexp))


def test_operands_that_do_not_fit_are_refused():
    hidden, head, targets = operands()
    with pytest.raises(ValueError, match=r"head \[33, 16\].*transposed"):
        scores.token_scores(hidden, head.T, targets)
    with pytest.raises(ValueError, match=r"targets \[6\].*do not fit"):
        scores.token_scores(hidden, head, targets[:6])
    with pytest.raises(
        ValueError, match=r"hidden's dtype, float32, but the head is bfloat16.*Pass the head in float32"
    ):
        scores.token_scores(hidden, jnp.asarray(head, jnp.bfloat16), targets)
    with pytest.raises(ValueError, match=r"chunk_tokens=-1.*Use None"):
        scores.token_scores(hidden, head, targets, chunk_tokens=-1)


def test_objective_and_scores_run_without_flax():
    program = """
import sys
sys.modules["flax"] = sys.modules["optax"] = sys.modules["transformers"] = None  # importing any of them fails
import jax.numpy as jnp
from reval_jax import objective, scores
log_prob, value = scores.token_scores(jnp.ones((2, 3)), jnp.ones((3, 4)), jnp.zeros(2, jnp.int32))
residual = objective.reval_residual(value, value, log_prob, log_prob, jnp.zeros(2), beta=0.1)
loaded = {".".join(name.split(".")[:2]) for name in sys.modules if name.startswith("reval_jax.")}
print(float(objective.bellman_loss(residual)), sorted(loaded))
"""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0.0 ['reval_jax.objective', 'reval_jax.scores', 'reval_jax.xla_guard']"
