"""Numbers of every response token against one unpadded sequence at a time, and against the reference's sums."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from support import tiny_programs

from reval_jax import batch, ragged, reference, token_scores

# (devices, tokens that a device trains on at once): several micro-batches each, and rows with several trajectories.
MESHES = [({}, 48), ({"data": 2, "fsdp": 2, "tensor": 2}, 1), ({"data": 2, "fsdp": 4}, 1)]


def scored(axes, micro_batch_tokens, trajectories, **sections):
    """The tiny policy on a mesh, and its token scores."""
    tiny = tiny_programs.tiny(
        **axes, update={"batch_size": trajectories.size, "micro_batch_tokens": micro_batch_tokens}, **sections
    )
    scorer = token_scores.make_scorer(tiny.architecture, tiny.mesh, config=tiny.config)
    return tiny, token_scores.score(scorer, tiny.params, trajectories, tiny.mesh, limits=tiny.limits)


@pytest.mark.parametrize(("axes", "micro_batch_tokens"), MESHES)
def test_every_tokens_scores_equal_a_loop_over_unpadded_sequences(axes, micro_batch_tokens):
    trajectories = tiny_programs.random_trajectories(40, seed=3)
    tiny, scores = scored(axes, micro_batch_tokens, trajectories, rollout={"temperature": 0.7})
    arrangement = batch.arrange(trajectories, tiny.mesh, limits=tiny.limits)
    assert arrangement.row.max() >= arrangement.shape.rows, "one micro-batch holds all"
    assert len(set(arrangement.row)) < 40, "no row holds two trajectories"
    log_prob, soft_value = (ragged.split(part, trajectories.response_length) for part in scores[:2])
    for index in range(40):
        tokens, prompt, response = tiny_programs.tokens_of(trajectories, index)
        logits = tiny_programs.full_logits(tiny.architecture, tiny.params, tokens) / 0.7
        predicting = logits[prompt - 1 : prompt + response - 1]
        expected = tiny_programs.log_softmax(predicting)[np.arange(response), tokens[prompt:]]
        np.testing.assert_allclose(log_prob[index], expected, atol=2e-5)
        np.testing.assert_allclose(soft_value[index], np.log(np.exp(predicting).sum(axis=1)), atol=2e-5)
    assert scores.value is None, "the policy has no value head"


@pytest.mark.parametrize(("axes", "micro_batch_tokens"), MESHES[:2])
def test_their_sums_and_first_values_are_the_references_scores(axes, micro_batch_tokens):
    trajectories = tiny_programs.random_trajectories(24, seed=4)
    tiny, scores = scored(axes, micro_batch_tokens, trajectories)
    scorer = reference.make_scorer(tiny.architecture, tiny.mesh, config=tiny.config)
    log_prob, value = reference.score(scorer, tiny.params, trajectories, tiny.mesh, limits=tiny.limits)
    np.testing.assert_allclose(ragged.sums(scores.log_prob, trajectories.response_length), log_prob, atol=2e-5)
    np.testing.assert_array_equal(scores.soft_value[ragged.starts(trajectories.response_length)], value)


def test_what_no_response_token_fills_is_zero():
    tiny = tiny_programs.tiny()
    trajectories = tiny_programs.random_trajectories(5)
    scorer = token_scores.make_scorer(tiny.architecture, tiny.mesh, config=tiny.config)
    packed = batch.pack(trajectories, tiny.mesh, limits=tiny.limits)
    is_response = np.asarray(packed.slot) < packed.first.shape[2]
    assert not is_response.all()
    for part in jax.tree.leaves(jax.device_get(scorer(tiny.params, packed))):
        assert part.shape == packed.slot.shape
        assert not np.any(part[~is_response])
        assert np.all(part[is_response])
