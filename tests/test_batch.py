"""Packing rows into fixed shapes loses nothing and adds nothing."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny_programs

from reval_jax import batch


def flat(field):
    """[M·R, …] of a batch's [M, R, …], on the host."""
    array = np.asarray(field)
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])


@pytest.mark.parametrize("packer", [batch.first_fit, batch.one_per_row])
@pytest.mark.parametrize("micro_batch_tokens", [16, 32, 64, 4096])
def test_every_trajectory_is_in_the_batch_exactly_once(micro_batch_tokens, packer):
    tiny = tiny_programs.tiny(update={"micro_batch_tokens": micro_batch_tokens, "batch_size": 8})
    trajectories = tiny_programs.random_trajectories(7)
    where = batch.arrange(trajectories, tiny.mesh, limits=tiny.limits, packer=packer)
    packed = batch.pack(trajectories, tiny.mesh, limits=tiny.limits, arrangement=where)
    fields = batch.Batch(*(flat(field) if np.ndim(field) else field for field in packed))
    ends = np.cumsum(trajectories.response_length)
    for index, (row, slot, start, first) in enumerate(
        zip(where.row, where.slot, where.start, where.first, strict=True)
    ):
        tokens, prompt, response = tiny_programs.tokens_of(trajectories, index)
        columns, responses = slice(start, start + prompt + response), slice(first, first + response)
        np.testing.assert_array_equal(fields.tokens[row, columns], tokens)
        np.testing.assert_array_equal(fields.positions[row, columns], np.arange(prompt + response))
        assert set(fields.segment_ids[row, columns]) == {slot + 1}
        np.testing.assert_array_equal(fields.target_index[row, responses], start + prompt + np.arange(response))
        assert set(fields.slot[row, responses]) == {slot}
        behaviour = trajectories.log_prob[ends[index] - response : ends[index]]
        np.testing.assert_array_equal(fields.behaviour_log_prob[row, responses], behaviour)
        assert fields.first[row, slot] == first
        for name in ("response_length", "reward", "reference_log_prob", "reference_value"):
            assert getattr(fields, name)[row, slot] == getattr(trajectories, name)[index]
    assert (fields.segment_ids > 0).sum() == trajectories.length.sum()
    assert (fields.slot < packed.first.shape[2]).sum() == trajectories.response_length.sum()
    assert (fields.response_length > 0).sum() == 7
    assert int(packed.num_trajectories) == 7
    assert int(packed.num_response_tokens) == trajectories.response_length.sum()
    assert packed.tokens.shape[1] * packed.tokens.shape[2] <= max(micro_batch_tokens, packed.tokens.shape[2])
    np.testing.assert_array_equal(batch.per_trajectory(np.asarray(packed.reward), where), trajectories.reward)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 200)), min_size=1, max_size=80))
def test_first_fit_keeps_every_limit_and_uses_few_rows(lengths):
    prompt, response = np.array(lengths).T
    shape = batch.Shape(micro_batches=80, rows=1, tokens=512, responses=256, slots=6)
    row = batch.first_fit(prompt + response, response, shape)
    for weights, limit in ((prompt + response, 512), (response, 256), (np.ones_like(row), 6)):
        assert np.bincount(row, weights).max() <= limit
    fewest = max(-(-int((prompt + response).sum()) // 512), -(-int(response.sum()) // 256), -(-len(lengths) // 6))
    assert row.max() + 1 <= 2 * fewest + 1, "with three limits a row may stay half empty of each, no more"


def test_log_normal_lengths_fill_nine_tenths_of_the_rows():
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(np.log(1800), 0.7, 1024), 9216).astype(np.int64)
    shape = batch.Shape(micro_batches=1024, rows=1, tokens=9216, responses=8192, slots=64)
    row = batch.first_fit(lengths, np.maximum(lengths - 150, 1), shape)
    assert lengths.sum() / ((row.max() + 1) * 9216) > 0.9


def test_shapes_depend_on_the_settings_and_the_longest_row_only():
    tiny = tiny_programs.tiny(update={"micro_batch_tokens": 32, "batch_size": 8})
    shapes = {
        tuple(
            field.shape
            for field in batch.pack(tiny_programs.random_trajectories(num, max_prompt=5), tiny.mesh, limits=tiny.limits)
        )
        for num in (1, 3, 8)
    }
    assert len(shapes) == 1


def test_the_abstract_batch_is_the_packed_ones_shape_and_placement():
    tiny = tiny_programs.tiny(data=2, fsdp=4, update={"micro_batch_tokens": 32, "batch_size": 16})
    trajectories = tiny_programs.random_trajectories(16)
    packed = batch.pack(trajectories, tiny.mesh, limits=tiny.limits)
    shape = batch.arrange(trajectories, tiny.mesh, limits=tiny.limits).shape
    for actual, expected in zip(packed, batch.abstract(shape, tiny.mesh), strict=True):
        assert (actual.shape, actual.dtype, actual.sharding) == (expected.shape, expected.dtype, expected.sharding)


def test_unused_micro_batches_are_not_run():
    tiny = tiny_programs.tiny(update={"micro_batch_tokens": 32, "batch_size": 8})
    trajectories = tiny_programs.random_trajectories(5, max_prompt=5)
    where = batch.arrange(trajectories, tiny.mesh, limits=tiny.limits, packer=batch.one_per_row)
    packed = batch.pack(trajectories, tiny.mesh, limits=tiny.limits, arrangement=where)
    assert packed.tokens.shape[0] == 4
    assert int(packed.num_micro_batches) == 3


def test_row_lengths_waste_less_than_a_quarter_and_are_few():
    lengths = np.arange(1, 40_000)
    rows = np.array([batch.row_length(int(length)) for length in lengths])
    assert (rows >= lengths).all()
    assert (rows - lengths <= np.maximum(15, rows / 4)).all()
    assert len(set(rows)) <= 8 + 4 * np.log2(40_000 / 128) + 1


def test_rows_divide_over_the_devices_that_hold_them():
    tiny = tiny_programs.tiny(data=2, fsdp=4, update={"micro_batch_tokens": 1, "batch_size": 16})
    packed = batch.pack(tiny_programs.random_trajectories(16), tiny.mesh, limits=tiny.limits)
    assert packed.tokens.shape[:2] == (2, 8)
    assert {shard.data.shape[1] for shard in packed.tokens.addressable_shards} == {1}
    assert jax.tree.leaves(packed)[0].sharding.spec == batch.specs().tokens


def test_a_grpo_step_is_one_mini_batch():
    config = tiny_programs.settings(update={"objective": "grpo", "batch_size": 8, "updates_per_round": 4})
    assert tiny_programs.limits(config).trajectories == 2


def test_a_batch_larger_than_a_step_is_refused():
    tiny = tiny_programs.tiny(update={"batch_size": 8})
    with pytest.raises(ValueError, match="a batch of 9 trajectories, but one optimizer step takes at most 8"):
        batch.pack(tiny_programs.random_trajectories(9), tiny.mesh, limits=tiny.limits)
