"""log pi(tau) and V(s1) of padded rows against one unpadded sequence at a time in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest

from reval_jax import batch, policy


def scores_of(tiny, trajectories, *, temperature=1.0, **overrides):
    packed = batch.pack(trajectories, tiny.mesh, config=tiny.config)
    fields = {
        "tokens": packed.tokens[0],
        "prompt_length": packed.prompt_length[0],
        "response_length": packed.response_length[0],
    }
    return jax.jit(
        lambda params: policy.score(
            tiny.architecture,
            params,
            **(fields | overrides),
            capacity=packed.behaviour_log_prob.shape[-1],
            temperature=temperature,
            compute_dtype="float32",
        )
    )(tiny.params)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_scores_equal_a_loop_over_unpadded_sequences(family, temperature):
    tiny = programs.tiny(family=family)
    trajectories = programs.random_trajectories(8)
    assert len(set(trajectories.prompt_length)) > 2, "an off-by-one in V(s1) shows only with unequal prompt lengths"
    scores = scores_of(tiny, trajectories, temperature=temperature)
    for row in range(8):
        tokens, prompt, response = programs.tokens_of(trajectories, row)
        logits = programs.full_logits(tiny.architecture, tiny.params, tokens) / temperature
        predicting = logits[prompt - 1 : prompt + response - 1]
        log_prob = programs.log_softmax(predicting)[np.arange(response), tokens[prompt:]]
        soft_value = np.log(np.exp(logits[prompt - 1]).sum())
        np.testing.assert_allclose(scores.log_prob[row, :response], log_prob, atol=2e-5)
        np.testing.assert_allclose(scores.trajectory_log_prob[row], log_prob.sum(), atol=5e-5)
        np.testing.assert_allclose(scores.soft_value[row], soft_value, atol=2e-5)
        assert not np.any(scores.log_prob[row, response:])
        assert scores.response_mask[row].sum() == response


def test_what_lies_in_the_padding_changes_nothing():
    tiny = programs.tiny()
    trajectories = programs.random_trajectories(8)
    packed = batch.pack(trajectories, tiny.mesh, config=tiny.config)
    end = (packed.prompt_length + packed.response_length)[0, :, None]
    noise = jnp.where(jnp.arange(packed.tokens.shape[2])[None] >= end, 17, packed.tokens[0])
    clean, dirty = scores_of(tiny, trajectories), scores_of(tiny, trajectories, tokens=noise)
    for one, other in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_empty_row_scores_zero_and_has_no_gradient():
    tiny = programs.tiny()
    packed = batch.pack(programs.random_trajectories(8), tiny.mesh, config=tiny.config)

    def total(params):
        scores = policy.score(
            tiny.architecture,
            params,
            packed.tokens[0],
            jnp.zeros_like(packed.prompt_length[0]),
            jnp.zeros_like(packed.response_length[0]),
            capacity=8,
            temperature=1.0,
            compute_dtype="float32",
        )
        return scores.trajectory_log_prob.sum() + scores.soft_value.sum() + scores.log_prob.sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(tiny.params)
    assert value == 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_a_sum_of_8192_token_log_probabilities_keeps_a_thousandth_of_a_nat():
    log_prob = -np.random.default_rng(0).exponential(0.6, (4, 8192)).astype(np.float32)
    exact = log_prob.astype(np.float64).sum(axis=1)
    np.testing.assert_allclose(jax.jit(lambda x: x.sum(axis=1))(log_prob), exact, atol=1e-3, rtol=0)
