"""What is computed of a round's trajectories when it is collected, and of old ones when their reference's scores are stale."""

from __future__ import annotations

import numpy as np

from reval_jax import algorithms, batch, pool, ragged, reference, replay, token_scores, types
from reval_jax.setup import Components, RunState


def freeze(components: Components, run: RunState, fresh: types.Trajectories) -> types.Trajectories:
    """A round's trajectories and those that `rollout.pool` adds, with their shaped rewards and the algorithm's numbers per token.

    A replayed group is incomplete, and the policy of a past round is gone: neither can be computed later.
    """
    config, algorithm = components.config, components.algorithm
    if config.rollout.policy == "reference" and run.reference and "reference_value" not in algorithm.reads:
        # The sampler's own sums are the reference's: no pass scores these rows.
        fresh = fresh._replace(
            reference_log_prob=ragged.sums(fresh.log_prob, fresh.response_length),
            reference_version=np.full(fresh.size, run.reference.version, np.int32),
        )
    if components.pool is not None:
        fresh = _with_stored(components, run, fresh, components.pool)
    if config.update.endogenous_weight:
        scored = replay.Buffer(fresh, fresh.size)
        fresh = score_stale(components, run.reference, scored, np.arange(fresh.size)).trajectories
    fresh = fresh._replace(reward=np.asarray(algorithm.shape_reward(fresh), np.float32))
    if algorithm.fill is None:
        return fresh
    with components.clock.phase("old_values"):
        scores = _token_scores(components, run, fresh, at_most=config.largest_round)
    return fresh._replace(token_values=algorithm.fill(fresh, np.asarray(types.present(scores.value))))


def _with_stored(
    components: Components, run: RunState, fresh: types.Trajectories, stored_responses: pool.Pool
) -> types.Trajectories:
    """The trajectories with the pool's responses to the same questions, after those of their group.

    The learner's log-probabilities stand for the behaviour policy's, which has gone, so that ratios begin at 1.
    """
    config = components.config
    stored = pool.responses(stored_responses, fresh, config, policy_version=int(run.state.num_updates))
    if not stored.size:
        return fresh
    with components.clock.phase("old_log_prob"):
        scores = _token_scores(components, run, stored, at_most=config.largest_round - config.fresh_size)
    both = replay.concatenate([fresh, stored._replace(log_prob=np.asarray(scores.log_prob))])
    return replay.gather(both, np.argsort(both.cursor, kind="stable"))


def _token_scores(
    components: Components, run: RunState, trajectories: types.Trajectories, *, at_most: int
) -> token_scores.TokenScores:
    """The learner's scores of every response token, in the shapes of a batch of `at_most` trajectories."""
    return token_scores.score(
        types.present(components.score_tokens),
        run.state.params,
        trajectories,
        components.meshes.learner,
        limits=batch.limits(components.config, step_size=at_most),
    )


def score_stale(
    components: Components, current: reference.Reference | None, buffer: replay.Buffer, rows: np.ndarray
) -> replay.Buffer:
    """The buffer with the current reference's scores at those of `rows` that lack them: no batch mixes versions.

    Without a reference the buffer is returned as it is.
    """
    if components.score is None or current is None:
        return buffer
    stale = replay.stale(buffer.trajectories, rows, current.version)
    if not stale.size:
        return buffer
    # Unless update.reference_memory keeps them there, the reference's parameters are on the devices only for this call.
    with components.clock.phase("reference_load"):
        params = reference.load(current)
    limits, mesh = algorithms.limits(components.config, components.algorithm), components.meshes.learner
    with components.clock.phase("reference"):
        # As many at once as an update takes, in its shapes.
        for first in range(0, stale.size, limits.trajectories):
            part = stale[first : first + limits.trajectories]
            trajectories = replay.gather(buffer.trajectories, part)
            log_prob, value = reference.score(components.score, params, trajectories, mesh, limits=limits)
            buffer = replay.with_reference_scores(buffer, part, log_prob, value, current.version)
    return buffer
