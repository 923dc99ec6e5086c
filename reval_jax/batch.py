"""Replay rows → one fixed-shape device batch, split into micro-batches."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from reval_jax import config as config_lib
from reval_jax import mesh as mesh_lib
from reval_jax import types


class Batch(NamedTuple):
    """One optimizer step's trajectories: M micro-batches of R rows, one trajectory a row, right-padded to T tokens.

    Rows without a trajectory have response_length 0 and add nothing. C, the response capacity, is the longest response the
    batch's row length is compiled for.
    """

    tokens: jax.Array  # i32[M, R, T] prompt, response, then zeros
    prompt_length: jax.Array  # i32[M, R] tokens
    response_length: jax.Array  # i32[M, R] tokens; 0 in an empty row
    behaviour_log_prob: jax.Array  # f32[M, R, C] nats, of the sampler; 0 past the response
    reward: jax.Array  # f32[M, R] shaped reward, or GRPO's advantage
    reference_log_prob: jax.Array  # f32[M, R] nats, log pi_ref(tau)
    reference_value: jax.Array  # f32[M, R] nats, V_ref(s1)
    num_micro_batches: jax.Array  # i32[] micro-batches to run, at most M
    num_trajectories: jax.Array  # f32[] of the whole batch: the loss's denominator
    num_response_tokens: jax.Array  # f32[] of the whole batch: GRPO's denominator


def row_length(length: int) -> int:
    """The compiled row length, in tokens, that holds a trajectory of `length` tokens.

    Lengths are multiples of 16 up to 128, then four steps to each doubling, so that padding stays below a quarter and
    the number of compiled programs below 4·log2(T / 128) + 8.
    """
    step = 16 if length <= 128 else 1 << (int(length - 1).bit_length() - 3)
    return -(-length // step) * step


def rows_per_micro_batch(num_tokens: int, micro_batch_tokens: int, num_shards: int) -> int:
    """R: rows of `num_tokens` within a budget of `micro_batch_tokens` a device, at least one, on all devices together."""
    return max(1, micro_batch_tokens // num_tokens) * num_shards


def step_size(config: config_lib.Config) -> int:
    """Trajectories of one optimizer step: `update.batch_size`, or for GRPO one of its mini-batches."""
    update = config.update
    return update.batch_size // update.updates_per_round if update.objective == "grpo" else update.batch_size


def check_divides(config: config_lib.Config, mesh: Mesh) -> None:
    """Refuse a batch that leaves devices with unequal numbers of rows.

    Raises:
      ValueError: naming a size that works.
    """
    shards, size = mesh_lib.num_row_shards(mesh), step_size(config)
    if size % shards:
        split = (
            f" / update.updates_per_round={config.update.updates_per_round}" if size != config.update.batch_size else ""
        )
        raise ValueError(
            f"update.batch_size={config.update.batch_size}{split} does not divide over the {shards} devices of mesh axes "
            f"'data' x 'fsdp'. Use a multiple of {shards}, for example {-(-config.update.batch_size // shards) * shards}."
        )


def pack(rows: types.Trajectories, mesh: Mesh, *, config: config_lib.Config) -> Batch:
    """The device batch of these trajectories, rows in their order.

    Its shapes depend on the longest trajectory and the settings, not on how many trajectories there are.

    Args:
      rows: B trajectories, at least 1 and at most `step_size(config)`.
      mesh: the learner's; R is spread over its data and fsdp axes.
      config: `step_size` bounds M, `update.micro_batch_tokens` bounds R, `rollout.max_response_tokens` bounds C.
    """
    num_tokens = row_length(int(rows.length.max()))
    capacity = min(num_tokens, config.rollout.max_response_tokens)
    shards, most = mesh_lib.num_row_shards(mesh), step_size(config)
    num_rows = min(
        rows_per_micro_batch(num_tokens, config.update.micro_batch_tokens, shards), -(-most // shards) * shards
    )
    num_micro_batches = -(-most // num_rows)
    total = num_micro_batches * num_rows

    def per_trajectory(values: np.ndarray) -> np.ndarray:
        return np.pad(values, (0, total - rows.size)).reshape(num_micro_batches, num_rows)

    response_length = per_trajectory(rows.response_length)
    fields: dict[str, Any] = {
        "tokens": _pad(rows.tokens, rows.length, total, num_tokens).reshape(num_micro_batches, num_rows, num_tokens),
        "prompt_length": per_trajectory(rows.prompt_length),
        "response_length": response_length,
        "behaviour_log_prob": _pad(rows.log_prob, rows.response_length, total, capacity).reshape(
            num_micro_batches, num_rows, capacity
        ),
        "reward": per_trajectory(rows.reward),
        "reference_log_prob": per_trajectory(rows.reference_log_prob),
        "reference_value": per_trajectory(rows.reference_value),
        "num_micro_batches": np.int32(-(-rows.size // num_rows)),
        "num_trajectories": np.float32(rows.size),
        "num_response_tokens": np.float32(response_length.sum()),
    }
    return Batch(**{name: mesh_lib.put(value, _sharding(mesh, np.ndim(value))) for name, value in fields.items()})


def _sharding(mesh: Mesh, rank: int) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(None, mesh_lib.ROWS) if rank >= 2 else PartitionSpec())


def _pad(flat: np.ndarray, lengths: np.ndarray, num_rows: int, width: int) -> np.ndarray:
    """Ragged values as [num_rows, width], zeros behind each row's end."""
    padded = np.zeros((num_rows, width), flat.dtype)
    all_lengths = np.pad(lengths, (0, num_rows - lengths.shape[0]))
    padded[np.arange(width) < all_lengths[:, None]] = flat
    return padded
