"""Reference scores are correct, computed once, and of one version in each batch."""

from __future__ import annotations

import types as types_lib

import jax
import numpy as np
from support import tiny_programs

from reval_jax import collected, metrics, objective, reference, replay, types


def scored(tiny, num=8):
    """A buffer of unscored trajectories, the tiny policy as reference, and the jitted scorer."""
    trajectories = tiny_programs.random_trajectories(num)._replace(
        reference_log_prob=np.zeros(num, np.float32),
        reference_value=np.zeros(num, np.float32),
        reference_version=np.full(num, types.NOT_SCORED, np.int32),
    )
    buffer = replay.add(replay.init(32), trajectories)
    current = reference.init(tiny.params, config=tiny.config)
    return buffer, current, reference.make_scorer(tiny.architecture, tiny.mesh, config=tiny.config)


def score_stale(tiny, score, current, buffer, rows):
    """Scores the stale rows like the loop, with a clock that nobody reads."""
    parts = types_lib.SimpleNamespace(
        score=score,
        meshes=types_lib.SimpleNamespace(learner=tiny.mesh),
        clock=metrics.Clock(),
        config=tiny.config,
        algorithm=tiny.algorithm,
    )
    return collected.score_stale(parts, current, buffer, rows)


def test_scores_equal_a_loop_over_unpadded_sequences():
    tiny = tiny_programs.tiny(update={"micro_batch_tokens": 48})
    buffer, current, score = scored(tiny)
    buffer = score_stale(tiny, score, current, buffer, np.arange(8))
    for row in range(8):
        tokens, prompt, response = tiny_programs.tokens_of(buffer.trajectories, row)
        logits = tiny_programs.full_logits(tiny.architecture, tiny.params, tokens)[prompt - 1 : prompt + response - 1]
        log_prob = tiny_programs.log_softmax(logits)[np.arange(response), tokens[prompt:]].sum()
        np.testing.assert_allclose(buffer.trajectories.reference_log_prob[row], log_prob, atol=1e-4)
        np.testing.assert_allclose(buffer.trajectories.reference_value[row], np.log(np.exp(logits[0]).sum()), atol=1e-4)


def test_only_rows_that_are_not_scored_by_this_version_are_scored():
    tiny = tiny_programs.tiny()
    buffer, current, score = scored(tiny)
    batch_sizes = []

    def counting(params, rows):
        batch_sizes.append(int(rows.num_trajectories))
        return score(params, rows)

    for rows in (np.array([0, 3, 5]), np.array([3, 5]), np.array([5, 1, 0])):
        buffer = score_stale(tiny, counting, current, buffer, rows)
    assert batch_sizes == [3, 1]
    np.testing.assert_array_equal(buffer.trajectories.reference_version, [0, 0, -1, 0, -1, 0, -1, -1])


def test_a_reset_makes_every_row_stale_and_no_batch_mixes_versions():
    tiny = tiny_programs.tiny()
    buffer, current, score = scored(tiny)
    everything = np.arange(8)
    buffer = score_stale(tiny, score, current, buffer, everything)
    old = buffer.trajectories.reference_log_prob.copy()
    moved = jax.tree.map(lambda leaf: leaf * 1.5, tiny.params)
    renewed = reference.reset(current, moved, config=tiny.config)
    assert renewed.version == 1
    buffer = score_stale(tiny, score, renewed, buffer, everything[:4])
    np.testing.assert_array_equal(buffer.trajectories.reference_version, [1] * 4 + [0] * 4)
    assert np.abs(buffer.trajectories.reference_log_prob[:4] - old[:4]).max() > 1e-2
    np.testing.assert_array_equal(buffer.trajectories.reference_log_prob[4:], old[4:])


def test_the_reference_survives_the_donation_of_the_learners_parameters():
    tiny = tiny_programs.tiny()
    current = reference.init(tiny.params, config=tiny.config)
    jax.jit(lambda params: jax.tree.map(lambda leaf: leaf * 0, params), donate_argnums=0)(tiny.params)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(current.params))


def test_in_bfloat16_the_reference_scores_like_the_policy_that_it_copied():
    """The learner uses the scales of norms in float32, so a copy with rounded scales would be a different model."""
    tiny = tiny_programs.tiny(model={"compute_dtype": "bfloat16"})
    current = reference.init(tiny.params, config=tiny.config)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(current.params)} == {"bfloat16", "float32"}
    score = reference.make_scorer(tiny.architecture, tiny.mesh, config=tiny.config)
    trajectories = tiny_programs.random_trajectories(8)
    copied, own = (
        reference.score(score, params, trajectories, tiny.mesh, limits=tiny.limits)
        for params in (reference.place(current.params, "device"), tiny.params)
    )
    for one, other in zip(copied, own, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_residual_is_bitwise_zero_when_both_sides_run_the_same_program():
    tiny = tiny_programs.tiny()
    current = reference.init(tiny.params, config=tiny.config)
    score = reference.make_scorer(tiny.architecture, tiny.mesh, config=tiny.config)
    trajectories = tiny_programs.random_trajectories(8)
    (reference_log_prob, reference_value), (log_prob, value) = (
        reference.score(score, params, trajectories, tiny.mesh, limits=tiny.limits)
        for params in (reference.place(current.params, "device"), tiny.params)
    )
    residual = objective.reval_residual(
        value, reference_value, log_prob, reference_log_prob, np.zeros(8, np.float32), beta=0.002
    )
    assert not np.any(residual)
