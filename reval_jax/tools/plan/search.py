"""The settings to try, fastest first, and the first of them that fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

from reval_jax import algorithms, batch, model
from reval_jax import config as config_lib
from reval_jax import mesh as mesh_lib
from reval_jax.tools.plan import compilation, estimate, memory

REMATS = ("none", "dots", "attention", "full")  # from most memory to least

Fits = Callable[[config_lib.Config, str], bool]
"""(settings, phase) → whether that phase fits, once compiled."""


def replace(config: config_lib.Config, name: str, value: object) -> config_lib.Config:
    """The config with one field, named as `section.field`, at another value."""
    section, field = name.split(".")
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **{field: value})})


def tensors(architecture: model.Architecture, pod: compilation.Pod, config: config_lib.Config) -> list[int]:
    """Values of mesh.tensor to try, the config's own first: those that divide a host's chips and the query heads.

    With mesh.fsdp fixed, only its own: another would need another mesh.fsdp.
    """
    own, chips = config.mesh.tensor, len(pod.host_devices)
    others = [size for size in range(1, chips + 1) if chips % size == 0 and architecture.num_heads % size == 0]
    return [own] + [size for size in others if size != own and config.mesh.fsdp == -1]


class Candidate(NamedTuple):
    """Settings to try."""

    config: config_lib.Config
    seconds: float  # a round of them is estimated to take in the phases that are being searched


def learner_candidates(
    architecture: model.Architecture, pod: compilation.Pod, config: config_lib.Config
) -> list[Candidate]:
    """The config at every remat and at 1, 2, 4, … rows a device and micro-batch, by estimated seconds, fastest first.

    The config's own micro_batch_tokens stands for the number of rows it gives; of settings that are equally fast the one
    that needs least comes first.
    """
    mesh = mesh_lib.make(config.mesh, pod.devices)
    shards, row = mesh_lib.num_row_shards(mesh), batch.row_length(config.max_tokens)
    most = -(-algorithms.choose(config).step_size // shards)
    counts = [1 << power for power in range(most.bit_length()) if 1 << power <= most]
    own = compilation.largest_shape(shards, config).rows // shards
    tokens = {count: count * row for count in counts} | {own: config.update.micro_batch_tokens}
    found = []
    for count in sorted(tokens):
        for remat in reversed(REMATS):
            each = replace(replace(config, "model.remat", remat), "update.micro_batch_tokens", tokens[count])
            one = estimate.of_update(architecture, pod.topology, len(pod.devices), each)
            found.append(Candidate(each, config.update.updates_per_round * one.seconds))
    return sorted(found, key=lambda candidate: candidate.seconds)


def fewer_slots(pod: compilation.Pod, config: config_lib.Config) -> Iterator[config_lib.Config]:
    """The config with its decode_slots, then with half as many, and so on while two or more go to each part of the host."""
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
    found = [
        Candidate(each, estimate.generate_seconds(architecture, pod.topology, len(pod.devices), each))
        for each in fewer_slots(pod, config)
    ]
    return sorted(found, key=lambda candidate: candidate.seconds)


class _Split(NamedTuple):
    """What may fit at one mesh.tensor, each list fastest first."""

    learners: list[Candidate]
    samplers: list[Candidate]

    @property
    def seconds(self) -> float:
        """A round's, of the fastest of each."""
        return self.learners[0].seconds + self.samplers[0].seconds


def find(
    architecture: model.Architecture,
    pod: compilation.Pod,
    config: config_lib.Config,
    fits: Fits,
    say: Callable[[str], None],
) -> config_lib.Config | None:
    """The settings with the fastest round, by estimate, that fit; None if none do.

    Each mesh.tensor is tried in the order of the best that its shapes alone leave possible; the first with which sampler and
    learner both fit is taken. What shapes rule out is not compiled; nor is what needs no less than a setting that did not
    fit: as much kept for the backward pass, and as many rows trained on at once.
    """
    of_update = tuple(name for name in ("update", "score") if name in memory.phases(config))
    splits = []
    for tensor in tensors(architecture, pod, config):
        start = replace(config, "mesh.tensor", tensor)
        split = _Split(
            _not_ruled_out(learner_candidates(architecture, pod, start), of_update, architecture, pod, say),
            _not_ruled_out(
                sampler_candidates(architecture, pod, start), ("sync_weights", "generate"), architecture, pod, say
            ),
        )
        if split.learners and split.samplers:
            splits.append(split)
    for split in sorted(splits, key=lambda split: split.seconds):
        found = _find_in(split, of_update, fits, say)
        if found is not None:
            return found
    return None


def _find_in(
    split: _Split, of_update: tuple[str, ...], fits: Fits, say: Callable[[str], None]
) -> config_lib.Config | None:
    def fits_all(candidate: config_lib.Config, names: tuple[str, ...]) -> bool:
        for name in names:
            is_fitting = fits(candidate, name)
            say(f"{_described(candidate, name)}: {name} {'fits' if is_fitting else 'does not fit'}")
            if not is_fitting:
                return False
        return True

    def first(names: tuple[str, ...], candidates: list[Candidate]) -> config_lib.Config | None:
        failed: list[config_lib.Config] = []
        for candidate, _ in candidates:
            if any(_needs_no_less(candidate, other) for other in failed):
                continue
            if fits_all(candidate, names):
                return candidate
            failed.append(candidate)
        return None

    if not fits_all(split.samplers[0].config, ("sync_weights",)):
        return None
    learner = first(of_update, split.learners)
    sampler = first(("generate",), split.samplers) if learner else None
    return replace(learner, "rollout.decode_slots", sampler.rollout.decode_slots) if learner and sampler else None


def _not_ruled_out(
    candidates: list[Candidate],
    names: tuple[str, ...],
    architecture: model.Architecture,
    pod: compilation.Pod,
    say: Callable[[str], None],
) -> list[Candidate]:
    """The candidates whose named phases may fit, by their shapes alone; says why if none is left."""
    kept, least = [], None
    for candidate in candidates:
        phases = [phase for phase in memory.at_least(architecture, pod, candidate.config) if phase.name in names]
        worst = max(phases, key=lambda phase: phase.total)
        if worst.total <= pod.capacity:
            kept.append(candidate)
        elif least is None or worst.total < least[1].total:
            least = (candidate.config, worst)
    if least and not kept:
        config, worst = least
        say(
            f"{_described(config, worst.name)}: {worst.name} needs at least {worst.total / 2**30:.2f} GiB of "
            f"{pod.capacity / 2**30:.2f}"
        )
    return kept


def _needs_no_less(candidate: config_lib.Config, other: config_lib.Config) -> bool:
    return (
        REMATS.index(candidate.model.remat) <= REMATS.index(other.model.remat)
        and candidate.update.micro_batch_tokens >= other.update.micro_batch_tokens
        and candidate.rollout.decode_slots >= other.rollout.decode_slots
    )


def _described(config: config_lib.Config, phase: str) -> str:
    sizes = f"tensor {config.mesh.tensor}"
    if phase == "generate":
        return f"{sizes}, decode_slots {config.rollout.decode_slots}"
    if phase == "sync_weights":
        return sizes
    return f"{sizes}, remat {config.model.remat}, micro_batch_tokens {config.update.micro_batch_tokens}"
