"""Replay rows → one fixed-shape, packed device batch, split into micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from reval_jax import config as config_lib
from reval_jax import mesh as mesh_lib
from reval_jax import ragged, types


class Batch(NamedTuple):
    """One optimizer step's trajectories: M micro-batches of R rows of T tokens; a row holds up to S whole trajectories.

    A trajectory occupies one slot of one row, so that its residual is squared after its sum. The response tokens of a row,
    of all its trajectories, are also listed one after the other in C columns: these reach the score head. Rows and slots
    without a trajectory have response_length 0 and add nothing.
    """

    tokens: jax.Array  # i32[M, R, T] prompt, response, prompt, response, …, zeros
    positions: jax.Array  # i32[M, R, T] 0, 1, … from the start of each trajectory
    segment_ids: jax.Array  # i32[M, R, T] slot + 1; 0 where there is no trajectory
    target_index: jax.Array  # i32[M, R, C] column in the row of each response token; 1 past the last
    slot: jax.Array  # i32[M, R, C] slot of each response token; S past the last
    behaviour_log_prob: jax.Array  # f32[M, R, C] nats, of the sampler; 0 past the last
    token_values: jax.Array  # f32[M, R, C, K] what the algorithm keeps per response token; 0 past the last
    first: jax.Array  # i32[M, R, S] which of the C columns is the trajectory's first response token
    response_length: jax.Array  # i32[M, R, S] tokens; 0 in an empty slot
    reward: jax.Array  # f32[M, R, S] shaped reward, or GRPO's advantage
    reference_log_prob: jax.Array  # f32[M, R, S] nats, log pi_ref(tau)
    reference_value: jax.Array  # f32[M, R, S] nats, V_ref(s1)
    weight: jax.Array  # f32[M, R, S] importance weight of a prioritized draw, else 1; 0 in an empty slot
    num_micro_batches: jax.Array  # i32[] micro-batches to run, at most M
    num_trajectories: jax.Array  # f32[] of the whole batch: the denominator of a mean over trajectories
    num_response_tokens: jax.Array  # f32[] of the whole batch: the denominator of a mean over response tokens


class Shape(NamedTuple):
    """The static sizes of a batch: they follow from the row length, the limits and the mesh, from nothing else."""

    micro_batches: int  # M
    rows: int  # R, of all devices together
    tokens: int  # T
    responses: int  # C, response tokens of a row
    slots: int  # S
    token_values: int = 0  # K


class Limits(NamedTuple):
    """Bounds of a batch."""

    trajectories: int  # of one optimizer step: bounds M
    micro_batch_tokens: int  # tokens a device trains on at once: bounds R, which is at least one row a device
    response_tokens: int  # of the longest response: bounds C
    token_values: int = 0  # numbers per response token that the algorithm keeps: K


class Arrangement(NamedTuple):
    """The place of each of B trajectories in a batch."""

    shape: Shape
    row: np.ndarray  # i64[B] row, counted through the micro-batches
    slot: np.ndarray  # i64[B]
    start: np.ndarray  # i64[B] column of its first token
    first: np.ndarray  # i64[B] which of the C columns is its first response token


Packer = Callable[[np.ndarray, np.ndarray, Shape], np.ndarray]
"""(length i64[B], response_length i64[B], shape) → row i64[B]: spreads trajectories over rows."""


def limits(config: config_lib.Config, *, step_size: int, token_values: int = 0) -> Limits:
    """The bounds of a batch of `step_size` trajectories, with `token_values` numbers per response token."""
    return Limits(step_size, config.update.micro_batch_tokens, config.rollout.max_response_tokens, token_values)


def row_length(length: int) -> int:
    """The compiled row length, in tokens, for a longest trajectory of `length` tokens.

    Lengths are multiples of 16 up to 128, then four steps to each doubling, so that padding stays below a quarter and
    the number of compiled programs below 4·log2(T / 128) + 8, T the longest row.
    """
    step = 16 if length <= 128 else 1 << (int(length - 1).bit_length() - 3)
    return -(-length // step) * step


def shape_of(num_tokens: int, num_shards: int, *, limits: Limits) -> Shape:
    """The sizes of a batch with rows of `num_tokens` on `num_shards` devices.

    R rows are within `micro_batch_tokens` a device, at least one a device. M suffices even if no two trajectories share a row.
    """
    most = -(-limits.trajectories // num_shards) * num_shards
    rows = min(max(1, limits.micro_batch_tokens // num_tokens) * num_shards, most)
    responses = min(num_tokens, limits.response_tokens)
    # More slots would only widen the [R, S] arrays.
    return Shape(
        -(-most // rows),
        rows,
        num_tokens,
        responses,
        slots=ragged.row_slots(num_tokens),
        token_values=limits.token_values,
    )


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


def one_per_row(length: np.ndarray, response_length: np.ndarray, shape: Shape) -> np.ndarray:
    """Every trajectory in a row of its own: the baseline that packing is measured against."""
    return np.arange(length.shape[0])


def arrange(trajectories: types.Trajectories, mesh: Mesh, *, limits: Limits, packer: Packer = first_fit) -> Arrangement:
    """The place of each trajectory: a pure function of their lengths, so that all processes compute the same one.

    Args:
      trajectories: B of them, 1 to `limits.trajectories`.
      mesh: the learner's; R is spread over its data and fsdp axes.

    Raises:
      ValueError: more trajectories than one optimizer step takes.
    """
    if trajectories.size > limits.trajectories:
        raise ValueError(
            f"a batch of {trajectories.size} trajectories, but one optimizer step takes at most "
            f"{limits.trajectories}. Draw fewer an update, or raise the algorithm's step_size."
        )
    length, response_length = trajectories.length.astype(np.int64), trajectories.response_length.astype(np.int64)
    shape = shape_of(row_length(int(length.max())), mesh_lib.num_row_shards(mesh), limits=limits)
    row = packer(length, response_length, shape)
    order = np.argsort(row, kind="stable")
    is_new = np.diff(row[order], prepend=-1) != 0
    slot, start, first = (np.empty(trajectories.size, np.int64) for _ in range(3))
    slot[order] = _running(np.ones_like(order), is_new)
    start[order] = _running(length[order], is_new)
    first[order] = _running(response_length[order], is_new)
    return Arrangement(shape, row, slot, start, first)


def _running(values: np.ndarray, is_new: np.ndarray) -> np.ndarray:
    """The sum of the values before each one, beginning again at 0 wherever `is_new`."""
    before = np.cumsum(values) - values
    return before - before[is_new][np.cumsum(is_new) - 1]


class _Source(NamedTuple):
    """The trajectories of a batch and the place of every token: the source of the fields' values."""

    trajectories: types.Trajectories
    weight: np.ndarray  # f32[B]
    place: Arrangement
    offset: np.ndarray  # i64[all tokens] 0, 1, … within each trajectory
    response_offset: np.ndarray  # i64[all response tokens] 0, 1, … within each response

    def per_response_token(self, values: np.ndarray) -> np.ndarray:
        """Each trajectory's value, once for each of its response tokens."""
        return np.repeat(values, self.trajectories.response_length)


class _Field(NamedTuple):
    """One array of a batch, [M, R, size] or [M, R, size, K], and the values it is filled with."""

    size: Literal["tokens", "responses", "slots"]  # the size, of `Shape`, of its last axis
    dtype: type[np.generic]
    values: Callable[[_Source], np.ndarray]  # one a token, a response token or a trajectory, end to end
    empty: Callable[[Shape], int] = lambda _: 0  # the value everywhere else
    has_columns: bool = False  # whether it holds K numbers for each, not one

    def shape(self, shape: Shape) -> tuple[int, ...]:
        """The sizes of the axes after M and R."""
        columns = (shape.token_values,) if self.has_columns else ()
        return (getattr(shape, self.size), *columns)


_FIELDS = {
    "tokens": _Field("tokens", np.int32, lambda s: s.trajectories.tokens),
    "positions": _Field("tokens", np.int32, lambda s: s.offset),
    "segment_ids": _Field("tokens", np.int32, lambda s: np.repeat(s.place.slot + 1, s.trajectories.length)),
    "target_index": _Field(
        "responses",
        np.int32,
        lambda s: s.per_response_token(s.place.start + s.trajectories.prompt_length) + s.response_offset,
        lambda _: 1,
    ),
    "slot": _Field("responses", np.int32, lambda s: s.per_response_token(s.place.slot), lambda shape: shape.slots),
    "behaviour_log_prob": _Field("responses", np.float32, lambda s: s.trajectories.log_prob),
    "token_values": _Field("responses", np.float32, lambda s: s.trajectories.token_values, has_columns=True),
    "first": _Field("slots", np.int32, lambda s: s.place.first),
    "response_length": _Field("slots", np.int32, lambda s: s.trajectories.response_length),
    "reward": _Field("slots", np.float32, lambda s: s.trajectories.reward),
    "reference_log_prob": _Field("slots", np.float32, lambda s: s.trajectories.reference_log_prob),
    "reference_value": _Field("slots", np.float32, lambda s: s.trajectories.reference_value),
    "weight": _Field("slots", np.float32, lambda s: s.weight),
}
"""Every array of a batch; `pack`, `abstract`, `abstract_micro_batch` and `specs` read this table and no other."""


class _Count(NamedTuple):
    """One scalar of a batch."""

    dtype: type[np.generic]
    value: Callable[[_Source], int]


_COUNTS = {
    "num_micro_batches": _Count(np.int32, lambda s: int(s.place.row.max()) // s.place.shape.rows + 1),
    "num_trajectories": _Count(np.float32, lambda s: s.trajectories.size),
    "num_response_tokens": _Count(np.float32, lambda s: s.response_offset.size),
}


def pack(
    trajectories: types.Trajectories,
    mesh: Mesh,
    *,
    limits: Limits,
    arrangement: Arrangement | None = None,
    weight: np.ndarray | None = None,
) -> Batch:
    """The device batch of these trajectories, arguments as for `arrange`.

    Its shapes depend on the longest trajectory and the limits, not on the number of trajectories.

    Args:
      weight: f32[B] importance weights; None for 1 each.
    """
    place = arrangement or arrange(trajectories, mesh, limits=limits)
    shape = place.shape
    length, response_length = trajectories.length.astype(np.int64), trajectories.response_length.astype(np.int64)
    weight = np.ones(trajectories.size, np.float32) if weight is None else weight
    source = _Source(trajectories, weight, place, ragged.offsets(length), ragged.offsets(response_length))
    # (row, column) of every token, of every response token, and (row, slot) of every trajectory.
    index = {
        "tokens": (np.repeat(place.row, length), np.repeat(place.start, length) + source.offset),
        "responses": _response_columns(place, response_length),
        "slots": (place.row, place.slot),
    }
    fields: dict[str, jax.Array] = {}
    for name, field in _FIELDS.items():
        sizes = field.shape(shape)
        filled = np.full((shape.micro_batches * shape.rows, *sizes), field.empty(shape), field.dtype)
        filled[index[field.size]] = field.values(source)
        fields[name] = mesh_lib.put(filled.reshape(shape.micro_batches, shape.rows, *sizes), sharding(mesh))
    for name, count in _COUNTS.items():
        fields[name] = mesh_lib.put(np.asarray(count.value(source), count.dtype), mesh_lib.replicated(mesh))
    return Batch(**fields)


def _response_columns(place: Arrangement, response_length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column, of C, of every response token, in the trajectories' order."""
    row, first = np.repeat(place.row, response_length), np.repeat(place.first, response_length)
    return row, first + ragged.offsets(response_length)


def micro_batch(rows: Batch, index: jax.Array | int) -> Batch:
    """One micro-batch: every field without its leading axis M, the batch's counts as they are."""
    return jax.tree.map(lambda field: field[index] if field.ndim else field, rows)


def per_response_token(values: jax.Array, rows: Batch) -> jax.Array:
    """[R, C] of a micro-batch: each trajectory's value, of [R, S], at its response tokens; any other value past the last."""
    # Columns past the last response token have slot S, which is out of range.
    return jnp.take_along_axis(values, jnp.minimum(rows.slot, values.shape[1] - 1), axis=1)


def per_trajectory(values: np.ndarray, arrangement: Arrangement) -> np.ndarray:
    """[B] from a batch's [M, R, S], on the host, in the trajectories' order."""
    return values.reshape(-1, arrangement.shape.slots)[arrangement.row, arrangement.slot]


def response_tokens(values: np.ndarray, arrangement: Arrangement, response_length: np.ndarray) -> np.ndarray:
    """[sum of response_length] from a batch's [M, R, C], on the host: each response's values, in the trajectories' order.

    Args:
      response_length: i32[B], of the trajectories that were arranged.
    """
    columns = _response_columns(arrangement, response_length.astype(np.int64))
    return values.reshape(-1, arrangement.shape.responses)[columns]


def abstract(shape: Shape, mesh: Mesh) -> Batch:
    """Shapes and placement of `pack`'s result: for compiling without trajectories."""
    rows, whole = sharding(mesh), mesh_lib.replicated(mesh)
    arrays = {
        name: jax.ShapeDtypeStruct((shape.micro_batches, shape.rows, *field.shape(shape)), field.dtype, sharding=rows)
        for name, field in _FIELDS.items()
    }
    counts = {name: jax.ShapeDtypeStruct((), count.dtype, sharding=whole) for name, count in _COUNTS.items()}
    return Batch(**arrays, **counts)  # type: ignore[arg-type]  # jax has no common type of arrays and their shapes


def abstract_micro_batch(shape: Shape) -> Batch:
    """Shapes of one micro-batch, placed nowhere: for checking a loss without a mesh."""
    arrays = {
        name: jax.ShapeDtypeStruct((shape.rows, *field.shape(shape)), field.dtype) for name, field in _FIELDS.items()
    }
    counts = {name: jax.ShapeDtypeStruct((), count.dtype) for name, count in _COUNTS.items()}
    return Batch(**arrays, **counts)  # type: ignore[arg-type]


def specs() -> Batch:
    """The split of each field over the learner's mesh: rows over data and fsdp."""
    rows, whole = PartitionSpec(None, mesh_lib.ROWS), PartitionSpec()
    return Batch(**{name: rows if name in _FIELDS else whole for name in Batch._fields})  # type: ignore[arg-type]


def sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch's arrays: rows over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(None, mesh_lib.ROWS))
