"""The endogenous reward against its recursion in Python floats, and the AUC against a count of pairs."""

from __future__ import annotations

import numpy as np
import pytest

from reval_jax import endogenous, ragged


@pytest.fixture
def tokens():
    """log pi, V and lengths of 12 responses, the shortest of one token."""
    rng = np.random.default_rng(0)
    length = np.array([1, 3, 1, 7, 2, 12, 5, 1, 4, 9, 6, 1], np.int32)
    num = int(length.sum())
    return -rng.exponential(1.0, num).astype(np.float32), rng.normal(25, 3, num).astype(np.float32), length


def recursion(log_prob, value, gamma=1.0):
    """Sum of gamma^(h-1) (log pi + V(s_h) - V(s_h+1)) of one response, and its terms."""
    terms = []
    for h in range(len(log_prob)):
        following = float(value[h + 1]) if h + 1 < len(value) else 0.0
        terms.append(float(log_prob[h]) + float(value[h]) - following)
    return sum(gamma**h * term for h, term in enumerate(terms)), terms


def test_token_rewards_and_scores_equal_the_recursion_of_each_response(tokens):
    log_prob, value, length = tokens
    rewards = ragged.split(endogenous.token_rewards(*tokens), length)
    scores = endogenous.response_scores(*tokens)
    for index, (own_log_prob, own_value) in enumerate(
        zip(ragged.split(log_prob, length), ragged.split(value, length), strict=True)
    ):
        total, terms = recursion(own_log_prob, own_value)
        np.testing.assert_allclose(rewards[index], terms, rtol=1e-12)
        expected = {
            "return": total,
            "return_per_token": total / len(terms),
            "discounted_0.9": recursion(own_log_prob, own_value, 0.9)[0],
            "discounted_0.99": recursion(own_log_prob, own_value, 0.99)[0],
            "log_prob": sum(map(float, own_log_prob)),
            "log_prob_per_token": sum(map(float, own_log_prob)) / len(terms),
        }
        assert scores.keys() == expected.keys()
        for name, value_expected in expected.items():
            np.testing.assert_allclose(scores[name][index], value_expected, rtol=1e-12)


def test_the_rewards_of_a_response_telescope_to_its_log_probability_and_first_value(tokens):
    log_prob, value, length = tokens
    totals = [part.sum() for part in ragged.split(endogenous.token_rewards(*tokens), length)]
    expected = [
        own.sum(dtype=np.float64) + first
        for own, first in zip(ragged.split(log_prob, length), value[ragged.starts(length)], strict=True)
    ]
    np.testing.assert_allclose(totals, expected, atol=1e-5)


def counted(right, wrong):
    """The AUC by counting pairs."""
    return sum(1.0 if r > w else 0.5 if r == w else 0.0 for r in right for w in wrong) / (len(right) * len(wrong))


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_the_auc_equals_a_count_of_pairs_in_which_ties_count_half(levels):
    rng = np.random.default_rng(levels)
    for _ in range(20):
        right, wrong = (rng.integers(0, levels, rng.integers(1, 9)).astype(np.float64) for _ in range(2))
        assert endogenous.auc(right, wrong) == pytest.approx(counted(right.tolist(), wrong.tolist()), abs=1e-12)


def test_aucs_leave_out_prompts_without_both_kinds_and_keep_prompts_apart():
    rng = np.random.default_rng(1)
    prompt = rng.permutation(np.repeat(np.arange(9), 6))
    is_right = rng.integers(0, 2, prompt.size).astype(bool)
    is_right[prompt == 2] = True
    is_right[prompt == 5] = False
    # Each prompt has a level of its own, which would decide the pairs if prompts were mixed.
    score = rng.normal(size=prompt.size) + 100 * prompt
    result = endogenous.aucs({"score": score}, is_right, prompt)
    kept = [each for each in range(9) if 0 < is_right[prompt == each].sum() < 6]
    assert 2 not in kept
    assert 5 not in kept
    np.testing.assert_array_equal(result.prompts, kept)
    assert result.num_responses == 6 * len(kept)
    expected = [
        counted(score[(prompt == each) & is_right].tolist(), score[(prompt == each) & ~is_right].tolist())
        for each in kept
    ]
    np.testing.assert_allclose(result.by_scorer["score"], expected, atol=1e-12)


def test_without_a_mixed_prompt_there_are_no_aucs():
    result = endogenous.aucs({"score": np.arange(4.0)}, np.array([True, True, False, False]), np.array([0, 0, 1, 1]))
    assert (result.prompts.size, result.num_responses, result.by_scorer["score"].size) == (0, 0, 0)


def test_within_a_prompt_the_return_ranks_responses_as_the_log_probability_does(tokens):
    log_prob, value, length = tokens
    value = value.copy()
    value[ragged.starts(length)] = 25.0  # V(s_1) is a function of the prompt
    scores = endogenous.response_scores(log_prob, value, length)
    np.testing.assert_array_equal(np.argsort(scores["return"]), np.argsort(scores["log_prob"]))
