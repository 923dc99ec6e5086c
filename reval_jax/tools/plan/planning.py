"""The plan of a config on a TPU slice or on hosts with GPUs: whether it fits, by phase and kind of memory, and what to change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from reval_jax import algorithms, batch, config_checks, model, trajectories, types, weights
from reval_jax import config as config_lib
from reval_jax.tools.plan import advice, compilation, estimate, gpu_topology, machines, memory, search


class Plan(NamedTuple):
    """Memory and estimated time of a config on a machine."""

    config: config_lib.Config
    topology: machines.Machine
    architecture: model.Architecture
    source: str  # of the architecture
    capacity: int  # bytes of a device that programs may use
    phases: list[memory.Phase]
    update: compilation.Result | None  # None if it was not compiled
    estimate: estimate.UpdateCost
    generate_seconds: float  # estimated, to sample a round's responses
    advice: str  # which setting to change; empty if it fits
    cudnn_bytes: int | None = (
        None  # most that cuDNN's attention, which is not compiled, adds to the update; None without GPUs
    )

    @property
    def fits(self) -> bool:
        """Whether every phase is compiled and fits."""
        return all(phase.is_compiled and phase.fits(self.capacity) for phase in self.phases)

    @property
    def worst(self) -> memory.Phase:
        """The phase that needs most memory; a refused one comes before all others."""
        return max(self.phases, key=lambda phase: (phase.refusal is not None, phase.total))


def plan(
    config: config_lib.Config, slice_name: str, *, is_searching: bool = False, log: Callable[[str], None] = print
) -> Plan:
    """The plan of a config, or of its fastest variant that fits.

    Args:
      slice_name: as for `machines.named`.
      is_searching: try model.remat, update.micro_batch_tokens, rollout.decode_slots and, if need be, mesh.tensor.
      log: called with a line of text about each step.

    Raises:
      ValueError: the config, the machine's name or the model can't be used, or the compiler for it is missing.
    """
    config_checks.check(config)
    algorithm = algorithms.choose(config)
    named = machines.named(slice_name)
    machines.require_compiler(named)
    architecture, source = weights.find_architecture(config.model.path)
    architecture = dataclasses.replace(architecture, has_value_head="value_head" in algorithm.reads)
    pod = compilation.open_pod(named)
    trajectories.check_divides(config.rollout.prompts_per_round, named.num_chips // named.host.num_chips)
    compile_program = compilation.compiler(architecture, pod, log)
    if is_searching:
        config = search_with(architecture, pod, config, compile_program, log) or frugal(architecture, pod, config)
    return examine(architecture, source, pod, config, compile_program)


def search_with(
    architecture: model.Architecture,
    pod: compilation.Pod,
    config: config_lib.Config,
    compile_program: compilation.Compile,
    log: Callable[[str], None],
) -> config_lib.Config | None:
    """`search.find`, compiling the programs of a phase to decide whether it fits."""

    def fits(candidate: config_lib.Config, name: str) -> bool:
        bounds = {phase.name: phase for phase in memory.lower_bounds(architecture, pod, candidate)}
        return compile_phase(bounds[name], candidate, compile_program).fits(pod.capacity)

    return search.find(architecture, pod, config, fits, log)


def frugal(architecture: model.Architecture, pod: compilation.Pod, config: config_lib.Config) -> config_lib.Config:
    """The variant that needs least memory, to report by how much even that does not fit."""
    variants = []
    for tensor in search.tensors(architecture, pod, config):
        sized = search.replace(search.replace(config, "mesh.tensor", tensor), "model.remat", "full")
        fewest = list(search.fewer_slots(pod, sized))[-1:] or [sized]
        row = batch.row_length(config.max_tokens)
        variants.append(
            search.replace(fewest[0], "update.micro_batch_tokens", min(row, config.update.micro_batch_tokens))
        )
    return min(variants, key=lambda each: max(phase.total for phase in memory.lower_bounds(architecture, pod, each)))


def compile_phase(bound: memory.Phase, config: config_lib.Config, compile_program: compilation.Compile) -> memory.Phase:
    """The phase, with its programs compiled."""
    results: dict[str, compilation.Result] = {}
    for program in memory.PHASES[bound.name]:
        results[program] = compile_program(program, config)
        if isinstance(results[program], compilation.TooLarge):
            break
    return memory.with_programs(bound, results)


def examine(
    architecture: model.Architecture,
    source: str,
    pod: compilation.Pod,
    config: config_lib.Config,
    compile_program: compilation.Compile,
) -> Plan:
    """The plan of one config. If the lower bound of any phase does not fit, nothing is compiled."""
    phases = memory.lower_bounds(architecture, pod, config)
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
        estimate=estimate.update_cost(architecture, pod.topology, chips, config),
        generate_seconds=estimate.generate_seconds(architecture, pod.topology, chips, config),
        advice=advice.advise(architecture, pod, config, phases),
        cudnn_bytes=memory.cudnn_bytes(architecture, pod, config) if machines.is_gpu(pod.topology) else None,
    )


def as_json(plan: Plan) -> types.Json:
    """The plan as `--json` writes it; the keys `fits`, `bytes_per_device` and `settings` are stable."""
    each = {phase.name: phase.kinds | {"total": phase.total} for phase in plan.phases}
    return {
        "fits": plan.fits,
        "bytes_per_device": each | {"capacity": plan.capacity},
        "settings": config_lib.to_tree(plan.config),
        "is_compiled": all(phase.is_compiled for phase in plan.phases),
        "worst_phase": plan.worst.name,
        "refusals": {phase.name: phase.refusal for phase in plan.phases if phase.refusal},
        "advice": plan.advice,
        "topology": plan.topology.name,
        "chips": plan.topology.num_chips,
        "chips_per_host": plan.topology.host.num_chips,
        "model": plan.source,
        "collectives": plan.update.collectives if isinstance(plan.update, compilation.ProgramMemory) else None,
        "estimate": plan.estimate._asdict()
        | {"seconds": plan.estimate.seconds, "tokens_per_s": plan.estimate.tokens_per_s},
        "estimated_generate_seconds": plan.generate_seconds,
    } | _as_json_for_gpus(plan)


def _as_json_for_gpus(plan: Plan) -> types.Json:
    if not isinstance(plan.topology, gpu_topology.GpuHosts):
        return {}
    return {
        "device_kind": plan.topology.chip.device_kind,
        "memory_fraction": gpu_topology.memory_fraction(),
        "not_compiled": {"cudnn_bytes_at_most": plan.cudnn_bytes},
    }


def summary(plan: Plan) -> str:
    """The plan as text: bytes by phase and kind, the verdict, advice, and the estimated time of an update."""
    machine = plan.topology
    mesh = estimate.axes(plan.config, machine.num_chips)
    lines = [
        f"model      {plan.source}",
        f"{'GPUs ' if machines.is_gpu(machine) else 'slice'}      {machine.name}: {machine.num_chips} {machine.unit}s, "
        f"{machine.host.num_chips} a host, {_gib(plan.capacity)} GiB each for programs{_share_of_memory(machine)}",
        f"mesh       data {mesh.data} x fsdp {mesh.fsdp} x tensor {mesh.tensor}",
        "settings   " + ", ".join(f"{name} {value}" for name, value in _searched(plan.config).items()),
        "",
        *_table(plan),
        "",
        _verdict(plan),
    ]
    if plan.advice:
        lines += [f"  {line}" for line in plan.advice.splitlines()]
    if plan.cudnn_bytes is not None and plan.update is not None:
        lines += _not_compiled(plan, plan.cudnn_bytes)
    if isinstance(plan.update, compilation.ProgramMemory):
        counts = ", ".join(f"{count} {kind}" for kind, count in plan.update.collectives.items()) or "none"
        if not machines.is_gpu(machine):
            lines += ["compiled at low effort: the run's own programs may need a few percent more or less"]
        lines += [
            "",
            f"collectives in the update program (the body of a loop counted once): {counts}",
        ]
    cost = plan.estimate
    lines += [
        f"an update: {cost.flops:.3g} FLOPs ({cost.executed_flops:.3g} with rematerialisation); estimated "
        f"{cost.seconds:.0f} s ({cost.compute_seconds:.0f} computing, {cost.link_seconds:.0f} communicating), "
        f"{cost.tokens_per_s:,.0f} tokens/s",
        f"  assumed: {cost.assumptions}",
        f"a round's responses: estimated {plan.generate_seconds:.0f} s",
        f"  assumed: each is {plan.config.rollout.max_response_tokens} tokens long; the weights and the whole cache are "
        f"read for each token, at {estimate.MEMORY_UTILIZATION:.0%} of {machine.chip.hbm_bandwidth / 1e9:.0f} GB/s",
    ]
    return "\n".join(lines)


def _share_of_memory(machine: machines.Machine) -> str:
    """What `capacity` is of a GPU's memory, and why."""
    if not isinstance(machine, gpu_topology.GpuHosts):
        return ""
    share = gpu_topology.memory_fraction()
    whose = "jax's default" if share == gpu_topology.MEMORY_FRACTION else "set"
    return f"\n           ({share:.0%} of {_gib(machine.chip.memory)}: XLA_PYTHON_CLIENT_MEM_FRACTION, {whose})"


def _not_compiled(plan: Plan, cudnn_bytes: int) -> list[str]:
    """What the run's programs hold that the compiled ones do not."""
    lines = []
    if not plan.config.model.deterministic:
        lines += [
            "compiled without a GPU: XLA times candidates for products on the card, and here has to take its defaults"
        ]
    if cudnn_bytes:
        needed = {phase.name: phase.total for phase in plan.phases}["update"] + cudnn_bytes
        lines += [
            "not compiled: attention by cuDNN, for want of its library. These programs attend in plain XLA, 128 queries at a",
            f"  time. cuDNN adds at most {_gib(cudnn_bytes)} GiB (softmax statistics or a mask, and with model.deterministic",
            f"  the workspace that a run allows it): the update needs at most {_gib(needed)} of {_gib(plan.capacity)} GiB",
        ]
    return lines


def _searched(config: config_lib.Config) -> types.Json:
    return {
        "model.remat": config.model.remat,
        "update.micro_batch_tokens": config.update.micro_batch_tokens,
        "rollout.decode_slots": config.rollout.decode_slots,
        "mesh.tensor": config.mesh.tensor,
    }


def _table(plan: Plan) -> list[str]:
    """GiB per chip or GPU: a row for each kind, a column for each phase."""
    kinds = [kind for kind in memory.KINDS if any(phase.kinds[kind] for phase in plan.phases)]
    head = f"{'GiB per ' + plan.topology.unit:<14}" + "".join(f"{phase.name:>11}" for phase in plan.phases)
    rows = [f"{kind:<14}" + "".join(f"{_gib(phase.kinds[kind]):>11}" for phase in plan.phases) for kind in kinds]
    return [head, *rows, f"{'total':<14}" + "".join(f"{_gib(phase.total):>11}" for phase in plan.phases)]


def _verdict(plan: Plan) -> str:
    worst = plan.worst
    share = f"{worst.name} needs {_gib(worst.total)} of {_gib(plan.capacity)} GiB"
    if plan.fits:
        return f"fits; the fullest phase: {share}"
    if not worst.is_compiled:
        share = (
            f"{worst.name} needs at least {_gib(worst.total)} of {_gib(plan.capacity)} GiB, by shapes alone; nothing was "
            "compiled"
        )
    return f"does not fit: {share}" + (f" ({worst.refusal})" if worst.refusal else "")


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f}"
