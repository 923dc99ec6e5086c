"""Two checkouts of this project beside each other: are their results the same bits, and which is faster?

    python -m benchmarks.two_versions OLD NEW [--parts bits speed] [--rounds 3] [--out runs/two_versions] [--json FILE]

OLD and NEW are directories, for example `git worktree add ../old v0.1.0` and `.`. Each runs with its own code, this
environment's libraries, and the model in models/ of this directory.

bits: each plays the tiny runs of VARIANTS (4 rounds on 8 fake devices, seconds each), and with --demo four rounds of
configs/one_shot_medium.yaml (a minute or two). Metrics without clock times, rollouts and every array of the last checkpoint are
compared byte for byte. Settings that were renamed between the two get the name that each knows.

speed: `reval bench update` and `reval bench sampler` of each, in turns, --rounds times; medians and their ratio.

Exit code 1 if any bit differs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
import tyro

from reval_jax import config as config_lib

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support import tiny_runs

VARIANTS: dict[str, dict[str, str]] = {
    "reval": {},
    "tbrm": {"update.objective": "tbrm"},
    "regression": {"update.objective": "regression", "update.reward_design": "group_normalized"},
    "grpo": {"update.objective": "grpo", "update.reference_reset_every": "0"},
    "bfloat16": {"model.compute_dtype": "bfloat16", "model.remat": "dots"},
    "int8": {"rollout.kv_cache": "int8", "rollout.top_k": "5", "rollout.temperature": "0.8"},
    "tensor": {"mesh.tensor": "2", "mesh.data": "2"},
    "filter_groups": {"rollout.filter_groups": "True", "rollout.max_waves": "2"},
    "mask": {"rollout.truncated": "mask"},
    "penalty": {
        "rollout.truncated": "penalty",
        "rollout.penalty_tokens": "4",
        "update.stop_value_gradient": "True",
        "update.reward_design": "signed",
    },
}
"""Settings of the tiny runs, beside those of tests/support/tiny_runs.py."""

OLD_NAMES = {new: old for old, new in config_lib.RENAMED.items()}
CLOCK = ("timing_s/", "perf/")
"""Prefixes of the metrics that depend on the clock."""

UPDATE = ("--rows", "8", "--tokens", "128", "--remat", "none", "--repeats", "3")
SAMPLER = (
    "--prompts",
    "4",
    "--samples",
    "8",
    "--response_tokens",
    "32",
    "--slots",
    "32",
    "--lengths",
    "fixed",
    "--repeats",
    "3",
)
TIMES = {"update": ("update", UPDATE, "fixed"), "decode_step": ("sampler", SAMPLER, "decode_step")}
"""Name → (kind of `reval bench`, its options, the key among its seconds)."""


@dataclasses.dataclass(frozen=True)
class TwoVersions:
    """Compare the results, bit for bit, and the speed of two checkouts."""

    old: tyro.conf.Positional[Path]  # a checkout
    new: tyro.conf.Positional[Path]  # another
    parts: tuple[Literal["bits", "speed"], ...] = ("bits", "speed")  # what to compare
    variants: tuple[str, ...] = tuple(VARIANTS)  # tiny runs to play
    demo: bool = True  # play four rounds of configs/one_shot_medium.yaml too; needs the model in models/ (`make demo`)
    rounds: int = 3  # turns of each side when times are compared
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the timed programs
    out: Path = Path("runs/two_versions")  # where the runs go; a run that is complete there is not played again
    json: Path | None = None  # write the results here too


def main(argv: list[str] | None = None) -> int:
    """Prints a line for every comparison as it is made."""
    args = tyro.cli(TwoVersions, args=argv, description=__doc__, use_underscores=True)
    unknown = sorted(set(args.variants) - VARIANTS.keys())
    missing = [str(path) for path in (args.old, args.new) if not (path / "reval_jax" / "__init__.py").is_file()]
    if unknown or missing:
        what = (
            f"no variant {', '.join(unknown)}; there are {', '.join(VARIANTS)}"
            if unknown
            else f"no checkout in {missing[0]}"
        )
        print(f"two_versions: {what}.", file=sys.stderr)
        return 2
    sides = {"old": args.old.resolve(), "new": args.new.resolve()}
    result: dict[str, Any] = {}
    if "bits" in args.parts:
        result["bits"] = compare_bits(sides, args)
    if "speed" in args.parts:
        result["speed"] = compare_speed(sides, args.rounds, args.dtype)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return int(any(differences for differences in result.get("bits", {}).values()))


def compare_bits(sides: Mapping[str, Path], args: TwoVersions) -> dict[str, list[str]]:
    """Each run's differences; an empty list where there are none."""
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    file = tiny_runs.write_files(out)
    runs = {name: (["--config", str(file)], VARIANTS[name], 8) for name in args.variants}
    if args.demo:
        demo = [
            "--config",
            "configs/one_shot_medium.yaml",
            "--model.path",
            str(Path("models").resolve() / "SmolLM2-135M-Instruct.gguf"),
        ]
        runs["demo"] = ([*demo, "--run.rounds", "4"], {}, 1)
    known = {side: settings_of(path) for side, path in sides.items()}
    found = {}
    for name, (options, overrides, devices) in runs.items():
        for side, path in sides.items():
            train(path, [*options, *named(overrides, known[side])], out / side / name, devices)
        found[name] = differences(out / "old" / name, out / "new" / name)
        print(
            f"{name:<14}" + ("the same bits" if not found[name] else "DIFFERENT: " + ", ".join(found[name])), flush=True
        )
    return found


def settings_of(checkout: Path) -> set[str]:
    """The names of all settings that a checkout has."""
    program = "import json; from reval_jax import config; print(json.dumps(config.to_tree(config.Config())))"
    tree = json.loads(call(checkout, ["-c", program]).splitlines()[-1])
    return {f"{section}.{field}" for section, fields in tree.items() for field in fields}


def named(overrides: Mapping[str, str], known: set[str]) -> list[str]:
    """Command-line options for the overrides, each under the name that is known."""
    options = []
    for name, value in overrides.items():
        options += [f"--{name if name in known else OLD_NAMES[name]}", value]
    return options


def train(checkout: Path, options: list[str], run_dir: Path, devices: int) -> None:
    """Plays a run, or resumes it; a complete one ends at once."""
    call(checkout, ["-m", "reval_jax", "train", *options, "--run-dir", str(run_dir)], JAX_NUM_CPU_DEVICES=str(devices))


def call(checkout: Path, argv: list[str], **environment: str) -> str:
    """Runs Python in a checkout with its own code; returns what it printed to standard output.

    Raises:
      RuntimeError: it failed.
    """
    inherited = {"PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    result = subprocess.run(
        [sys.executable, *argv], cwd=checkout, env=os.environ | inherited | environment, capture_output=True, text=True
    )
    if result.returncode:
        raise RuntimeError(
            f"{' '.join(argv)} in {checkout} ended with {result.returncode}:\n{result.stdout}{result.stderr}"
        )
    return result.stdout


def differences(old: Path, new: Path) -> list[str]:
    """What two run directories differ in: names of metrics, rollouts files and arrays."""
    found = []
    for one, other in zip(metrics_of(old), metrics_of(new), strict=True):
        found += sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    for part in (rollouts_of, arrays_of):
        one, other = part(old), part(new)
        found += sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    return list(dict.fromkeys(found))


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith(CLOCK)} for line in lines]


def rollouts_of(run: Path) -> dict[str, bytes]:
    """The rollouts files by name."""
    return {file.name: file.read_bytes() for file in sorted((run / "rollouts").iterdir())}


def arrays_of(run: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Dtype, shape and bytes of every array of the last checkpoint, read without the code of either checkout."""
    last = max(int(entry.name) for entry in (run / "checkpoints").iterdir() if entry.name.isdigit())
    directory = run / "checkpoints" / str(last) / "arrays"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(directory).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        restored = checkpointer.restore(directory, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    leaves = jax.tree_util.tree_leaves_with_path(restored)
    return {jax.tree_util.keystr(path): (str(leaf.dtype), leaf.shape, leaf.tobytes()) for path, leaf in leaves}


def compare_speed(sides: Mapping[str, Path], rounds: int, dtype: str) -> dict[str, dict[str, float]]:
    """Seconds of each side and new / old, by name: medians of all rounds, in which the sides take turns."""
    seconds: dict[str, dict[str, list[float]]] = {name: {side: [] for side in sides} for name in TIMES}
    for index in range(rounds):
        for side in sides if index % 2 == 0 else reversed(list(sides)):
            for name, (kind, options, key) in TIMES.items():
                argv = ["-m", "reval_jax", "bench", kind, *options, "--dtype", dtype, "--json", "/dev/stdout"]
                (case,) = json.loads(call(sides[side], argv))["cases"]
                seconds[name][side].append(case["seconds"][key])
    result = {}
    for name, times in seconds.items():
        old, new = statistics.median(times["old"]), statistics.median(times["new"])
        pairs = [one / other for one, other in zip(times["new"], times["old"], strict=True)]
        result[name] = {"old_s": old, "new_s": new, "ratio": new / old, "least": min(pairs), "most": max(pairs)}
        print(
            f"{name:<14}old {old:.4g} s, new {new:.4g} s, new / old {new / old:.3f} ({min(pairs):.3f} to {max(pairs):.3f})"
        )
    return result


if __name__ == "__main__":
    raise SystemExit(main())
