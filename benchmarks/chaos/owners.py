"""Two `reval train` on one run directory: one runs, the other is refused; a killed owner is taken over."""

from __future__ import annotations

import signal
import time

from benchmarks.chaos import compare
from benchmarks.chaos.kills import claimed, wait
from benchmarks.chaos.lab import ROUNDS, Lab
from benchmarks.chaos.outcomes import SAID, SILENT, UNCLEAR, Attempt, compared, fault

PAIRS, TAKEOVERS = 14, 6
LATEST = 10.0  # seconds between the two starts, at most


def run(lab: Lab, scale: float) -> list[Attempt]:
    """The attempts of this part."""
    lab.reference()
    pairs, takeovers = (max(1, round(full * scale)) for full in (PAIRS, TAKEOVERS))
    # A pair needs both cores.
    attempts = lab.spread(
        lambda index: start_two(lab, index, LATEST * index / max(1, pairs - 1)), range(pairs), lanes=1
    )
    return attempts + lab.spread(lambda index: take_over(lab, index), range(takeovers))


def start_two(lab: Lab, index: int, delay: float) -> Attempt:
    """Starts a second process `delay` seconds after the first."""
    name, run_dir = f"pair_{index}_after_{delay:.1f}_s", lab.new_run("owners", index)
    # Longer than the delay, so that the second finds the first at work.
    first = lab.train(run_dir)
    wait(first, delay)
    was_running = first.is_running()
    second = lab.train(run_dir)
    ends = [first.wait(), second.wait()]
    found = None
    for end in ends:
        found = found or fault(end, codes=(0, 2))
    codes = sorted(end.code or 0 for end in ends)
    # The second may find the run done, which it says.
    if found is None and codes != [0, 2] and not (codes == [0, 0] and f"after round {ROUNDS}" in ends[1].output):
        found = (SILENT if codes == [0, 0] else UNCLEAR), f"exit codes {codes}"
    if found is None:
        found = compared(compare.differences(run_dir, lab.reference()), "refused" if codes == [0, 2] else "")
    return Attempt("owners", name, *found, int(was_running), group="pairs")


def take_over(lab: Lab, index: int) -> Attempt:
    """Kills the owner at a random instant and starts the same command at once."""
    run_dir, source = lab.new_run("owners", "takeover", index), lab.random("takeover", index)
    first = lab.train(run_dir)
    claimed(first, run_dir)
    wait(first, source.uniform(0, lab.reference().round_s * 20))
    first.send(signal.SIGKILL)
    started = time.monotonic()
    second = lab.train(run_dir)
    first.wait()
    end = second.wait()
    found = fault(end, codes=(0,)) or compared(compare.differences(run_dir, lab.reference()))
    if found[0] != SILENT and "taken over" in end.output and not found[1]:
        found = SAID, "taken over"
    return Attempt("owners", f"takeover_{index}", *found, 1, time.monotonic() - started, group="takeovers")
