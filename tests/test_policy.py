"""log pi(tau) and V(s1) of packed rows against one unpadded sequence at a time in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_programs, tiny_sampler

from reval_jax import batch, policy, ragged, sampler


def scored(tiny, trajectories, *, temperature=1.0, packer=batch.first_fit, has_moments=False, **overrides):
    """Scores of the first micro-batch, the packed trajectories, and the place of each trajectory."""
    where = batch.arrange(trajectories, tiny.mesh, limits=tiny.limits, packer=packer)
    packed = batch.pack(trajectories, tiny.mesh, limits=tiny.limits, arrangement=where)
    rows = batch.micro_batch(packed, 0)._replace(**overrides)
    run = jax.jit(
        lambda params, rows: policy.score(
            tiny.architecture,
            params,
            rows,
            temperature=temperature,
            compute_dtype="float32",
            has_moments=has_moments,
        )
    )
    return run(tiny.params, rows), rows, where


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_scores_equal_a_loop_over_unpadded_sequences(family, temperature):
    tiny = tiny_programs.tiny(family=family)
    trajectories = tiny_programs.random_trajectories(8)
    assert len(set(trajectories.prompt_length)) > 2, "an off-by-one in V(s1) shows only with unequal prompt lengths"
    scores, _, where = scored(tiny, trajectories, temperature=temperature)
    assert len(set(where.row)) < 8, "no row holds two trajectories, so packing is not tested"
    for index, (row, slot, first) in enumerate(zip(where.row, where.slot, where.first, strict=True)):
        tokens, prompt, response = tiny_programs.tokens_of(trajectories, index)
        logits = tiny_programs.full_logits(tiny.architecture, tiny.params, tokens) / temperature
        predicting = logits[prompt - 1 : prompt + response - 1]
        log_prob = tiny_programs.log_softmax(predicting)[np.arange(response), tokens[prompt:]]
        soft_value = np.log(np.exp(logits[prompt - 1]).sum())
        np.testing.assert_allclose(scores.log_prob[row, first : first + response], log_prob, atol=2e-5)
        np.testing.assert_allclose(scores.trajectory_log_prob[row, slot], log_prob.sum(), atol=5e-5)
        np.testing.assert_allclose(scores.soft_value[row, slot], soft_value, atol=2e-5)
    assert scores.response_mask.sum() == trajectories.response_length.sum()
    assert not np.any(np.asarray(scores.log_prob)[~np.asarray(scores.response_mask)])


def test_mean_log_probabilities_are_those_of_the_predicting_positions_and_have_no_gradient():
    tiny, temperature = tiny_programs.tiny(), 0.7
    trajectories = tiny_programs.random_trajectories(8)
    scores, rows, where = scored(tiny, trajectories, temperature=temperature, has_moments=True)
    for index, (row, first) in enumerate(zip(where.row, where.first, strict=True)):
        tokens, prompt, response = tiny_programs.tokens_of(trajectories, index)
        logits = tiny_programs.full_logits(tiny.architecture, tiny.params, tokens) / temperature
        expected = tiny_programs.log_softmax(logits[prompt - 1 : prompt + response - 1]).mean(axis=1)
        np.testing.assert_allclose(scores.mean_log_prob[row, first : first + response], expected, atol=2e-5)
    assert not np.any(np.asarray(scores.mean_log_prob)[~np.asarray(scores.response_mask)])

    def total(params):
        return policy.score(
            tiny.architecture, params, rows, temperature=temperature, compute_dtype="float32", has_moments=True
        ).mean_log_prob.sum()

    assert all(not np.any(leaf) for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(tiny.params)))


def test_without_moments_the_other_scores_keep_their_bits():
    tiny, trajectories = tiny_programs.tiny(), tiny_programs.random_trajectories(8)
    plain, recorded = (scored(tiny, trajectories, has_moments=has_moments)[0] for has_moments in (False, True))
    assert plain.mean_log_prob is None
    for one, other in zip(plain[:5], recorded[:5], strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_samplers_mean_log_probabilities_equal_the_learners():
    tiny, temperature = tiny_programs.tiny(rollout={"temperature": 0.8}), 0.8
    sampling = sampler.Sampling(temperature, stop_ids=tiny_sampler.STOPS, records_mean_log_prob=True)
    rollout = tiny_sampler.generate(tiny, samples=2, sampling=sampling)
    prompt_tokens = [tiny_sampler.PROMPTS.tokens[prompt] for prompt in rollout.prompt]
    responses = ragged.split(rollout.tokens, rollout.length)
    trajectories = tiny_programs.random_trajectories(8)._replace(
        tokens=ragged.interleave(prompt_tokens, responses).astype(np.int32),
        log_prob=rollout.log_prob,
        token_values=np.zeros((len(rollout.log_prob), 0), np.float32),
        prompt_length=np.array([len(tokens) for tokens in prompt_tokens], np.int32),
        response_length=rollout.length,
    )
    scores, _, where = scored(tiny, trajectories, temperature=temperature, has_moments=True)
    learned = [
        np.asarray(scores.mean_log_prob)[row, first : first + length]
        for row, first, length in zip(where.row, where.first, rollout.length, strict=True)
    ]
    np.testing.assert_allclose(np.concatenate(learned), rollout.mean_log_prob, atol=1e-4)


def test_packed_scores_equal_those_of_one_trajectory_a_row():
    tiny = tiny_programs.tiny()
    trajectories = tiny_programs.random_trajectories(8, seed=5)
    results = []
    for packer in (batch.first_fit, batch.one_per_row):
        scores, _, where = scored(tiny, trajectories, packer=packer)
        results.append([np.asarray(part)[where.row, where.slot] for part in scores[1:3]])
    np.testing.assert_allclose(*results, atol=2e-5)


def test_the_content_of_the_padding_changes_nothing():
    tiny = tiny_programs.tiny()
    trajectories = tiny_programs.random_trajectories(8)
    clean, rows, _ = scored(tiny, trajectories)
    noise = jnp.where(rows.segment_ids == 0, 17, rows.tokens)
    assert np.any(noise != rows.tokens)
    dirty, _, _ = scored(tiny, trajectories, tokens=noise)
    for one, other in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_trajectory_does_not_see_its_neighbours_in_the_row():
    tiny = tiny_programs.tiny()
    trajectories = tiny_programs.random_trajectories(8)
    clean, rows, where = scored(tiny, trajectories)
    index = int(np.flatnonzero(np.bincount(where.row)[where.row] > 1)[0])
    row, slot = where.row[index], where.slot[index]
    others = (np.arange(rows.tokens.shape[0]) == row)[:, None] & (np.asarray(rows.segment_ids) != slot + 1)
    dirty, _, _ = scored(tiny, trajectories, tokens=jnp.where(others, 17, rows.tokens))
    assert clean.trajectory_log_prob[row, slot] == dirty.trajectory_log_prob[row, slot]
    assert clean.soft_value[row, slot] == dirty.soft_value[row, slot]
    assert np.any(np.asarray(clean.trajectory_log_prob) != np.asarray(dirty.trajectory_log_prob))


def test_an_empty_row_scores_zero_and_has_no_gradient():
    tiny = tiny_programs.tiny()
    _, rows, _ = scored(tiny, tiny_programs.random_trajectories(8))
    rows = rows._replace(
        slot=jnp.full_like(rows.slot, rows.first.shape[1]),
        target_index=jnp.ones_like(rows.target_index),
        segment_ids=jnp.zeros_like(rows.segment_ids),
        response_length=jnp.zeros_like(rows.response_length),
    )

    def total(params):
        scores = policy.score(tiny.architecture, params, rows, temperature=1.0, compute_dtype="float32")
        return scores.trajectory_log_prob.sum() + scores.soft_value.sum() + scores.log_prob.sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(tiny.params)
    assert value == 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_a_sum_of_8192_token_log_probabilities_keeps_a_thousandth_of_a_nat():
    log_prob = -np.random.default_rng(0).exponential(0.6, (4, 8192)).astype(np.float32)
    slot = np.repeat(np.int32([[0, 1]]), [8000, 192], axis=1).repeat(4, axis=0)
    exact = log_prob.astype(np.float64)
    exact = np.stack([exact[:, :8000].sum(axis=1), exact[:, 8000:].sum(axis=1)], axis=1)
    sums = jax.jit(policy.sum_by_slot, static_argnums=2)(log_prob, slot, 2)
    np.testing.assert_allclose(sums, exact, atol=1e-3, rtol=0)
