"""Attention by splash, JAX's flash-attention kernel for TPU (Pallas).

Memory is linear in T, and blocks past the causal diagonal are skipped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

from reval_jax.model import linear

Pullback = Callable[[jax.Array], tuple[jax.Array, jax.Array, jax.Array]]  # cotangent → those of query, keys and values
_LANES = 128  # a TPU vector's lanes: head sizes and row lengths are padded to multiples of it
_BLOCKS = (512, 384, 256)  # queries or keys a step in a longer row. 1024 overflows a v5e's VMEM in float32.


def attend(
    query: jax.Array, keys: jax.Array, values: jax.Array, segment_ids: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """Grouped-query attention, causal and inside segments: query [B,T,N,H], keys and values [B,T,K,H] -> [B,T,N,H].

    The kernel does not scale, so the query is scaled here, in float32 and then rounded to its own type. Scores and
    softmax are float32. With float32 operands all products, also in the backward pass, run at full float32
    precision; by default the kernel would multiply in bfloat16 on a TPU.

    Args:
      interpret: run the kernel's steps as plain JAX, on any platform; slow, for tests.
    """
    length, size = query.shape[1], query.shape[3]
    block = _block(length)
    padding = ((0, 0), (0, 0), (0, -length % block), (0, -size % _LANES))

    def padded(heads: jax.Array) -> jax.Array:
        """[B,T,N,H] as the kernel's [B,N,T,H]; zeros beyond H add nothing to a score."""
        return jnp.pad(jnp.moveaxis(heads, 1, 2), padding)

    scaled = (query.astype(jnp.float32) * size**-0.5).astype(query.dtype)
    # Padding columns come last, so that no column of the row sees them, and they see themselves.
    segments = jnp.pad(segment_ids, padding[1:3])
    kernel = _precisely if query.dtype == jnp.float32 else _kernel
    attended = kernel(padded(scaled), padded(keys), padded(values), segments, (block, interpret))
    return jnp.moveaxis(attended[:, :, :length, :size], 2, 1)


def _block(length: int) -> int:
    """The block that pads a row least, the largest of equals. A row of at most 512 is one block."""
    if length <= _BLOCKS[0]:
        return length + -length % _LANES
    return min(_BLOCKS, key=lambda block: -length % block)


def _kernel(
    query: jax.Array, keys: jax.Array, values: jax.Array, segment_ids: jax.Array, static: tuple[int, bool]
) -> jax.Array:
    """The kernel over rows, query [B,N,T,H] already scaled, T a multiple of the block.

    It names its output and logsumexp, so that a remat policy can keep them instead of running it again.
    """
    block, interpret = static
    num_heads, length = query.shape[1:3]
    causal = splash_attention_mask.CausalMask((length, length))
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([causal] * num_heads),
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=linear.SAVED_ATTENTION,
        interpret=interpret,
    )
    return jax.vmap(kernel)(query, keys, values, splash_attention_kernel.SegmentIds(segment_ids, segment_ids))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _precisely(
    query: jax.Array, keys: jax.Array, values: jax.Array, segment_ids: jax.Array, static: tuple[int, bool]
) -> jax.Array:
    """`_kernel` with every product at full float32 precision.

    The kernel reads the ambient precision when it is traced. Its backward pass is traced later, after a `with` around the
    forward pass has ended: hence this custom gradient, which is the kernel's own.
    """
    with jax.default_matmul_precision("highest"):
        return _kernel(query, keys, values, segment_ids, static)


def _precisely_forward(
    query: jax.Array, keys: jax.Array, values: jax.Array, segment_ids: jax.Array, static: tuple[int, bool]
) -> tuple[jax.Array, Pullback]:
    with jax.default_matmul_precision("highest"):
        return jax.vjp(
            lambda query, keys, values: _kernel(query, keys, values, segment_ids, static), query, keys, values
        )


def _precisely_backward(
    static: tuple[int, bool], pullback: Pullback, cotangent: jax.Array
) -> tuple[jax.Array | None, ...]:
    with jax.default_matmul_precision("highest"):
        return (*pullback(cotangent), None)


_precisely.defvjp(_precisely_forward, _precisely_backward)
