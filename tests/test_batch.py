"""Packing rows into fixed shapes loses nothing and adds nothing."""

from __future__ import annotations

import numpy as np
import programs
import pytest

from reval_jax import batch


@pytest.mark.parametrize("micro_batch_tokens", [16, 32, 64, 4096])
def test_every_trajectory_is_in_the_batch_exactly_once(micro_batch_tokens):
    tiny = programs.tiny(update={"micro_batch_tokens": micro_batch_tokens, "batch_size": 8})
    trajectories = programs.random_trajectories(7)
    packed = batch.pack(trajectories, tiny.mesh, config=tiny.config)
    rows = np.asarray(packed.tokens).reshape(-1, packed.tokens.shape[2])
    behaviour = np.asarray(packed.behaviour_log_prob).reshape(rows.shape[0], -1)
    start = 0
    for index in range(7):
        tokens, prompt, response = programs.tokens_of(trajectories, index)
        np.testing.assert_array_equal(rows[index, : prompt + response], tokens)
        assert not rows[index, prompt + response :].any()
        np.testing.assert_array_equal(behaviour[index, :response], trajectories.log_prob[start : start + response])
        start += response
    for name in ("prompt_length", "response_length", "reward", "reference_log_prob", "reference_value"):
        np.testing.assert_array_equal(np.asarray(getattr(packed, name)).reshape(-1)[:7], getattr(trajectories, name))
    assert not np.asarray(packed.response_length).reshape(-1)[7:].any()
    assert int(packed.num_trajectories) == 7
    assert int(packed.num_response_tokens) == trajectories.response_length.sum()
    assert packed.tokens.shape[1] * packed.tokens.shape[2] <= max(micro_batch_tokens, packed.tokens.shape[2])


def test_shapes_depend_on_the_settings_and_the_longest_row_only():
    tiny = programs.tiny(update={"micro_batch_tokens": 32, "batch_size": 8})
    shapes = {
        tuple(
            field.shape
            for field in batch.pack(programs.random_trajectories(num, max_prompt=5), tiny.mesh, config=tiny.config)
        )
        for num in (1, 3, 8)
    }
    assert len(shapes) == 1


def test_unused_micro_batches_are_not_run():
    tiny = programs.tiny(update={"micro_batch_tokens": 32, "batch_size": 8})
    packed = batch.pack(programs.random_trajectories(3, max_prompt=5), tiny.mesh, config=tiny.config)
    assert packed.tokens.shape[0] == 4
    assert int(packed.num_micro_batches) == 2


def test_row_lengths_waste_less_than_a_quarter_and_are_few():
    lengths = np.arange(1, 40_000)
    rows = np.array([batch.row_length(int(length)) for length in lengths])
    assert (rows >= lengths).all()
    assert (rows - lengths <= np.maximum(15, rows / 4)).all()
    assert len(set(rows)) <= 8 + 4 * np.log2(40_000 / 128) + 1


def test_rows_divide_over_the_devices_that_hold_them():
    tiny = programs.tiny(data=2, fsdp=4, update={"micro_batch_tokens": 1, "batch_size": 16})
    packed = batch.pack(programs.random_trajectories(16), tiny.mesh, config=tiny.config)
    assert packed.tokens.shape[:2] == (2, 8)
    assert {shard.data.shape[1] for shard in packed.tokens.addressable_shards} == {1}


def test_a_grpo_step_is_one_mini_batch():
    config = programs.settings(update={"objective": "grpo", "batch_size": 8, "updates_per_round": 4})
    assert batch.step_size(config) == 2
