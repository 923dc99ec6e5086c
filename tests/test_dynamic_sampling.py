"""Prompts whose responses have equal rewards are replaced by others; long responses are masked or penalised."""

from __future__ import annotations

import hashlib
import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from support import tiny_programs, tiny_runs

from reval_jax import algorithms, config, config_checks, trajectories, types, verifier


def with_rewards(rewards, samples):
    """Trajectories of len(rewards) / samples groups; only their prompts and rewards matter."""
    num = len(rewards)
    fields = {name: np.zeros(num, np.float32) for name in types.Trajectories._fields}
    fields |= {
        "raw_reward": np.array(rewards, np.float32),
        "cursor": 40 + np.arange(num) // samples,
        "sample": np.arange(num) % samples,
    }
    return types.Trajectories(**fields)


@hypothesis.given(
    groups=strategies.lists(strategies.lists(strategies.sampled_from((0, 1)), min_size=3, max_size=3), min_size=1),
    data=strategies.data(),
)
def test_mixed_groups_come_first_and_others_complete_the_batch(groups, data):
    sampled = with_rewards(list(itertools.chain.from_iterable(groups)), 3)
    assert trajectories.is_mixed(sampled).reshape(-1, 3).tolist() == [[0 < sum(group) < 3] * 3 for group in groups]
    num_groups = data.draw(strategies.integers(1, len(groups)))
    mixed = [index for index, group in enumerate(groups) if 0 < sum(group) < 3]
    others = [index for index in range(len(groups)) if index not in mixed]
    chosen = sorted((mixed + others)[:num_groups])
    assert trajectories.choose_groups(sampled, num_groups).tolist() == [
        3 * index + sample for index in chosen for sample in range(3)
    ]


def test_the_penalty_climbs_over_the_buffer_to_one_at_the_limit():
    settings = config.Rollout(max_response_tokens=100, truncated="penalty", penalty_tokens=20)
    penalty = trajectories.length_penalty(np.array([1, 79, 80, 81, 90, 100]), settings)
    np.testing.assert_allclose(penalty, [0, 0, 0, 0.05, 0.5, 1], rtol=1e-6)
    assert not trajectories.length_penalty(np.array([1, 100]), config.Rollout(max_response_tokens=100)).any()
    by_default = config.Rollout(max_response_tokens=100, truncated="penalty")
    np.testing.assert_array_equal(
        trajectories.length_penalty(np.array([1, 79, 80, 81, 90, 100]), by_default), penalty, "a fifth of the limit"
    )


def test_the_penalty_is_subtracted_before_groups_are_compared():
    settings = config.Config(update=config.Update(reward_design="group_normalized"))
    reward = trajectories.designed_reward(
        np.array([1, 1], np.float32), settings.update, penalty=np.array([0, 0.5], np.float32)
    )
    shaped = algorithms.choose(settings).shape_reward(tiny_programs.graded(reward, np.array([0, 0])))
    np.testing.assert_allclose(shaped, [0.25, -0.25])


def graded_by_chance(self, texts, answers, **_):
    """Verdicts that depend on the response's text alone: a third of them right."""
    reward = np.array([hashlib.sha256(text.encode()).digest()[0] % 3 == 0 for text in texts], np.float32)
    return types.Verdicts(reward, (reward == 0).astype(np.int8), ("",) * len(texts))


@pytest.fixture
def chance(monkeypatch):
    monkeypatch.setattr(verifier.Grader, "score", graded_by_chance)


@pytest.mark.slow
def test_a_round_samples_waves_until_enough_prompts_have_both_and_resumes_alike(tmp_path, chance):
    file = tiny_runs.write_files(tmp_path)
    settings = {"rollout__filter_groups": True, "rollout__max_waves": 8, "eval__every": 0, "checkpoint__every": 1}
    whole = tiny_runs.play(file, tmp_path / "whole", **settings, run__rounds=3)
    size = 8  # a round's prompts x samples
    for line in whole.lines:
        assert line["training/sampled"] == line["filter_groups/waves"] * size
        assert line["filter_groups/filled"] == 0 or line["filter_groups/waves"] == 8
    assert max(line["filter_groups/waves"] for line in whole.lines) > 1
    # The rollouts file has every response, trained on or not.
    written = [len(rows.splitlines()) for rows in tiny_runs.rollouts(tmp_path / "whole").values()]
    assert written == [line["training/sampled"] for line in whole.lines]
    tiny_runs.play(file, tmp_path / "parts", **settings, run__rounds=1)
    tiny_runs.play(file, tmp_path / "parts", **settings, run__rounds=3)
    tiny_runs.assert_same_run(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.slow
def test_a_round_that_is_stopped_in_its_second_wave_keeps_the_first_and_ends_alike(tmp_path, chance):
    file = tiny_runs.write_files(tmp_path)
    settings = {"rollout__filter_groups": True, "rollout__max_waves": 8, "eval__every": 0, "run__rounds": 1}
    tiny_runs.play(file, tmp_path / "whole", **settings)
    with tiny_runs.stopped_when(lambda count, first: first > 0):  # the second wave
        assert tiny_runs.play(file, tmp_path / "parts", **settings).is_preempted
    with tiny_runs.counting_restored() as restored:
        assert not tiny_runs.play(file, tmp_path / "parts", **settings).is_preempted
    assert restored[0] == 8
    assert 0 < restored[1] <= 8
    tiny_runs.assert_same_run(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.slow
def test_a_masked_response_is_sampled_and_counted_but_not_trained_on(tmp_path, chance):
    file = tiny_runs.write_files(tmp_path)
    unmasked = tiny_runs.play(file, tmp_path / "keep", run__rounds=1, eval__every=0).lines[0]
    masked = tiny_runs.play(file, tmp_path / "mask", run__rounds=1, eval__every=0, rollout__truncated="mask").lines[0]
    assert masked["critic/score/mean"] == unmasked["critic/score/mean"]
    assert masked["overlong/masked"] == unmasked["response_length/clip_ratio"] > 0
    assert masked["training/update_tokens"] < unmasked["training/update_tokens"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"filter_groups": True, "samples_per_prompt": 1}, "filter_groups"),
        ({"truncated": "penalty", "penalty_tokens": 9000}, "penalty_tokens=9000"),
        ({"penalty_tokens": 5}, "reads none"),
    ],
)
def test_settings_without_an_effect_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        config_checks.check_rollout(config.Rollout(**settings))
