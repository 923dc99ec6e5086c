"""Will it fit, before you have the machine: the run's real programs compiled for a named TPU slice, and their memory added up.

`plan` answers for one config, or with a search for the fastest variant of it that fits. Only shapes are compiled: no weights
are read and no TPU is needed, but libtpu is, for its compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from reval_jax import algorithms, batch, config_checks, model, trajectories, weights
from reval_jax import config as config_lib
from reval_jax.tools.plan import advice, compilation, estimate, memory, search, topology


class Plan(NamedTuple):
    """What a config needs on a slice."""

    config: config_lib.Config
    topology: topology.Topology
    architecture: model.Architecture
    source: str  # of the architecture
    capacity: int  # bytes of a device that programs may use
    phases: list[memory.Phase]
    update: compilation.Result | None  # None where it was not compiled
    estimate: estimate.Estimate
    generate_seconds: float  # estimated, to sample a round's responses
    advice: str  # which setting to change; empty where it fits

    @property
    def fits(self) -> bool:
        """Whether every phase does, all its programs compiled."""
        return all(phase.is_measured and phase.fits(self.capacity) for phase in self.phases)

    @property
    def worst(self) -> memory.Phase:
        """The phase that needs most, a refused one before all others."""
        return max(self.phases, key=lambda phase: (phase.refusal is not None, phase.total))


def plan(
    config: config_lib.Config, slice_name: str, *, is_searching: bool = False, say: Callable[[str], None] = print
) -> Plan:
    """The plan of a config, or of the fastest variant of it that fits.

    Args:
      slice_name: as for `topology.named`.
      is_searching: try model.remat, update.micro_batch_tokens, rollout.decode_slots and, if need be, mesh.tensor.
      say: told of each step.

    Raises:
      ValueError: the config, the slice's name or the model can't be used, or libtpu is missing.
    """
    config_checks.check(config)
    algorithms.choose(config)
    named = topology.named(slice_name)
    topology.require_compiler()
    architecture, source = weights.find_architecture(config.model.path)
    pod = compilation.open_pod(named)
    trajectories.check_divides(config.rollout.prompts_per_round, named.num_chips // named.host.num_chips)
    compile_program = compilation.compiler(architecture, pod, say)
    if is_searching:
        config = search_with(architecture, pod, config, compile_program, say) or frugal(architecture, pod, config)
    return examine(architecture, source, pod, config, compile_program)


def search_with(
    architecture: model.Architecture,
    pod: compilation.Pod,
    config: config_lib.Config,
    compile_program: compilation.Compile,
    say: Callable[[str], None],
) -> config_lib.Config | None:
    """`search.find` with phases judged by compiling their programs."""

    def fits(candidate: config_lib.Config, name: str) -> bool:
        known = {phase.name: phase for phase in memory.at_least(architecture, pod, candidate)}
        return compile_phase(known[name], candidate, compile_program).fits(pod.capacity)

    return search.find(architecture, pod, config, fits, say)


def frugal(architecture: model.Architecture, pod: compilation.Pod, config: config_lib.Config) -> config_lib.Config:
    """The variant that needs least memory, to say by how much even that does not fit."""
    variants = []
    for tensor in search.tensors(architecture, pod, config):
        sized = search.replace(search.replace(config, "mesh.tensor", tensor), "model.remat", "full")
        fewest = list(search.fewer_slots(pod, sized))[-1:] or [sized]
        row = batch.row_length(config.max_tokens)
        variants.append(
            search.replace(fewest[0], "update.micro_batch_tokens", min(row, config.update.micro_batch_tokens))
        )
    return min(variants, key=lambda each: max(phase.total for phase in memory.at_least(architecture, pod, each)))


def compile_phase(known: memory.Phase, config: config_lib.Config, compile_program: compilation.Compile) -> memory.Phase:
    """The phase as its compiled programs are."""
    results: dict[str, compilation.Result] = {}
    for program in memory.PHASES[known.name]:
        results[program] = compile_program(program, config)
        if isinstance(results[program], compilation.TooLarge):
            break
    return memory.measured(known, results)


def examine(
    architecture: model.Architecture,
    source: str,
    pod: compilation.Pod,
    config: config_lib.Config,
    compile_program: compilation.Compile,
) -> Plan:
    """The plan of one config. Where shapes alone show that a phase does not fit, nothing is compiled."""
    phases = memory.at_least(architecture, pod, config)
    update: compilation.Result | None = None
    if all(phase.fits(pod.capacity) for phase in phases):
        phases = [compile_phase(phase, config, compile_program) for phase in phases]
        update = compile_program("update", config)
    chips = len(pod.devices)
    return Plan(
        config=config,
        topology=pod.topology,
        architecture=architecture,
        source=source,
        capacity=pod.capacity,
        phases=phases,
        update=update,
        estimate=estimate.of_update(architecture, pod.topology, chips, config),
        generate_seconds=estimate.generate_seconds(architecture, pod.topology, chips, config),
        advice=advice.of(architecture, pod, config, phases),
    )


def as_json(found: Plan) -> dict[str, Any]:
    """The plan as `--json` writes it; `fits`, `bytes_per_device` and `settings` are a contract."""
    each = {phase.name: phase.kinds | {"total": phase.total} for phase in found.phases}
    return {
        "fits": found.fits,
        "bytes_per_device": each | {"capacity": found.capacity},
        "settings": config_lib.to_tree(found.config),
        "is_compiled": all(phase.is_measured for phase in found.phases),
        "worst_phase": found.worst.name,
        "refusals": {phase.name: phase.refusal for phase in found.phases if phase.refusal},
        "advice": found.advice,
        "topology": found.topology.name,
        "chips": found.topology.num_chips,
        "chips_per_host": found.topology.host.num_chips,
        "model": found.source,
        "collectives": found.update.collectives if isinstance(found.update, compilation.Measured) else None,
        "estimate": found.estimate._asdict()
        | {"seconds": found.estimate.seconds, "tokens_per_s": found.estimate.tokens_per_s},
        "estimated_generate_seconds": found.generate_seconds,
    }


def sentences(found: Plan) -> str:
    """The plan as a person reads it: bytes by phase and kind, the verdict, what to change, and how long an update takes."""
    slice_ = found.topology
    mesh = estimate.axes(found.config, slice_.num_chips)
    lines = [
        f"model      {found.source}",
        f"slice      {slice_.name}: {slice_.num_chips} chips, {slice_.host.num_chips} a host, "
        f"{_gib(found.capacity)} GiB each for programs",
        f"mesh       data {mesh.data} x fsdp {mesh.fsdp} x tensor {mesh.tensor}",
        "settings   " + ", ".join(f"{name} {value}" for name, value in _searched(found.config).items()),
        "",
        *_table(found),
        "",
        _verdict(found),
    ]
    if found.advice:
        lines += [f"  {line}" for line in found.advice.splitlines()]
    if isinstance(found.update, compilation.Measured):
        counts = ", ".join(f"{count} {kind}" for kind, count in found.update.collectives.items()) or "none"
        lines += [
            "compiled with least effort at speed: the run's own compilation may need some percent more or less",
            "",
            f"collectives in the update's program (a loop's body counted once): {counts}",
        ]
    made = found.estimate
    lines += [
        f"an update: {made.flops:.3g} FLOPs ({made.executed_flops:.3g} with what is computed again); estimated "
        f"{made.seconds:.0f} s ({made.compute_seconds:.0f} computing, {made.link_seconds:.0f} communicating), "
        f"{made.tokens_per_s:,.0f} tokens/s",
        f"  assumed: {made.assumptions}",
        f"a round's responses: estimated {found.generate_seconds:.0f} s",
        f"  assumed: every one is {found.config.rollout.max_response_tokens} tokens long; the weights and the whole cache are "
        f"read for each token, at {estimate.MEMORY_UTILIZATION:.0%} of {slice_.chip.hbm_bandwidth / 1e9:.0f} GB/s",
    ]
    return "\n".join(lines)


def _searched(config: config_lib.Config) -> dict[str, Any]:
    return {
        "model.remat": config.model.remat,
        "update.micro_batch_tokens": config.update.micro_batch_tokens,
        "rollout.decode_slots": config.rollout.decode_slots,
        "mesh.tensor": config.mesh.tensor,
    }


def _table(found: Plan) -> list[str]:
    """GiB on a chip: a row for each kind, a column for each phase."""
    kinds = [kind for kind in memory.KINDS if any(phase.kinds[kind] for phase in found.phases)]
    head = f"{'GiB a chip':<14}" + "".join(f"{phase.name:>11}" for phase in found.phases)
    rows = [f"{kind:<14}" + "".join(f"{_gib(phase.kinds[kind]):>11}" for phase in found.phases) for kind in kinds]
    return [head, *rows, f"{'total':<14}" + "".join(f"{_gib(phase.total):>11}" for phase in found.phases)]


def _verdict(found: Plan) -> str:
    worst = found.worst
    share = f"{worst.name} needs {_gib(worst.total)} of {_gib(found.capacity)} GiB"
    if found.fits:
        return f"fits; the fullest phase: {share}"
    if not worst.is_measured:
        share = (
            f"{worst.name} needs at least {_gib(worst.total)} of {_gib(found.capacity)} GiB, by shapes alone: nothing was "
            "compiled"
        )
    return f"does not fit: {share}" + (f" ({worst.refusal})" if worst.refusal else "")


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f}"
