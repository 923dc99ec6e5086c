"""What it costs a run to be watched: seconds of a round with each metric sink and with the live view, against without.

    python -m benchmarks.watching            # about ten minutes on two cores; JSON with --json FILE

One run of a tiny model in one process. Blocks of rounds take turns: nothing, each sink, the view; so that a machine that
becomes busier does so for all. The cost is the median over cycles of (median round of the block − median round of the block with
nothing), with its 95% interval by resampling cycles. Trackers write locally
(WANDB_MODE=offline, a database of MLflow in a file).

The interval is wide on a busy machine. What does not depend on others is counted beside it: seconds of the run's own thread, and
CPU seconds of the tracker's process, which has a lower priority than the run; of the view, the seconds of drawing it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pty
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import rich.console
import rich.control

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support import tiny_runs

from reval_jax import console as console_lib
from reval_jax import progress, setup, sinks, train

BLOCK = 6  # rounds with the same watcher; the first is left out, since the one before still writes
SINKS = ("tensorboard", "wandb", "trackio", "mlflow")
VARIANTS = ("nothing", *SINKS, "view")


class Turns:
    """The sinks of a run, of which only the present variant's gets the lines."""

    def __init__(self, config: Any, run_dir: Path) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
        self.calls: dict[str, list[float]] = {name: [] for name in VARIANTS}
        self.cpu: dict[str, float] = {}  # of the trackers' processes when the first cycle was over
        self.variant = VARIANTS[0]
        self._sinks = {name: sinks.Sinks(sinks.choose([name]), config, run_dir, log=print) for name in SINKS}

    def write(self, line: Any) -> None:
        """As `sinks.Sinks.write`."""
        if self.variant in self._sinks:
            start = time.perf_counter()
            self._sinks[self.variant].write(line)
            self.calls[self.variant].append(time.perf_counter() - start)

    def cpu_seconds(self) -> dict[str, float]:
        """CPU seconds of each tracker's processes so far."""
        found = {}
        for name in SINKS:
            for worker in self._sinks[name]._workers:
                if (process := getattr(worker._sink, "_process", None)) is not None:
                    found[name] = _tree_seconds(process.pid)
        return found

    def close(self, outcome: sinks.Outcome) -> None:
        """As `sinks.Sinks.close`."""
        self.cpu = {name: seconds - self.cpu[name] for name, seconds in self.cpu_seconds().items()}
        for each in self._sinks.values():
            each.close(outcome)


def _tree_seconds(root: int) -> float:
    """User and system seconds of a process and those it has started (Linux)."""
    parents, ticks = {}, {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = file.read_text().rpartition(")")[2].split()
            parents[int(file.parent.name)] = int(fields[1])
            ticks[int(file.parent.name)] = int(fields[11]) + int(fields[12])

    def is_below(process: int | None) -> bool:
        return process is not None and (process == root or is_below(parents.get(process)))

    return sum(ticks[process] for process in ticks if is_below(process)) / os.sysconf("SC_CLK_TCK")


def refresh_seconds(repeats: int = 300) -> float:
    """Seconds of this thread to draw the view of a long run once."""
    shown = on_terminal()._console
    line = {"critic/score/mean": 0.5, "training/updates": 1, "actor/lr": 1e-6, "actor/kl_ref": 0.1}
    past = [{**line, "training/round": n, **{f"timing_s/{name}": 1.0 for name in progress.PHASES}} for n in range(120)]
    view = progress.View(1000, past, lambda: "update")
    view.work("round 121: sampling", 7, 128)
    with progress.Live(shown, view):
        start = time.thread_time()
        for _ in range(repeats):
            shown.print(rich.control.Control(), end="")
        return (time.thread_time() - start) / repeats


def on_terminal() -> console_lib.Console:
    """A console on a pseudo-terminal that somebody reads."""
    parent, child = pty.openpty()
    shown = console_lib.Console()
    shown._console = rich.console.Console(file=os.fdopen(child, "w"), force_terminal=True, soft_wrap=True)

    def drain() -> None:
        with contextlib.suppress(OSError):
            while os.read(parent, 65536):
                pass

    threading.Thread(target=drain, daemon=True).start()
    return shown


def measure(directory: Path, cycles: int, tokens: int) -> Turns:
    """Plays a run whose blocks of rounds are watched in turns."""
    rounds = BLOCK * len(VARIANTS) * (cycles + 1)
    settings: dict[str, Any] = {
        "run.rounds": rounds,
        "run.sinks": [],
        "eval.every": 0,
        "eval.benchmarks": [],
        "checkpoint.every": rounds,
        "rollout.max_response_tokens": tokens,
        "update.micro_batch_tokens": 2 * (16 + tokens),
    }
    config = tiny_runs.with_overrides(tiny_runs.write_files(directory), settings)
    shown, play, prepare = on_terminal(), train.play_round, setup.prepare
    turns: list[Turns] = []

    def prepared(*arguments: Any, **options: Any) -> Any:
        components, run = prepare(*arguments, **options)
        components.sinks.close()
        turns.append(Turns(config, components.directory.path))
        return components._replace(sinks=cast(Any, turns[0])), run

    def played(components: Any, run: Any, *others: Any) -> Any:
        block, index = divmod(run.progress.round, BLOCK)
        if run.progress.round == BLOCK * len(VARIANTS):
            turns[0].cpu = turns[0].cpu_seconds()
        cycle, place = divmod(block, len(VARIANTS))
        # In another order each cycle, so that a drift favours none.
        turns[0].variant = variant = VARIANTS[np.random.default_rng(cycle).permutation(len(VARIANTS))[place]]
        with live(components) if variant == "view" else contextlib.nullcontext():
            start = time.perf_counter()
            run = play(components, run, *others)
            seconds = time.perf_counter() - start
        if index and block >= len(VARIANTS):  # the first cycle compiles, and the libraries are imported
            turns[0].seconds[variant].append(seconds)
        return run

    live = setup.live
    for owner, name, function in (
        (setup, "prepare", prepared),
        (train, "play_round", played),
        (setup, "live", lambda components: contextlib.nullcontext()),
    ):
        setattr(owner, name, function)
    with jax.numpy_dtype_promotion("standard"):
        train.train(config, directory / "run", console=shown)
    return turns[0]


def summary(turns: Turns) -> Iterator[dict[str, Any]]:
    """One row per watcher."""
    blocks = {name: np.median(np.array(turns.seconds[name]).reshape(-1, BLOCK - 1), axis=1) for name in turns.seconds}
    base, rng = blocks["nothing"], np.random.default_rng(0)
    for name in VARIANTS[1:]:
        share = (blocks[name] - base) / statistics.median(base)
        samples = np.median(rng.choice(share, (2000, share.size)), axis=1)
        low, high = np.percentile(samples, [2.5, 97.5])
        calls = turns.calls[name]
        yield {
            "watcher": name,
            "round_s": float(statistics.median(base)),
            "cost": float(np.median(share)),
            "low": float(low),
            "high": float(high),
            "call_s": statistics.median(calls) if calls else None,
            "cpu_s": turns.cpu[name] / (BLOCK * share.size) if name in turns.cpu else None,
            "refresh_s": refresh_seconds() if name == "view" else None,
            "cycles": int(share.size),
        }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=64, help="length of responses, which sets the length of a round")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        local = {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db"}
        os.environ |= {**local, "TRACKIO_DIR": f"{place}/trackio", "MLFLOW_DISABLE_TELEMETRY": "true"}
        rows = list(summary(measure(Path(place), args.cycles, args.tokens)))
    for row in rows:
        parts = [f"{row['cost']:+.2%} [{row['low']:+.2%}, {row['high']:+.2%}] of a round of {row['round_s']:.3f} s"]
        if row["call_s"] is not None:
            parts.append(f"{1e3 * row['call_s']:.2f} ms of the run's thread a round")
        if row["cpu_s"] is not None:
            parts.append(f"{1e3 * row['cpu_s']:.0f} ms of CPU in its process a round")
        if row["refresh_s"] is not None:
            parts.append(f"{1e3 * row['refresh_s']:.2f} ms of CPU every {progress.REFRESH_SECONDS:g} s")
        print(f"{row['watcher']:<12} {'; '.join(parts)}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
