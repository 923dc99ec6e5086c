"""One token from a row of logits: its distribution, truncation by top-k and top-p, and a split vocabulary."""

from __future__ import annotations

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import strategies
from jax.sharding import PartitionSpec
from support import tiny_programs

from reval_jax import keys, sampler
from reval_jax.sampler import sampling_op, steps


@functools.partial(jax.jit, static_argnames="case")
def _sample(row_keys, logits, params, case):
    # The logits are no constant of the program: each test would compile one of its own.
    rows = jnp.broadcast_to(logits, (len(row_keys), len(logits)))
    return sampling_op.sample_token(row_keys, rows, params, case=case)


def sample_tokens(logits, n, sampling, seed=0, case=sampling_op.ANY_CASE):
    """n tokens sampled from the same row of logits, with their log-probabilities."""
    row_keys = jax.random.split(keys.named_key(seed, "draws"), n)
    params = steps.sampling_params(sampling.temperature, sampling.top_k, sampling.top_p)
    return _sample(row_keys, jnp.asarray(logits, jnp.float32), params, case)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("size", [6, 700])
def test_frequencies_follow_the_softmax(temperature, size):
    logits = np.array([2.0, 1.0, 0.0, -1.0, 0.5, 1.0])
    if size > 6:  # several groups, the last one not full
        logits = np.random.default_rng(0).normal(0, 2, size)
    case = sampling_op.Case(truncates=False)  # of a sampler without truncation
    sampled = sample_tokens(logits, 40_000, sampler.Sampling(temperature), case=case)
    expected = tiny_programs.log_softmax(logits / temperature)
    order = np.argsort(expected)[::-1]
    # Rare tokens share a bin, so that each bin expects enough.
    bins = np.minimum(np.argsort(order), 60)
    counts = np.bincount(bins[np.asarray(sampled.token)], minlength=bins.max() + 1)
    chances = np.bincount(bins, weights=np.exp(expected))
    assert scipy.stats.chisquare(counts, counts.sum() * chances / chances.sum()).pvalue > 1e-3
    np.testing.assert_allclose(sampled.log_prob, expected[sampled.token], atol=1e-5)
    np.testing.assert_array_equal(sampled.log_prob, sampled.truncated_log_prob)


def kept_by_sorting(logits, top_k, top_p):
    """Ids of the tokens that top-k and top-p keep, by the definition: a float64 oracle that sorts."""
    order = np.lexsort((np.arange(len(logits)), -logits))[: top_k or len(logits)]
    chance = np.exp(logits[order] - logits.max())
    before = np.cumsum(chance) - chance
    return {int(token) for token, mass in zip(order, before / chance.sum(), strict=True) if mass < top_p or mass == 0}


@pytest.mark.parametrize(
    "sampling",
    [
        sampler.Sampling(top_k=1),
        sampler.Sampling(top_k=3),
        sampler.Sampling(top_k=2),  # tokens 1 and 5 tie: the lower id is kept
        sampler.Sampling(top_p=0.01),
        sampler.Sampling(top_p=0.51),  # token 0 has probability 0.497
        sampler.Sampling(top_p=0.9),
        sampler.Sampling(top_k=3, top_p=0.99),
        sampler.Sampling(top_k=99, top_p=0.6),
    ],
)
def test_truncation_keeps_exactly_the_tokens_of_the_definition(sampling):
    logits = np.array([2.0, 1.0, 0.0, -1.0, 0.5, 1.0])
    allowed = kept_by_sorting(logits, sampling.top_k, sampling.top_p)
    sampled = sample_tokens(logits, 4_000, sampling)
    assert set(np.asarray(sampled.token).tolist()) == allowed
    np.testing.assert_allclose(sampled.log_prob, tiny_programs.log_softmax(logits)[sampled.token], atol=1e-6)
    truncated = np.where(np.isin(np.arange(6), list(allowed)), logits, -np.inf)
    np.testing.assert_allclose(
        sampled.truncated_log_prob, tiny_programs.log_softmax(truncated)[sampled.token], atol=1e-6
    )


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    values=strategies.lists(
        strategies.sampled_from((-40.0, -1.5, -0.0, 0.0, 0.25, 1.0, 3.0)), min_size=600, max_size=600
    ),
    top_k=strategies.sampled_from((0, 1, 2, 5, 300, 599, 600, 1000)),
    top_p=strategies.sampled_from((1e-6, 0.05, 0.3, 0.7, 0.999, 1.0)),
)
def test_truncation_with_many_ties_equals_the_oracle(values, top_k, top_p):
    logits = np.array(values)
    sampled = sample_tokens(logits, 64, sampler.Sampling(top_k=top_k, top_p=top_p))
    allowed = np.array(sorted(kept_by_sorting(logits, top_k, top_p)))
    chance = np.exp(logits - logits.max())
    # Masses are float32 sums: a token within rounding of top_p may be kept or not.
    mass, slack = chance[allowed].sum(), 1e-5 * chance.sum()
    kept_mass = (
        np.exp(tiny_programs.log_softmax(logits)[sampled.token] - np.asarray(sampled.truncated_log_prob)) * chance.sum()
    )
    assert np.all(np.abs(kept_mass - mass) <= slack + chance[allowed].min() * (1 + 1e-6))
    ranks = np.lexsort((np.arange(len(logits)), -logits))
    assert set(np.asarray(sampled.token).tolist()) <= set(ranks[: len(allowed) + 1].tolist())


def test_zeros_of_both_signs_tie():
    logits = np.where(np.arange(600) % 2, 0.0, -0.0)
    sampled = sample_tokens(logits, 256, sampler.Sampling(top_k=100))
    assert set(np.asarray(sampled.token).tolist()) <= set(range(100))
    assert set((np.asarray(sampled.token) % 2).tolist()) == {0, 1}


def test_a_one_hot_row_always_gives_its_token():
    logits = np.full(50, -1e30)
    logits[31] = 0
    sampled = sample_tokens(logits, 100, sampler.Sampling())
    assert set(np.asarray(sampled.token).tolist()) == {31}
    assert not np.any(sampled.log_prob)


@pytest.mark.parametrize("sampling", [sampler.Sampling(), sampler.Sampling(0.7, 40, 0.8)])
def test_a_split_vocabulary_gives_the_same_tokens_and_gathers_no_logits(sampling):
    rows, size, parts = 64, 1200, 4  # 300 columns a device: groups of 256 begin and end inside a part
    logits = np.random.default_rng(1).normal(0, 2, (rows, size)).astype(np.float32)
    logits[:, ::7] = 1.5  # ties
    row_keys = jax.random.split(keys.named_key(0, "draws"), rows)
    params = steps.sampling_params(sampling.temperature, sampling.top_k, sampling.top_p)
    whole = jax.jit(sampling_op.sample_token)(row_keys, jnp.asarray(logits), params)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:parts]), ("tensor",))
    split = jax.jit(
        jax.shard_map(
            lambda *arguments: sampling_op.sample_token(*arguments, axis="tensor"),
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(None, "tensor"), PartitionSpec()),
            out_specs=PartitionSpec(),
            check_vma=False,
        )
    )
    result = split(row_keys, logits, params)
    np.testing.assert_array_equal(result.token, whole.token)
    np.testing.assert_allclose(result.log_prob, whole.log_prob, atol=1e-5)
    np.testing.assert_allclose(result.truncated_log_prob, whole.truncated_log_prob, atol=1e-5)
    assert result.mean_log_prob is None
    text = split.lower(row_keys, logits, params).compile().as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("sampling", [sampler.Sampling(0.6), sampler.Sampling(1.3, 40, 0.8)])
def test_the_mean_log_probability_is_of_the_whole_softmax_also_where_it_is_truncated_or_split(parts, sampling):
    rows, size = 8, 1200
    logits = np.random.default_rng(2).normal(40, 4, (rows, size)).astype(np.float32)
    row_keys = jax.random.split(keys.named_key(0, "draws"), rows)
    params = steps.sampling_params(sampling.temperature, sampling.top_k, sampling.top_p)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:parts]), ("tensor",))

    def sample(*, records_mean_log_prob):
        def local(row_keys, logits, params):
            case = sampling_op.Case(None, records_mean_log_prob)
            return sampling_op.sample_token(row_keys, logits, params, axis="tensor" if parts > 1 else None, case=case)

        specs = (PartitionSpec(), PartitionSpec(None, "tensor"), PartitionSpec())
        split = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
        return jax.jit(split)(row_keys, logits, params)

    recorded, plain = sample(records_mean_log_prob=True), sample(records_mean_log_prob=False)
    expected = tiny_programs.log_softmax(logits.astype(np.float64) / sampling.temperature).mean(axis=1)
    np.testing.assert_allclose(recorded.mean_log_prob, expected, rtol=1e-6)
    assert plain.mean_log_prob is None
    for one, other in zip(recorded[:3], plain[:3], strict=True):
        np.testing.assert_array_equal(one, other)
