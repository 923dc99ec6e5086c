"""SIGTERM, SIGHUP and SIGINT, once and twice, in every phase of a run, which is then resumed and compared."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.chaos import compare
from benchmarks.chaos.kills import wait
from benchmarks.chaos.lab import Lab, Process
from benchmarks.chaos.outcomes import LATE, UNCLEAR, Attempt, compared, fault

PHASES = {
    "import": "",
    "prepare": "",
    "sampling": "generate",
    "grading": "verify",
    "update": "update",
    "eval": "eval",
    "save": "save",
}
"""Phase → its name in `timing_s/`; the first two end before a run has a clock."""

GRADED = ("grading", "eval")
"""Phases in which every answer takes six seconds to grade, as many as a round has."""

LIMITS = {"TERM": 15.0, "HUP": 15.0, "INT": 6.0}
"""Signal → seconds from it to the end of the process."""
SECOND = 1.0  # seconds from a second SIGINT
SLACK = 1.0  # seconds, for the scheduler of a machine with two runs on two cores

CODES = {"TERM": 75, "HUP": 75, "INT": 130}


class Sent(NamedTuple):
    """A signal, how often it is sent, and the phase."""

    phase: str
    name: str  # TERM, HUP or INT
    times: int

    def __str__(self) -> str:
        return f"{self.phase}_{self.name}_{self.times}"


def run(lab: Lab, scale: float) -> list[Attempt]:
    """The attempts of this part: all combinations, or a sample."""
    for name in CODES:
        number = signal.Signals[f"SIG{name}"]
        # A shell ignores SIGINT for its background jobs, nohup SIGHUP, and a process that is started with it ignored keeps it so.
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    lab.reference()
    every = [Sent(phase, name, times) for phase in PHASES for name in CODES for times in (1, 2)]
    chosen = sorted(lab.random("signals").sample(every, max(1, round(scale * len(every)))))
    # One run after another where a file makes every reward wait.
    attempts = lab.spread(lambda sent: attack(lab, sent), [sent for sent in chosen if sent.phase in GRADED], lanes=1)
    return attempts + lab.spread(lambda sent: attack(lab, sent), [sent for sent in chosen if sent.phase not in GRADED])


def attack(lab: Lab, sent: Sent) -> Attempt:
    """Sends the signal in its phase, checks the end of the process, resumes the run and compares it."""
    run_dir = lab.new_run("signals", sent)
    process, is_there = begin(lab, sent, run_dir)
    source = lab.random("signal", sent)
    while process.is_running() and not is_there() and time.monotonic() < process.started + 120:
        time.sleep(0.005)
    if sent.phase not in GRADED:
        wait(process, source.uniform(0, lab.reference().round_s * 3))
    else:
        wait(process, source.uniform(0, 3))
    was_running = process.is_running()
    process.send(signal.Signals[f"SIG{sent.name}"])
    at = time.monotonic()
    if sent.times == 2:
        wait(process, 0.3)
        if process.is_running():
            process.send(signal.Signals[f"SIG{sent.name}"])
            at = time.monotonic()
    end = process.wait()
    seconds = time.monotonic() - at
    lab.slow.unlink(missing_ok=True)
    limit = SECOND if (sent.name, sent.times) == ("INT", 2) else LIMITS[sent.name]
    # A run that was at its end when the signal came is done.
    codes: tuple[int, ...] = (CODES[sent.name], 0) if "done: " in end.output or not was_running else (CODES[sent.name],)
    if (sent.name, sent.times) == ("INT", 2):
        codes += (-signal.SIGINT,)  # the second may find Python itself at its end; a shell reports 130 for it too
    # The first may have been answered when the second comes, and is answered too.
    found = fault(end, codes=codes, most_messages=sent.times if sent.name == "INT" else 1)
    if found is None and sent.name == "INT" and end.code == 130 and "interrupted" not in end.output:
        found = UNCLEAR, "exit code 130 without a word"
    if found is None and seconds > limit + SLACK and not lab.is_busy:
        found = LATE, f"{seconds:.1f} s, promised {limit:g} s"
    if found is None:
        end = lab.train(run_dir).wait()
        found = fault(end, codes=(0,)) or compared(compare.differences(run_dir, lab.reference()))
    return Attempt("signals", str(sent), *found, int(was_running), seconds, group=f"{sent.name} x {sent.times}")


def begin(lab: Lab, sent: Sent, run_dir: Path) -> tuple[Process, Callable[[], bool]]:
    """The process, and whether it is in the phase."""
    if sent.phase == "import":
        process = lab.train(run_dir)
        return process, lambda: is_handled(process.pid, signal.SIGTERM)
    if sent.phase == "prepare":
        return lab.train(run_dir), lambda: (run_dir / "owner.json").exists()
    mark = lab.directory / f"mark_{sent}"
    mark.unlink(missing_ok=True)
    slow = str(lab.slow) if sent.phase in GRADED else "-"
    count = lab.random("count", sent).randint(1, 3)
    program = ("-m", "benchmarks.chaos.phases", PHASES[sent.phase], str(count), str(mark), slow)
    return lab.train(run_dir, program=program), mark.exists


def is_handled(pid: int, signum: int) -> bool:
    """Whether the process has a handler for the signal; while Python itself starts there is none."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    caught = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")), 0)
    return bool(caught >> (signum - 1) & 1)
