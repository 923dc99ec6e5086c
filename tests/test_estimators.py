"""Estimators of avg@k, pass@k and maj@k: against enumeration, exact formulas and cases by hand."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import graded_responses

from reval_jax import types
from reval_jax.evaluate import estimators


@given(reward=st.lists(st.sampled_from([0, 0.25, 1]), min_size=1, max_size=8), data=st.data())
@settings(max_examples=150, deadline=None)
def test_pass_at_k_is_the_mean_best_reward_of_every_subset_of_k(reward, data):
    k = data.draw(st.integers(1, len(reward)))
    best = [Fraction(max(subset)) for subset in itertools.combinations(reward, k)]
    expected = float(sum(best) / len(best))
    np.testing.assert_allclose(estimators.pass_at(np.array(reward), k), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("num", "right", "k"), [(16, 3, 4), (200, 1, 100), (1024, 7, 512), (1024, 1, 1024)])
def test_pass_at_k_of_right_and_wrong_is_the_formula_of_chen_et_al_in_exact_arithmetic(num, right, k):
    expected = 1 - Fraction(math.comb(num - right, k), math.comb(num, k))
    value = estimators.pass_at(np.repeat([0.0, 1.0], [num - right, right]), k)
    np.testing.assert_allclose(value, float(expected), rtol=1e-11)


def test_pass_at_k_does_not_depend_on_the_order_of_responses_or_on_other_problems():
    generator = np.random.default_rng(0)
    reward = (generator.random((5, 12)) < 0.3).astype(np.float32)
    shuffled = generator.permuted(reward, axis=1)
    np.testing.assert_array_equal(estimators.pass_at(reward, 4), estimators.pass_at(shuffled, 4))
    np.testing.assert_array_equal(estimators.pass_at(reward, 4), [estimators.pass_at(row, 4) for row in reward])


def test_pass_at_1_is_avg_at_n_and_pass_at_n_is_whether_any_response_is_right():
    reward = np.array([[0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], np.float32)
    np.testing.assert_allclose(estimators.pass_at(reward, 1), [0.25, 0, 1], rtol=1e-15)
    np.testing.assert_allclose(estimators.pass_at(reward, 4), [1, 0, 1], rtol=1e-15)


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_a_k_outside_1_to_n_is_refused(k):
    with pytest.raises(ValueError, match=r"Use a k from 1 to 4"):
        estimators.pass_at(np.zeros(4), k)


@pytest.mark.parametrize(
    ("answer", "reward", "expected"),
    [
        (["7", "7", "8"], [1, 1, 0], 1),
        (["7", "8", "8"], [1, 0, 0], 0),
        (["7", "8"], [1, 0], 1 / 2),  # a tie gets the mean reward of the tied answers
        (["7", "8", "9"], [1, 0, 0], 1 / 3),
        (["7", "7", "8", "8", "9"], [1, 1, 0, 0, 0], 1 / 2),
        (["", "", "", "7"], [0, 0, 0, 1], 1),  # a response without an answer does not vote
        (["", ""], [0, 0], 0),
        (["7"], [1], 1),
        (
            ["7", "7.0", "8", "8", "8"],
            [1, 1, 0, 0, 0],
            0,
        ),  # two right answers in different normal forms are counted separately
        (["a", "a", "b"], [0.5, 1, 0], 3 / 4),  # an answer gets the mean reward of its responses
    ],
)
def test_maj_at_n_by_hand(answer, reward, expected):
    (value,) = estimators.maj_at(np.array(reward, np.float32), answer, len(answer))
    assert value == pytest.approx(expected, rel=1e-12)


def test_maj_at_k_takes_groups_of_k_in_sample_order():
    values = estimators.maj_at(np.array([1, 0, 1, 1, 0, 0], np.float32), ["7", "8", "7", "7", "9", "8"], 2)
    np.testing.assert_array_equal(values, [0.5, 1, 0])
    with pytest.raises(ValueError, match="Use a divisor of 6"):
        estimators.maj_at(np.zeros(6, np.float32), ["7"] * 6, 4)


@pytest.mark.parametrize(
    ("num", "expected"),
    [(1, ()), (2, (2,)), (16, (2, 4, 8, 16)), (12, (2, 4, 12)), (15, (15,)), (96, (2, 4, 8, 16, 32, 96))],
)
def test_group_sizes_are_powers_of_two_that_divide_n_and_n(num, expected):
    assert estimators.group_sizes(num) == expected


def test_a_response_without_an_answer_is_one_without_a_readable_answer():
    verdict = [[types.VERDICTS.index(kind) for kind in types.VERDICTS]]
    shares = estimators.by_problem(graded_responses.of_rewards([[1] + [0] * 7], verdict=verdict))
    assert shares["verifier/no_answer_ratio"] == 3 / 8, "no_box, unparsed, unclosed_think"
