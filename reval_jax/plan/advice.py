"""Which setting to change where a config does not fit, with the value to try."""

from __future__ import annotations

from reval_jax import batch, model
from reval_jax import config as config_lib
from reval_jax.plan import memory, programs, search
from reval_jax.plan import topology as topology_lib


def of(
    architecture: model.Architecture, pod: programs.Pod, config: config_lib.Config, phases: list[memory.Phase]
) -> str:
    """One sentence for each phase that does not fit; empty if all do.

    Args:
      phases: of this config, measured or from shapes alone.
    """
    lines = []
    for phase in phases:
        if not phase.fits(pod.capacity):
            lines.append(f"{phase.name}: {_change(phase, architecture, pod, config)}")
    return "\n".join(lines)


def _change(phase: memory.Phase, architecture: model.Architecture, pod: programs.Pod, config: config_lib.Config) -> str:
    row, tokens = batch.row_length(config.max_tokens), config.update.micro_batch_tokens
    if phase.name != "score" and phase.kinds["reference"]:
        return "the reference lies on the devices: set --update.reference_memory host"
    if phase.name in ("score", "update") and tokens >= 2 * row:
        return f"train on fewer rows at once: set --update.micro_batch_tokens {tokens // row // 2 * row}"
    if phase.name == "update" and config.model.remat != "full":
        stronger = search.REMATS[search.REMATS.index(config.model.remat) + 1]
        return f"keep less for the backward pass: set --model.remat {stronger}"
    for tensor in search.tensors(architecture, pod, config):
        if tensor < config.mesh.tensor:
            continue
        for candidate in search.fewer_slots(pod, search.replace(config, "mesh.tensor", tensor)):
            if _may_fit(phase, architecture, pod, candidate) and candidate != config:
                return _differences(config, candidate)
    return _larger(phase, architecture, pod, config)


def _differences(config: config_lib.Config, candidate: config_lib.Config) -> str:
    changes = []
    if candidate.mesh.tensor != config.mesh.tensor:
        changes.append(f"split each layer over chips of a host: set --mesh.tensor {candidate.mesh.tensor}")
    if candidate.rollout.decode_slots != config.rollout.decode_slots:
        changes.append(f"decode fewer responses at once: set --rollout.decode_slots {candidate.rollout.decode_slots}")
    return "; ".join(changes)


def _may_fit(
    phase: memory.Phase, architecture: model.Architecture, pod: programs.Pod, config: config_lib.Config
) -> bool:
    """Whether the phase may fit with these settings, if what was measured beyond its shapes stays the same."""
    known = {each.name: each for each in memory.at_least(architecture, pod, config)}[phase.name]
    return known.total + phase.kinds["temporaries"] + phase.kinds["programs"] <= pod.capacity


def _larger(phase: memory.Phase, architecture: model.Architecture, pod: programs.Pod, config: config_lib.Config) -> str:
    """The next larger slice, by its name: the learner's state is spread over all chips, so more of them hold less each."""
    state = sum(phase.kinds[kind] for kind in ("params", "optimizer", "gradients"))
    room = pod.capacity - (phase.total - state)
    if config.mesh.fsdp == -1 and room > 0:
        needed = pod.topology.num_chips * state / room
        for name, larger in topology_lib.common_names().items():
            if larger.generation == pod.topology.generation and larger.num_chips >= max(
                needed, pod.topology.num_chips + 1
            ):
                return (
                    f"no setting is left to change: the learner's state is {state / 2**30:.2f} GiB of this phase, and would be "
                    f"less a chip on more of them: try --topology {name} ({larger.num_chips} chips)"
                )
    return "no setting is left to change: use chips with more memory, a smaller model, or shorter responses"
