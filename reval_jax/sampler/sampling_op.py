"""One token from each row of logits: exact, from few random numbers, and without gathering a split vocabulary.

Two-level Gumbel-max: the vocabulary is cut into groups of 256 tokens; the group is the argmax of log(its mass) + Gumbel
noise, then the token the argmax over that group's logits + Gumbel noise. The product of the two probabilities is the
softmax, and V / 256 + 256 random numbers do the work of V. Against one uniform number and a running sum (inverse CDF) it
keeps what makes Gumbel-max robust: an error in one logit moves one boundary, not those of all tokens that follow it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

GROUP = 256  # tokens; near the square root of the vocabulary, which needs the fewest random numbers


class SamplingParams(NamedTuple):
    """How a token is sampled, as device scalars: changing them compiles nothing, unless `Case.truncates` does."""

    temperature: jax.Array | float = 1.0  # logits are divided by it
    top_k: jax.Array | int = 0  # tokens kept; 0 keeps all
    top_p: jax.Array | float = 1.0  # probability mass kept of what top_k left; 1 keeps all


class Case(NamedTuple):
    """What a program that samples tokens is compiled for; hashable."""

    truncates: bool | None = None  # whether its settings truncate, as `is_truncating` tells; None decides when it runs
    records_mean_log_prob: bool = False  # whether it computes `TokenSample.mean_log_prob`


ANY_CASE = Case()


class TokenSample(NamedTuple):
    """One token per row, with its log-probabilities in nats."""

    token: jax.Array  # i32[B]
    log_prob: jax.Array  # f32[B] under softmax(logits / temperature)
    truncated_log_prob: jax.Array  # f32[B] under the distribution truncated by top_k and top_p, renormalised
    # f32[B] mean of log softmax(logits / temperature) over the vocabulary; None where it is not asked for
    mean_log_prob: jax.Array | None = None


class _Truncation(NamedTuple):
    """The tokens that truncation keeps: those above a logit, and those of exactly that logit up to a token id."""

    level: jax.Array  # u32[B, 1] `_ordered` of the lowest logit kept
    last_id: jax.Array  # i32[B, 1]

    def keeps(self, logits: jax.Array, ids: jax.Array) -> jax.Array:
        """bool, of logits [B, n] whose token ids are [1, n] or [B, n]."""
        level = _ordered(logits)
        return (level > self.level) | ((level == self.level) & (ids <= self.last_id))


class _Vocabulary(NamedTuple):
    """This device's part of the vocabulary, and how to add up over all parts."""

    first: jax.Array | int  # token id of the first column
    size: int  # tokens of all parts
    axis: str | None  # mesh axis that the vocabulary is split over

    def sum(self, part: jax.Array) -> jax.Array:
        return jax.lax.psum(part, self.axis) if self.axis else part

    def max(self, part: jax.Array) -> jax.Array:
        return jax.lax.pmax(part, self.axis) if self.axis else part

    @property
    def num_groups(self) -> int:
        return -(-self.size // GROUP)


def sample_token(
    keys: jax.Array,
    logits: jax.Array,
    sampling: SamplingParams,
    *,
    axis: str | None = None,
    case: Case = ANY_CASE,
) -> TokenSample:
    """Samples one token per row.

    Of tokens with equal logits at the edge of `top_k` or `top_p`, those with lower ids are kept. The most probable token
    is always kept.

    Args:
      keys: [B] typed keys, one per row.
      logits: f32[B, V]; inside a `shard_map`, this device's columns.
      axis: the mesh axis that the columns are split over, in order. Only one number per group and a few per row
        cross it.
      case: static. Every column counts in the mean log-probability as in the others, also one that belongs to no token.
    """
    width = logits.shape[1]
    parts = jax.lax.axis_size(axis) if axis else 1
    vocabulary = _Vocabulary(jax.lax.axis_index(axis) * width if axis else 0, width * parts, axis)
    ids = vocabulary.first + jnp.arange(width, dtype=jnp.int32)[None]
    scaled = logits / sampling.temperature
    row_max = vocabulary.max(scaled.max(axis=1, keepdims=True))
    weights = jnp.exp(scaled - row_max)
    full_masses = _group_sums(weights, vocabulary)

    def truncated() -> tuple[_Truncation, jax.Array]:
        truncation = _truncate(scaled, weights, ids, sampling, vocabulary)
        return truncation, _group_sums(jnp.where(truncation.keeps(scaled, ids), weights, 0.0), vocabulary)

    def full() -> tuple[_Truncation, jax.Array]:
        rows = (logits.shape[0], 1)
        return _Truncation(jnp.zeros(rows, jnp.uint32), jnp.full(rows, vocabulary.size, jnp.int32)), full_masses

    if case.truncates is None:
        truncation, masses = jax.lax.cond(is_truncating(sampling), truncated, full)
    else:
        truncation, masses = truncated() if case.truncates else full()

    num_groups = vocabulary.num_groups
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (num_groups + GROUP,), jnp.float32))(keys)
    group = jnp.argmax(jnp.log(masses) + noise[:, :num_groups], axis=1).astype(jnp.int32)
    members = group[:, None] * GROUP + jnp.arange(GROUP, dtype=jnp.int32)[None]
    candidates = _columns(scaled, members, vocabulary)
    is_kept = (members < vocabulary.size) & truncation.keeps(candidates, members)
    place = jnp.argmax(jnp.where(is_kept, candidates + noise[:, num_groups:], -jnp.inf), axis=1)
    chosen = jnp.take_along_axis(candidates, place[:, None], axis=1) - row_max
    log_prob, truncated_log_prob = (
        (chosen - jnp.log(mass.sum(axis=1, keepdims=True)))[:, 0] for mass in (full_masses, masses)
    )
    mean_log_prob = None
    if case.records_mean_log_prob:
        # Both terms are relative to the row's maximum, so that no digits cancel; sums by group round less than one long sum.
        mean = _group_sums(scaled - row_max, vocabulary).sum(axis=1) / vocabulary.size
        mean_log_prob = mean - jnp.log(full_masses.sum(axis=1))
    return TokenSample(group * GROUP + place.astype(jnp.int32), log_prob, truncated_log_prob, mean_log_prob)


def is_truncating(sampling: SamplingParams) -> Any:
    """Whether top_k or top_p leaves tokens out: a bool, or bool[] of traced settings."""
    return (sampling.top_k > 0) | (sampling.top_p < 1.0)


def _group_sums(values: jax.Array, vocabulary: _Vocabulary) -> jax.Array:
    """f32[B, groups], the sum of each group's values over all parts."""
    rows, width = values.shape
    if vocabulary.axis is None:
        padded = jnp.pad(values, ((0, 0), (0, vocabulary.num_groups * GROUP - width)))
        return padded.reshape(rows, -1, GROUP).sum(axis=2)
    # A part may begin and end inside a group.
    local_groups = -(-width // GROUP) + 1
    aligned = jax.lax.dynamic_update_slice(
        jnp.zeros((rows, local_groups * GROUP), jnp.float32), values, (0, vocabulary.first % GROUP)
    )
    local = aligned.reshape(rows, local_groups, GROUP).sum(axis=2)
    spread = jnp.zeros((rows, vocabulary.num_groups + local_groups), jnp.float32)
    spread = jax.lax.dynamic_update_slice(spread, local, (0, vocabulary.first // GROUP))
    return vocabulary.sum(spread)[:, : vocabulary.num_groups]


def _columns(values: jax.Array, ids: jax.Array, vocabulary: _Vocabulary) -> jax.Array:
    """`values` at token ids i32[B, n] on every device; 0 at ids beyond the vocabulary."""
    column = ids - vocabulary.first
    is_local = (column >= 0) & (column < values.shape[1])
    picked = jnp.take_along_axis(values, jnp.where(is_local, column, 0), axis=1)
    return vocabulary.sum(jnp.where(is_local, picked, 0.0))


def _truncate(
    scaled: jax.Array, weights: jax.Array, ids: jax.Array, sampling: SamplingParams, vocabulary: _Vocabulary
) -> _Truncation:
    """Truncation by top_k, then by top_p among the tokens left: bisects the logits' bits, without sorting."""
    order = _ordered(scaled)

    def count(is_in: jax.Array) -> jax.Array:
        return vocabulary.sum(is_in.sum(axis=1, keepdims=True, dtype=jnp.int32))

    def mass(is_in: jax.Array) -> jax.Array:
        return vocabulary.sum(jnp.where(is_in, weights, 0.0).sum(axis=1, keepdims=True))

    def nth_id(is_tied: jax.Array, number: jax.Array) -> jax.Array:
        """The id of the tied token with this number, counted from 1."""
        bits = vocabulary.size.bit_length()
        last = _largest(bits, lambda id_: count(is_tied & (ids < id_.astype(jnp.int32))) < number, order.shape[0])
        return last.astype(jnp.int32)

    top_k = jnp.where(jnp.asarray(sampling.top_k) > 0, sampling.top_k, vocabulary.size)
    level = _largest(32, lambda level: count(order >= level) >= jnp.minimum(top_k, vocabulary.size), order.shape[0])
    by_top_k = _Truncation(level, nth_id(order == level, top_k - count(order > level)))
    is_left = by_top_k.keeps(scaled, ids)
    target_mass = sampling.top_p * mass(is_left)
    level = _largest(32, lambda level: mass(is_left & (order >= level)) >= target_mass, order.shape[0])
    is_tied = is_left & (order == level)
    num_tied = count(is_tied)
    tied_weight = mass(is_tied) / jnp.maximum(num_tied, 1).astype(jnp.float32)
    num_needed = jnp.ceil((target_mass - mass(is_left & (order > level))) / tied_weight).astype(jnp.int32)
    # Weights that underflowed to 0 add no mass: all of them are kept, and none can be sampled.
    number = jnp.where(tied_weight > 0, jnp.clip(num_needed, 1, num_tied), num_tied)
    by_top_p = _Truncation(level, nth_id(is_tied, number))
    has_top_p = jnp.asarray(sampling.top_p) < 1.0  # Without it, rounding could leave out tokens that top_k keeps.
    return _Truncation(*(jnp.where(has_top_p, *both) for both in zip(by_top_p, by_top_k, strict=True)))


def _largest(num_bits: int, holds: Callable[[jax.Array], jax.Array], rows: int) -> jax.Array:
    """The largest u32[B, 1] below 2**num_bits for which `holds` (bool[B, 1]), true at 0 and monotone, is true."""

    def with_bit(index: jax.Array, largest: jax.Array) -> jax.Array:
        candidate = largest | (jnp.uint32(1) << (num_bits - 1 - index).astype(jnp.uint32))
        return jnp.where(holds(candidate), candidate, largest)

    return jax.lax.fori_loop(0, num_bits, with_bit, jnp.zeros((rows, 1), jnp.uint32))


def _ordered(values: jax.Array) -> jax.Array:
    """u32 in the order of the f32 `values`; -0 and 0 are one."""
    sign = jnp.uint32(1 << 31)
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    # -0 is told by its bits: the compiler simplifies `values + 0.0` to `values`.
    return jnp.where(bits > sign, ~bits, bits | sign)
