"""Attention over whole rows, one implementation a platform, and the choice among them by the mesh's platform.

An implementation is a pure function `attend(query, keys, values, segment_ids)`, query [B,T,N,H], keys and values
[B,T,K,H], segment_ids i32[B,T], result [B,T,N,H]: column t sees the columns of its own row and segment at or before
its own. Padding, segment 0, is a segment like any other, so that every column sees at least itself. Query heads share
key/value heads in order: head n uses key/value head n // (N / K).

`xla` is the reference, which runs anywhere and which the others are tested against; `splash` is the TPU's kernel,
`cudnn` NVIDIA's. `cached` is decoding's attention of one new token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from reval_jax.model.architecture import Architecture
from reval_jax.model.attention import cudnn, splash, xla

Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
Setting = Literal["auto", "xla", "splash", "cudnn"]


def choose(setting: Setting, mesh: Mesh, *, compute_dtype: Any, architecture: Architecture) -> Attend:
    """The implementation that `setting` names, able to run on the devices of `mesh`.

    "auto" is "splash" on TPU, "cudnn" on GPU where cuDNN can (its number types and head sizes), else "xla". The
    platform is the mesh's own, not the process's default: a program may be compiled here for devices elsewhere. The kernels
    see one device's rows and heads: call them inside a `jax.shard_map` over the mesh.

    Raises:
      ValueError: the setting is unknown, or the mesh's platform or cuDNN cannot run it.
    """
    platform = mesh.devices.flat[0].platform
    if setting == "auto":
        setting = _automatic(platform, compute_dtype, architecture)
    if setting == "xla":
        return xla.attend
    if setting not in ("splash", "cudnn"):
        raise ValueError(
            f"model.attention={setting!r} is not a known implementation. Use 'auto', 'xla', 'splash' or 'cudnn'."
        )
    needed = {"splash": "tpu", "cudnn": "gpu"}[setting]
    if platform != needed:
        raise ValueError(
            f"model.attention={setting!r} was asked for, but the mesh's devices are {platform!r}: {setting} is a kernel for"
            f" {needed!r} alone. Use 'auto' or 'xla'."
        )
    if setting == "splash":
        return splash.attend
    cudnn.check(compute_dtype, architecture.head_size)
    return cudnn.attend


def _automatic(platform: str, compute_dtype: Any, architecture: Architecture) -> Setting:
    if platform == "tpu":
        return "splash"
    if platform == "gpu" and cudnn.refusal(compute_dtype, architecture.head_size) is None:
        return "cudnn"
    return "xla"
