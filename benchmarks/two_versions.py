"""Compares two versions of this project: equal bits on CPU, and the ratio of their update and decode times.

    git worktree add /tmp/old COMMIT
    python -m benchmarks.two_versions /tmp/old . [--rounds 3] [--json FILE]

Bits: each checkout trains the same tiny runs and four rounds of configs/one_shot_medium.yaml, with its own code in its own
processes. Metrics (except times), rollouts and the arrays of the last checkpoint are then compared byte for byte. Takes minutes
on two cores; the run of one_shot_medium needs the demo's model (`make demo` downloads it).

Speed: `reval bench update` and `reval bench sampler` of both, interleaved over --rounds; medians of seconds, and new / old. The
weights are random and the sizes small, with the architecture of SmolLM2-135M; only the ratio is meaningful. Leave the machine
idle.

A setting that was renamed between the two versions is passed to each by the name that it knows (`config.RENAMED`). The exit code
is 1 if a run failed or any byte differs; times do not affect it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import rich.console
import rich.table
import tyro

from reval_jax import config as config_lib
from reval_jax import metrics, rollout_files
from reval_jax.tools import demo

ROOT = Path(__file__).resolve().parents[1]
TIMES = ("timing_s/", "perf/")
"""Prefixes of the metrics that may differ."""

TINY: dict[str, dict[str, Any]] = {
    "reval": {},
    "tbrm": {"update.objective": "tbrm"},
    "regression": {"update.objective": "regression", "update.reward_design": "group_normalized"},
    "grpo": {"update.objective": "grpo", "update.reference_reset_every": 0},
    "bf16": {"model.compute_dtype": "bfloat16", "model.remat": "dots"},
    "int8": {"rollout.kv_cache": "int8", "rollout.top_k": 5, "rollout.temperature": 0.8},
    "tensor": {"mesh.tensor": 2, "mesh.data": 2},
    "groups": {"rollout.filter_groups": True, "rollout.max_waves": 2},
    "mask": {"rollout.truncated": "mask"},
    "penalty": {
        "rollout.truncated": "penalty",
        "rollout.penalty_tokens": 4,
        "update.stop_value_gradient": True,
        "update.reward_design": "signed",
    },
}
"""Tiny runs on eight CPU devices: the settings of each that differ from tests/support/tiny_runs.py, by their current names."""

DEMO = "demo"  # name of the run of four rounds with the demo's config
BENCHES: dict[str, tuple[str, ...]] = {
    "update": ("--rows", "4", "--tokens", "64", "--micro_batch_tokens", "256", "--remat", "none", "--repeats", "5"),
    "sampler": (
        *("--prompts", "4", "--samples", "4", "--prompt_tokens", "16", "--response_tokens", "32", "--slots", "16"),
        *("--lengths", "fixed", "--repeats", "3"),
    ),
}
SECONDS = {"update": ("update", "fixed"), "decode step": ("sampler", "decode_step")}
"""Name of a time → its benchmark, and its key among that benchmark's seconds."""

RunBench = Callable[[Path, str], dict[str, Any]]
"""(checkout, benchmark) → the JSON of `reval bench`."""


@dataclasses.dataclass(frozen=True)
class TwoVersions:
    """Compare two checkouts of this project: are their results equal byte for byte, and is one slower?"""

    # A directory that contains reval_jax/.
    old: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OLD_CHECKOUT")]
    # Another such directory, or the same one.
    new: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="NEW_CHECKOUT")]
    parts: tuple[Literal["bits", "speed"], ...] = ("bits", "speed")  # what to compare
    runs: tuple[str, ...] = (*TINY, DEMO)  # for bits: names of the runs
    rounds: int = 3  # for speed: turns of each checkout
    directory: Path | None = None  # keep the runs here, in old/ and new/; by default they are deleted at the end
    json: Path | None = None  # also write the results to this file


class Bits(NamedTuple):
    """Differences between two runs; a run that failed has a message instead."""

    run: str
    metrics: list[str]  # names whose values differ in any round
    rollouts: list[str]  # file names
    arrays: list[str]  # names in the tree of the last checkpoint
    failure: str = ""

    @property
    def is_equal(self) -> bool:
        """Whether both runs ended and no byte differs."""
        return not (self.metrics or self.rollouts or self.arrays or self.failure)


def main(argv: list[str] | None = None) -> int:
    """Runs the comparison; returns an exit code."""
    args = tyro.cli(TwoVersions, args=argv, prog="python -m benchmarks.two_versions", description=__doc__)
    try:
        return _compare(args)
    except ValueError as error:
        print(f"two_versions: {error}", file=sys.stderr)
        return 2


def _compare(args: TwoVersions) -> int:
    for checkout in (args.old, args.new):
        if not (checkout / "reval_jax" / "__init__.py").is_file():
            raise ValueError(
                f"{checkout} is not a checkout: it has no reval_jax/__init__.py. Name the repository's root."
            )
    if unknown := set(args.runs) - {*TINY, DEMO}:
        raise ValueError(f"--runs {' '.join(sorted(unknown))}: no such run. Use {', '.join([*TINY, DEMO])}.")
    if args.rounds < 1:
        raise ValueError(f"--rounds {args.rounds}: use at least 1.")
    terminal = rich.console.Console(stderr=True)
    bits: list[Bits] = []
    speed: dict[str, Any] = {}
    if "bits" in args.parts:
        with tempfile.TemporaryDirectory() as scratch:
            directory = (args.directory or Path(scratch)).resolve()
            bits = compare_bits(args.old.resolve(), args.new.resolve(), directory, args.runs, log=terminal.print)
        rich.print(bits_table(bits))
    if "speed" in args.parts:
        speed = compare_speed(args.old.resolve(), args.new.resolve(), args.rounds, log=terminal.print)
        rich.print(speed_table(speed))
    if args.json:
        results = {"bits": [each._asdict() | {"is_equal": each.is_equal} for each in bits], "speed": speed}
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0 if all(each.is_equal for each in bits) else 1


# --- bits ------------------------------------------------------------------------------------------------------------


def compare_bits(
    old: Path, new: Path, directory: Path, runs: Sequence[str], *, log: Callable[[str], None]
) -> list[Bits]:
    """Trains the runs with both checkouts in `directory`/old and /new, and compares them.

    Raises:
      ValueError: one of these directories exists already, or the demo's model is missing.
    """
    for name in ("files", "old", "new"):
        if (directory / name).exists():
            raise ValueError(f"{directory / name} exists. Delete it, or choose another --directory.")
    config = write_tiny_files(directory / "files") if set(runs) & TINY.keys() else None
    model = ROOT / demo.MODEL
    if DEMO in runs and not model.is_file():
        raise ValueError(
            f"{model} is missing, which the run '{DEMO}' needs. Run `make demo` once, or leave it out of --runs."
        )
    results = []
    for name in runs:
        failures = []
        for label, checkout in (("old", old), ("new", new)):
            log(f"{name}: training {label}")
            if name == DEMO:
                words = ["--config", "configs/one_shot_medium.yaml", "--run.rounds", "4", "--model.path", str(model)]
                failure = train(checkout, words, directory / label / name, num_devices=1)
            else:
                words = ["--config", str(config), *as_options(TINY[name], known_settings(checkout))]
                failure = train(checkout, words, directory / label / name, num_devices=8)
            failures += [f"{label}: {failure}"] if failure else []
        if failures:
            results.append(Bits(name, [], [], [], "; ".join(failures)))
        else:
            results.append(compare_runs(name, directory / "old" / name, directory / "new" / name))
    return results


def write_tiny_files(directory: Path) -> Path:
    """Writes the tests' tiny model and data with this checkout's code; returns the config file."""
    directory.mkdir(parents=True, exist_ok=True)
    program = "import pathlib, sys; from support import tiny_runs; tiny_runs.write_files(pathlib.Path(sys.argv[1]))"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    subprocess.run([sys.executable, "-c", program, str(directory)], cwd=ROOT, env=environment, check=True)
    return directory / "config.yaml"


def known_settings(checkout: Path) -> set[str]:
    """`section.field` of every setting that a checkout has."""
    program = (
        "import json; from reval_jax import config; "
        "print(json.dumps([f'{s}.{f}' for s, fields in config.to_tree(config.Config()).items() for f in fields]))"
    )
    result = _python(checkout, ["-c", program])
    if result.returncode:
        raise ValueError(f"{checkout}: its settings cannot be read. {result.stderr.strip()[-500:]}")
    return set(json.loads(result.stdout))


def as_options(settings: Mapping[str, Any], known: Collection[str]) -> list[str]:
    """The settings as options, each by the name that the checkout knows.

    Raises:
      ValueError: it knows neither the current name nor a former one.
    """
    options = []
    for name, value in settings.items():
        former = [old for old, current in config_lib.RENAMED.items() if current == name]
        names = [each for each in (name, *former) if each in known]
        if not names:
            raise ValueError(f"a checkout has no setting {name}. If it was renamed, add it to config.RENAMED.")
        options += [f"--{names[0]}", str(value)]
    return options


def train(checkout: Path, words: Sequence[str], run_dir: Path, *, num_devices: int) -> str:
    """Trains with a checkout's code; returns the end of its output if it failed, else nothing."""
    devices = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(num_devices)}
    result = _python(checkout, ["-m", "reval_jax", "train", *words, "--run-dir", str(run_dir)], **devices)
    return (result.stdout + result.stderr).strip()[-1000:] if result.returncode else ""


def compare_runs(name: str, old: Path, new: Path) -> Bits:
    """Differences between two run directories in metrics, rollouts and arrays."""
    lines = [_metrics(run_dir) for run_dir in (old, new)]
    different: set[str] = set()
    for one, other in zip(*lines, strict=False):
        different |= {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    if len(lines[0]) != len(lines[1]):
        different.add(f"number of lines: {len(lines[0])}, {len(lines[1])}")
    rollouts = [_rollouts(run_dir) for run_dir in (old, new)]
    arrays = [_arrays(run_dir) for run_dir in (old, new)]
    return Bits(name, sorted(different), _different_keys(*rollouts), _different_keys(*arrays))


def _rollouts(run_dir: Path) -> dict[str, bytes]:
    """File name without `.gz` → lines of each rollouts file: a version of either side may have written them uncompressed."""
    files = (run_dir / "rollouts").iterdir()
    return {file.name.removesuffix(rollout_files.COMPRESSED): rollout_files.read(file) for file in files}


def _metrics(run_dir: Path) -> list[dict[str, Any]]:
    lines = metrics.read(run_dir / "metrics.jsonl")
    # repr tells -0.0 from 0.0, and calls nan equal to nan.
    return [{key: repr(value) for key, value in line.items() if not key.startswith(TIMES)} for line in lines]


def _arrays(run_dir: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Name → dtype, shape and bytes of every array in the last checkpoint."""
    saved = run_dir / "checkpoints"
    last = max(int(entry.name) for entry in saved.iterdir() if entry.name.isdigit())
    directory = saved / str(last) / "arrays"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(directory).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        restored = checkpointer.restore(directory, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return {
        jax.tree_util.keystr(path): (str(leaf.dtype), leaf.shape, leaf.tobytes())
        for path, leaf in jax.tree_util.tree_leaves_with_path(restored)
    }


def _different_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


def _python(checkout: Path, words: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with a checkout's code."""
    variables = {**os.environ, "PYTHONPATH": str(checkout), **environment}
    return subprocess.run(
        [sys.executable, *words], cwd=checkout, env=variables, capture_output=True, text=True, check=False
    )


def bits_table(bits: Sequence[Bits]) -> rich.table.Table:
    """A row for each run; differences are counted, and the first are named."""
    table = rich.table.Table("run", "metrics", "rollouts", "arrays", title="bits: old = new?")
    for each in bits:
        cells = [
            "equal" if not names else f"{len(names)} differ: {', '.join(names[:3])}"
            for names in (each.metrics, each.rollouts, each.arrays)
        ]
        table.add_row(each.run, *([f"FAILED {each.failure}", "", ""] if each.failure else cells))
    return table


# --- speed -----------------------------------------------------------------------------------------------------------


def run_bench(checkout: Path, bench: str) -> dict[str, Any]:
    """The JSON of `reval bench` with a checkout's code.

    Raises:
      ValueError: it failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "bench.json"
        result = _python(checkout, ["-m", "reval_jax", "bench", bench, *BENCHES[bench], "--json", str(file)])
        if result.returncode:
            raise ValueError(f"{checkout}: reval bench {bench} failed. {result.stderr.strip()[-500:]}")
        return json.loads(file.read_text(encoding="utf-8"))


def compare_speed(
    old: Path, new: Path, rounds: int, *, log: Callable[[str], None], bench: RunBench = run_bench
) -> dict[str, dict[str, Any]]:
    """Seconds of each time in every turn, their medians, and the ratio new / old.

    The two checkouts take turns, and swap places every round, so that other load on the machine affects both alike.
    """
    seconds: dict[str, dict[str, list[float]]] = {name: {"old": [], "new": []} for name in SECONDS}
    for turn in range(rounds):
        order = [("old", old), ("new", new)]
        for label, checkout in order if turn % 2 == 0 else reversed(order):
            log(f"speed: round {turn + 1} of {rounds}, {label}")
            cases = {name: bench(checkout, name)["cases"][0] for name in BENCHES}
            for name, (source, key) in SECONDS.items():
                seconds[name][label].append(cases[source]["seconds"][key])
    results: dict[str, dict[str, Any]] = {}
    for name, each in seconds.items():
        medians = {label: statistics.median(values) for label, values in each.items()}
        results[name] = {"seconds": each, "medians": medians, "ratio": medians["new"] / medians["old"]}
    return results


def speed_table(speed: Mapping[str, Mapping[str, Any]]) -> rich.table.Table:
    """A row for each time: medians in milliseconds, and new / old."""
    table = rich.table.Table("time", "old, ms", "new, ms", "new / old", title="speed: medians")
    for name, each in speed.items():
        medians = each["medians"]
        table.add_row(name, f"{medians['old'] * 1e3:.1f}", f"{medians['new'] * 1e3:.1f}", f"{each['ratio']:.3f}")
    return table


if __name__ == "__main__":
    raise SystemExit(main())
