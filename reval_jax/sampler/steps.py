"""The sampler's compiled programs: prefill prompts, admit responses to slots, decode a window of tokens.

Their shapes depend on the engine and on a prompt's padded width, never on the requests or their order, so a response is
bitwise reproducible under any schedule. There is one `window` for each `sampling_op.Case`, and one `prefill` and `admit` for
each padded width.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from reval_jax import model, scores, types
from reval_jax.sampler import sampling_op
from reval_jax.sampler.engine import Engine
from reval_jax.sampler.sync import abstract_copy, with_shardings

MAX_STOP_IDS = 16  # token ids that can end a response; static, so that other ids compile nothing


class State(NamedTuple):
    """The slots. Donated to `admit` and `window`, which update it in place."""

    cache: model.Caches  # B rows and S positions of each layer, as `kernels.layout` holds them
    token: jax.Array  # i32[B] the last token, whose successor is sampled next; not in the cache yet
    position: jax.Array  # i32[B] of `token`
    step: jax.Array  # i32[B] response tokens sampled so far
    limit: jax.Array  # i32[B] limit of response tokens
    is_active: jax.Array  # bool[B]
    key: jax.Array  # u32[B, 2] of the response: threefry's words


class Admissions(NamedTuple):
    """New responses; each row shard's come first in its part, and its slots count from 0.

    NumPy arrays on the host, device arrays in a program; and the program's specs: hence `Any`.
    """

    slot: Any  # i32[B]
    source: Any  # i32[B] row of the prefilled prompts
    length: Any  # i32[B] tokens of the prompt
    token: Any  # i32[B] its last one
    cursor: Any  # u32[B] its place in the prompt order
    sample: Any  # i32[B]
    limit: Any  # i32[B] limit of response tokens
    count: Any  # i32[shards] number of valid entries per shard


class Window(NamedTuple):
    """The outputs of one `window` for the host. Column i of a slot is its i-th new token."""

    token: jax.Array  # i32[B, W]
    log_prob: jax.Array  # f32[B, W]
    truncated_log_prob: jax.Array  # f32[B, W]
    step: jax.Array  # i32[B] response tokens sampled so far, these included
    is_active: jax.Array  # bool[B] not finished
    mean_log_prob: jax.Array | None = None  # f32[B, W]; None where it is not asked for


class Programs(NamedTuple):
    """The jitted functions of one engine."""

    fresh: jax.stages.Wrapped  # () → State with no active slot
    prefill: jax.stages.Wrapped  # (params, tokens i32[rows, P]) → prompts' Cache
    admit: jax.stages.Wrapped  # (State, prompts' Cache, Admissions, key) → State
    # (params, State, SamplingParams, stop ids i32[MAX_STOP_IDS], `case`) → (State, Window)
    window: jax.stages.Wrapped


@functools.lru_cache(maxsize=16)
def compiled(engine: Engine) -> Programs:
    """The engine's programs; each compiles when first called with a shape."""
    state = _placement(engine)
    whole = engine.sharding()
    prompts = _prompts_placement(engine)
    rows: Any = engine.sharding("rows")
    admissions = Admissions(*[rows] * len(Admissions._fields))
    options = model.kernels.compiler_options(
        engine.mesh, engine.compute_dtype, deterministic=engine.deterministic, has_gradient=False
    )
    return Programs(
        fresh=jax.jit(functools.partial(_fresh, engine), out_shardings=state),
        prefill=jax.jit(
            functools.partial(_prefill, engine),
            in_shardings=(None, rows),
            out_shardings=prompts,
            compiler_options=options,
        ),
        admit=jax.jit(
            functools.partial(_admit, engine),
            donate_argnums=0,
            in_shardings=(state, prompts, admissions, whole),
            out_shardings=state,
            compiler_options=model.kernels.admission_options(engine.mesh),
        ),
        window=jax.jit(
            functools.partial(_window, engine),
            donate_argnums=1,
            static_argnums=4,
            in_shardings=(None, state, whole, whole),
            out_shardings=(state, rows),
            compiler_options=options,
        ),
    )


def num_compiled(programs: Programs) -> int:
    """Compiled programs so far."""
    return sum(program._cache_size() for program in programs)  # type: ignore[attr-defined]


def _specs(engine: Engine) -> State:
    """The PartitionSpec of each array of the state."""
    rows: Any = PartitionSpec("rows")
    return State(_cache_specs(engine, "rows"), rows, rows, rows, rows, rows, rows)


def _prompts_specs(engine: Engine) -> model.Caches:
    """Prefilled prompts are whole on every row shard, because any slot may take them."""
    return _cache_specs(engine, None)


def _cache_specs(engine: Engine, rows: str | None) -> model.Caches:
    def specs(*leading: int) -> model.Cache:
        return _layer_cache_specs(engine, rows, num_leading=len(leading))

    return engine.kernels.layout.caches(specs, engine.architecture.num_layers)


def _layer_cache_specs(engine: Engine, rows: str | None, *, num_leading: int) -> model.Cache:
    heads: Any = PartitionSpec(*[None] * num_leading, rows, engine.kv_axis())
    scale = heads if engine.cache == "int8" else None
    return model.Cache(heads, heads, scale, scale)


def _placement(engine: Engine) -> State:
    return _placed(engine, _specs(engine))


def _prompts_placement(engine: Engine) -> model.Caches:
    return _placed(engine, _prompts_specs(engine))


def _placed(engine: Engine, specs: types.PyTree) -> types.PyTree:
    return jax.tree.map(
        lambda spec: engine.sharding(*spec), specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)
    )


def _fresh(engine: Engine) -> State:
    architecture, slots, kernels = engine.architecture, engine.decode_slots, engine.kernels

    def empty(*leading: int) -> model.Cache:
        return model.cache.empty(
            (*leading, slots),
            engine.cache_length,
            architecture.num_kv_heads,
            architecture.head_size,
            engine.cache_dtype,
            kernels.storage,
        )

    cache = kernels.layout.caches(empty, architecture.num_layers)
    zeros = jnp.zeros(slots, jnp.int32)
    return State(cache, zeros, zeros, zeros, zeros, jnp.zeros(slots, bool), jnp.zeros((slots, 2), jnp.uint32))


def _prefill(engine: Engine, params: model.Params, tokens: jax.Array) -> model.Caches:
    return model.prefill(
        engine.architecture,
        params,
        tokens,
        compute_dtype=engine.compute_dtype,
        cache_dtype=engine.cache_dtype,
        kernels=engine.kernels._replace(attend=functools.partial(_attend, engine)),
    )


def _admit(engine: Engine, state: State, prompts: model.Caches, entries: Admissions, key: jax.Array) -> State:
    """Each row shard copies the prompts of its new responses into their slots."""
    kernels = engine.kernels

    def admit_shard(state: State, prompts: model.Caches, entries: Admissions, key: jax.Array) -> State:
        slots = state.token.shape[0]

        def response_key(cursor: jax.Array, sample: jax.Array) -> jax.Array:
            return jax.random.key_data(jax.random.fold_in(jax.random.fold_in(key, cursor), sample))

        target = jnp.where(jnp.arange(slots) < entries.count[0], entries.slot, slots)

        def put(old: jax.Array, new: jax.Array) -> jax.Array:
            return old.at[target].set(new, mode="drop")

        return State(
            cache=kernels.copy_rows(
                state.cache, prompts, entries.slot, entries.source, entries.count[0], row_axis=kernels.layout.row_axis
            ),
            token=put(state.token, entries.token),
            # The first decode step repeats the prompt's last token, so that one program samples every token.
            position=put(state.position, entries.length - 1),
            step=put(state.step, jnp.zeros_like(state.step)),
            limit=put(state.limit, entries.limit),
            is_active=put(state.is_active, jnp.ones_like(state.is_active)),
            key=put(state.key, jax.vmap(response_key)(entries.cursor, entries.sample)),
        )

    rows = PartitionSpec("rows")
    return jax.shard_map(
        admit_shard,
        mesh=engine.mesh,
        in_specs=(
            _specs(engine),
            _prompts_specs(engine),
            Admissions(*[rows] * len(Admissions._fields)),
            PartitionSpec(),
        ),
        out_specs=_specs(engine),
        check_vma=False,
    )(state, prompts, entries, key)


def _window(
    engine: Engine,
    params: model.Params,
    state: State,
    sampling: sampling_op.SamplingParams,
    stop_ids: jax.Array,
    case: sampling_op.Case,
) -> tuple[State, Window]:
    """Up to `decode_window` tokens a slot; ends early when no slot is active."""
    architecture, width = engine.architecture, engine.decode_window
    kernels = engine.kernels._replace(attend_cached=functools.partial(_attend_cached, engine))
    head = model.head(architecture, params, compute_dtype=engine.compute_dtype)
    rope_tables = model.rope.tables(architecture, jnp.arange(engine.cache_length, dtype=jnp.int32))

    def step(carried: tuple[jax.Array, State, Window]) -> tuple[jax.Array, State, Window]:
        column, state, outputs = carried
        hidden, cache = model.decode(
            architecture,
            params,
            state.cache,
            state.token,
            state.position,
            compute_dtype=engine.compute_dtype,
            is_active=state.is_active,
            kernels=kernels,
            rope_tables=rope_tables,
        )
        sampled = _sample(engine, state, scores.head_product(hidden, head), sampling, case)
        token = jnp.where(state.is_active, sampled.token, state.token)
        is_new = state.is_active.astype(jnp.int32)
        num_sampled = state.step + is_new
        is_last = jnp.any(token[:, None] == stop_ids[None], axis=1) | (num_sampled >= state.limit)
        is_active = state.is_active & ~is_last

        def put(numbers: jax.Array, new: jax.Array) -> jax.Array:
            return numbers.at[:, column].set(new)

        outputs = Window(
            token=put(outputs.token, token),
            log_prob=put(outputs.log_prob, sampled.log_prob),
            truncated_log_prob=put(outputs.truncated_log_prob, sampled.truncated_log_prob),
            step=num_sampled,
            is_active=is_active,
            mean_log_prob=jax.tree.map(put, outputs.mean_log_prob, sampled.mean_log_prob),
        )
        state = State(cache, token, state.position + is_new, num_sampled, state.limit, is_active, state.key)
        return column + 1, state, outputs

    slots = state.token.shape[0]
    numbers = jnp.zeros((slots, width), jnp.float32)
    mean_log_prob = numbers if case.records_mean_log_prob else None
    tokens = jnp.zeros((slots, width), jnp.int32)
    outputs = Window(tokens, numbers, numbers, state.step, state.is_active, mean_log_prob)
    _, state, outputs = jax.lax.while_loop(
        lambda carried: (carried[0] < width) & jnp.any(carried[1].is_active), step, (jnp.int32(0), state, outputs)
    )
    return state, outputs


def _attend(engine: Engine, query: jax.Array, keys: jax.Array, values: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Attention over whole rows, each device over its own rows and key/value heads."""
    heads, rows = PartitionSpec("rows", None, engine.kv_axis()), PartitionSpec("rows")
    return jax.shard_map(
        engine.kernels.attend, mesh=engine.mesh, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )(query, keys, values, segment_ids)


def _attend_cached(
    engine: Engine,
    query: jax.Array,
    cache: model.Cache,
    lengths: jax.Array,
    layer: jax.Array | None,
    storage: model.cache.Storage,
) -> jax.Array:
    """Attention over the cache, each device over its own rows and key/value heads, as far as they need."""
    heads, rows = PartitionSpec("rows", engine.kv_axis()), PartitionSpec("rows")
    of_layer, layer_specs = ((), ()) if layer is None else ((layer,), (PartitionSpec(),))
    cache_specs = _layer_cache_specs(engine, "rows", num_leading=len(of_layer))

    def attend(query: jax.Array, cache: model.Cache, lengths: jax.Array, layer: jax.Array | None = None) -> jax.Array:
        return engine.kernels.attend_cached(query, cache, lengths, layer, storage)

    return jax.shard_map(
        attend,
        mesh=engine.mesh,
        in_specs=(heads, cache_specs, rows, *layer_specs),
        out_specs=heads,
        check_vma=False,
    )(query, cache, lengths, *of_layer)


def _sample(
    engine: Engine,
    state: State,
    logits: jax.Array,
    sampling: sampling_op.SamplingParams,
    case: sampling_op.Case,
) -> sampling_op.TokenSample:
    """One token per slot, keyed by (response, position in it); each device reads its own columns of the logits."""
    axis = engine.vocab_axis()

    def sample_local(
        words: jax.Array, step: jax.Array, logits: jax.Array, sampling: sampling_op.SamplingParams
    ) -> sampling_op.TokenSample:
        keys = jax.random.wrap_key_data(words, impl="threefry2x32")
        step_keys = jax.vmap(jax.random.fold_in)(keys, step)
        return sampling_op.sample_token(step_keys, logits, sampling, axis=axis, case=case)

    rows = PartitionSpec("rows")
    return jax.shard_map(
        sample_local,
        mesh=engine.mesh,
        in_specs=(rows, rows, PartitionSpec("rows", axis), PartitionSpec()),
        out_specs=rows,
        check_vma=False,
    )(state.key, state.step, logits, sampling)


def sampling_params(temperature: float, top_k: int, top_p: float) -> sampling_op.SamplingParams:
    """Sampling settings as the scalars that `window` takes."""
    values: Any = np.float32(temperature), np.int32(top_k), np.float32(top_p)
    return sampling_op.SamplingParams(*values)


def case(
    engine: Engine, sampling: sampling_op.SamplingParams, *, records_mean_log_prob: bool = False
) -> sampling_op.Case:
    """The case that `window` is compiled for; one program serves truncated and full sampling where it can branch itself."""
    truncates = bool(sampling_op.is_truncating(sampling)) if engine.kernels.branches_on_host else None
    return sampling_op.Case(truncates, records_mean_log_prob)


def padded_stop_ids(stop_ids: tuple[int, ...]) -> np.ndarray:
    """i32[MAX_STOP_IDS], padded with -1, which is no token."""
    return np.array([*stop_ids, *[-1] * (MAX_STOP_IDS - len(stop_ids))], np.int32)


def abstract_state(engine: Engine) -> State:
    """Shapes and placement of the slots."""
    return with_shardings(jax.eval_shape(functools.partial(_fresh, engine)), _placement(engine))


def abstract_prompts(engine: Engine, width: int) -> model.Caches:
    """Shapes and placement of prefilled prompts of this padded width."""
    shapes = jax.eval_shape(functools.partial(_prefill, engine), abstract_copy(engine), _abstract_tokens(engine, width))
    return with_shardings(shapes, _prompts_placement(engine))


def _abstract_tokens(engine: Engine, width: int) -> jax.ShapeDtypeStruct:
    shape = (engine.prefill_rows(width), width)
    return jax.ShapeDtypeStruct(shape, np.int32, sharding=engine.sharding("rows"))


def lower_prefill(engine: Engine, width: int) -> jax.stages.Lowered:
    """The program that prefills prompts of this padded width, to compile without running."""
    return compiled(engine).prefill.lower(abstract_copy(engine), _abstract_tokens(engine, width))


def lower_admit(engine: Engine, width: int) -> jax.stages.Lowered:
    """The program that admits responses to prompts of this padded width, to compile without running."""
    shards, rows = engine.row_shards, engine.decode_slots
    numbers = {name: np.zeros(rows, np.int32) for name in Admissions._fields}
    entries = Admissions(**numbers | {"cursor": np.zeros(rows, np.uint32), "count": np.zeros(shards, np.int32)})
    key = jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32"))
    return compiled(engine).admit.lower(abstract_state(engine), abstract_prompts(engine, width), entries, key)


def lower_window(engine: Engine) -> jax.stages.Lowered:
    """The program that decodes, to compile without running."""
    sampling = sampling_params(1.0, 0, 1.0)
    return compiled(engine).window.lower(
        abstract_copy(engine), abstract_state(engine), sampling, padded_stop_ids(()), case(engine, sampling)
    )
