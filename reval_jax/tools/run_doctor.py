"""What of a run directory is whole: config, checkpoints, metrics, rollouts, journal, and who uses it. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from reval_jax import checkpoint, journal, metrics, owner, rollout_files, run_directory
from reval_jax import config as config_lib
from reval_jax.tools.doctor import Finding


def examine(path: Path) -> list[Finding]:
    """One finding for each part of the run, and for each checkpoint.

    Raises:
      ValueError: the directory is not a run's.
    """
    run = run_directory.RunDirectory(path)
    if not run.config.exists() and not run.config_copy.exists():
        raise ValueError(f"--run-dir {path} holds no config.yaml, so it is not a run. Name the directory of a run.")
    config, of_config = _config(run)
    return [of_config, *_checkpoints(run), _metrics(run), _rollouts(run, config), _journal(run), _owner(run)]


def _config(run: run_directory.RunDirectory) -> tuple[config_lib.Config | None, Finding]:
    name = run.config.name
    try:
        config, _, notes = run_directory.recorded(run)
    except ValueError as error:
        return None, Finding(name, str(error), False)
    if notes:
        return config, Finding(name, f"a start reads {notes[0]}", False)
    return config, Finding(name, "whole", True)


def _checkpoints(run: run_directory.RunDirectory) -> Iterator[Finding]:
    found = checkpoint.check(run.checkpoints)
    for round, problem in found.items():
        is_fine = problem in (None, checkpoint.UNCHECKED)
        yield Finding(f"checkpoint of round {round}", problem or "whole", is_fine)
    if not found:
        is_lost = run.saved.exists()
        yield Finding("checkpoints", "gone: the run has saved some" if is_lost else "none saved yet", not is_lost)


def _metrics(run: run_directory.RunDirectory) -> Finding:
    name = run.metrics.name
    if not run.metrics.exists():
        is_lost = run.saved.exists()
        return Finding(name, "not there, though rounds were saved" if is_lost else "no round finished yet", not is_lost)
    try:
        is_verified = metrics.verify(run.metrics)
        lines = metrics.read(run.metrics, drops_incomplete=True)
    except ValueError as error:
        return Finding(name, str(error), False)
    checksums = "" if is_verified else ", not verified: an earlier version wrote no checksums, or they are gone"
    is_cut = not run.metrics.read_bytes().endswith(b"\n")
    cut = ", and an incomplete one at the end, which the next start drops" if lines and is_cut else ""
    return Finding(name, f"{len(lines)} lines{cut}{checksums}", True)


def _rollouts(run: run_directory.RunDirectory, config: config_lib.Config | None) -> Finding:
    """The files that are there; a round without one in their midst is damage, and at their start if nothing deletes them."""
    files, problems = run.rollout_files(), []
    for file in files.values():
        try:
            rollout_files.check(file)
        except ValueError as error:
            problems.append(str(error))
    last = run_directory.last_round(run)
    is_bounded = config is None or config.run.max_rollouts_gib > 0 or _was_bounded(run)
    first = min(files, default=last + 1) if is_bounded else 1
    if missing := [str(round) for round in range(first, last + 1) if round not in files]:
        problems.append(f"no file of round {', '.join(missing)}")
    return Finding(run.rollouts.name, "; ".join(problems) or f"{len(files)} files, whole", not problems)


def _was_bounded(run: run_directory.RunDirectory) -> bool:
    """Whether the setting that deletes files was another one before."""
    return run.changes.exists() and b"run.max_rollouts_gib:" in run.changes.read_bytes()


def _journal(run: run_directory.RunDirectory) -> Finding:
    damaged = journal.damaged_files(run.journal)
    if not damaged:
        return Finding(run.journal.name, "whole", True)
    listed = ", ".join(str(path.relative_to(run.path)) for path in damaged)
    return Finding(run.journal.name, f"damaged: {listed}; a resume samples these responses again", False)


def _owner(run: run_directory.RunDirectory) -> Finding:
    _, sentence = owner.examine(run.path)
    return Finding("owner", sentence, True)
