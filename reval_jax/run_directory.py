"""The directory of one run: its files' names, and the checks that no two configs share one."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from reval_jax import config as config_lib
from reval_jax import durable, owner, types

PACKAGES = ("reval-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy", "math-verify")
GPU_PACKAGES = ("jax-cuda13-plugin", "nvidia-cublas", "nvidia-cudnn-cu13")
"""Libraries whose versions decide a GPU's bits, where they are installed."""


MISSING = "not installed"

_CHECKSUM = b"# sha256 of the lines above: "
"""Begins the last line of config.yaml."""


class RunDirectory:
    """Paths of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.config_copy = path / "config_copy.yaml"
        self.saved = path / "saved.json"
        self.changes = path / "config_changes.jsonl"
        self.metrics = path / "metrics.jsonl"
        self.rollouts = path / "rollouts"
        self.journal = path / "journal"
        self.inspection = path / "inspect.json"
        self.token_scores = path / "token_scores.jsonl.gz"
        self.checkpoints = path / "checkpoints"

    def rollout(self, round: int) -> Path:
        """The file of one round's prompts, responses and verdicts."""
        return self.rollouts / f"round_{round:06d}.jsonl.gz"

    def rollout_files(self) -> dict[int, Path]:
        """The rounds whose files exist, ascending, each with its file; earlier versions' files end in `.jsonl`."""
        names = (re.fullmatch(r"round_(\d+)\.jsonl(\.gz)?", path.name) for path in self.rollouts.glob("round_*"))
        # A round that was played by an earlier version and again by this one has two files: the later name is this one's.
        return {int(name[1]): self.rollouts / name[0] for name in sorted(filter(None, names), key=lambda name: name[0])}


def standing(run: RunDirectory) -> str:
    """What of a run a later start finds, in one sentence; reads only names, so that it may be called at any moment."""
    rounds = saved_rounds(run.checkpoints)
    saved = f"round {rounds[-1]} is saved" if rounds else "no round is saved yet"
    return f"In {run.path} {saved}; finished responses of the round that began are in its journal."


def inspect(path: Path, config: config_lib.Config) -> list[str]:
    """Settings that changed since the run in `path` began or last resumed; none for a new run. Writes nothing.

    Raises:
      ValueError: the directory is not a run's, is not writable, has lost its checkpoints, or belongs to a run whose config gives
        other results.
    """
    run = RunDirectory(path)
    _check_path(path)
    if not run.config.exists() and not run.config_copy.exists():
        # The run takes its directory first; a killed `claim` leaves its unfinished config file.
        unfinished = run.config.with_suffix(".tmp").name
        if path.exists() and any(
            entry.name != unfinished and not entry.name.startswith(owner.FILE) for entry in path.iterdir()
        ):
            raise ValueError(
                f"--run-dir {path} holds files but no config.yaml, so it is not a run. Choose an empty or new directory."
            )
        return []
    old, _, notes = recorded(run)
    altered = config_lib.changed_results(old, config)
    if altered:
        raise ValueError(
            f"--run-dir {path} belongs to a run with other settings ({'; '.join(altered)}), and resuming would mix two "
            "experiments. Restore the settings, or start a new run with another --run-dir."
        )
    if not saved_rounds(run.checkpoints) and _has_saved(run, old) and (last_round(run) or run.rollout_files()):
        raise ValueError(
            f"{run.checkpoints} has no checkpoint, but the run has saved some: beginning again from round 0 would write over the "
            f"metrics and rollouts in {path}. Restore the checkpoints from a copy, start a new run with another --run-dir, or "
            f"delete {path} to begin again here."
        )
    return notes + config_lib.changed(old, config)


def _check_path(path: Path) -> None:
    """Refuses a path where no directory can be made or written; raises ValueError."""
    try:
        parents = (path.absolute(), *path.absolute().parents)
    except FileNotFoundError as error:
        raise ValueError(
            f"--run-dir {path} cannot be found: the working directory does not exist any more. Change to another one first."
        ) from error
    try:
        for parent in parents:
            if parent.is_symlink() and not parent.exists():
                raise ValueError(
                    f"--run-dir {path}: {parent} is a link to {os.readlink(parent)}, which does not exist. Make that directory, "
                    "or choose another."
                )
        existing = next(parent for parent in parents if parent.exists())
    except OSError as error:
        raise ValueError(f"--run-dir {path} cannot be used: {error.strerror}. Choose another directory.") from error
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(
            f"--run-dir {path}: {existing} is not a writable directory. Choose another, or change its mode."
        )


def recorded(run: RunDirectory) -> tuple[config_lib.Config, types.Json, list[str]]:
    """The settings and facts in config.yaml, or in its copy if it is damaged, which the notes then say.

    Raises:
      ValueError: no run wrote the file, or it and its copy are damaged.
    """
    config, about, problem = _read_config(run.config)
    if not problem and not _has_checksum(run.config) and _has_checksum(run.config_copy):
        # Cut off at a line's end it reads well. Of one that a user changed the copy is damaged as well, or was deleted.
        problem = "" if _read_config(run.config_copy)[2] else "is damaged: it has lost its last line, the checksum"
    if not problem:
        return types.present(config), about, []
    if not run.config_copy.exists():
        advice = "Restore the file, or choose another directory."
        if rounds := saved_rounds(run.checkpoints):
            advice += f" The settings are in {run.checkpoints / str(rounds[-1])} as well."
        raise ValueError(f"--run-dir {run.path}: {run.config} {problem}. {advice}")
    config, about, also = _read_config(run.config_copy)
    if also:
        raise ValueError(
            f"--run-dir {run.path}: {run.config} {problem}, and so is its copy: {run.config_copy} {also}. Restore one of them; "
            "one that you have changed yourself is read once you delete its last line, the checksum."
        )
    return types.present(config), about, [f"the copy of config.yaml, since that {problem}"]


def _has_checksum(file: Path) -> bool:
    try:
        return _CHECKSUM in file.read_bytes()
    except OSError:
        return False


def _read_config(file: Path) -> tuple[config_lib.Config | None, types.Json, str]:
    """Settings, facts, and what is wrong with the file, to follow its name."""
    try:
        content = file.read_bytes()
    except OSError as error:
        return None, {}, f"cannot be read ({error.strerror})"
    lines, mark, checksum = content.rpartition(_CHECKSUM)
    if mark and checksum.strip() != hashlib.sha256(lines).hexdigest().encode():
        return None, {}, "is damaged: it does not have its checksum"
    try:
        tree = config_lib.read_yaml(file)
        about = tree.pop("about", None)
        if not isinstance(about, dict) or not about.keys() >= {"data_fingerprint", "packages"}:
            return None, {}, "is a config.yaml that no run wrote, and a run would overwrite it"
        return config_lib.from_tree(tree, source=str(file)), about, ""
    except ValueError as error:
        return None, {}, f"is damaged ({error})"


def saved_rounds(checkpoints: Path) -> list[int]:
    """Rounds whose checkpoints were committed, ascending, whole or not; none where there is no directory `checkpoints`."""
    try:
        entries = [entry for entry in checkpoints.iterdir() if entry.name.isdecimal()]  # an unfinished one has a suffix
        return sorted(int(entry.name) for entry in entries if str(int(entry.name)) == entry.name and entry.is_dir())
    except OSError:
        return []


def note_saved(run: RunDirectory) -> None:
    """Records that the run has a committed checkpoint, once there is one, so that a start without any is noticed.

    Raises:
      OSError: the record cannot be written.
    """
    if not run.saved.exists() and (rounds := saved_rounds(run.checkpoints)):
        durable.write(run.saved, (json.dumps({"first_saved_round": rounds[0]}, allow_nan=False) + "\n").encode())


def _has_saved(run: RunDirectory, old: config_lib.Config) -> bool:
    """Whether the run has had a checkpoint; earlier versions did not record it, but waited for a save before the next.

    The line of the round of the second save is written before that wait; the line after it proves the first save.
    """
    return run.saved.exists() or last_round(run) > 2 * old.checkpoint.every


def last_round(run: RunDirectory) -> int:
    """The last round in metrics.jsonl; 0 where it has none."""
    try:
        lines = run.metrics.read_bytes().split(b"\n")[:-1]  # what a killed run left behind the last one is no round
    except OSError:
        return 0
    rounds = [re.search(rb'"training/round": (\d+)', line) for line in lines]
    return max((int(found[1]) for found in rounds if found), default=0)


def facts(path: Path) -> types.Json:
    """What config.yaml says about the run in `path` beside its settings; empty for a new run.

    Raises:
      ValueError: config.yaml is damaged as its copy is.
    """
    run = RunDirectory(path)
    return recorded(run)[1] if run.config.exists() or run.config_copy.exists() else {}


def template_date(path: Path) -> str:
    """The date that the chat template prints in all prompts of the run in `path`; empty for a new run.

    Raises:
      ValueError: config.yaml holds something else there, or is damaged as its copy is.
    """
    date = str(facts(path).get("template_date", ""))
    if date and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", date):
        raise ValueError(
            f"{RunDirectory(path).config}: about.template_date={date!r} is no date. Restore the file; it was written YYYY-MM-DD."
        )
    return date


def claim(
    path: Path,
    config: config_lib.Config,
    *,
    data_fingerprint: str,
    round: int,
    pool_fingerprint: str = "",
    template_date: str = "",
    inputs: Mapping[str, str] | None = None,
    surroundings: Mapping[str, str] | None = None,
    changes: Sequence[str] = (),
) -> RunDirectory:
    """Create the directory, or resume it, and write the resolved config.

    Call after `inspect`, in one process only.

    Args:
      data_fingerprint: of the training set; the same whenever the run resumes.
      round: rounds finished so far, for config_changes.jsonl.
      pool_fingerprint: of the responses of `rollout.pool`, the same whenever the run resumes; empty without one.
      template_date: that a chat template prints as today's: the day on which the run began.
      inputs, surroundings: of `provenance.Provenance`, to be recorded.
      changes: of the surroundings, for config_changes.jsonl.

    Raises:
      ValueError: the training data or the pool differs from what the run began with.
    """
    run = RunDirectory(path)
    if run.config.exists() or run.config_copy.exists():
        old, about, _ = recorded(run)
        if about["data_fingerprint"] != data_fingerprint:
            raise ValueError(
                f"task.dataset={config.task.dataset} has the fingerprint {data_fingerprint}, but the run in {path} began with "
                f"{about['data_fingerprint']}: the prompts would come in another order. Restore the file, or "
                "use another --run-dir."
            )
        if (before := about.get("pool_fingerprint", "")) != pool_fingerprint:
            raise ValueError(
                f"rollout.pool={config.rollout.pool} has the fingerprint {pool_fingerprint}, but the run in {path} began with "
                f"{before}: other stored responses would join its groups. Restore the file, or use another --run-dir."
            )
        changes = [*config_lib.changed(old, config), *changes]
        changes += [
            f"package {name}: {before} -> {_version(name)}"
            for name, before in about["packages"].items()
            if before != _version(name)
        ]
        if changes:
            line = json.dumps({"round": round, "changes": changes}, allow_nan=False) + "\n"
            durable.append(run.changes, line.encode())
    path.mkdir(parents=True, exist_ok=True)
    about = {
        "config_hash": config_lib.results_hash(config),
        "data_fingerprint": data_fingerprint,
        **({"pool_fingerprint": pool_fingerprint} if pool_fingerprint else {}),
        **({"template_date": template_date} if template_date else {}),
        "packages": package_versions(),
        **({"inputs": dict(inputs)} if inputs else {}),
        **({"surroundings": dict(surroundings)} if surroundings else {}),
    }
    tree: types.Json = {**config_lib.to_tree(config), "about": about}
    content = config_lib.dump(tree).encode()
    content += _CHECKSUM + hashlib.sha256(content).hexdigest().encode() + b"\n"
    # A resume depends on them, also after a power loss.
    durable.write(run.config, content)
    durable.write(run.config_copy, content)
    durable.sync_directory(path.parent)
    run.rollouts.mkdir(exist_ok=True)
    note_saved(run)
    return run


def package_versions() -> dict[str, str]:
    """The installed version of each package that results may depend on."""
    installed = {name: _version(name) for name in (*PACKAGES, *GPU_PACKAGES)}
    return {name: version for name, version in installed.items() if name in PACKAGES or version != MISSING}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return MISSING
