"""Replay rows → one fixed-shape, packed device batch, split into micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from reval_jax import config as config_lib
from reval_jax import mesh as mesh_lib
from reval_jax import types


class Batch(NamedTuple):
    """One optimizer step's trajectories: M micro-batches of R rows of T tokens; a row holds up to S whole trajectories.

    A trajectory sits in one slot of one row, so that its residual is squared after its sum. A row's response tokens, of all
    its trajectories, are also listed one after the other in C columns: what reaches the score head. Rows and slots without
    a trajectory have response_length 0 and add nothing.
    """

    tokens: jax.Array  # i32[M, R, T] prompt, response, prompt, response, …, zeros
    positions: jax.Array  # i32[M, R, T] 0, 1, … from the start of each trajectory
    segment_ids: jax.Array  # i32[M, R, T] slot + 1; 0 where there is no trajectory
    target_index: jax.Array  # i32[M, R, C] column in the row of each response token; 1 past the last
    slot: jax.Array  # i32[M, R, C] slot of each response token; S past the last
    behaviour_log_prob: jax.Array  # f32[M, R, C] nats, of the sampler; 0 past the last
    first: jax.Array  # i32[M, R, S] which of the C columns is the trajectory's first response token
    response_length: jax.Array  # i32[M, R, S] tokens; 0 in an empty slot
    reward: jax.Array  # f32[M, R, S] shaped reward, or GRPO's advantage
    reference_log_prob: jax.Array  # f32[M, R, S] nats, log pi_ref(tau)
    reference_value: jax.Array  # f32[M, R, S] nats, V_ref(s1)
    num_micro_batches: jax.Array  # i32[] micro-batches to run, at most M
    num_trajectories: jax.Array  # f32[] of the whole batch: the loss's denominator
    num_response_tokens: jax.Array  # f32[] of the whole batch: GRPO's denominator


class Shape(NamedTuple):
    """The static sizes of a batch: they follow from the row length, the settings and the mesh, from nothing else."""

    micro_batches: int  # M
    rows: int  # R, of all devices together
    tokens: int  # T
    responses: int  # C
    slots: int  # S


class Arrangement(NamedTuple):
    """Where each of B trajectories lies in a batch."""

    shape: Shape
    row: np.ndarray  # i64[B] row, counted through the micro-batches
    slot: np.ndarray  # i64[B]
    start: np.ndarray  # i64[B] column of its first token
    first: np.ndarray  # i64[B] which of the C columns is its first response token


Place = Callable[[np.ndarray, np.ndarray, Shape], np.ndarray]
"""(length i64[B], response_length i64[B], shape) → row i64[B]: how trajectories are spread over rows."""


def row_length(length: int) -> int:
    """The compiled row length, in tokens, that holds a trajectory of `length` tokens.

    Lengths are multiples of 16 up to 128, then four steps to each doubling, so that padding stays below a quarter and
    the number of compiled programs below 4·log2(T / 128) + 8.
    """
    step = 16 if length <= 128 else 1 << (int(length - 1).bit_length() - 3)
    return -(-length // step) * step


def step_size(config: config_lib.Config) -> int:
    """Trajectories of one optimizer step: `update.batch_size`, or for GRPO one of its mini-batches."""
    update = config.update
    return update.batch_size // update.updates_per_round if update.objective == "grpo" else update.batch_size


def shape_of(num_tokens: int, num_shards: int, *, config: config_lib.Config) -> Shape:
    """The sizes of a batch with rows of `num_tokens` on `num_shards` devices.

    R rows are within `update.micro_batch_tokens` a device, at least one a device; M is enough for one trajectory a row.
    """
    most = -(-step_size(config) // num_shards) * num_shards
    rows = min(max(1, config.update.micro_batch_tokens // num_tokens) * num_shards, most)
    responses = min(num_tokens, config.rollout.max_response_tokens)
    return Shape(-(-most // rows), rows, num_tokens, responses, slots=min(64, max(1, num_tokens // 8)))


def first_fit(length: np.ndarray, response_length: np.ndarray, shape: Shape) -> np.ndarray:
    """Rows by first fit, the longest trajectory first: each goes to the first row with room for it."""
    num = length.shape[0]
    tokens, responses = np.full(num, shape.tokens), np.full(num, shape.responses)
    slots, row = np.full(num, shape.slots), np.zeros(num, np.int64)
    for index in np.argsort(-length, kind="stable"):
        fits = (tokens >= length[index]) & (responses >= response_length[index]) & (slots > 0)
        chosen = row[index] = np.argmax(fits)
        tokens[chosen] -= length[index]
        responses[chosen] -= response_length[index]
        slots[chosen] -= 1
    return row


def one_a_row(length: np.ndarray, response_length: np.ndarray, shape: Shape) -> np.ndarray:
    """Every trajectory in a row of its own: what packing is measured against."""
    return np.arange(length.shape[0])


def arrange(
    rows: types.Trajectories, mesh: Mesh, *, config: config_lib.Config, place: Place = first_fit
) -> Arrangement:
    """Where each trajectory goes: a pure function of their lengths, so every process comes to the same.

    Args:
      rows: B trajectories, at least 1 and at most `step_size(config)`.
      mesh: the learner's; R is spread over its data and fsdp axes.
      config: `step_size` bounds M, `update.micro_batch_tokens` bounds R, `rollout.max_response_tokens` bounds C.
    """
    length, response_length = rows.length.astype(np.int64), rows.response_length.astype(np.int64)
    shape = shape_of(row_length(int(length.max())), mesh_lib.num_row_shards(mesh), config=config)
    row = place(length, response_length, shape)
    order = np.argsort(row, kind="stable")
    is_new = np.diff(row[order], prepend=-1) != 0
    slot, start, first = (np.empty(rows.size, np.int64) for _ in range(3))
    slot[order] = _running(np.ones_like(order), is_new)
    start[order] = _running(length[order], is_new)
    first[order] = _running(response_length[order], is_new)
    return Arrangement(shape, row, slot, start, first)


def _running(values: np.ndarray, is_new: np.ndarray) -> np.ndarray:
    """The sum of the values before each one, beginning again at 0 wherever `is_new`."""
    before = np.cumsum(values) - values
    return before - before[is_new][np.cumsum(is_new) - 1]


def pack(
    rows: types.Trajectories, mesh: Mesh, *, config: config_lib.Config, arrangement: Arrangement | None = None
) -> Batch:
    """The device batch of these trajectories, arguments as for `arrange`.

    Its shapes depend on the longest trajectory and the settings, not on how many trajectories there are.
    """
    where = arrangement or arrange(rows, mesh, config=config)
    shape, total = where.shape, where.shape.micro_batches * where.shape.rows
    length, response_length = rows.length.astype(np.int64), rows.response_length.astype(np.int64)
    # One entry for each token, and one for each response token: row, column, and what stands there.
    offset, response_offset = _offsets(length), _offsets(response_length)
    token_row, column = np.repeat(where.row, length), np.repeat(where.start, length) + offset
    response_row = np.repeat(where.row, response_length)
    response_column = np.repeat(where.first, response_length) + response_offset
    target = np.repeat(where.start + rows.prompt_length, response_length) + response_offset

    def of_tokens(values: np.ndarray) -> np.ndarray:
        filled = np.zeros((total, shape.tokens), np.int32)
        filled[token_row, column] = values
        return filled

    def of_responses(values: np.ndarray, empty: float, dtype: Any) -> np.ndarray:
        filled = np.full((total, shape.responses), empty, dtype)
        filled[response_row, response_column] = values
        return filled

    def of_slots(values: np.ndarray) -> np.ndarray:
        filled = np.zeros((total, shape.slots), values.dtype)
        filled[where.row, where.slot] = values
        return filled

    fields: dict[str, np.ndarray] = {
        "tokens": of_tokens(rows.tokens),
        "positions": of_tokens(offset),
        "segment_ids": of_tokens(np.repeat(where.slot + 1, length)),
        "target_index": of_responses(target, 1, np.int32),
        "slot": of_responses(np.repeat(where.slot, response_length), shape.slots, np.int32),
        "behaviour_log_prob": of_responses(rows.log_prob, 0.0, np.float32),
        "first": of_slots(where.first.astype(np.int32)),
        "response_length": of_slots(rows.response_length),
        "reward": of_slots(rows.reward),
        "reference_log_prob": of_slots(rows.reference_log_prob),
        "reference_value": of_slots(rows.reference_value),
    }
    placed = {
        name: mesh_lib.put(value.reshape(shape.micro_batches, shape.rows, -1), sharding(mesh))
        for name, value in fields.items()
    }
    counts = {
        "num_micro_batches": np.int32(where.row.max() // shape.rows + 1),
        "num_trajectories": np.float32(rows.size),
        "num_response_tokens": np.float32(response_length.sum()),
    }
    return Batch(**placed, **mesh_lib.put(counts, mesh_lib.replicated(mesh)))


def micro_batch(rows: Batch, index: jax.Array | int) -> Batch:
    """One micro-batch: every field without its leading axis M, the batch's counts as they are."""
    return jax.tree.map(lambda field: field[index] if field.ndim else field, rows)


def per_trajectory(values: np.ndarray, where: Arrangement) -> np.ndarray:
    """[B] from a batch's [M, R, S], on the host, in the trajectories' order."""
    return values.reshape(-1, where.shape.slots)[where.row, where.slot]


def abstract(shape: Shape, mesh: Mesh) -> Batch:
    """Shapes and placement of what `pack` makes: for compiling without trajectories."""
    per_token, per_response, per_slot = (
        (jax.ShapeDtypeStruct((shape.micro_batches, shape.rows, size), np.int32, sharding=sharding(mesh)))
        for size in (shape.tokens, shape.responses, shape.slots)
    )
    whole = mesh_lib.replicated(mesh)
    count: Any = jax.ShapeDtypeStruct((), np.float32, sharding=whole)
    fields: dict[str, Any] = {
        "tokens": per_token,
        "positions": per_token,
        "segment_ids": per_token,
        "target_index": per_response,
        "slot": per_response,
        "behaviour_log_prob": per_response.update(dtype=np.float32),
        "first": per_slot,
        "response_length": per_slot,
        "reward": per_slot.update(dtype=np.float32),
        "reference_log_prob": per_slot.update(dtype=np.float32),
        "reference_value": per_slot.update(dtype=np.float32),
        "num_micro_batches": count.update(dtype=np.int32),
        "num_trajectories": count,
        "num_response_tokens": count,
    }
    return Batch(**fields)


def specs() -> Batch:
    """How each field is split over the learner's mesh: rows over data and fsdp."""
    rows, whole = PartitionSpec(None, mesh_lib.ROWS), PartitionSpec()
    scalars = ("num_micro_batches", "num_trajectories", "num_response_tokens")
    return Batch(**{name: whole if name in scalars else rows for name in Batch._fields})  # type: ignore[arg-type]


def sharding(mesh: Mesh) -> NamedSharding:
    """Where the rows of a batch lie."""
    return NamedSharding(mesh, PartitionSpec(None, mesh_lib.ROWS))


def _offsets(lengths: np.ndarray) -> np.ndarray:
    """0, 1, … for each of the ragged rows, end to end."""
    starts = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) - np.repeat(starts, lengths)
