"""The directory of one run: its files' names, and the checks that no two configs share one."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
from pathlib import Path

import yaml

from reval_jax import config as config_lib
from reval_jax import owner, types

PACKAGES = ("reval-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy", "math-verify")
GPU_PACKAGES = ("jax-cuda13-plugin", "nvidia-cublas", "nvidia-cudnn-cu13")
"""Libraries whose versions decide a GPU's bits, where they are installed."""


MISSING = "not installed"


class RunDirectory:
    """Paths of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.changes = path / "config_changes.jsonl"
        self.metrics = path / "metrics.jsonl"
        self.rollouts = path / "rollouts"
        self.journal = path / "journal"
        self.inspection = path / "inspect.json"
        self.checkpoints = path / "checkpoints"

    def rollout(self, round: int) -> Path:
        """The file of one round's prompts, responses and verdicts."""
        return self.rollouts / f"round_{round:06d}.jsonl.gz"

    def rollout_files(self) -> dict[int, Path]:
        """The rounds whose files exist, ascending, each with its file; earlier versions' files end in `.jsonl`."""
        names = (re.fullmatch(r"round_(\d+)\.jsonl(\.gz)?", path.name) for path in self.rollouts.glob("round_*"))
        # A round that was played by an earlier version and again by this one has two files: the later name is this one's.
        return {int(name[1]): self.rollouts / name[0] for name in sorted(filter(None, names), key=lambda name: name[0])}


def inspect(path: Path, config: config_lib.Config) -> list[str]:
    """Settings that changed since the run in `path` began or last resumed; none for a new run. Writes nothing.

    Raises:
      ValueError: the directory is not a run's, is not writable, or belongs to a run whose config gives other results.
    """
    run = RunDirectory(path)
    existing = next((parent for parent in (path, *path.absolute().parents) if parent.exists()), None)
    if existing is None or not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(
            f"--run-dir {path}: {existing} is not a writable directory. Choose another, or change its mode."
        )
    if not run.config.exists():
        # The run takes its directory first; a killed `claim` leaves its unfinished config file.
        unfinished = run.config.with_suffix(".tmp").name
        if path.exists() and any(
            entry.name != unfinished and not entry.name.startswith(owner.FILE) for entry in path.iterdir()
        ):
            raise ValueError(
                f"--run-dir {path} holds files but no config.yaml, so it is not a run. Choose an empty or new directory."
            )
        return []
    if "about" not in config_lib.read_yaml(run.config):
        raise ValueError(
            f"--run-dir {path} holds a config.yaml that no run wrote, and a run would overwrite it. Choose an empty or "
            "new directory."
        )
    old = config_lib.load(run.config)
    altered = config_lib.changed_results(old, config)
    if altered:
        raise ValueError(
            f"--run-dir {path} belongs to a run with other settings ({'; '.join(altered)}), and resuming would mix two "
            "experiments. Restore the settings, or start a new run with another --run-dir."
        )
    return config_lib.changed(old, config)


def template_date(path: Path) -> str:
    """The date that the chat template prints in all prompts of the run in `path`; empty for a new run.

    Raises:
      ValueError: config.yaml holds something else there.
    """
    file = RunDirectory(path).config
    about = config_lib.read_yaml(file).get("about") if file.exists() else None
    date = str(about.get("template_date", "")) if isinstance(about, dict) else ""
    if date and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", date):
        raise ValueError(
            f"{file}: about.template_date={date!r} is no date. Restore the file; it was written YYYY-MM-DD."
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
) -> RunDirectory:
    """Create the directory, or resume it, and write the resolved config.

    Call after `inspect`, in one process only.

    Args:
      data_fingerprint: of the training set; the same whenever the run resumes.
      round: rounds finished so far, for config_changes.jsonl.
      pool_fingerprint: of the responses of `rollout.pool`, the same whenever the run resumes; empty without one.
      template_date: that a chat template prints as today's: the day on which the run began.

    Raises:
      ValueError: the training data or the pool differs from what the run began with.
    """
    run = RunDirectory(path)
    if run.config.exists():
        about = config_lib.read_yaml(run.config)["about"]
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
        changes = config_lib.changed(config_lib.load(run.config), config)
        changes += [
            f"package {name}: {old} -> {_version(name)}"
            for name, old in about["packages"].items()
            if old != _version(name)
        ]
        if changes:
            with run.changes.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"round": round, "changes": changes}) + "\n")
    path.mkdir(parents=True, exist_ok=True)
    about = {
        "config_hash": config_lib.results_hash(config),
        "data_fingerprint": data_fingerprint,
        **({"pool_fingerprint": pool_fingerprint} if pool_fingerprint else {}),
        **({"template_date": template_date} if template_date else {}),
        "packages": package_versions(),
    }
    tree: types.Json = {**config_lib.to_tree(config), "about": about}
    temporary = run.config.with_suffix(".tmp")
    temporary.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    temporary.replace(run.config)
    run.rollouts.mkdir(exist_ok=True)
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
