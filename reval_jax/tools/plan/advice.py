"""Advice for a config that does not fit: which setting to change, and the value to try."""

from __future__ import annotations

from collections.abc import Iterator

from reval_jax import batch, model
from reval_jax import config as config_lib
from reval_jax.tools.plan import compilation, gpu_topology, memory, search


def advise(
    architecture: model.Architecture, pod: compilation.Pod, config: config_lib.Config, phases: list[memory.Phase]
) -> str:
    """One line for each phase that does not fit; empty if all do.

    Args:
      phases: of this config, compiled or from shapes alone.
    """
    lines = []
    for phase in phases:
        if not phase.fits(pod.capacity):
            lines.append(f"{phase.name}: {_advise_phase(phase, architecture, pod, config)}")
    return "\n".join(lines)


def _advise_phase(
    phase: memory.Phase, architecture: model.Architecture, pod: compilation.Pod, config: config_lib.Config
) -> str:
    if phase.name != "score" and phase.kinds["reference"]:
        return "the reference is on the devices: set --update.reference_memory host"
    if isinstance(pod.topology, gpu_topology.GpuHosts) and phase.refusal is None:
        share = gpu_topology.LARGEST_FRACTION
        if phase.total <= share * pod.topology.chip.memory:
            return f"let programs use more of the memory: set XLA_PYTHON_CLIENT_MEM_FRACTION={share} for the run and its plan"
    bound, largest_change = _lower_bound(phase.name, architecture, pod, config), None
    for candidate in _smaller_variants(phase.name, architecture, pod, config):
        # In the learner's phases, the bytes beyond the lower bound scale with its rows.
        rows = candidate.update.micro_batch_tokens / config.update.micro_batch_tokens
        beyond = (phase.total - bound.total) * (rows if phase.name in ("score", "update") else 1)
        needed = _lower_bound(phase.name, architecture, pod, candidate).total
        if needed + beyond <= pod.capacity:
            return _describe_changes(config, candidate, pod)
        if needed <= pod.capacity:
            largest_change = candidate  # its bytes beyond the lower bound may shrink too
    if largest_change is not None:
        return _describe_changes(config, largest_change, pod)
    return _advise_larger_slice(phase, architecture, pod, config)


def _lower_bound(
    name: str, architecture: model.Architecture, pod: compilation.Pod, config: config_lib.Config
) -> memory.Phase:
    return {each.name: each for each in memory.lower_bounds(architecture, pod, config)}[name]


def _smaller_variants(
    name: str, architecture: model.Architecture, pod: compilation.Pod, config: config_lib.Config
) -> Iterator[config_lib.Config]:
    """Variants of the config that need less and less memory in this phase."""
    if name in ("score", "update"):
        row = batch.row_length(config.max_tokens)
        while config.update.micro_batch_tokens >= 2 * row:
            config = search.replace(
                config, "update.micro_batch_tokens", config.update.micro_batch_tokens // row // 2 * row
            )
            yield config
        for remat in search.REMATS[search.REMATS.index(config.model.remat) + 1 :] if name == "update" else ():
            yield search.replace(config, "model.remat", remat)
        return
    for tensor in search.tensors(architecture, pod, config):
        if tensor >= config.mesh.tensor:
            wider = search.replace(config, "mesh.tensor", tensor)
            yield from (each for each in search.fewer_slots(pod, wider) if each != config)


_WHY = {
    "update.micro_batch_tokens": "train on fewer rows at once",
    "model.remat": "keep less for the backward pass",
    "mesh.tensor": "split each layer over {unit}s of a host",
    "rollout.decode_slots": "decode fewer responses at once",
}


def _describe_changes(config: config_lib.Config, candidate: config_lib.Config, pod: compilation.Pod) -> str:
    changes = []
    for name, why in _WHY.items():
        section, field = name.split(".")
        value = getattr(getattr(candidate, section), field)
        if value != getattr(getattr(config, section), field):
            changes.append(f"{why.format(unit=pod.topology.unit)}: set --{name} {value}")
    return "; ".join(changes)


def _advise_larger_slice(
    phase: memory.Phase, architecture: model.Architecture, pod: compilation.Pod, config: config_lib.Config
) -> str:
    """Advice to use a larger machine, named: the learner's state is sharded over all devices, so each of more holds less."""
    state = sum(phase.kinds[kind] for kind in ("params", "optimizer", "gradients"))
    room, unit = pod.capacity - (phase.total - state), pod.topology.unit
    if config.mesh.fsdp == -1 and room > 0:
        needed = pod.topology.num_chips * state / room
        for larger in pod.topology.larger():
            if larger.num_chips >= needed:
                return (
                    f"no setting is left to change: the learner's state is {state / 2**30:.2f} GiB of this phase, and "
                    f"is smaller per {unit} on more {unit}s: try --topology {larger.common_name} ({larger.num_chips} {unit}s)"
                )
    return f"no setting is left to change: use {unit}s with more memory, a smaller model, or shorter responses"
