"""Ragged arrays against lists of lists, which share no code with them."""

from __future__ import annotations

import hypothesis
import numpy as np
from hypothesis import strategies as st

from reval_jax import ragged

LISTS = st.lists(st.lists(st.integers(-1000, 1000), max_size=5), max_size=6)


def flat(parts):
    return np.array([value for part in parts for value in part], np.int32), np.array([len(p) for p in parts], np.int32)


@hypothesis.given(LISTS)
def test_split_gives_the_parts_back(parts):
    values, lengths = flat(parts)
    assert [part.tolist() for part in ragged.split(values, lengths)] == parts


@hypothesis.given(LISTS, st.data())
def test_indices_take_parts_in_any_order_and_more_than_once(parts, data):
    values, lengths = flat(parts)
    chosen = data.draw(st.lists(st.integers(0, len(parts) - 1), max_size=8)) if parts else []
    expected = [value for index in chosen for value in parts[index]]
    assert values[ragged.indices(lengths, np.array(chosen, np.int64))].tolist() == expected


@hypothesis.given(LISTS)
def test_offsets_count_within_each_part(parts):
    _, lengths = flat(parts)
    assert ragged.offsets(lengths).tolist() == [index for part in parts for index in range(len(part))]


@hypothesis.given(st.lists(st.lists(st.integers(-1000, 1000), min_size=1, max_size=5), min_size=1, max_size=6))
def test_sums_are_of_each_part(parts):
    values, lengths = flat(parts)
    assert ragged.sums(values, lengths).tolist() == [sum(part) for part in parts]


def test_interleave_joins_pair_after_pair():
    left, right = [np.array([1, 2]), np.array([5])], [np.array([3, 4]), np.array([6])]
    assert ragged.interleave(left, right).tolist() == [1, 2, 3, 4, 5, 6]
