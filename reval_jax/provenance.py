"""What a run was begun with beside its settings: refused on resume if it decides results, said if it decides their last bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from reval_jax import config as config_lib
from reval_jax import evaluate, machine, model, plugins, sampler, sinks, types, weights


class Provenance(NamedTuple):
    """Facts by name."""

    inputs: dict[str, str]  # another one gives another run
    surroundings: dict[str, str]  # with another one the run goes on, validly but not bit for bit


def of_run(
    config: config_lib.Config,
    architecture: model.Architecture,
    stop_ids: Sequence[int],
    benchmarks: Sequence[evaluate.Benchmark],
) -> Provenance:
    """The facts of this run, as it is about to begin or resume.

    Args:
      stop_ids: tokens that end a response.
      benchmarks: of `eval.benchmarks`; what they hold changes no training.
    """
    inputs = {f"model.{name}": str(value) for name, value in dataclasses.asdict(architecture).items()}
    inputs["end tokens"] = ", ".join(map(str, stop_ids))
    inputs |= {
        f"tokenizer file {name}": digest for name, digest in weights.tokenizer_digests(config.model.path).items()
    }
    update, verifier = config.update, config.verifier
    own = [
        ("update.objective", update.objective, update.objective_path, config_lib.OBJECTIVES),
        ("verifier.function", verifier.function, verifier.function_path, ()),
        ("rollout.engine", config.rollout.engine, "", sampler.engines.ENGINES),
    ]
    for setting, name, directory, built_in in own:
        if name and name not in built_in:
            inputs |= _sources(setting, name, directory)
    surroundings = {**machine.facts()}
    for name in config.run.sinks:
        if name not in sinks.SINKS:
            surroundings |= _sources("run.sinks", name, "")
    surroundings |= {f"benchmark {each.name}": each.fingerprint for each in benchmarks}
    return Provenance(inputs, surroundings)


def _sources(setting: str, name: str, directory: str) -> dict[str, str]:
    return {f"{setting} {file}": digest for file, digest in plugins.sources(name, directory=directory).items()}


def compare(about: types.Json, now: Provenance, *, run_dir: Path) -> list[str]:
    """What changed in the surroundings since the run last began or resumed, as `name: old -> new`.

    Args:
      about: the facts in the run's config.yaml; empty for a new run.

    Raises:
      ValueError: the inputs differ.
    """
    if not about:
        return []
    if "inputs" not in about:
        return ["files and a machine that an earlier version did not record, and that cannot be compared"]
    # An earlier version's architecture lacks the fields that came later.
    old = {
        name: value for name, value in about["inputs"].items() if name in now.inputs or not name.startswith("model.")
    }
    new = {name: value for name, value in now.inputs.items() if name in old or not name.startswith("model.")}
    if altered := _changes(old, new):
        raise ValueError(
            f"--run-dir {run_dir} belongs to a run that began with other inputs ({'; '.join(altered)}), and resuming would "
            "mix two experiments. Restore the files as they were, or start a new run with another --run-dir."
        )
    changes = _changes(about["surroundings"], now.surroundings)
    # Which benchmarks there are is a setting, which is compared as one.
    return [each for each in changes if not (each.startswith("benchmark ") and "nothing" in each)]


def may_change_bits(changes: Sequence[str]) -> bool:
    """Whether a run goes on validly, but not bit for bit as it would have without the changes of its surroundings."""
    return any(" -> " in change and not change.startswith(("benchmark ", "run.sinks ")) for change in changes)


def _changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    names = dict.fromkeys([*old, *new])
    return [
        f"{name}: {old.get(name, 'nothing')} -> {new.get(name, 'nothing')}"
        for name in names
        if old.get(name) != new.get(name)
    ]
