"""Compiles a run's programs for the devices of a machine: memory and collectives of each."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from reval_jax import algorithms, batch, model, reference, sampler, update
from reval_jax import config as config_lib
from reval_jax import mesh as mesh_lib
from reval_jax.tools.plan import machines
from reval_jax.tools.plan import topology as topology_lib


class ProgramMemory(NamedTuple):
    """Memory of a compiled program on each device, in bytes."""

    arguments: int
    outputs: int
    aliased: int  # outputs that reuse the memory of arguments
    temporaries: int
    code: int
    seconds: float  # of compilation
    collectives: dict[str, int]  # kind → count in the program text; the body of a loop is counted once

    @property
    def needed(self) -> int:
        """Bytes while it runs, without its code."""
        return self.arguments + self.outputs - self.aliased + self.temporaries


class TooLarge(NamedTuple):
    """The compiler's refusal of a program that does not fit even on an otherwise empty device."""

    needed: int  # bytes, from the compiler's message; 0 if it names none
    reason: str
    seconds: float


Result = ProgramMemory | TooLarge
Compile = Callable[[str, config_lib.Config], Result]
"""(program, settings) → its memory. Programs: score, update, sync_weights, prefill, decode."""

LEAST_EFFORT: dict[str, Any] = {"exec_time_optimization_effort": -1.0}
"""Compiler options. At the default effort, which runs use, libtpu takes four to five times as long, nearly all of it on machine
code, after it has assigned memory. The temporaries differ slightly, in either direction: with two layers 1.12 GiB instead of
1.04, and with other row lengths 1.12 instead of 1.16. XLA counts fragmentation twice, 0.16 GiB in these programs."""

PROGRAMS = ("score", "update", "sync_weights", "prefill", "decode")
_COLLECTIVE = re.compile(r"= .*? (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


class Pod(NamedTuple):
    """The devices of a machine and of one of its hosts."""

    topology: machines.Machine
    devices: list[jax.Device]
    host_devices: list[jax.Device]
    capacity: int  # bytes of a device's memory


def open_pod(topology: machines.Machine) -> Pod:
    """The machine's devices.

    Raises:
      ValueError: as `machines.devices`.
    """
    devices = machines.devices(topology)
    return Pod(topology, devices, machines.devices(topology.host), machines.memory_bytes(topology, devices[0]))


def compiler(architecture: model.Architecture, pod: Pod, log: Callable[[str], None]) -> Compile:
    """A `Compile` for this model on this machine that caches its results."""

    def lower(program: str, config: config_lib.Config) -> jax.stages.Lowered:
        if program == "prefill":
            width = batch.row_length(config.task.max_prompt_tokens)
            return sampler.lower_prefill(make_engine(architecture, pod, config), width)
        if program == "decode":
            return sampler.lower_window(make_engine(architecture, pod, config))
        return _lower_learner(program, architecture, pod, config)

    def build(program: str, config: config_lib.Config) -> Any:
        with machines.lowering_for(pod.devices):
            lowered = lower(program, config)
        return lowered.compile() if machines.is_gpu(pod.topology) else compile_quickly(lowered)

    @functools.cache
    def compile_once(program: str, config: config_lib.Config) -> Result:
        start = time.monotonic()
        result = measure(lambda: build(program, config))
        log(f"  compiled {program} in {time.monotonic() - start:.0f} s")
        return result

    return lambda program, config: compile_once(program, _relevant(program, config))


def compilable(config: config_lib.Config, pod: Pod) -> config_lib.Config:
    """The config with attention that can be lowered for absent GPUs: jax looks for cuDNN's library to lower its kernels."""
    if not machines.is_gpu(pod.topology) or config.model.attention not in ("auto", "cudnn"):
        return config
    return dataclasses.replace(config, model=dataclasses.replace(config.model, attention="xla"))


def _relevant(program: str, config: config_lib.Config) -> config_lib.Config:
    """The settings, with every searched one that this program does not depend on at a fixed value: the cache's key."""
    model_settings, update_settings, rollout = config.model, config.update, config.rollout
    if program != "update":
        model_settings = dataclasses.replace(model_settings, remat="none")
    if program not in ("update", "score"):
        update_settings = dataclasses.replace(update_settings, micro_batch_tokens=1)
    if program not in ("prefill", "decode"):
        rollout = dataclasses.replace(rollout, decode_slots=math.lcm(*range(1, 9)))
    return dataclasses.replace(config, model=model_settings, update=update_settings, rollout=rollout)


def compile_quickly(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles with LEAST_EFFORT; at the default effort if this jaxlib does not have the option, as 0.12 does not."""
    try:
        return lowered.compile(LEAST_EFFORT)
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return lowered.compile()


def measure(build: Callable[[], Any]) -> Result:
    """Memory of the compiled program that `build` returns. Running out of memory is a result; other failures raise."""
    start = time.monotonic()
    try:
        with warnings.catch_warnings():
            # jax's persistent cache can store programs for absent devices, but not load them.
            warnings.filterwarnings("ignore", message="Error reading persistent compilation cache entry")
            compiled = build()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        used = re.search(r"Used ([\d.]+[KMGT]?) of|\(([\d.]+[KMGT]?)\) exceeds", str(error))
        needed = topology_lib.parse_bytes(used[1] or used[2]) if used else 0
        return TooLarge(needed, reason.removeprefix("RESOURCE_EXHAUSTED: "), time.monotonic() - start)
    analysis = compiled.memory_analysis()
    return ProgramMemory(
        arguments=analysis.argument_size_in_bytes,
        outputs=analysis.output_size_in_bytes,
        aliased=analysis.alias_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        code=analysis.generated_code_size_in_bytes,
        seconds=time.monotonic() - start,
        collectives=count_collectives(compiled.as_text()),
    )


def count_collectives(text: str) -> dict[str, int]:
    """Count of each collective operation in the text of a compiled program."""
    return dict(sorted(collections.Counter(_COLLECTIVE.findall(text)).items()))


def _lower_learner(
    program: str, architecture: model.Architecture, pod: Pod, config: config_lib.Config
) -> jax.stages.Lowered:
    config = compilable(config, pod)
    mesh = mesh_lib.make(config.mesh, pod.devices)
    params = update.abstract_params(architecture, mesh)
    if program == "sync_weights":
        return sampler.lower_sync_weights(params, make_engine(architecture, pod, config))
    largest = batch.abstract(largest_shape(mesh_lib.num_row_shards(mesh), config), mesh)
    if program == "score":
        reference_params = reference.abstract(params, config=config)
        return reference.make_scorer(architecture, mesh, config=config).lower(reference_params, largest)
    optimizer = update.make_optimizer(config.optimizer, has_value_head=architecture.has_value_head)
    step = update.make_step(architecture, mesh, algorithm=algorithms.choose(config), config=config)
    return step.lower(update.abstract(params, optimizer, mesh), largest)


def largest_shape(num_shards: int, config: config_lib.Config) -> batch.Shape:
    """Shape of a batch whose rows hold the longest possible trajectory."""
    limits = algorithms.limits(config, algorithms.choose(config))
    return batch.shape_of(batch.row_length(config.max_tokens), num_shards, limits=limits)


def make_engine(architecture: model.Architecture, pod: Pod, config: config_lib.Config) -> sampler.Engine:
    """The sampler of one host.

    Raises:
      ValueError: its slots do not divide over the host's devices, or `mesh.tensor` does not divide their number.
    """
    config = compilable(config, pod)
    host_mesh = config_lib.Mesh(data=1, fsdp=-1, tensor=config.mesh.tensor)
    mesh = mesh_lib.make(host_mesh, pod.host_devices)
    return sampler.from_config(
        architecture.without_value_head(), mesh_lib.local(mesh), config, max_prompt_tokens=config.task.max_prompt_tokens
    )
