"""The settings that the sampler's programs are compiled for."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from reval_jax import batch, model
from reval_jax import config as config_lib

CacheSetting = Literal["compute", "int8"]


@dataclasses.dataclass(frozen=True)
class Engine:
    """The settings that the sampler's programs are compiled for; hashable, so that they are compiled once.

    Two engines whose limits differ are equal if their caches have the same length: then they share all programs.
    """

    architecture: model.Architecture
    mesh: Mesh  # this process's devices, axes (rows, tensor)
    compute_dtype: str
    cache: CacheSetting  # dtype of keys and values: compute_dtype, or int8 with a scale per token and head
    max_prompt_tokens: int = dataclasses.field(compare=False)  # tokens
    max_response_tokens: int = dataclasses.field(compare=False)  # tokens, the end-of-sequence token included
    cache_length: int  # positions of a slot: for the longest prompt and response, and for every prompt after padding
    decode_slots: int  # responses decoded at once
    decode_window: int  # decode steps per device call; the host refills slots in between
    kernels: model.Kernels  # of `model.kernels.for_sampler`, or others to try
    deterministic: bool = True  # GPU: as `model.deterministic`

    @property
    def row_shards(self) -> int:
        """Groups of devices, each with slots of its own."""
        return self.mesh.shape["rows"]

    @property
    def cache_dtype(self) -> str:
        """The dtype of keys and values in the cache."""
        return self.compute_dtype if self.cache == "compute" else self.cache

    def prefill_rows(self, width: int) -> int:
        """Prompts prefilled together at this padded width. It depends on the width alone, and so do a prompt's bits."""
        return -(-max(1, self.kernels.prefill_tokens // width) // self.row_shards) * self.row_shards

    def kv_axis(self) -> str | None:
        """The mesh axis that key/value heads are split over."""
        return "tensor" if self.architecture.num_kv_heads % self.mesh.shape["tensor"] == 0 else None

    def vocab_axis(self) -> str | None:
        """The mesh axis that logits are split over."""
        tensor = self.mesh.shape["tensor"]
        return "tensor" if tensor > 1 and self.architecture.vocab_size % tensor == 0 else None

    def sharding(self, *axes: str | None) -> NamedSharding:
        """A placement on the engine's mesh."""
        return NamedSharding(self.mesh, PartitionSpec(*axes))


def make(
    architecture: model.Architecture,
    mesh: Mesh,
    *,
    compute_dtype: str,
    max_prompt_tokens: int,
    max_response_tokens: int,
    decode_slots: int,
    decode_window: int,
    cache: CacheSetting = "compute",
    attention: model.kernels.Setting = "auto",
    deterministic: bool = True,
) -> Engine:
    """The engine for these devices, with the kernels of their platform.

    Args:
      mesh: the sampler's, of `mesh.make_meshes`: devices of this process, axes (rows, tensor).
      attention: over whole rows, when prompts are prefilled.
      deterministic: on GPUs, kernels are not chosen by timing them, so that another process samples the same bits.

    Raises:
      ValueError: the slots do not divide over the process's devices, or leave one of them a single slot; the platform cannot
        run `attention`; or an int8 cache is larger than a GPU's kernel can count.
    """
    shards = mesh.shape["rows"]
    # A product with one row is another program, whose results differ in their last bits: two slots are the least.
    if decode_slots % shards or decode_slots < 2 * shards:
        least = max(2, -(-decode_slots // shards)) * shards
        raise ValueError(
            f"rollout.decode_slots={decode_slots} does not divide over the {shards} devices that decode in this process, two or "
            f"more for each. Use a multiple of {shards}, for example {least}."
        )
    cache_length = _cache_length(max_prompt_tokens, max_response_tokens)
    kernels = model.kernels.for_sampler(attention, mesh, architecture, compute_dtype, cache_length=cache_length)
    kv_shards = mesh.shape["tensor"] if architecture.num_kv_heads % mesh.shape["tensor"] == 0 else 1
    per_slot = architecture.num_kv_heads // kv_shards * cache_length * architecture.head_size
    most = (2**31 - 1) // per_slot * shards
    if cache == "int8" and kernels.attend_cached is model.attention.decode_triton.attend and decode_slots > most:
        raise ValueError(
            f"rollout.kv_cache=int8 with rollout.decode_slots={decode_slots}: a layer's cache has 2^31 numbers or more on a GPU, "
            f"which the attention kernel cannot count. Use at most {most} slots, or rollout.kv_cache=compute."
        )
    return Engine(
        architecture.without_value_head(),
        mesh,
        compute_dtype,
        cache,
        max_prompt_tokens,
        max_response_tokens,
        cache_length,
        decode_slots,
        decode_window,
        kernels,
        deterministic,
    )


def _cache_length(max_prompt_tokens: int, max_response_tokens: int) -> int:
    """Positions of a slot: enough for the longest prompt with the longest response, and for every prompt after padding."""
    needed = max(max_prompt_tokens + max_response_tokens, batch.row_length(max_prompt_tokens))
    return -(-needed // model.cache.BLOCK) * model.cache.BLOCK


def from_config(
    architecture: model.Architecture, mesh: Mesh, config: config_lib.Config, *, max_prompt_tokens: int
) -> Engine:
    """The engine of a run's settings, for prompts of up to `max_prompt_tokens`.

    Raises:
      ValueError: as `make`.
    """
    return make(
        architecture,
        mesh,
        compute_dtype=config.model.compute_dtype,
        max_prompt_tokens=max_prompt_tokens,
        max_response_tokens=config.rollout.max_response_tokens,
        decode_slots=config.rollout.decode_slots,
        decode_window=config.rollout.decode_window,
        cache=config.rollout.kv_cache,
        attention=config.model.attention,
        deterministic=config.model.deterministic,
    )
