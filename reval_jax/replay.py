"""First-in, first-out replay buffer of trajectories in host memory, as pure functions over flat arrays.

Every host holds the same buffer and draws the same rows, because adding and sampling are functions of their arguments
alone. No function changes its arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from reval_jax import keys, ragged, types

_EMPTY = types.Trajectories(
    tokens=np.zeros(0, np.int32),
    log_prob=np.zeros(0, np.float32),
    token_values=np.zeros((0, 0), np.float32),
    prompt_length=np.zeros(0, np.int32),
    response_length=np.zeros(0, np.int32),
    is_truncated=np.zeros(0, np.bool_),
    raw_reward=np.zeros(0, np.float32),
    reward=np.zeros(0, np.float32),
    greedy_reward=np.zeros(0, np.float32),
    verdict=np.zeros(0, np.int8),
    row=np.zeros(0, np.int64),
    cursor=np.zeros(0, np.int64),
    sample=np.zeros(0, np.int32),
    round=np.zeros(0, np.int32),
    policy_version=np.zeros(0, np.int32),
    use_count=np.zeros(0, np.int32),
    priority=np.zeros(0, np.float32),
    reference_log_prob=np.zeros(0, np.float32),
    reference_value=np.zeros(0, np.float32),
    reference_version=np.zeros(0, np.int32),
)
_RESPONSE_FIELDS = ("log_prob", "token_values")
_ROW_FIELDS = tuple(name for name in types.Trajectories._fields if name not in ("tokens", *_RESPONSE_FIELDS))


class Buffer(NamedTuple):
    """At most `capacity` trajectories, the oldest first."""

    trajectories: types.Trajectories
    capacity: int


def empty() -> types.Trajectories:
    """No trajectories, with the dtype of every field."""
    return _EMPTY


def completed(fields: dict[str, np.ndarray]) -> types.Trajectories:
    """Trajectories from some of their fields: empty ones, and those that earlier versions did not have, may be missing."""
    if not fields:  # no trajectory: of every field there is nothing
        return _EMPTY
    size, num_response_tokens = len(fields["prompt_length"]), int(fields["response_length"].sum(dtype=np.int64))
    missing = {
        name: np.zeros((num_response_tokens if name in _RESPONSE_FIELDS else size, *model.shape[1:]), model.dtype)
        for name, model in _EMPTY._asdict().items()
    }
    missing["row"] = np.full(size, types.UNKNOWN_ROW, np.int64)
    missing["priority"] = np.full(size, types.NEW, np.float32)
    return types.Trajectories(**missing | fields)


def gather(trajectories: types.Trajectories, rows: np.ndarray) -> types.Trajectories:
    """The trajectories at `rows` i[n], in that order; a row may occur several times.

    Raises:
      ValueError: a row outside [0, size).
    """
    rows = _checked_rows(trajectories, rows)
    token_index = ragged.indices(trajectories.length, rows)
    response_index = ragged.indices(trajectories.response_length, rows)
    fields = {name: getattr(trajectories, name)[rows] for name in _ROW_FIELDS}
    fields |= {name: getattr(trajectories, name)[response_index] for name in _RESPONSE_FIELDS}
    return types.Trajectories(tokens=trajectories.tokens[token_index], **fields)


def concatenate(parts: Sequence[types.Trajectories]) -> types.Trajectories:
    """The trajectories of all parts, in order; of no parts, none."""
    filled = [part for part in parts if part.size]
    if not filled:
        return _EMPTY
    return types.Trajectories(*(np.concatenate(fields) for fields in zip(*filled, strict=True)))


def stale(trajectories: types.Trajectories, rows: np.ndarray, version: int) -> np.ndarray:
    """Those of `rows` i64[n], in their order, whose reference scores are missing or not of reference `version`."""
    return rows[trajectories.reference_version[rows] != version]


def init(capacity: int) -> Buffer:
    """An empty buffer for `capacity` trajectories.

    Raises:
      ValueError: a capacity below 1.
    """
    if capacity < 1:
        raise ValueError(f"replay.capacity={capacity} holds no trajectory. Use at least 1.")
    return Buffer(empty(), capacity)


def add(buffer: Buffer, trajectories: types.Trajectories) -> Buffer:
    """The buffer with `trajectories` added as the newest, in their order; the oldest leave if it overflows.

    Raises:
      ValueError: more trajectories than the buffer holds, or fields that do not fit together.
    """
    if trajectories.size > buffer.capacity:
        raise ValueError(
            f"replay.capacity={buffer.capacity} is smaller than the {trajectories.size} trajectories added at once, "
            f"so some would leave unused. Set replay.capacity to at least {trajectories.size}."
        )
    _check_shapes(trajectories)
    surplus = max(0, buffer.trajectories.size + trajectories.size - buffer.capacity)
    kept = gather(buffer.trajectories, np.arange(surplus, buffer.trajectories.size))
    return buffer._replace(trajectories=concatenate([kept, trajectories]))


def of_round(buffer: Buffer, round: int) -> np.ndarray:
    """i64[n], the rows that were added in this round, in their order."""
    return np.flatnonzero(buffer.trajectories.round == round)


def sample(buffer: Buffer, key: jax.Array, n: int) -> np.ndarray:
    """i64[n], n different rows, every ordered choice equally likely; depends on (key, size, n) only.

    Args:
      key: typed threefry2x32 key; consumed.

    Raises:
      ValueError: n is negative or larger than the buffer.
    """
    check_draw(buffer, n)
    return keys.host_permutation(key, buffer.trajectories.size)[:n]


def check_draw(buffer: Buffer, n: int) -> None:
    """Refuse to draw more rows than there are.

    Raises:
      ValueError: n is negative or larger than the buffer.
    """
    size = buffer.trajectories.size
    if not 0 <= n <= size:
        raise ValueError(
            f"update.batch_size={n} cannot be drawn without replacement from a buffer that holds {size} trajectories. "
            f"Use at most {size}."
        )


def with_values(buffer: Buffer, rows: np.ndarray, **fields: np.ndarray) -> Buffer:
    """The buffer with new numbers of these fields, of one number per trajectory, at `rows` i[n].

    Raises:
      ValueError: a row outside the buffer, or numbers of values and rows that differ.
    """
    rows, old = _checked_rows(buffer.trajectories, rows), buffer.trajectories
    for name, values in fields.items():
        if np.shape(values) != rows.shape:
            raise ValueError(f"{name} of shape {np.shape(values)} for {len(rows)} rows. Pass one number for every row.")
    changed = {name: _with_values(getattr(old, name), rows, values) for name, values in fields.items()}
    return buffer._replace(trajectories=old._replace(**changed))


def with_reference_scores(
    buffer: Buffer, rows: np.ndarray, log_prob: np.ndarray, value: np.ndarray, version: int
) -> Buffer:
    """The buffer with log pi_ref(tau) f32[n] and V_ref(s1) f32[n], in nats, of reference `version` at `rows` i[n].

    Raises:
      ValueError: a row outside the buffer, or numbers of scores and rows that differ.
    """
    rows = _checked_rows(buffer.trajectories, rows)
    if np.shape(log_prob) != rows.shape or np.shape(value) != rows.shape:
        raise ValueError(
            f"reference scores of shapes {np.shape(log_prob)} and {np.shape(value)} for {len(rows)} rows. Pass one "
            "number of each for every row."
        )
    old = buffer.trajectories
    return buffer._replace(
        trajectories=old._replace(
            reference_log_prob=_with_values(old.reference_log_prob, rows, log_prob),
            reference_value=_with_values(old.reference_value, rows, value),
            reference_version=_with_values(old.reference_version, rows, version),
        )
    )


def with_uses(buffer: Buffer, rows: np.ndarray) -> Buffer:
    """The buffer with one more use of each of `rows`, which must differ.

    Raises:
      ValueError: a row outside the buffer, or one that occurs twice.
    """
    rows = _checked_rows(buffer.trajectories, rows)
    if len(np.unique(rows)) != len(rows):
        raise ValueError(
            "a row occurs twice in one batch, but a batch is drawn without replacement. Pass different rows."
        )
    old = buffer.trajectories
    return buffer._replace(
        trajectories=old._replace(use_count=_with_values(old.use_count, rows, old.use_count[rows] + 1))
    )


def _with_values(array: np.ndarray, rows: np.ndarray, values: np.ndarray | int) -> np.ndarray:
    changed = array.copy()
    changed[rows] = values
    return changed


def _checked_rows(trajectories: types.Trajectories, rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.int64)
    # NumPy would read -1 as the last row.
    if rows.size and (rows.min() < 0 or rows.max() >= trajectories.size):
        raise ValueError(
            f"rows {rows.min()} to {rows.max()} of {trajectories.size} trajectories. Rows count from 0 to size - 1."
        )
    return rows


def _check_shapes(trajectories: types.Trajectories) -> None:
    expected = dict.fromkeys(_ROW_FIELDS, trajectories.size)
    expected["tokens"] = int(trajectories.length.sum(dtype=np.int64))
    expected |= dict.fromkeys(_RESPONSE_FIELDS, int(trajectories.response_length.sum(dtype=np.int64)))
    for name, field, model in zip(types.Trajectories._fields, trajectories, _EMPTY, strict=True):
        if field.shape[:1] != (expected[name],) or field.ndim != model.ndim or field.dtype != model.dtype:
            raise ValueError(
                f"trajectories.{name} is {field.dtype}{list(field.shape)}, but {trajectories.size} trajectories of "
                f"these lengths need {model.dtype}[{expected[name]}]. Build every field from the same rollout."
            )
