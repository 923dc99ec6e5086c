"""SIGKILL at random instants of `reval train`, which is started again until the run is done."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.chaos import compare
from benchmarks.chaos.lab import ROUNDS, Lab, Process
from benchmarks.chaos.outcomes import Attempt, compared, fault

KILLS = 200
EARLY_SHARE = 0.2  # of the kills: before the run directory is claimed, while modules and the checkpoint are loaded
FIRST_ROUND = 15  # rounds that take as long as the first of a process, which loads or compiles the programs
MOST_KILLS = 5  # of one run


class Life(NamedTuple):
    """A run that is killed a number of times."""

    name: str
    kills: int


def run(lab: Lab, scale: float) -> list[Attempt]:
    """The attempts of this part; a kill that found the run at its end is made again in another run."""
    lab.reference()
    wanted, attempts = max(1, round(KILLS * scale)), list[Attempt]()
    while (missing := wanted - sum(attempt.faults for attempt in attempts)) > 0:
        source, lives = lab.random("kills", len(attempts)), list[Life]()
        while missing > 0:
            kills = min(missing, source.randint(1, MOST_KILLS))
            lives.append(Life(f"{len(attempts) + len(lives):03d}", kills))
            missing -= kills
        attempts += lab.spread(lambda life: live(lab, life), lives)
    return attempts


def live(lab: Lab, life: Life) -> Attempt:
    """Kills a run at random instants, resumes it until it is done, and compares it."""
    run_dir, source, reference = lab.new_run("kills", life.name), lab.random("kill", life.name), lab.reference()
    faults = 0
    for _ in range(life.kills):
        process = lab.train(run_dir)
        if source.random() < EARLY_SHARE:
            wait(process, source.uniform(0, reference.seconds / 2))
        else:
            claimed(process, run_dir)
            finished = lines(run_dir)
            target = source.randint(finished, ROUNDS + 1)  # the line of round 0 is the first
            while process.is_running() and lines(run_dir) < target:
                time.sleep(0.005)
            wait(process, source.uniform(0, reference.round_s * (FIRST_ROUND if target == finished else 1)))
        if not process.is_running():
            break
        process.send(signal.SIGKILL)
        faults += 1
        end = process.wait()
        if (found := fault(end, codes=(-signal.SIGKILL,), needs_message=False)) is not None:
            return Attempt("kills", life.name, *found, faults)
    end = lab.train(run_dir).wait()
    outcome = fault(end, codes=(0,)) or compared(compare.differences(run_dir, reference))
    return Attempt("kills", life.name, *outcome, faults)


def claimed(process: Process, run_dir: Path) -> None:
    """Waits until the process has claimed the run directory, by which its settings are written anew."""
    file = run_dir / "config.yaml"
    before = file.stat().st_mtime_ns if file.exists() else 0
    while process.is_running() and (not file.exists() or file.stat().st_mtime_ns == before):
        time.sleep(0.005)
        if time.monotonic() - process.started > 120:
            return


def wait(process: Process, seconds: float) -> None:
    """Waits, or until the process ends."""
    end = time.monotonic() + seconds
    while process.is_running() and (left := end - time.monotonic()) > 0:
        time.sleep(min(0.005, left))


def lines(run_dir: Path) -> int:
    """The finished lines of metrics.jsonl."""
    file = run_dir / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0
