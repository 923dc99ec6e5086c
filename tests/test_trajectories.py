"""Prompts, rollout and verdicts become trajectories: every field against loops, the shaped reward against NumPy."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from support import responses, tiny_programs

from reval_jax import algorithms, config, types
from reval_jax import trajectories as trajectories_lib

PROMPTS, SAMPLES = 5, 3


def make(seed=0):
    """Prompts, rollout and verdicts of unequal lengths, and the pieces of their responses."""
    rng = np.random.default_rng(seed)
    prompts = types.Prompts(
        cursor=np.arange(70, 70 + PROMPTS, dtype=np.int64),
        row=rng.permutation(PROMPTS).astype(np.int64),
        texts=tuple(f"prompt {index}" for index in range(PROMPTS)),
        tokens=tuple(rng.integers(1, 99, rng.integers(1, 7)).astype(np.int32) for _ in range(PROMPTS)),
        answers=tuple(str(index) for index in range(PROMPTS)),
    )
    pieces = [rng.integers(1, 99, rng.integers(1, 9)).astype(np.int32) for _ in range(PROMPTS * SAMPLES)]
    length = np.array([len(piece) for piece in pieces], np.int32)
    rollout = responses.Flat(
        prompt=np.repeat(np.arange(PROMPTS, dtype=np.int32), SAMPLES),
        sample=np.tile(np.arange(SAMPLES, dtype=np.int32), PROMPTS),
        tokens=np.concatenate(pieces),
        log_prob=-rng.random(length.sum()).astype(np.float32),
        truncated_log_prob=-rng.random(length.sum()).astype(np.float32),
        length=length,
        is_truncated=rng.integers(0, 2, PROMPTS * SAMPLES).astype(bool),
    )
    kind = rng.integers(0, 3, PROMPTS * SAMPLES).astype(np.int8)
    return prompts, rollout, types.Verdicts((kind == 0).astype(np.float32), kind, ("",) * len(kind)), pieces


def finished(seed=0, **settings):
    prompts, rollout, verdicts, _ = make(seed)
    whole_config = config.Config(update=config.Update(**settings))
    joined = trajectories_lib.join(
        prompts, responses.unflat(rollout), verdicts, round=4, policy_version=9, config=whole_config
    )
    return joined._replace(reward=algorithms.choose(whole_config).shape_reward(joined))


def test_each_trajectory_is_its_prompt_followed_by_its_response():
    prompts, rollout, verdicts, pieces = make()
    joined = finished()
    start = 0
    for index in range(PROMPTS * SAMPLES):
        prompt = index // SAMPLES
        expected = [*prompts.tokens[prompt], *pieces[index]]
        assert joined.tokens[start : start + len(expected)].tolist() == expected
        start += len(expected)
        assert (joined.prompt_length[index], joined.response_length[index]) == (
            len(prompts.tokens[prompt]),
            len(pieces[index]),
        )
        assert (joined.cursor[index], joined.sample[index]) == (70 + prompt, index % SAMPLES)
        assert (joined.verdict[index], joined.raw_reward[index]) == (verdicts.kind[index], verdicts.reward[index])
        assert joined.is_truncated[index] == rollout.is_truncated[index]
    assert start == joined.tokens.size
    np.testing.assert_array_equal(joined.log_prob, rollout.log_prob)


def test_a_new_trajectory_has_no_uses_and_no_reference_scores():
    joined = finished()
    assert set(joined.round) == {4}
    assert set(joined.policy_version) == {9}
    assert not joined.use_count.any()
    assert set(joined.reference_version) == {types.NOT_SCORED}


rewards = strategies.lists(strategies.tuples(strategies.integers(0, 3), strategies.booleans()), min_size=1, max_size=24)


def shaped(pairs, **settings):
    group = np.array([group for group, _ in pairs], np.int32)
    raw = np.array([right for _, right in pairs], np.float32)
    whole_config = config.Config(update=config.Update(**settings))
    designed = trajectories_lib.designed_reward(raw, whole_config.update)
    return algorithms.choose(whole_config).shape_reward(tiny_programs.graded(designed, group))


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(rewards)
def test_binary_and_signed_rewards_are_the_verdict(pairs):
    assert shaped(pairs).tolist() == [float(right) for _, right in pairs]
    assert shaped(pairs, reward_design="signed").tolist() == [1.0 if right else -1.0 for _, right in pairs]


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(rewards)
def test_group_normalized_rewards_are_the_distance_from_the_groups_mean(pairs):
    expected = []
    for group, right in pairs:
        members = [float(other) for label, other in pairs if label == group]
        expected.append(right - sum(members) / len(members))
    np.testing.assert_allclose(shaped(pairs, reward_design="group_normalized"), expected, atol=1e-6)


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(rewards)
def test_grpo_gets_the_groups_advantage(pairs):
    expected = []
    for group, right in pairs:
        members = np.array([float(other) for label, other in pairs if label == group])
        if len(members) == 1:
            expected.append(float(right))
        else:
            expected.append((right - members.mean()) / (members.std(ddof=1) + 1e-6))
    np.testing.assert_allclose(shaped(pairs, objective="grpo"), expected, atol=1e-5)


def test_the_raw_reward_is_kept_in_addition_to_the_shaped_one():
    _, _, verdicts, _ = make()
    joined = finished(reward_design="signed")
    np.testing.assert_array_equal(joined.raw_reward, verdicts.reward)
    np.testing.assert_array_equal(joined.reward, 2 * verdicts.reward - 1)
    assert joined.reward.dtype == np.float32


@pytest.mark.parametrize("count", [1, 5])
def test_the_shares_of_all_processes_join_to_the_prompts(count):
    prompts, *_ = make()
    shares = [trajectories_lib.share(prompts, index, count) for index in range(count)]
    assert [text for share in shares for text in share.texts] == list(prompts.texts)
    assert np.concatenate([share.cursor for share in shares]).tolist() == prompts.cursor.tolist()
    assert len({len(share.texts) for share in shares}) == 1


def test_prompts_that_do_not_divide_over_processes_are_refused():
    trajectories_lib.check_divides(4, 2)
    with pytest.raises(
        ValueError, match=r"rollout\.prompts_per_round=5 does not divide over 2 processes.*multiple of 2"
    ):
        trajectories_lib.check_divides(5, 2)


def test_gathering_in_one_process_changes_nothing_and_several_join_in_process_order(monkeypatch):
    first, second = finished(0), finished(1)
    for actual, expected in zip(trajectories_lib.gather(first), first, strict=True):
        np.testing.assert_array_equal(actual, expected)
        assert actual.dtype == expected.dtype
    gather_bytes = trajectories_lib.distributed.gather_bytes
    other: list[bytes] = []
    monkeypatch.setattr(
        trajectories_lib.distributed, "gather_bytes", lambda payload: other.append(payload) or gather_bytes(payload)
    )
    trajectories_lib.gather(second)
    monkeypatch.setattr(trajectories_lib.distributed, "gather_bytes", lambda payload: [payload, other[0]])
    joined = trajectories_lib.gather(first)
    for name in types.Trajectories._fields:
        np.testing.assert_array_equal(
            getattr(joined, name), np.concatenate([getattr(first, name), getattr(second, name)])
        )
