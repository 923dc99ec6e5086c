"""Attention over whole rows, one implementation a platform, and the choice among them by the mesh's platform.

An implementation is a pure function `attend(query, keys, values, segment_ids)`, query [B,T,N,H], keys and values
[B,T,K,H], segment_ids i32[B,T], result [B,T,N,H]: column t sees the columns of its own row and segment at or before
its own. Padding, segment 0, is a segment like any other, so that every column sees at least itself. Query heads share
key/value heads in order: head n uses key/value head n // (N / K).

`xla` is the reference, which runs anywhere and which the others are tested against; `splash` is the TPU's kernel,
`cudnn` NVIDIA's. `cached` is decoding's attention of one new token.
"""

from __future__ import annotations

from reval_jax.model.attention import cached, cudnn, splash, xla
from reval_jax.model.attention.choice import Attend, Setting, choose

__all__ = ["Attend", "Setting", "cached", "choose", "cudnn", "splash", "xla"]
