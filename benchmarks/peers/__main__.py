"""Tokens per second of one training update: ours beside transformers on torch and google-tunix, from one run.

    python -m benchmarks.peers                     # SmolLM2-135M's shape, 16 x 128 tokens, on this machine's CPU
    python -m benchmarks.peers --size tiny         # only shows that everything runs

Each trainer runs its own update of a Llama with random weights in a process of its own, in an environment made under
--directory. The processes take turns, one update each, so that what else the machine does falls on all alike. One that is
not at work sleeps, but keeps its memory, 2 to 5 GB each: choose fewer --trainers or --dtypes on a small machine.

tokens/s = rows x tokens a row / median seconds of an update after warm-up; prompts count, as they are computed too.
CPU s is the processor time of all threads in an update: on two cores with nobody else on them, up to twice the seconds.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.peers import environments, peer

ROOT = Path(__file__).parents[2]
MODULES = {"ours": "ours", "transformers": "torch_peer", "tunix": "tunix_peer"}
REST = 0.5  # seconds between updates: a thread pool may spin for a while after its work is done


@dataclasses.dataclass(frozen=True)
class Peers:
    """Time one training update of ours and of other trainers, in turns, on this machine's CPU."""

    trainers: tuple[Literal["ours", "transformers", "tunix"], ...] = ("ours", "transformers", "tunix")  # who takes part
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")  # of matrix products (see the notes)
    rounds: int = 5  # timed updates of each
    warm_up: int = 2  # updates of each that are not counted; the first compiles
    size: Literal["smollm2_135m", "tiny"] = "smollm2_135m"  # tiny only shows that everything runs
    directory: Path = ROOT / ".peers"  # where the environments (several GB) and the processes' logs live
    python: str = sys.executable  # interpreter that the environments are made with; 3.11 or newer
    json: Path | None = None  # also write the numbers to this file


def main() -> None:
    """Measures and prints."""
    given = tyro.cli(Peers, description=__doc__)
    shape = peer.Shape() if given.size == "smollm2_135m" else peer.TINY
    try:
        interpreters: dict[str, str] = {
            name: sys.executable if name == "ours" else environments.prepare(name, given.directory, given.python)
            for name in given.trainers
        }
        runs = measure(given, shape, interpreters)
    except RuntimeError as error:
        raise SystemExit(f"error: {error}") from error
    record = report(given, shape, runs)
    print("\n".join(table(record)))
    if given.json:
        given.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


class Trainer:
    """One trainer's process, asked for an update at a time."""

    def __init__(self, name: str, dtype: str, interpreter: str, shape: peer.Shape, log: Path) -> None:
        """Starts it and waits until it has made its model."""
        self.name, self.dtype, self.log = name, dtype, log
        command = [interpreter, "-m", f"benchmarks.peers.{MODULES[name]}", dtype, json.dumps(dataclasses.asdict(shape))]
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environments.variables(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.about = self.answer()
        if self.about["parameters"] != shape.parameters:
            raise RuntimeError(
                f"{name} trains {self.about['parameters']:,} parameters where the shape has {shape.parameters:,}: it is not "
                f"the same model, so the times would not compare. Mend benchmarks/peers/{MODULES[name]}.py."
            )

    def answer(self) -> dict[str, Any]:
        """The next line of the process."""
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            last = "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:])
            raise RuntimeError(
                f"{self.name} {self.dtype} ended without an answer (exit code {self.process.wait()}). The end of {self.log}:"
                f"\n{last}\nIf it was killed, memory may be short: take fewer --trainers or --dtypes."
            )
        return json.loads(line)

    def update(self) -> dict[str, Any]:
        """One update: its seconds, the processor seconds of all threads in it, and the loss."""
        self.process.stdin.write("update\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        made = self.answer()
        if not math.isfinite(made["loss"]):
            raise RuntimeError(f"{self.name} {self.dtype} has loss {made['loss']}: its time would mean nothing.")
        return made

    def end(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()


def measure(given: Peers, shape: peer.Shape, interpreters: dict[str, str]) -> list[dict[str, Any]]:
    """What each trainer says of itself and its updates, warm-up included, one record a trainer and dtype."""
    trainers: list[Trainer] = []
    try:
        for dtype in given.dtypes:
            for name in given.trainers:
                given.directory.mkdir(parents=True, exist_ok=True)
                log = given.directory / f"{name}_{dtype}.log"
                trainers.append(Trainer(name, dtype, interpreters[name], shape, log))
        updates: dict[Trainer, list[dict[str, Any]]] = {trainer: [] for trainer in trainers}
        for index in range(given.warm_up + given.rounds):
            kind = "warm-up" if index < given.warm_up else "timed"
            for trainer in trainers:
                time.sleep(REST)
                updates[trainer].append(trainer.update())
                seconds = updates[trainer][-1]["seconds"]
                print(f"{kind:<8} {trainer.name:<13}{trainer.dtype:<9}{seconds:9.3f} s", flush=True)
    finally:
        for trainer in trainers:
            trainer.end()
    return [
        {"trainer": trainer.name, "dtype": trainer.dtype} | trainer.about | {"updates": updates[trainer]}
        for trainer in trainers
    ]


def report(given: Peers, shape: peer.Shape, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The JSON file's content."""
    cases = []
    for run in runs:
        timed = run.pop("updates")[given.warm_up :]
        seconds = [update["seconds"] for update in timed]
        processor = statistics.median(update["processor_seconds"] for update in timed)
        cases.append(
            run
            | {
                "seconds": seconds,
                "median_seconds": statistics.median(seconds),
                "tokens_per_s": shape.batch_tokens / statistics.median(seconds),
                "processor_seconds": processor,
                "loss": timed[-1]["loss"],
            }
        )
    return {
        "command": " ".join(["python -m benchmarks.peers", *sys.argv[1:]]),
        "machine": {"cores": peer.num_cores(), "cpu": cpu_name(), "platform": platform.platform()},
        "load_average": os.getloadavg(),
        "shape": dataclasses.asdict(shape) | {"parameters": shape.parameters},
        "warm_up": given.warm_up,
        "cases": cases,
        "ratios": ratios(cases),
    }


def ratios(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours / theirs in tokens per second, in each dtype and between the faster ones; above 1, ours is faster.

    `lowest` and `highest` are over the rounds: how much of the ratio is the machine's noise.
    """
    found = []
    by_name: dict[str, dict[str, dict[str, Any]]] = {}
    for case in cases:
        by_name.setdefault(case["trainer"], {})[case["dtype"]] = case
    mine = by_name.pop("ours", {})
    for name, theirs in by_name.items():
        pairs = [(dtype, mine[dtype], theirs[dtype]) for dtype in mine if dtype in theirs]
        if len(pairs) > 1:
            pairs.append(("faster", _faster(mine), _faster(theirs)))
        for dtype, our, their in pairs:
            rounds = [b / a for a, b in zip(our["seconds"], their["seconds"], strict=True)]
            ratio = our["tokens_per_s"] / their["tokens_per_s"]
            found.append(
                {"theirs": name, "dtype": dtype, "ratio": ratio, "lowest": min(rounds), "highest": max(rounds)}
            )
    return found


def _faster(by_dtype: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return max(by_dtype.values(), key=lambda case: case["tokens_per_s"])


def table(record: dict[str, Any]) -> list[str]:
    """The report as lines of text."""
    shape, machine = record["shape"], record["machine"]
    lines = [
        "",
        f"{shape['parameters'] / 1e6:.1f}M parameters, {shape['rows']} rows x "
        f"{shape['prompt_tokens'] + shape['response_tokens']} tokens, {machine['cores']} cores of {machine['cpu']}, load "
        f"average {record['load_average'][0]:.1f}",
        "",
        f"{'trainer':<13}{'dtype':<10}{'tokens/s':>9}{'s/update':>10}{'CPU s':>9}",
    ]
    for case in record["cases"]:
        lines.append(
            f"{case['trainer']:<13}{case['dtype']:<10}{case['tokens_per_s']:>9.1f}{case['median_seconds']:>10.3f}"
            f"{case['processor_seconds']:>9.3f}"
        )
    if record["ratios"]:
        lines += ["", f"{'ours / theirs':<23}{'ratio':>9}   over the rounds"]
    lines += [
        f"{row['theirs']:<13}{row['dtype']:<10}{row['ratio']:>9.2f}   {row['lowest']:.2f} to {row['highest']:.2f}"
        for row in record["ratios"]
    ]
    lines.append("")
    for name in dict.fromkeys(case["trainer"] for case in record["cases"]):
        case = next(case for case in record["cases"] if case["trainer"] == name)
        lines.append(f"{name}: " + ", ".join(f"{package} {version}" for package, version in case["versions"].items()))
        lines += [f"  {note}" for note in case["notes"]]
    return lines


def cpu_name() -> str:
    """The processor's name where Linux tells it, else the platform's word for it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
