"""Attention, one implementation per file; `kernels` chooses among them.

`decode_triton` attends with one new token per row over the cache, as functions of `cache` and `cpu` do. The others attend
over whole rows. Each of these is a pure function `attend(query, keys, values, segment_ids)`: query [B,T,N,H], keys and
values [B,T,K,H], segment_ids i32[B,T], result [B,T,N,H]. Column t sees the columns of its own row and segment at or before
its own. Padding, segment 0, is a segment like any other, so every column sees at least itself. Query heads share
key/value heads in order: head n uses key/value head n // (N / K).

`xla` is the reference: it runs anywhere, and the others are tested against it. `splash` is the kernel for TPU, `cudnn`
the one for NVIDIA GPUs.
"""

from __future__ import annotations

from reval_jax.model.attention import cudnn, decode_triton, splash, xla

__all__ = ["cudnn", "decode_triton", "splash", "xla"]
