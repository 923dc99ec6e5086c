"""What lies on a device in each phase of a round, by kind: from shapes alone, and with what the compiler says added.

A round has four phases that differ in what is on the devices: `score` (the reference scores trajectories), `update` (one
optimizer step), `sync_weights` (the sampler's copy is made) and `generate` (responses are sampled). The learner's parameters
and optimizer state are there in all of them.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from reval_jax import algorithms, batch, model, sampler, update
from reval_jax import config as config_lib
from reval_jax import mesh as mesh_lib
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
"""What the bytes are of; `temporaries` is what else a program needs while it runs, its padding included."""


class Phase(NamedTuple):
    """One phase's bytes on the fullest device."""

    name: str
    kinds: dict[str, int]  # by KINDS; together `total`
    is_measured: bool  # from compiled programs; else at least this much, from shapes alone
    refusal: str | None = None  # the compiler's words, where it refused a program

    @property
    def total(self) -> int:
        """Bytes of all kinds together."""
        return sum(self.kinds.values())

    def fits(self, capacity: int) -> bool:
        """Whether a device of so many bytes can run it, as far as is known."""
        return self.refusal is None and self.total <= capacity


def tree_bytes(tree: Any) -> int:
    """Bytes of a tree of ShapeDtypeStructs on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def phases(config: config_lib.Config) -> list[str]:
    """The phases of the config's rounds: nothing is scored where the algorithm has no reference."""
    return [name for name in PHASES if name != "score" or algorithms.choose(config).has_reference]


def at_least(architecture: model.Architecture, pod: compilation.Pod, config: config_lib.Config) -> list[Phase]:
    """Each phase's bytes that no compiler can avoid, from shapes alone.

    Raises:
      ValueError: the config does not go with the devices.
    """
    mesh = mesh_lib.make(config.mesh, pod.devices)
    params, optimizer, frozen = _learner_bytes(architecture, mesh, config.optimizer, config.model.compute_dtype)
    shape = compilation.largest_shape(mesh_lib.num_row_shards(mesh), config)
    rows = tree_bytes(batch.abstract(shape, mesh))
    engine = compilation.make_engine(architecture, pod, config)
    copy = _copy_bytes(engine)
    everywhere = {"params": params, "optimizer": optimizer}
    if config.update.reference_memory == "device" and algorithms.choose(config).has_reference:
        everywhere["reference"] = frozen
    only_in = {
        "score": {"reference": frozen, "batch": rows},
        "update": {
            "gradients": params,
            "batch": rows,
            "temporaries": _kept_for_backward(architecture, mesh, shape, config) + _head(architecture, mesh, config),
        },
        "sync_weights": {"sampler_copy": copy},
        "generate": {"sampler_copy": copy, "kv_cache": _slot_bytes(engine), "prompt_cache": _prompt_bytes(engine)},
    }
    nothing = dict.fromkeys(KINDS, 0)
    return [Phase(name, nothing | everywhere | only_in[name], is_measured=False) for name in phases(config)]


@functools.lru_cache(maxsize=64)
def _learner_bytes(
    architecture: model.Architecture, mesh: jax.sharding.Mesh, settings: config_lib.Optimizer, compute_dtype: str
) -> tuple[int, int, int]:
    """Bytes of the parameters, of the optimizer's state and of the reference's copy."""
    params = update.abstract_params(architecture, mesh)
    optimizer = update.abstract(params, update.make_optimizer(settings), mesh).opt_state
    dtypes = model.compute_dtypes(params, compute_dtype)
    frozen = jax.tree.map(lambda leaf, dtype: leaf.update(dtype=dtype), params, dtypes)
    return tree_bytes(params), tree_bytes(optimizer), tree_bytes(frozen)


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


def _kept_for_backward(
    architecture: model.Architecture, mesh: jax.sharding.Mesh, shape: batch.Shape, config: config_lib.Config
) -> int:
    """Bytes that every layer keeps for its backward pass, by `model.remat`: its input, and what the policy names."""
    tensor = mesh.shape["tensor"]

    def part(size: int) -> int:
        return size // tensor if size % tensor == 0 else size

    query = part(architecture.num_heads) * architecture.head_size
    key_value = 2 * part(architecture.num_kv_heads) * architecture.head_size
    kept = architecture.width
    if config.model.remat != "full":
        kept += query  # the attention's output
    if config.model.remat in ("dots", "none"):
        kept += query + key_value + architecture.width + 2 * part(architecture.mlp_width)
    tokens = shape.rows // mesh_lib.num_row_shards(mesh) * shape.tokens
    return architecture.num_layers * tokens * kept * jnp.dtype(config.model.compute_dtype).itemsize


def _head(architecture: model.Architecture, mesh: jax.sharding.Mesh, config: config_lib.Config) -> int:
    """Bytes of the head gathered over fsdp and of its float32 gradient before it is scattered."""
    if mesh.shape["fsdp"] == 1:
        return 0
    split = mesh.shape["tensor"] if architecture.vocab_size % mesh.shape["tensor"] == 0 else 1
    return (
        architecture.width * (architecture.vocab_size // split) * (jnp.dtype(config.model.compute_dtype).itemsize + 4)
    )


_OF_PROGRAM = {
    "score": ("reference", "batch"),
    "update": ("params", "optimizer", "gradients", "batch"),
    "sync_weights": ("params", "sampler_copy"),
    "prefill": ("sampler_copy", "prompt_cache"),
    "decode": ("sampler_copy", "kv_cache"),
}
"""The kinds that a program holds itself, as arguments, results or temporaries."""


def measured(known: Phase, results: dict[str, compilation.Result]) -> Phase:
    """The phase with what its programs need: what they hold themselves, and what lies beside them.

    Args:
      known: of `at_least`.
      results: of the phase's programs, by name.
    """
    refused = [result.reason for result in results.values() if isinstance(result, compilation.TooLarge)]
    compiled = [result for result in results.values() if isinstance(result, compilation.Measured)]
    temporaries = max(
        result.needed - sum(known.kinds[kind] for kind in _OF_PROGRAM[name]) for name, result in results.items()
    )
    kinds = known.kinds | {"temporaries": max(0, temporaries), "programs": sum(result.code for result in compiled)}
    return Phase(known.name, kinds, is_measured=True, refusal=refused[0] if refused else None)
