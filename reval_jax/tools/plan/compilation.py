"""The run's real programs, compiled for a slice's devices: what each needs, and what it sends."""

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
from reval_jax.tools.plan import topology as topology_lib


class Measured(NamedTuple):
    """What a compiled program needs of each device, bytes."""

    arguments: int
    outputs: int
    aliased: int  # outputs that are written over arguments
    temporaries: int
    code: int
    seconds: float  # taken to compile
    collectives: dict[str, int]  # kind → how often it stands in the program; a loop's body stands there once

    @property
    def needed(self) -> int:
        """Bytes while it runs, its code left out."""
        return self.arguments + self.outputs - self.aliased + self.temporaries


class TooLarge(NamedTuple):
    """The compiler's refusal of a program that does not fit even with nothing else on the device."""

    needed: int  # bytes, as the compiler says; 0 where it does not
    reason: str
    seconds: float


Result = Measured | TooLarge
Compile = Callable[[str, config_lib.Config], Result]
"""(program, settings) → what it needs. Programs: score, update, sync_weights, prefill, decode."""

LEAST_EFFORT: dict[str, Any] = {"exec_time_optimization_effort": -1.0}
"""Compiler options. At its default effort, as a run compiles, libtpu takes four to five times as long, nearly all of it on
machine code, after memory was assigned. The temporaries it then finds differ a little either way: 1.12 GiB against 1.04 here, and
1.12 against 1.16, for two layers and for other rows; in all of them XLA's figure counts fragmentation twice, 0.16 GiB there."""

PROGRAMS = ("score", "update", "sync_weights", "prefill", "decode")
_COLLECTIVE = re.compile(r"= .*? (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


class Pod(NamedTuple):
    """The devices of a slice, and of one host of it."""

    topology: topology_lib.Topology
    devices: list[jax.Device]
    host_devices: list[jax.Device]
    capacity: int  # bytes of a device's memory


def open_pod(topology: topology_lib.Topology) -> Pod:
    """The slice's devices.

    Raises:
      ValueError: as `topology.devices`.
    """
    devices = topology_lib.devices(topology)
    return Pod(topology, devices, topology_lib.devices(topology.host), topology_lib.hbm_bytes(devices[0]))


def compiler(architecture: model.Architecture, pod: Pod, say: Callable[[str], None]) -> Compile:
    """A `Compile` for this model on this slice, which compiles nothing twice."""

    def build(program: str, config: config_lib.Config) -> Any:
        if program == "prefill":
            width = batch.row_length(config.task.max_prompt_tokens)
            return sampler.lower_prefill(make_engine(architecture, pod, config), width).compile(LEAST_EFFORT)
        if program == "decode":
            return sampler.lower_window(make_engine(architecture, pod, config)).compile(LEAST_EFFORT)
        return _lower_learner(program, architecture, pod, config).compile(LEAST_EFFORT)

    @functools.cache
    def compile_once(program: str, config: config_lib.Config) -> Result:
        start = time.monotonic()
        result = measure(lambda: build(program, config))
        say(f"  compiled {program} in {time.monotonic() - start:.0f} s")
        return result

    return lambda program, config: compile_once(program, _relevant(program, config))


def _relevant(program: str, config: config_lib.Config) -> config_lib.Config:
    """The settings with those that this program does not depend on, of the ones a search changes, at one value."""
    model_settings, update_settings, rollout = config.model, config.update, config.rollout
    if program != "update":
        model_settings = dataclasses.replace(model_settings, remat="none")
    if program not in ("update", "score"):
        update_settings = dataclasses.replace(update_settings, micro_batch_tokens=1)
    if program not in ("prefill", "decode"):
        rollout = dataclasses.replace(rollout, decode_slots=math.lcm(*range(1, 9)))
    return dataclasses.replace(config, model=model_settings, update=update_settings, rollout=rollout)


def measure(build: Callable[[], Any]) -> Result:
    """What the compiled program that `build` gives needs; a refusal for want of memory is a result, any other an error."""
    start = time.monotonic()
    try:
        with warnings.catch_warnings():
            # What was compiled for devices elsewhere can be written to jax's persistent cache, but not read from it.
            warnings.filterwarnings("ignore", message="Error reading persistent compilation cache entry")
            compiled = build()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        used = re.search(r"Used ([\d.]+[KMGT]?) of|\(([\d.]+[KMGT]?)\) exceeds", str(error))
        needed = topology_lib.parse_bytes(used[1] or used[2]) if used else 0
        return TooLarge(needed, reason.removeprefix("RESOURCE_EXHAUSTED: "), time.monotonic() - start)
    found = compiled.memory_analysis()
    return Measured(
        arguments=found.argument_size_in_bytes,
        outputs=found.output_size_in_bytes,
        aliased=found.alias_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        code=found.generated_code_size_in_bytes,
        seconds=time.monotonic() - start,
        collectives=count_collectives(compiled.as_text()),
    )


def count_collectives(text: str) -> dict[str, int]:
    """How often each collective operation stands in a compiled program's text."""
    return dict(sorted(collections.Counter(_COLLECTIVE.findall(text)).items()))


def _lower_learner(
    program: str, architecture: model.Architecture, pod: Pod, config: config_lib.Config
) -> jax.stages.Lowered:
    mesh = mesh_lib.make(config.mesh, pod.devices)
    params = update.abstract_params(architecture, mesh)
    if program == "sync_weights":
        return sampler.lower_sync_weights(params, make_engine(architecture, pod, config))
    largest = batch.abstract(largest_shape(mesh_lib.num_row_shards(mesh), config), mesh)
    if program == "score":
        dtypes = model.compute_dtypes(params, config.model.compute_dtype)
        frozen = jax.tree.map(lambda leaf, dtype: leaf.update(dtype=dtype), params, dtypes)
        return reference.make_scorer(architecture, mesh, config=config).lower(frozen, largest)
    optimizer = update.make_optimizer(config.optimizer)
    step = update.make_step(architecture, optimizer, mesh, loss=algorithms.choose(config).loss, config=config)
    return step.lower(update.abstract(params, optimizer, mesh), largest)


def largest_shape(num_shards: int, config: config_lib.Config) -> batch.Shape:
    """The sizes of a batch whose rows hold the longest trajectory there can be."""
    limits = batch.limits(config, step_size=algorithms.choose(config).step_size)
    return batch.shape_of(batch.row_length(config.max_tokens), num_shards, limits=limits)


def make_engine(architecture: model.Architecture, pod: Pod, config: config_lib.Config) -> sampler.Engine:
    """The sampler of one host.

    Raises:
      ValueError: its slots do not divide over the host's devices, or `mesh.tensor` does not divide their number.
    """
    of_host = config_lib.Mesh(data=1, fsdp=-1, tensor=config.mesh.tensor)
    mesh = mesh_lib.make(of_host, pod.host_devices)
    return sampler.from_config(
        architecture, mesh_lib.local(mesh), config, max_prompt_tokens=config.task.max_prompt_tokens
    )
