"""Two processes of one run over loopback, one of which is killed or stopped; both are then started again and compared."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

from benchmarks.chaos import compare
from benchmarks.chaos.kills import claimed, wait
from benchmarks.chaos.lab import ROUNDS, Lab, Process
from benchmarks.chaos.outcomes import LATE, Attempt, End, compared, fault

LOST = 10
JOINED_REFERENCE = "joined_reference"
LIMIT = 35.0  # seconds from the loss of a process to the end of the other: 25 of silence, and time to end


def run(lab: Lab, scale: float) -> list[Attempt]:
    """The attempts of this part; a pair needs both cores."""
    reference = joined_reference(lab)
    return lab.spread(lambda index: lose(lab, index, reference), range(max(1, round(LOST * scale))), lanes=1)


def pair(lab: Lab, run_dir: Path, *options: str) -> list[Process]:
    """Two processes that join."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    joined = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    return [lab.train(run_dir, *options, **joined, JAX_PROCESS_ID=str(index)) for index in range(2)]


def joined_reference(lab: Lab) -> compare.Reference:
    """The run of two processes that is never stopped: its products are rounded otherwise than those of one."""
    run_dir = lab.directory / JOINED_REFERENCE
    ends = [each.wait() for each in pair(lab, run_dir, "--checkpoint.every", "1", "--checkpoint.keep", "1000")]
    if any(end.code != 0 for end in ends):
        raise SystemExit(f"chaos: two processes without any fault ended with {ends}")
    return compare.Reference(run_dir, ends[0].seconds)


def lose(lab: Lab, index: int, reference: compare.Reference) -> Attempt:
    """Kills or stops one of two at a random instant."""
    source = lab.random("peers", index)
    victim, signum = index % 2, (signal.SIGKILL, signal.SIGSTOP)[index // 2 % 2]
    name, run_dir = f"{signum.name}_of_{victim}_{index}", lab.new_run("peers", index)
    processes = pair(lab, run_dir)
    claimed(processes[0], run_dir)
    wait(processes[victim], source.uniform(0, reference.round_s * (ROUNDS + 10)))
    was_running = all(process.is_running() for process in processes)
    processes[victim].send(signum)
    at = time.monotonic()
    end = processes[1 - victim].wait()
    seconds = time.monotonic() - at
    processes[victim].send(signal.SIGKILL)
    processes[victim].wait()
    found = fault(end, codes=(0, 1, 75) if not was_running else (1, 75), needs_message=was_running)
    if found is None and seconds > LIMIT and not lab.is_busy:
        found = LATE, f"{seconds:.0f} s, promised {LIMIT:.0f} s"
    if found is None:
        found = resumed(pair(lab, run_dir), run_dir, reference)
    return Attempt("peers", name, *found, int(was_running), seconds, group=signum.name)


def resumed(processes: list[Process], run_dir: Path, reference: compare.Reference) -> tuple[str, str]:
    """The outcome of starting both again."""
    ends: list[End] = [process.wait() for process in processes]
    for end in ends:
        if (found := fault(end, codes=(0,))) is not None:
            return found
    return compared(compare.differences(run_dir, reference))
