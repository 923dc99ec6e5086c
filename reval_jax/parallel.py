"""Tensor- and fsdp-parallel collectives with explicit gradients.

For use inside a `jax.shard_map` over all mesh axes with `check_vma=False`, where every array is one device's part. JAX
cannot know there which values are the same on all devices of an axis, so each function states its own gradient
(Megatron-LM's conjugate pair, arXiv 1909.08053, and fully sharded parameters, arXiv 2004.13336).
"""

from __future__ import annotations

from typing import NamedTuple

import jax

DATA, FSDP, TENSOR = "data", "fsdp", "tensor"
"""The learner's mesh axes. data: every device has all parameters. fsdp: each has a part of them and gathers the rest before
use. tensor: each multiplies with its part of a weight."""


class Split(NamedTuple):
    """The logical axes of the weights of which each device holds only a part, inside a `shard_map` over the mesh."""

    vocab: bool = False  # over tensor
    heads: bool = False  # over tensor
    kv_heads: bool = False  # over tensor; only if the query heads are split too
    mlp: bool = False  # over tensor
    width: bool = False  # over fsdp: a weight is gathered before each use


@jax.custom_vjp
def copy_to_tensor(inputs: jax.Array) -> jax.Array:
    """`inputs`, equal on all devices of the tensor axis, for use with each device's own part of a weight.

    Each device's gradient is then a part of the whole gradient: they are summed.
    """
    return inputs


def _copy_to_tensor_forward(inputs: jax.Array) -> tuple[jax.Array, None]:
    return inputs, None


def _copy_to_tensor_backward(_: None, cotangent: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.psum(cotangent, TENSOR),)


copy_to_tensor.defvjp(_copy_to_tensor_forward, _copy_to_tensor_backward)


@jax.custom_vjp
def reduce_from_tensor(part: jax.Array) -> jax.Array:
    """The sum of every device's part over the tensor axis, equal on all its devices.

    Each device computes what follows alike, so its gradient is the whole gradient already.
    """
    return jax.lax.psum(part, TENSOR)


def _reduce_from_tensor_forward(part: jax.Array) -> tuple[jax.Array, None]:
    return jax.lax.psum(part, TENSOR), None


def _reduce_from_tensor_backward(_: None, cotangent: jax.Array) -> tuple[jax.Array]:
    return (cotangent,)


reduce_from_tensor.defvjp(_reduce_from_tensor_forward, _reduce_from_tensor_backward)


def all_gather(shard: jax.Array, axis: str, dimension: int) -> jax.Array:
    """The whole array, of which each device of the mesh axis holds a part along `dimension`."""
    return jax.lax.all_gather(shard, axis, axis=dimension, tiled=True)


def reduce_scatter(part: jax.Array, axis: str, dimension: int) -> jax.Array:
    """This device's part, along `dimension`, of the sum of every device's `part`."""
    return jax.lax.psum_scatter(part, axis, scatter_dimension=dimension, tiled=True)
