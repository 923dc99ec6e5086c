"""Searches for the fastest settings that fit: candidates in order of estimated time, until one fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

from reval_jax import algorithms, batch, model
from reval_jax import config as config_lib
from reval_jax import mesh as mesh_lib
from reval_jax.tools.plan import compilation, estimate, memory

REMATS = ("none", "dots", "attention", "full")  # from most memory to smallest

Fits = Callable[[config_lib.Config, str], bool]
"""(settings, phase) → whether that phase fits, by compiling it."""


def replace(config: config_lib.Config, name: str, value: object) -> config_lib.Config:
    """The config with the field named `section.field` set to `value`."""
    section, field = name.split(".")
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **{field: value})})


def tensors(architecture: model.Architecture, pod: compilation.Pod, config: config_lib.Config) -> list[int]:
    """Values of mesh.tensor to try, the config's own first: those that divide a host's chips and the query heads.

    With a fixed mesh.fsdp there is only the config's own: another value would require another mesh.fsdp.
    """
    own, chips = config.mesh.tensor, len(pod.host_devices)
    others = [size for size in range(1, chips + 1) if chips % size == 0 and architecture.num_heads % size == 0]
    return [own] + [size for size in others if size != own and config.mesh.fsdp == -1]


class Candidate(NamedTuple):
    """Settings with their estimated time."""

    config: config_lib.Config
    seconds: float  # estimated, of a round's updates (learner) or of its generation (sampler)


def learner_candidates(
    architecture: model.Architecture, pod: compilation.Pod, config: config_lib.Config
) -> list[Candidate]:
    """The config at every remat and at 1, 2, 4, … rows a device and micro-batch, by estimated seconds, fastest first.

    The config's own micro_batch_tokens represents the number of rows that it results in. Of equally fast settings the one that
    needs least memory comes first.
    """
    mesh = mesh_lib.make(config.mesh, pod.devices)
    shards, row = mesh_lib.num_row_shards(mesh), batch.row_length(config.max_tokens)
    most = -(-algorithms.choose(config).step_size // shards)
    counts = [1 << power for power in range(most.bit_length()) if 1 << power <= most]
    own = compilation.largest_shape(shards, config).rows // shards
    tokens = {count: count * row for count in counts} | {own: config.update.micro_batch_tokens}
    candidates = []
    for count in sorted(tokens):
        for remat in reversed(REMATS):
            each = replace(replace(config, "model.remat", remat), "update.micro_batch_tokens", tokens[count])
            cost = estimate.update_cost(architecture, pod.topology, len(pod.devices), each)
            candidates.append(Candidate(each, config.update.updates_per_round * cost.seconds))
    return sorted(candidates, key=lambda candidate: candidate.seconds)


def fewer_slots(pod: compilation.Pod, config: config_lib.Config) -> Iterator[config_lib.Config]:
    """The config with its decode_slots, then half as many, and so on, with at least two per shard of the host's devices."""
    shards, slots = len(pod.host_devices) // config.mesh.tensor, config.rollout.decode_slots
    while slots >= 2 * shards and slots % shards == 0:
        yield replace(config, "rollout.decode_slots", slots)
        if slots % 2:
            return
        slots //= 2


def sampler_candidates(
    architecture: model.Architecture, pod: compilation.Pod, config: config_lib.Config
) -> list[Candidate]:
    """`fewer_slots`, by estimated seconds, fastest first."""
    candidates = [
        Candidate(each, estimate.generate_seconds(architecture, pod.topology, len(pod.devices), each))
        for each in fewer_slots(pod, config)
    ]
    return sorted(candidates, key=lambda candidate: candidate.seconds)


class _Split(NamedTuple):
    """Candidates that may fit at one mesh.tensor, fastest first."""

    learners: list[Candidate]
    samplers: list[Candidate]

    @property
    def seconds(self) -> float:
        """Estimated time of a round with the fastest learner and the fastest sampler."""
        return self.learners[0].seconds + self.samplers[0].seconds


def find(
    architecture: model.Architecture,
    pod: compilation.Pod,
    config: config_lib.Config,
    fits: Fits,
    log: Callable[[str], None],
) -> config_lib.Config | None:
    """The settings with the fastest round, by estimate, that fit; None if none do.

    Values of mesh.tensor are tried in the order of their fastest candidates whose lower bounds fit; the first at which sampler
    and learner both fit wins. Candidates whose lower bound does not fit are not compiled, nor those that need at least as much
    memory as one that did not fit: as much kept for the backward pass, and as many rows and slots.
    """
    learner_phases = tuple(name for name in ("update", "score") if name in memory.phases(config))
    splits = []
    for tensor in tensors(architecture, pod, config):
        start = replace(config, "mesh.tensor", tensor)
        split = _Split(
            _may_fit(learner_candidates(architecture, pod, start), learner_phases, architecture, pod, log),
            _may_fit(
                sampler_candidates(architecture, pod, start), ("sync_weights", "generate"), architecture, pod, log
            ),
        )
        if split.learners and split.samplers:
            splits.append(split)
    for split in sorted(splits, key=lambda split: split.seconds):
        settings = _search_split(split, learner_phases, fits, log)
        if settings is not None:
            return settings
    return None


def _search_split(
    split: _Split, learner_phases: tuple[str, ...], fits: Fits, log: Callable[[str], None]
) -> config_lib.Config | None:
    def fits_all(candidate: config_lib.Config, names: tuple[str, ...]) -> bool:
        for name in names:
            is_fitting = fits(candidate, name)
            log(f"{_describe(candidate, name)}: {name} {'fits' if is_fitting else 'does not fit'}")
            if not is_fitting:
                return False
        return True

    def first_fitting(names: tuple[str, ...], candidates: list[Candidate]) -> config_lib.Config | None:
        failed: list[config_lib.Config] = []
        for candidate, _ in candidates:
            if any(_needs_at_least_as_much(candidate, other) for other in failed):
                continue
            if fits_all(candidate, names):
                return candidate
            failed.append(candidate)
        return None

    if not fits_all(split.samplers[0].config, ("sync_weights",)):
        return None
    learner = first_fitting(learner_phases, split.learners)
    sampler = first_fitting(("generate",), split.samplers) if learner else None
    return replace(learner, "rollout.decode_slots", sampler.rollout.decode_slots) if learner and sampler else None


def _may_fit(
    candidates: list[Candidate],
    names: tuple[str, ...],
    architecture: model.Architecture,
    pod: compilation.Pod,
    log: Callable[[str], None],
) -> list[Candidate]:
    """The candidates whose lower bounds of the named phases fit; logs the reason if none is left."""
    kept, smallest = [], None
    for candidate in candidates:
        phases = [phase for phase in memory.lower_bounds(architecture, pod, candidate.config) if phase.name in names]
        worst = max(phases, key=lambda phase: phase.total)
        if worst.total <= pod.capacity:
            kept.append(candidate)
        elif smallest is None or worst.total < smallest[1].total:
            smallest = (candidate.config, worst)
    if smallest and not kept:
        config, worst = smallest
        log(
            f"{_describe(config, worst.name)}: {worst.name} needs at smallest {worst.total / 2**30:.2f} GiB of "
            f"{pod.capacity / 2**30:.2f}"
        )
    return kept


def _needs_at_least_as_much(candidate: config_lib.Config, other: config_lib.Config) -> bool:
    return (
        REMATS.index(candidate.model.remat) <= REMATS.index(other.model.remat)
        and candidate.update.micro_batch_tokens >= other.update.micro_batch_tokens
        and candidate.rollout.decode_slots >= other.rollout.decode_slots
    )


def _describe(config: config_lib.Config, phase: str) -> str:
    sizes = f"tensor {config.mesh.tensor}"
    if phase == "generate":
        return f"{sizes}, decode_slots {config.rollout.decode_slots}"
    if phase == "sync_weights":
        return sizes
    return f"{sizes}, remat {config.model.remat}, micro_batch_tokens {config.update.micro_batch_tokens}"
