"""The three passes through the decoder: over whole rows, over prompts (prefill), and one token per row (decode).

Parameters travel as one plain nested dict of arrays; every public function is a pure function of it, so callers drive
it with `jax.jit`. The learner's layers are stacked on a leading axis L and run under `jax.lax.scan`, so one layer is
traced and compiled, whatever the depth. What differs between platforms is in the `Kernels` that each pass is given.

Dimension letters: B rows, T tokens, P prompt tokens, S cache positions, V vocabulary, D width, N query heads, K
key/value heads, G = N / K query heads per key/value head, H head size, F feed-forward width, L layers.

Numbers: matrix products take `compute_dtype` operands, accumulate in float32 and are cast back to `compute_dtype`;
RMSNorm, RoPE tables and the attention softmax are float32. With `compute_dtype=float32` products ask for
`jax.lax.Precision.HIGHEST`, because TPU (bfloat16 passes) and GPU (TF32) would otherwise keep only 8 to 10 bits of each
operand; on CPU it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from reval_jax.model import attention, cache, layer, linear, rope
from reval_jax.model.architecture import Architecture
from reval_jax.model.embedding import embed
from reval_jax.model.kernels import PLAIN, Kernels
from reval_jax.model.layout import Caches
from reval_jax.model.parameters import Params


def hidden_states(
    architecture: Architecture,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    *,
    compute_dtype: DTypeLike,
    remat: str = "none",
    kernels: Kernels = PLAIN,
) -> jax.Array:
    """Hidden states [B,T,D] after the final norm, in `compute_dtype`; multiply by `head` for logits.

    Args:
      tokens, positions, segment_ids: i32[B,T]. A token sees the tokens of its own row and segment at or before its own
        column; segment 0 is padding, whose outputs are finite and meaningless. Positions feed RoPE only.
      remat: what the backward pass keeps of each layer: "none" all but the inner values of norms and activation;
        "dots" the products with weights and the attention's output, with the residuals of its kernel; "attention" that
        output alone, so that the kernel is not run again; "full" only the layer's input. Changes memory and time, not
        values.
      kernels: from `kernels.for_learner`, inside a `shard_map` over its mesh; by default plain XLA on whole arrays.
    """

    def run_layer(constants: tuple[rope.Tables, jax.Array], hidden: jax.Array, weights: Params) -> jax.Array:
        rope_tables, segment_ids = constants
        query, key, value = layer.attention_inputs(architecture, weights, hidden, rope_tables, kernels)
        attended = kernels.attend(query, key, value, segment_ids)
        return layer.layer_outputs(architecture, weights, hidden, attended, kernels)

    wrapped = kernels.residuals(_rematerialise(run_layer, remat))
    constants = rope.tables(architecture, positions), segment_ids
    embedded = embed(params["embedding"], tokens, kernels, compute_dtype=compute_dtype)
    hidden, _ = jax.lax.scan(
        lambda hidden, weights: (wrapped(constants, hidden, weights), None), embedded, params["layers"]
    )
    return linear.rms_norm(hidden, params["final_norm"], architecture.norm_eps)


def _rematerialise(body: Callable[..., Any], remat: str) -> Callable[..., Any]:
    if remat == "none":
        return body
    if remat == "full":
        return jax.checkpoint(body, prevent_cse=False)
    kept = {
        "attention": (linear.SAVED_ATTENTION,),
        "dots": (linear.SAVED_ATTENTION, linear.SAVED_PRODUCT),
    }
    if remat not in kept:
        raise ValueError(f"model.remat={remat!r} is not a known policy. Use 'none', 'dots', 'attention' or 'full'.")
    is_named = jax.checkpoint_policies.save_only_these_names(*kept[remat])

    def is_kept(primitive: Any, *operands: Any, **settings: Any) -> Any:
        return attention.cudnn.is_forward(primitive) or is_named(primitive, *operands, **settings)

    return jax.checkpoint(body, prevent_cse=False, policy=is_kept)


def prefill(
    architecture: Architecture,
    params: Params,
    tokens: jax.Array,
    *,
    compute_dtype: DTypeLike,
    cache_dtype: str,
    kernels: Kernels = PLAIN,
) -> Caches:
    """The cache of prompts; no logits, because `decode` computes those of the last token.

    Args:
      params: as `kernels.layout` holds them; so is the cache.
      tokens: i32[B,P], right-padded; what the cache holds of padding is meaningless.
      kernels: from `kernels.for_sampler`; by default plain XLA on stacked layers.
    """
    columns = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :], tokens.shape)
    rope_tables = rope.tables(architecture, columns)
    # Right padding needs no segment: a real token never sees the columns after its own.
    segment_ids = jnp.ones_like(tokens)

    def prefill_layer(hidden: jax.Array, weights: Params) -> tuple[jax.Array, cache.Cache]:
        query, key, value = layer.attention_inputs(architecture, weights, hidden, rope_tables, kernels)
        kept = cache.from_prefill(key, value, cache_dtype, kernels.storage)
        attended = kernels.attend(query, key, value, segment_ids)
        return layer.layer_outputs(architecture, weights, hidden, attended, kernels), kept

    hidden = embed(params["embedding"], tokens, kernels, compute_dtype=compute_dtype)
    return kernels.layout.prefill(prefill_layer, hidden, params["layers"])[1]


def decode(
    architecture: Architecture,
    params: Params,
    caches: Caches,
    tokens: jax.Array,
    positions: jax.Array,
    *,
    compute_dtype: DTypeLike,
    is_active: jax.Array | None = None,
    kernels: Kernels = PLAIN,
    rope_tables: rope.Tables | None = None,
) -> tuple[jax.Array, Caches]:
    """Hidden state [B,D] after the final norm of one more token per row, and the cache with that token written.

    Args:
      params, caches: as `kernels.layout` holds them.
      tokens, positions: i32[B]. Row b's token is written at cache index positions[b], which must be below S, and
        attends to indices 0..positions[b]. Donate the cache (or carry it in a loop) to have it updated in place.
      is_active: bool[B]; the cache is read as far as these rows need, and the results of others are meaningless.
      kernels: from `kernels.for_sampler`; by default plain XLA on stacked layers.
      rope_tables: `rope.tables` of all S positions, computed before a loop over tokens: inside it, XLA would compute them
        again for each head of each layer that is not in a loop of its own.
    """
    if rope_tables is None:
        rope_tables = rope.tables(architecture, positions)
    else:
        rope_tables = rope_tables[0][positions], rope_tables[1][positions]
    lengths = positions + 1 if is_active is None else jnp.where(is_active, positions + 1, 0)

    def decode_layer(
        hidden: jax.Array, weights: Params, kept: cache.Cache, index: jax.Array | None
    ) -> tuple[jax.Array, cache.Cache]:
        query, key, value = layer.attention_inputs(architecture, weights, hidden, rope_tables, kernels)
        kept = cache.write(kept, key, value, positions, index, kernels.storage)
        attended = kernels.attend_cached(query, kept, lengths, index, kernels.storage)
        return layer.layer_outputs(architecture, weights, hidden, attended, kernels), kept

    hidden = embed(params["embedding"], tokens, kernels, compute_dtype=compute_dtype)
    hidden, caches = kernels.layout.decode(decode_layer, hidden, params["layers"], caches)
    return linear.rms_norm(hidden, params["final_norm"], architecture.norm_eps), caches
