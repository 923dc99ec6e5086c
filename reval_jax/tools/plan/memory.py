"""Memory of a device in each phase of a round, by kind: a lower bound from shapes alone, or with compiled programs.

A round has four phases with different arrays on the devices: `score` (the reference scores trajectories), `update` (one
optimizer step), `sync_weights` (the sampler gets its copy of the weights) and `generate` (responses are sampled). The
learner's parameters and optimizer state are on the devices in all of them.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from reval_jax import algorithms, batch, model, sampler, types, update
from reval_jax import config as config_lib
from reval_jax import mesh as mesh_lib
from reval_jax.model import attention
from reval_jax.tools.plan import compilation

PHASES = {
    "score": ("score",),
    "update": ("update",),
    "sync_weights": ("sync_weights",),
    "generate": ("prefill", "decode"),
}
"""Each phase and the programs that run in it."""

KINDS = (
    "params",
    "optimizer",
    "gradients",
    "reference",
    "sampler_copy",
    "kv_cache",
    "prompt_cache",
    "batch",
    "temporaries",
    "programs",
)
"""Kinds of arrays; `temporaries` is all else that a program needs while it runs, padding included."""


class Phase(NamedTuple):
    """Bytes of one phase on the fullest device."""

    name: str
    kinds: dict[str, int]  # by KINDS; together `total`
    is_compiled: bool  # with compiled programs; else a lower bound from shapes alone
    refusal: str | None = None  # the compiler's message, if it refused a program

    @property
    def total(self) -> int:
        """Sum over all kinds."""
        return sum(self.kinds.values())

    def fits(self, capacity: int) -> bool:
        """Whether a device of `capacity` bytes can run it, as far as known."""
        return self.refusal is None and self.total <= capacity


def tree_bytes(tree: types.PyTree) -> int:
    """Bytes of a tree of ShapeDtypeStructs on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def phases(config: config_lib.Config) -> list[str]:
    """The phases of a round; there is no `score` if the algorithm has no reference."""
    return [name for name in PHASES if name != "score" or algorithms.choose(config).has_reference]


def lower_bounds(architecture: model.Architecture, pod: compilation.Pod, config: config_lib.Config) -> list[Phase]:
    """Each phase with a lower bound of its bytes, from shapes alone.

    Raises:
      ValueError: the config does not fit the number of devices.
    """
    mesh = mesh_lib.make(config.mesh, pod.devices)
    params, optimizer, reference = _learner_bytes(architecture, mesh, config.optimizer, config.model.compute_dtype)
    shape = compilation.largest_shape(mesh_lib.num_row_shards(mesh), config)
    rows = tree_bytes(batch.abstract(shape, mesh))
    engine = compilation.make_engine(architecture, pod, config)
    copy = _copy_bytes(engine)
    always = {"params": params, "optimizer": optimizer}
    if config.update.reference_memory == "device" and algorithms.choose(config).has_reference:
        always["reference"] = reference
    own = {
        "score": {"reference": reference, "batch": rows},
        "update": {
            "gradients": params,
            "batch": rows,
            "temporaries": _residual_bytes(architecture, mesh, shape, config) + _head_bytes(architecture, mesh, config),
        },
        "sync_weights": {"sampler_copy": copy},
        "generate": {"sampler_copy": copy, "kv_cache": _slot_bytes(engine), "prompt_cache": _prompt_bytes(engine)},
    }
    zeros = dict.fromkeys(KINDS, 0)
    return [Phase(name, zeros | always | own[name], is_compiled=False) for name in phases(config)]


@functools.lru_cache(maxsize=64)
def _learner_bytes(
    architecture: model.Architecture, mesh: jax.sharding.Mesh, settings: config_lib.Optimizer, compute_dtype: str
) -> tuple[int, int, int]:
    """Bytes of the parameters, of the optimizer state and of the reference."""
    params = update.abstract_params(architecture, mesh)
    optimizer = update.abstract(
        params, update.make_optimizer(settings, has_value_head=architecture.has_value_head), mesh
    ).opt_state
    policy = model.without_value_head(params)
    dtypes = model.compute_dtypes(policy, compute_dtype)
    reference = jax.tree.map(lambda leaf, dtype: leaf.update(dtype=dtype), policy, dtypes)
    return tree_bytes(params), tree_bytes(optimizer), tree_bytes(reference)


@functools.lru_cache(maxsize=64)
def _copy_bytes(engine: sampler.Engine) -> int:
    return tree_bytes(sampler.abstract_copy(engine))


@functools.lru_cache(maxsize=64)
def _slot_bytes(engine: sampler.Engine) -> int:
    return tree_bytes(sampler.abstract_state(engine).cache)


@functools.lru_cache(maxsize=64)
def _prompt_bytes(engine: sampler.Engine) -> int:
    width = batch.row_length(engine.max_prompt_tokens)
    return tree_bytes(sampler.abstract_prompts(engine, width))


def _residual_bytes(
    architecture: model.Architecture, mesh: jax.sharding.Mesh, shape: batch.Shape, config: config_lib.Config
) -> int:
    """Bytes that the layers keep for their backward pass: each layer's input, and what `model.remat` keeps in addition.

    The policies are in `model.forward`, the arrays that they name are marked by SAVED_PRODUCT and SAVED_ATTENTION of
    `model.linear`: a change there has to be repeated here, as the sizes of those arrays.
    """
    tensor = mesh.shape["tensor"]

    def local(size: int) -> int:
        return size // tensor if size % tensor == 0 else size

    query = local(architecture.num_heads) * architecture.head_size
    key_value = 2 * local(architecture.num_kv_heads) * architecture.head_size
    kept = architecture.width
    if config.model.remat != "full":
        kept += query  # the attention's output
    if config.model.remat in ("dots", "none"):
        kept += query + key_value + architecture.width + 2 * local(architecture.mlp_width)
    tokens = shape.rows // mesh_lib.num_row_shards(mesh) * shape.tokens
    return architecture.num_layers * tokens * kept * jnp.dtype(config.model.compute_dtype).itemsize


def _head_bytes(architecture: model.Architecture, mesh: jax.sharding.Mesh, config: config_lib.Config) -> int:
    """Bytes of the head gathered over fsdp, and of its float32 gradient before that is scattered (both in `scores`)."""
    if mesh.shape["fsdp"] == 1:
        return 0
    split = mesh.shape["tensor"] if architecture.vocab_size % mesh.shape["tensor"] == 0 else 1
    return (
        architecture.width * (architecture.vocab_size // split) * (jnp.dtype(config.model.compute_dtype).itemsize + 4)
    )


def cudnn_bytes(architecture: model.Architecture, pod: compilation.Pod, config: config_lib.Config) -> int:
    """Most bytes that attention by cuDNN adds to the update; 0 where it is not used.

    On packed rows softmax statistics f32[rows · (segments + 1), heads, columns] of a layer, kept for the backward pass of all
    layers unless model.remat is full; with a mask, where packed rows are refused, it, [rows, columns, columns], and its gradient.
    A gradient that has to repeat may take a workspace too, of which a run allows `cudnn.MOST_WORKSPACE`.
    """
    dtype = jnp.dtype(config.model.compute_dtype)
    if config.model.attention not in ("auto", "cudnn") or attention.cudnn.refusal(dtype, architecture.head_size):
        return 0
    mesh = mesh_lib.make(config.mesh, pod.devices)
    shape, tensor = compilation.largest_shape(mesh_lib.num_row_shards(mesh), config), mesh.shape["tensor"]
    heads = architecture.num_heads // tensor if architecture.num_heads % tensor == 0 else architecture.num_heads
    layers = 1 if config.model.remat == "full" else architecture.num_layers
    rows = shape.rows // mesh_lib.num_row_shards(mesh)
    packed = layers * rows * (shape.slots + 1) * heads * shape.tokens * 4
    masked = layers * rows * heads * shape.tokens * 4 + 2 * rows * shape.tokens**2 * dtype.itemsize
    workspace = int(attention.cudnn.MOST_WORKSPACE * pod.capacity) if config.model.deterministic else 0
    return max(packed, masked) + workspace


_HELD_BY_PROGRAM = {
    "score": ("reference", "batch"),
    "update": ("params", "optimizer", "gradients", "batch"),
    "sync_weights": ("params", "sampler_copy"),
    "prefill": ("sampler_copy", "prompt_cache"),
    "decode": ("sampler_copy", "kv_cache"),
}
"""The kinds that are among a program's own arguments, results or temporaries."""


def with_programs(bound: Phase, results: dict[str, compilation.Result]) -> Phase:
    """The phase with the memory of its compiled programs: their own arrays, and the other arrays on the device.

    Args:
      bound: from `lower_bounds`.
      results: of the phase's programs, by name.
    """
    refused = [result.reason for result in results.values() if isinstance(result, compilation.TooLarge)]
    compiled = [result for result in results.values() if isinstance(result, compilation.ProgramMemory)]
    temporaries = max(_beyond(name, result, bound) for name, result in results.items())
    kinds = bound.kinds | {"temporaries": max(0, temporaries), "programs": sum(result.code for result in compiled)}
    return Phase(bound.name, kinds, is_compiled=True, refusal=refused[0] if refused else None)


def _beyond(program: str, result: compilation.Result, bound: Phase) -> int:
    """Bytes that a program needs beyond the kinds among its own arrays."""
    beyond = result.needed - sum(bound.kinds[kind] for kind in _HELD_BY_PROGRAM[program])
    if program == "sync_weights" and isinstance(result, compilation.ProgramMemory):
        # Where layers are copied one by one, one layer's arrays are its arguments and results, not all.
        return max(beyond, result.temporaries)
    return beyond
