from __future__ import annotations

import collections
import itertools

import jax
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from reval_jax import keys, replay, types

ROW_FIELDS = [name for name in types.Trajectories._fields if name not in ("tokens", "log_prob", "token_values")]

UNHURRIED = settings(deadline=None, derandomize=True, database=None)  # the machine may be busy


def trajectories_of(lengths: list[tuple[int, int]], *, first: int = 0) -> types.Trajectories:
    """Trajectories of these (prompt, response) lengths; every number identifies its trajectory and field."""
    ids = np.arange(first, first + len(lengths))
    prompt = np.array([length for length, _ in lengths], np.int32)
    response = np.array([length for _, length in lengths], np.int32)

    def ragged(per_row: np.ndarray, dtype: type) -> np.ndarray:
        parts = [1000 * i + np.arange(n) for i, n in zip(ids, per_row, strict=True)]
        return np.concatenate([np.zeros(0), *parts]).astype(dtype)

    return types.Trajectories(
        tokens=ragged(prompt + response, np.int32),
        log_prob=-ragged(response, np.float32) / 7,
        token_values=np.stack([ragged(response, np.float32), ragged(response, np.float32) + 0.5], axis=1),
        prompt_length=prompt,
        response_length=response,
        is_truncated=ids % 3 == 0,
        raw_reward=(ids % 2).astype(np.float32),
        reward=(ids / 8).astype(np.float32),
        greedy_reward=(ids / 16).astype(np.float32),
        verdict=(ids % 8).astype(np.int8),
        row=ids.astype(np.int64) % 5,
        cursor=ids.astype(np.int64) + 2**40,
        sample=ids.astype(np.int32),
        round=ids.astype(np.int32) // 4,
        policy_version=ids.astype(np.int32) + 5,
        use_count=np.zeros(len(ids), np.int32),
        priority=(ids / 4).astype(np.float32),
        reference_log_prob=np.zeros(len(ids), np.float32),
        reference_value=np.zeros(len(ids), np.float32),
        reference_version=np.full(len(ids), types.NOT_SCORED, np.int32),
    )


def split(trajectories: types.Trajectories) -> list[tuple]:
    """One tuple of plain values per trajectory, by a loop that shares no code with the buffer."""
    rows, token, response = [], 0, 0
    for i in range(trajectories.size):
        num_response = int(trajectories.response_length[i])
        num_tokens = int(trajectories.prompt_length[i]) + num_response
        rows.append(
            (
                tuple(trajectories.tokens[token : token + num_tokens].tolist()),
                tuple(trajectories.log_prob[response : response + num_response].tolist()),
                tuple(map(tuple, trajectories.token_values[response : response + num_response].tolist())),
                *(getattr(trajectories, name)[i].item() for name in ROW_FIELDS),
            )
        )
        token, response = token + num_tokens, response + num_response
    assert (token, response) == (len(trajectories.tokens), len(trajectories.log_prob))
    return rows


def frozen(trajectories: types.Trajectories) -> types.Trajectories:
    """The same trajectories as read-only arrays."""
    copies = [field.copy() for field in trajectories]
    for copy in copies:
        copy.flags.writeable = False
    return types.Trajectories(*copies)


def filled(size: int) -> replay.Buffer:
    return replay.add(replay.init(max(size, 1)), frozen(trajectories_of([(1 + i % 3, 1 + i % 2) for i in range(size)])))


lengths = st.tuples(st.integers(1, 4), st.integers(1, 5))


@UNHURRIED
@given(st.integers(1, 12), st.data())
def test_the_buffer_is_a_deque_with_a_maximal_length(capacity: int, data: st.DataObject) -> None:
    schedule = data.draw(st.lists(st.lists(lengths, max_size=capacity), max_size=8))
    buffer, deque, first = replay.init(capacity), collections.deque(maxlen=capacity), 0
    for batch in schedule:
        fresh = frozen(trajectories_of(batch, first=first))
        buffer = replay.add(buffer, fresh)._replace(capacity=capacity)
        deque.extend(split(fresh))
        first += len(batch)
        assert split(buffer.trajectories) == list(deque)
        assert [field.dtype for field in buffer.trajectories] == [field.dtype for field in fresh]


@UNHURRIED
@given(st.lists(lengths, min_size=1, max_size=8), st.data())
def test_gather_equals_a_loop_with_repeated_rows(batch: list[tuple[int, int]], data: st.DataObject) -> None:
    trajectories = frozen(trajectories_of(batch))
    rows = data.draw(st.lists(st.integers(0, len(batch) - 1), max_size=12))
    expected = [split(trajectories)[row] for row in rows]
    assert split(replay.gather(trajectories, np.array(rows, np.int64))) == expected
    assert split(replay.gather(trajectories, rows)) == expected


@UNHURRIED
@given(st.lists(st.lists(lengths, max_size=4), max_size=4))
def test_concatenate_puts_parts_end_to_end(batches: list[list[tuple[int, int]]]) -> None:
    parts = [frozen(trajectories_of(batch, first=10 * i)) for i, batch in enumerate(batches)]
    assert split(replay.concatenate(parts)) == list(itertools.chain.from_iterable(map(split, parts)))


def test_no_trajectories_are_the_unit_of_concatenate() -> None:
    some = trajectories_of([(2, 3), (1, 1)])
    assert replay.empty().size == replay.concatenate([]).size == 0
    assert split(replay.concatenate([replay.empty(), some, replay.empty()])) == split(some)
    assert [field.dtype for field in replay.empty()] == [field.dtype for field in some]


def test_a_batch_larger_than_the_buffer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"replay\.capacity=2 .* 3 trajectories .* at least 3"):
        replay.add(replay.init(2), trajectories_of([(1, 1)] * 3))
    with pytest.raises(ValueError, match=r"replay\.capacity=0"):
        replay.init(0)


def test_trajectories_whose_fields_do_not_fit_are_refused() -> None:
    some = trajectories_of([(2, 3), (1, 1)])
    bad = {
        "tokens": some.tokens[:-1],
        "log_prob": np.append(some.log_prob, 0).astype(np.float32),
        "cursor": some.cursor.astype(np.int32),
        "reward": some.reward[:1],
        "prompt_length": some.prompt_length + np.int32(1),
    }
    for name, field in bad.items():
        with pytest.raises(ValueError, match=r"trajectories\.\w+ is .* need"):
            replay.add(replay.init(5), some._replace(**{name: field}))


@pytest.mark.parametrize("rows", [[-1], [3], [0, 1, 7]])
def test_a_row_outside_is_refused(rows: list[int]) -> None:
    with pytest.raises(ValueError, match="Rows count from 0"):
        replay.gather(trajectories_of([(1, 1)] * 3), np.array(rows))
    with pytest.raises(ValueError, match="Rows count from 0"):
        replay.with_uses(filled(3), np.array(rows))


@UNHURRIED
@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.data())
def test_a_sample_holds_different_rows_and_depends_on_the_key_alone(size: int, seed: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(0, size))
    buffer = filled(size)
    rows = replay.sample(buffer, keys.named_key(seed, "replay", 3), n)
    assert (rows.shape, rows.dtype) == ((n,), np.int64)
    assert len(set(rows.tolist())) == n
    assert set(rows.tolist()) <= set(range(size))
    # Neither the contents nor earlier draws affect the rows.
    scored = replay.with_uses(buffer, rows)
    np.testing.assert_array_equal(rows, replay.sample(scored, keys.named_key(seed, "replay", 3), n))


def test_another_key_draws_other_rows() -> None:
    buffer = filled(50)
    draws = {tuple(replay.sample(buffer, keys.named_key(0, "replay", i), 10).tolist()) for i in range(100)}
    assert len(draws) == 100
    words = [jax.random.wrap_key_data(np.array(bits, np.uint32)) for bits in ([0, 0], [1, 0], [0, 1])]
    assert len({tuple(replay.sample(buffer, key, 10).tolist()) for key in words}) == 3


def test_sampling_is_uniform_over_ordered_choices() -> None:
    size, n, draws = 5, 2, 4000
    buffer = filled(size)
    data = np.asarray(jax.random.key_data(jax.random.split(keys.named_key(0, "uniform"), draws)))
    counts = collections.Counter(
        tuple(replay.sample(buffer, jax.random.wrap_key_data(bits), n).tolist()) for bits in data
    )
    expected = list(itertools.permutations(range(size), n))
    assert set(counts) <= set(expected)
    # Keys are fixed, so this p-value is too.
    assert scipy.stats.chisquare([counts[pair] for pair in expected]).pvalue > 0.001


def test_a_sample_larger_than_the_buffer_is_refused() -> None:
    for n in (4, -1):
        with pytest.raises(ValueError, match=r"update\.batch_size=-?\d .* holds 3 .* at most 3"):
            replay.sample(filled(3), keys.named_key(0, "replay"), n)
    with pytest.raises(ValueError, match="holds 0"):
        replay.sample(replay.init(3), keys.named_key(0, "replay"), 1)


@settings(UNHURRIED, max_examples=50)
@given(st.integers(1, 10), st.data())
def test_reference_scores_and_uses_change_their_rows_and_nothing_else(size: int, data: st.DataObject) -> None:
    before = filled(size)
    before = before._replace(trajectories=frozen(before.trajectories))
    rows = np.array(data.draw(st.lists(st.integers(0, size - 1), unique=True)), np.int64)
    scored = replay.with_reference_scores(
        before, rows, np.arange(len(rows), dtype=np.float32) - 90, np.arange(len(rows), dtype=np.float32) + 30, 7
    )
    after = replay.with_uses(replay.with_uses(scored, rows), rows)
    place = {int(row): i for i, row in enumerate(rows)}
    for row, (old, new) in enumerate(zip(split(before.trajectories), split(after.trajectories), strict=True)):
        expected = dict(zip(["tokens", "log_prob", "token_values", *ROW_FIELDS], old, strict=True))
        if row in place:
            i = place[row]
            expected |= {"reference_log_prob": i - 90.0, "reference_value": i + 30.0, "reference_version": 7}
            expected["use_count"] += 2
        assert new == tuple(expected.values())
    assert [field.dtype for field in after.trajectories] == [field.dtype for field in before.trajectories]
    np.testing.assert_array_equal(
        replay.stale(after.trajectories, np.arange(size), 7), sorted(set(range(size)) - set(place))
    )
    np.testing.assert_array_equal(replay.stale(after.trajectories, np.arange(size), 8), np.arange(size))


def test_scores_of_another_number_of_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="for 2 rows"):
        replay.with_reference_scores(filled(3), np.array([0, 1]), np.zeros(2), np.zeros(1), 0)


def test_a_row_used_twice_in_one_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="occurs twice"):
        replay.with_uses(filled(3), np.array([1, 1]))


def test_reference_scores_leave_with_their_trajectory() -> None:
    buffer = replay.with_reference_scores(filled(3), np.arange(3), np.full(3, -5.0), np.full(3, 30.0), 0)
    buffer = replay.add(buffer, trajectories_of([(1, 1)] * 2, first=3))
    np.testing.assert_array_equal(buffer.trajectories.cursor - 2**40, [2, 3, 4])
    np.testing.assert_array_equal(buffer.trajectories.reference_version, [0, types.NOT_SCORED, types.NOT_SCORED])
    np.testing.assert_array_equal(replay.stale(buffer.trajectories, np.array([2, 0, 1]), 0), [2, 1])


@pytest.mark.parametrize("size", [0, 1, 3])
def test_the_fields_that_a_checkpoint_stores_are_completed(size: int) -> None:
    """Arrays without elements are not stored; those that an earlier version did not have get their first values."""
    whole = filled(size).trajectories
    stored = {name: value for name, value in whole._asdict().items() if value.size}
    assert split(replay.completed(stored)) == split(whole)
    for name in ("token_values", "greedy_reward", "row", "priority"):
        stored.pop(name, None)
    completed = replay.completed(stored)
    assert [field.dtype for field in completed] == [field.dtype for field in whole]
    assert completed.token_values.shape == (len(whole.log_prob) if size else 0, 0)
    np.testing.assert_array_equal(completed.priority, np.full(size, types.NEW))
    np.testing.assert_array_equal(completed.greedy_reward, np.zeros(size))
