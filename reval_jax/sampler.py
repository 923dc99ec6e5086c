"""Prefill and decode: prompts → sampled responses with their log-probabilities."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from reval_jax import batch, model, scores, types
from reval_jax import mesh as mesh_lib


@dataclasses.dataclass(frozen=True)
class Engine:
    """What the sampler's programs are compiled for."""

    architecture: model.Architecture
    mesh: Mesh  # this process's devices, axes (rows, tensor)
    compute_dtype: str
    max_response_tokens: int  # tokens, the end-of-sequence token included
    decode_slots: int  # responses decoded at once
    stop_ids: tuple[int, ...]  # token ids that end a response


class Sampling(NamedTuple):
    """How a token is drawn; runtime values, so that changing them compiles nothing."""

    temperature: float = 1.0  # logits are divided by it
    top_k: int = 0  # tokens kept; 0 keeps all
    top_p: float = 1.0  # probability mass kept; 1 keeps all


class _Decoding(NamedTuple):
    step: jax.Array  # i32[] response tokens sampled so far
    cache: model.Cache
    tokens: jax.Array  # i32[S, C]
    log_prob: jax.Array  # f32[S, C]
    length: jax.Array  # i32[S]
    is_finished: jax.Array  # bool[S]


def make(
    architecture: model.Architecture,
    mesh: Mesh,
    *,
    compute_dtype: str,
    max_response_tokens: int,
    decode_slots: int,
    stop_ids: tuple[int, ...],
) -> Engine:
    """The engine for this process's part of the learner's mesh.

    Raises:
      ValueError: the slots do not divide over the process's devices.
    """
    local = mesh_lib.local(mesh)
    shards = local.shape["rows"]
    if decode_slots % shards:
        raise ValueError(
            f"rollout.decode_slots={decode_slots} does not divide over the {shards} devices that decode in this process. Use a "
            f"multiple of {shards}, for example {-(-decode_slots // shards) * shards}."
        )
    return Engine(architecture, local, compute_dtype, max_response_tokens, decode_slots, stop_ids)


def hand_over(params: Any, mesh: Mesh, engine: Engine) -> Any:
    """The sampler's copy of the learner's parameters: `compute_dtype`, whole on each process but for the tensor axis.

    One jitted cast whose outputs lie on the learner's devices in the learner's order; each process then rewraps the shards
    it holds on its own mesh, without a copy.
    """
    local, placement = engine.mesh, _copy_placement(mesh, engine)
    leaves, structure = jax.tree.flatten(params)
    copies = jax.tree.unflatten(structure, _cast_to(placement, params, engine)(leaves))
    order = {device: index for index, device in enumerate(local.devices.flat)}

    def rewrap(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
        shards = sorted(leaf.addressable_shards, key=lambda shard: order[shard.device])
        mine = NamedSharding(local, sharding.spec)
        return jax.make_array_from_single_device_arrays(leaf.shape, mine, [shard.data for shard in shards])

    return jax.tree.map(rewrap, copies, placement)


def _copy_placement(mesh: Mesh, engine: Engine) -> Any:
    """Where the learner's devices hold the sampler's copy, before each process rewraps its part."""
    hosts = mesh.devices.size // engine.mesh.devices.size
    spread = Mesh(mesh.devices.reshape(hosts, *engine.mesh.devices.shape), ("host", *engine.mesh.axis_names))
    return _placement(spread, engine)


def _placement(mesh: Mesh, engine: Engine) -> Any:
    axes, shapes = model.logical_axes(engine.architecture), model.abstract_params(engine.architecture)
    return mesh_lib.shardings(mesh, axes, shapes, mesh_lib.SAMPLER_AXES)


def _cast_to(placement: Any, params: Any, engine: Engine) -> Any:
    dtypes = model.compute_dtypes(params, engine.compute_dtype)
    return _cast(tuple(jax.tree.leaves(dtypes)), tuple(jax.tree.leaves(placement)))


@functools.lru_cache(maxsize=8)
def _cast(
    dtypes: tuple[Any, ...], placement: tuple[NamedSharding, ...]
) -> Callable[[list[jax.Array]], list[jax.Array]]:
    """The jitted cast of a list of arrays, compiled once for each set of dtypes and placements."""
    return jax.jit(
        lambda leaves: [leaf.astype(dtype) for leaf, dtype in zip(leaves, dtypes, strict=True)],
        out_shardings=list(placement),
    )


def generate(
    engine: Engine,
    params: Any,
    prompts: types.Prompts,
    key: jax.Array,
    *,
    samples_per_prompt: int,
    sampling: Sampling,
    on_progress: Callable[[int, int], None] | None = None,
) -> types.Rollout:
    """`samples_per_prompt` responses to each prompt, each drawn from softmax(Q), Q = logit / temperature.

    A prompt is prefilled once and its samples share the result. Every draw is keyed by (key, prompt cursor, sample,
    position), so it does not depend on slots, order or hosts. A response ends with a stop token, which belongs to it, or at
    `max_response_tokens`, and is then truncated. Log-probabilities are always those of the whole distribution.

    Args:
      params: from `hand_over`.
      prompts: n prompts, each of at least one token.
      key: a round's key (`keys.named_key(seed, purpose, round)`); consumed.
      on_progress: called with (responses done, responses in all) between programs.
    """
    num_prompts, total = len(prompts.tokens), len(prompts.tokens) * samples_per_prompt
    group_size = max(1, engine.decode_slots // samples_per_prompt)
    pieces: list[tuple[np.ndarray, ...]] = []
    for first in range(0, num_prompts, group_size):
        group = range(first, min(first + group_size, num_prompts))
        prefilled, lengths = _prefill_group(engine, params, prompts, group, group_size)
        rows = [(index - first, sample) for index in group for sample in range(samples_per_prompt)]
        for start in range(0, len(rows), engine.decode_slots):
            chunk = rows[start : start + engine.decode_slots]
            padding = [(0, 0)] * (engine.decode_slots - len(chunk))
            slot = np.array(chunk + padding, np.int32)
            row_keys = _row_keys(key, prompts.cursor[first + slot[:, 0]].astype(np.uint32), slot[:, 1])
            is_real = np.arange(engine.decode_slots) < len(chunk)
            sampled = _decode(
                params,
                prefilled,
                _rows(engine, lengths[slot[:, 0]]),
                _rows(engine, slot[:, 0]),
                _rows(engine, is_real),
                row_keys,
                sampling,
                engine=engine,
            )
            host = jax.device_get(sampled)
            pieces.append((slot[:, 0] + first, slot[:, 1], *host))
            pieces[-1] = tuple(array[: len(chunk)] for array in pieces[-1])
            if on_progress:
                on_progress(min(total, first * samples_per_prompt + start + len(chunk)), total)
    prompt, sample, tokens, log_prob, length = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    mask = np.arange(tokens.shape[1]) < length[:, None]
    ends = tokens[np.arange(total), length - 1]
    return types.Rollout(
        prompt=prompt.astype(np.int32),
        sample=sample.astype(np.int32),
        tokens=tokens[mask],
        log_prob=log_prob[mask],
        length=length,
        is_truncated=~np.isin(ends, np.array(engine.stop_ids, np.int32)),
    )


def _prefill_group(
    engine: Engine, params: Any, prompts: types.Prompts, group: range, group_size: int
) -> tuple[tuple[jax.Array, model.Cache], np.ndarray]:
    """The prefilled prompts of a group, padded to its fixed size with copies of the first, and their lengths."""
    shards = engine.mesh.shape["rows"]
    num_rows = -(-group_size // shards) * shards
    indices = [*group, *[group[0]] * (num_rows - len(group))]
    lengths = np.array([len(prompts.tokens[index]) for index in indices], np.int32)
    tokens = np.zeros((num_rows, batch.row_length(int(lengths.max()))), np.int32)
    for row, index in enumerate(indices):
        tokens[row, : lengths[row]] = prompts.tokens[index]
    return _prefill(params, _rows(engine, tokens), _rows(engine, lengths), engine=engine), lengths


def _rows(engine: Engine, values: np.ndarray) -> jax.Array:
    return jax.device_put(values, NamedSharding(engine.mesh, PartitionSpec("rows")))


@jax.jit
def _row_keys(key: jax.Array, cursor: jax.Array, sample: jax.Array) -> jax.Array:
    return jax.vmap(lambda c, s: jax.random.fold_in(jax.random.fold_in(key, c), s))(cursor, sample)


@functools.partial(jax.jit, static_argnames=("engine",))
def _prefill(params: Any, tokens: jax.Array, lengths: jax.Array, *, engine: Engine) -> tuple[jax.Array, model.Cache]:
    return model.prefill(
        engine.architecture,
        params,
        tokens,
        lengths,
        cache_length=tokens.shape[1],
        compute_dtype=engine.compute_dtype,
    )


@functools.partial(jax.jit, static_argnames=("engine",))
def _decode(
    params: Any,
    prefilled: tuple[jax.Array, model.Cache],
    prompt_length: jax.Array,
    prompt_of_slot: jax.Array,
    is_real: jax.Array,
    row_keys: jax.Array,
    sampling: Sampling,
    *,
    engine: Engine,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens i32[S, C], log-probabilities f32[S, C] and lengths i32[S] of one response a slot."""
    last_hidden, prompt_cache = prefilled
    capacity = engine.max_response_tokens
    head = model.head(engine.architecture, params, compute_dtype=engine.compute_dtype)
    stop_ids = jnp.array(engine.stop_ids, jnp.int32)

    def share(prompt_part: jax.Array) -> jax.Array:
        return jnp.pad(jnp.take(prompt_part, prompt_of_slot, axis=1), ((0, 0), (0, 0), (0, capacity), (0, 0), (0, 0)))

    def sample(state: _Decoding, hidden: jax.Array) -> _Decoding:
        logits = scores.head_product(hidden, head)
        step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(row_keys, state.step)
        token, log_prob = draw(step_keys, logits, sampling)
        return state._replace(
            step=state.step + 1,
            tokens=state.tokens.at[:, state.step].set(jnp.where(state.is_finished, 0, token)),
            log_prob=state.log_prob.at[:, state.step].set(jnp.where(state.is_finished, 0.0, log_prob)),
            length=state.length + (~state.is_finished).astype(jnp.int32),
            is_finished=state.is_finished | jnp.isin(token, stop_ids),
        )

    def advance(state: _Decoding) -> _Decoding:
        token = jax.lax.dynamic_index_in_dim(state.tokens, state.step - 1, axis=1, keepdims=False)
        hidden, cache = model.decode(
            engine.architecture,
            params,
            state.cache,
            token,
            # Token number `step` of the response stands behind the prompt and `step - 1` tokens.
            prompt_length + state.step - 1,
            compute_dtype=engine.compute_dtype,
        )
        return sample(state._replace(cache=cache), hidden)

    num_slots = prompt_length.shape[0]
    start = _Decoding(
        step=jnp.int32(0),
        cache=jax.tree.map(share, prompt_cache),
        tokens=jnp.zeros((num_slots, capacity), jnp.int32),
        log_prob=jnp.zeros((num_slots, capacity), jnp.float32),
        length=jnp.zeros(num_slots, jnp.int32),
        is_finished=~is_real,
    )
    end = jax.lax.while_loop(
        lambda state: (state.step < capacity) & ~jnp.all(state.is_finished),
        advance,
        sample(start, jnp.take(last_hidden, prompt_of_slot, axis=0)),
    )
    return end.tokens, end.log_prob, end.length


def draw(keys: jax.Array, logits: jax.Array, sampling: Sampling) -> tuple[jax.Array, jax.Array]:
    """A token a row by Gumbel-max, i32[S], and its log-probability under the untruncated distribution, f32[S] nats.

    Args:
      keys: one key a row.
      logits: f32[S, V].
    """
    scaled = logits / sampling.temperature
    is_truncating = (sampling.top_k > 0) | (sampling.top_p < 1.0)
    kept = jax.lax.cond(is_truncating, lambda: truncate(scaled, sampling.top_k, sampling.top_p), lambda: scaled)
    token = jax.vmap(jax.random.categorical)(keys, kept)
    chosen = jnp.take_along_axis(scaled, token[:, None], axis=1)[:, 0]
    return token.astype(jnp.int32), chosen - jax.nn.logsumexp(scaled, axis=1)


def truncate(logits: jax.Array, top_k: jax.Array | int, top_p: jax.Array | float) -> jax.Array:
    """Logits with −inf outside the top k tokens and outside the smallest set that holds mass p of what top-k left.

    The most probable token always stays; ties go to the lower token id.

    Args:
      logits: f32[S, V].
      top_k: tokens kept; 0 keeps all.
      top_p: in (0, 1].
    """
    order = jnp.argsort(-logits, axis=1, stable=True)
    ranked = jnp.take_along_axis(logits, order, axis=1)
    rank = jnp.arange(logits.shape[1])[None]
    ranked = jnp.where((top_k == 0) | (rank < top_k), ranked, -jnp.inf)
    probability = jax.nn.softmax(ranked, axis=1)
    mass_before = jnp.cumsum(probability, axis=1) - probability
    ranked = jnp.where((rank == 0) | (mass_before < top_p), ranked, -jnp.inf)
    return jnp.zeros_like(logits).at[jnp.arange(logits.shape[0])[:, None], order].set(ranked)


def abstract_copy(engine: Engine) -> Any:
    """Shapes and placement of `hand_over`'s result."""
    shapes = model.abstract_params(engine.architecture)
    return jax.tree.map(
        lambda leaf, dtype, sharding: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding),
        shapes,
        model.compute_dtypes(shapes, engine.compute_dtype),
        _placement(engine.mesh, engine),
    )


def lower_hand_over(params: Any, mesh: Mesh, engine: Engine) -> jax.stages.Lowered:
    """The program of `hand_over`, for parameters that are ShapeDtypeStructs; here and below, to compile without running."""
    return _cast_to(_copy_placement(mesh, engine), params, engine).lower(jax.tree.leaves(params))


def lower_prefill(engine: Engine, num_prompts: int, prompt_tokens: int) -> jax.stages.Lowered:
    """The program that prefills a group of prompts of `prompt_tokens`, a row length of the batch's."""
    rows = -(-num_prompts // engine.mesh.shape["rows"]) * engine.mesh.shape["rows"]
    tokens, lengths = _abstract_rows(engine, (rows, prompt_tokens)), _abstract_rows(engine, (rows,))
    return _prefill.lower(abstract_copy(engine), tokens, lengths, engine=engine)


def lower_decode(engine: Engine, prefilled: tuple[jax.Array, model.Cache]) -> jax.stages.Lowered:
    """The program that decodes a response a slot.

    Args:
      prefilled: ShapeDtypeStructs of the compiled prefill's result.
    """
    slots = (engine.decode_slots,)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0, impl="threefry2x32"), slots[0]))
    return _decode.lower(
        abstract_copy(engine),
        prefilled,
        _abstract_rows(engine, slots),
        _abstract_rows(engine, slots),
        _abstract_rows(engine, slots, np.bool_),
        keys,
        Sampling(),
        engine=engine,
    )


def _abstract_rows(engine: Engine, shape: tuple[int, ...], dtype: Any = np.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(engine.mesh, PartitionSpec("rows")))
