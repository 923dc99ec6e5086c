"""The decoder: Llama, Qwen2 and Qwen3, their weights, forward pass and cached decoding.

Parameters travel as one plain nested dict of arrays; every public function is a pure function of it, so callers drive
it with `jax.jit`. The layers are stacked on a leading axis L and run under `jax.lax.scan`, so one layer is traced and
compiled whatever the depth. The flax modules (`modules`) hold one layer's equations; they are split once into a graph
definition, cached per architecture, and merged with the caller's arrays while tracing. Only `modules` imports flax.

Dimension letters: B rows, T tokens, P prompt tokens, S cache positions, V vocabulary, D width, N query heads, K
key/value heads, G = N / K query heads per key/value head, H head size, F feed-forward width, L layers.

Numbers: matrix products take `compute_dtype` operands, accumulate in float32 and are cast back to `compute_dtype`;
RMSNorm, RoPE tables and the attention softmax are float32. With `compute_dtype=float32` products ask for
`jax.lax.Precision.HIGHEST`, because TPU (bfloat16 passes) and GPU (TF32) would otherwise keep only 8 to 10 bits of each
operand; on CPU it changes nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from reval_jax.model import arithmetic, attention, bits, embedding, modules, rope
from reval_jax.model.architecture import Architecture
from reval_jax.model.attention.cached import Cache
from reval_jax.model.modules import Params


def head_weight(architecture: Architecture, params: Params) -> jax.Array:
    """The output head [D, V] as it is kept, or one device's part of it; for a tied model the transposed embedding.

    A copy of a tied model's parameters may hold a "head" of its own, the same numbers laid out for the product.
    """
    has_own = "head" in params or not architecture.tied_head
    return params["head"] if has_own else params["embedding"].T


def head(architecture: Architecture, params: Params, *, compute_dtype: Any) -> jax.Array:
    """The output head [D, V] in `compute_dtype`."""
    return head_weight(architecture, params).astype(compute_dtype)


def compute_dtypes(params: Params, compute_dtype: Any) -> Params:
    """The dtype of each array in a copy of the parameters that computes exactly what they do themselves.

    What a forward pass casts before use is `compute_dtype`; the norms' scales, which it uses in float32, stay float32.
    """

    def dtype_of(path: Any, _: Any) -> Any:
        return jnp.dtype(jnp.float32 if path[-1].key.endswith("norm") else compute_dtype)

    return jax.tree_util.tree_map_with_path(dtype_of, params)


def _final_norm(architecture: Architecture, params: Params, hidden: jax.Array) -> jax.Array:
    return arithmetic.rms_norm(hidden, params["final_norm"], architecture.norm_eps)


def _rematerialise(body: Callable[..., Any], remat: str) -> Callable[..., Any]:
    if remat == "none":
        return body
    if remat == "full":
        return jax.checkpoint(body, prevent_cse=False)
    kept = {
        "attention": (arithmetic.SAVED_ATTENTION,),
        "dots": (arithmetic.SAVED_ATTENTION, arithmetic.SAVED_PRODUCT),
    }
    if remat not in kept:
        raise ValueError(f"model.remat={remat!r} is not a known policy. Use 'none', 'dots', 'attention' or 'full'.")
    is_named = jax.checkpoint_policies.save_only_these_names(*kept[remat])

    def is_kept(primitive: Any, *operands: Any, **settings: Any) -> Any:
        return attention.cudnn.is_forward(primitive) or is_named(primitive, *operands, **settings)

    return jax.checkpoint(body, prevent_cse=False, policy=is_kept)


def hidden_states(
    architecture: Architecture,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    *,
    compute_dtype: Any,
    remat: str = "none",
    attend: attention.Attend = attention.xla.attend,
) -> jax.Array:
    """Hidden states [B,T,D] after the final norm, in `compute_dtype`; multiply by `head` for logits.

    Args:
      tokens, positions, segment_ids: i32[B,T]. A token sees the tokens of its own row and segment at or before its own
        column; segment 0 is padding, whose outputs are finite and meaningless. Positions feed RoPE only.
      remat: what the backward pass keeps of each layer: "none" all but the inner values of norms and activation;
        "dots" the products with weights and the attention's output, with what its kernel needs to go back; "attention"
        that output alone, so that the kernel is not run again; "full" only the layer's input. Changes memory and time,
        not values.
      attend: the attention over whole rows, by `attention.choose`.
    """

    def run_layer(fixed: Any, hidden: jax.Array, layer_params: Params) -> jax.Array:
        rope_tables, segment_ids = fixed

        def attend_rows(query: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
            return attend(query, keys, values, segment_ids)

        return modules.layer(architecture, layer_params)(hidden, rope_tables, attend_rows)[0]

    kept = bits.kept_as_bits(_rematerialise(run_layer, remat))
    fixed = rope.tables(architecture, positions), segment_ids
    embedded = embedding.embed(architecture, params["embedding"], tokens, compute_dtype=compute_dtype)
    hidden, _ = jax.lax.scan(lambda hidden, layer: (kept(fixed, hidden, layer), None), embedded, params["layers"])
    return _final_norm(architecture, params, hidden)


def turned_layer(params: Params) -> Params:
    """One layer's parameters with its weights' axes in `turned_order`.

    With a tuple of them in place of stacked ones, `prefill` and `decode` run layer after layer in one long program, instead of
    one layer's in a loop, and multiply as `arithmetic.project_few` does.
    """
    return {name: jnp.transpose(part, turned_order(name, part.ndim)) for name, part in params.items()}


def turned_order(name: str, rank: int) -> tuple[int, ...]:
    """How the axes of one layer's array are ordered in `turned_layer`: those that a product sums over are last."""
    summed = modules.SUMMED_AXES.get(name, 0)
    return (*range(summed, rank), *range(summed))


def _layer(architecture: Architecture, params: Params, *, is_unstacked: bool) -> Callable[..., Any]:
    """A layer of a sampler's parameters: (hidden, rope_tables, attend) to (hidden, key, value)."""
    if not is_unstacked:
        return modules.layer(architecture, params)
    back = {}
    for name, part in params.items():
        order = turned_order(name, part.ndim)
        back[name] = jnp.transpose(part, [order.index(axis) for axis in range(part.ndim)])
    return functools.partial(modules.layer(architecture, back), is_few=True)


def prefill(
    architecture: Architecture, params: Params, tokens: jax.Array, *, compute_dtype: Any, cache_dtype: str
) -> Cache | tuple[Cache, ...]:
    """The cache of prompts; no logits, for `decode` makes those of the last token.

    Args:
      params: with stacked layers, or a tuple of `turned_layer`s; the cache is then one with a leading axis of layers, or a tuple.
      tokens: i32[B,P], right-padded; what the cache holds of padding is meaningless.
    """
    columns = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :], tokens.shape)
    rope_tables = rope.tables(architecture, columns)
    # Right padding needs no segment: a real token never sees the columns after its own.
    attend_rows = functools.partial(attention.xla.attend, segment_ids=jnp.ones_like(tokens))

    is_unstacked = isinstance(params["layers"], tuple)

    def body(hidden: jax.Array, layer_params: Params) -> tuple[jax.Array, Cache]:
        layer = _layer(architecture, layer_params, is_unstacked=is_unstacked)
        hidden, key, value = layer(hidden, rope_tables, attend_rows)
        return hidden, attention.cached.of_rows(key, value, cache_dtype)

    hidden = bits.as_numbers(params["embedding"][tokens]).astype(compute_dtype)
    if not is_unstacked:
        return jax.lax.scan(body, hidden, params["layers"])[1]
    caches = []
    for layer_params in params["layers"]:
        hidden, cache = body(hidden, layer_params)
        caches.append(cache)
    return tuple(caches)


def decode(
    architecture: Architecture,
    params: Params,
    cache: Any,
    tokens: jax.Array,
    positions: jax.Array,
    *,
    compute_dtype: Any,
    is_active: jax.Array | None = None,
    attend: attention.cached.Attend = attention.cached.attend,
    rope_tables: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, Any]:
    """Hidden state [B,D] after the final norm of one more token a row, and the cache with that token written.

    Args:
      params, cache: with stacked layers, a `Cache` with a leading axis of layers; or both layer by layer, a tuple of caches. The
        embedding may lie as bits, here and in `prefill`.
      tokens, positions: i32[B]. Row b's token is written at cache index positions[b], which must be below S, and
        attends to indices 0..positions[b]. Donate the cache (or carry it in a loop) to have it updated in place.
      is_active: bool[B]; the cache is read as far as these rows need, and what comes out for others is meaningless.
      attend: `attention.cached.attend`, `attend_by_row`, or one of them with a sharding of its own.
      rope_tables: `rope.tables` of all S positions, made before a loop over tokens: in it, XLA would make them again for each
        head of each layer that is not in a loop of its own.
    """
    if rope_tables is None:
        rope_tables = rope.tables(architecture, positions)
    else:
        rope_tables = rope_tables[0][positions], rope_tables[1][positions]
    lengths = positions + 1 if is_active is None else jnp.where(is_active, positions + 1, 0)
    hidden = bits.as_numbers(params["embedding"][tokens]).astype(compute_dtype)

    is_unstacked = isinstance(params["layers"], tuple)

    def run_layer(
        hidden: jax.Array, layer_params: Params, cache: Cache, index: jax.Array | None
    ) -> tuple[jax.Array, Cache]:
        written = cache

        def attend_token(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            nonlocal written
            written = attention.cached.write(cache, key, value, positions, index)
            return attend(query, written, lengths, index)

        layer = _layer(architecture, layer_params, is_unstacked=is_unstacked)
        hidden, _, _ = layer(hidden, rope_tables, attend_token)
        return hidden, written

    if is_unstacked:
        caches = []
        for layer_params, part in zip(params["layers"], cache, strict=True):
            hidden, part = run_layer(hidden, layer_params, part, None)
            caches.append(part)
        return _final_norm(architecture, params, hidden), tuple(caches)

    def body(carried: tuple[jax.Array, Cache], layer: tuple[Params, jax.Array]) -> tuple[Any, None]:
        return run_layer(carried[0], layer[0], carried[1], layer[1]), None

    indices = jnp.arange(architecture.num_layers, dtype=jnp.int32)
    (hidden, cache), _ = jax.lax.scan(body, (hidden, cache), (params["layers"], indices))
    return _final_norm(architecture, params, hidden), cache
