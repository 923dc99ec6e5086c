"""What a layer needs to run on its part of a weight: collectives with their gradients.

For use inside a `jax.shard_map` over all mesh axes with `check_vma=False`, where every array is one device's part. Each
function states its gradient itself, because there JAX cannot know which values are the same on all devices of an axis
(Megatron-LM's conjugate pair, arXiv 1909.08053, and fully sharded parameters, arXiv 2004.13336).
"""

from __future__ import annotations

import functools

import jax

DATA, FSDP, TENSOR = "data", "fsdp", "tensor"
"""The learner's mesh axes: whole copies; parameters spread, gathered to be used; each product shared."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def share(inputs: jax.Array, axis: str) -> jax.Array:
    """`inputs`, the same on all devices of the axis, for use with each one's own part of a weight.

    Each device's gradient is then a part of the whole: they are added up.
    """
    return inputs


def _share_forward(inputs: jax.Array, axis: str) -> tuple[jax.Array, None]:
    return inputs, None


def _share_backward(axis: str, _: None, cotangent: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.psum(cotangent, axis),)


share.defvjp(_share_forward, _share_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def total(part: jax.Array, axis: str) -> jax.Array:
    """The sum of each device's part, the same on all devices of the axis.

    What follows is computed alike on each of them, so its gradient is the whole gradient already.
    """
    return jax.lax.psum(part, axis)


def _total_forward(part: jax.Array, axis: str) -> tuple[jax.Array, None]:
    return jax.lax.psum(part, axis), None


def _total_backward(axis: str, _: None, cotangent: jax.Array) -> tuple[jax.Array]:
    return (cotangent,)


total.defvjp(_total_forward, _total_backward)


def gather(shard: jax.Array, axis: str, dimension: int) -> jax.Array:
    """The whole array, whose `dimension` the devices of the axis share."""
    return jax.lax.all_gather(shard, axis, axis=dimension, tiled=True)


def scatter_sum(part: jax.Array, axis: str, dimension: int) -> jax.Array:
    """This device's share, along `dimension`, of the sum of every device's `part`: a reduce-scatter."""
    return jax.lax.psum_scatter(part, axis, scatter_dimension=dimension, tiled=True)
