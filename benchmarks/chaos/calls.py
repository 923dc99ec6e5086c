"""Kills, torn writes and failures at the k-th call that changes a file of the run directory."""

from __future__ import annotations

import signal
from typing import NamedTuple

from benchmarks.chaos import compare, shim
from benchmarks.chaos.lab import Lab
from benchmarks.chaos.outcomes import NOT_RUN, Attempt, compared, fault

FAULTS = {"KILL": 75, "TORN": 25, "EIO": 10, "ENOSPC": 10}
"""Mode → number of attempts. KILL and TORN are kills; the others fail one call, and the process goes on or ends by itself."""

OPTIONS = ("--run.rounds", "5", "--checkpoint.every", "1")
"""Of a short run, in which every save also deletes an older checkpoint."""


class Fault(NamedTuple):
    """A mode, and the number of the call."""

    mode: str
    at: int


def run(lab: Lab, scale: float) -> list[Attempt]:
    """The attempts of this part, spread evenly over the calls of a run."""
    library = shim.build(lab.directory)
    if library is None:
        missing = "no C compiler (cc, gcc, clang) was found: the part was NOT run"
        lab.log(f"  calls: {missing}")
        return [Attempt("calls", "all", NOT_RUN, missing, 0)]
    lab.reference(*OPTIONS[:2])
    counted = count(lab, "counted")
    source, faults = lab.random("calls"), list[Fault]()
    for mode, full in FAULTS.items():
        number = max(1, round(full * scale))
        width = counted / number
        faults += [Fault(mode, 1 + int((index + source.random()) * width)) for index in range(number)]
    lab.log(f"  calls: a run makes {counted} calls that change files")
    return lab.spread(lambda each: fail(lab, each), faults)


def count(lab: Lab, name: str) -> int:
    """The number of calls of a run without a fault."""
    run_dir, log = lab.new_run("calls", name), lab.directory / f"calls_{name}.txt"
    library = shim.build(lab.directory)
    if library is None:
        return 0
    end = lab.train(run_dir, *OPTIONS, **shim.variables(library, run_dir, log)).wait()
    if end.code != 0:
        raise SystemExit(f"chaos: a run whose calls are counted ended with exit code {end.code}:\n{end.output}")
    return len(shim.calls(log))


def fail(lab: Lab, each: Fault) -> Attempt:
    """One fault at one call, then the run is resumed and compared."""
    name = f"{each.mode}_{each.at:04d}"
    run_dir, log = lab.new_run("calls", name), lab.directory / f"calls_{name}.txt"
    library = shim.build(lab.directory)
    if library is None:
        raise SystemExit("chaos: the C compiler is gone")
    process = lab.train(run_dir, *OPTIONS, **shim.variables(library, run_dir, log, at=each.at, mode=each.mode))
    end = process.wait()
    made = shim.calls(log)
    place = "after the last call" if len(made) < each.at else " ".join(made[each.at - 1]).replace(str(run_dir), "RUN")
    is_kill = each.mode in ("KILL", "TORN")
    # A failure of what is only a cache or a log is said, and the run goes on.
    codes = (-signal.SIGKILL, 0) if is_kill else (0, 1)
    found = fault(end, codes=codes, needs_message=False if is_kill else None)
    if found is None:
        end = lab.train(run_dir, *OPTIONS).wait()
        found = fault(end, codes=(0,)) or compared(compare.differences(run_dir, lab.reference(*OPTIONS[:2])))
        if found[1]:
            found = found[0], f"after a resume: {found[1]}"
    detail = f"{place}: {found[1]}" if found[1] else ""
    return Attempt("calls", name, found[0], detail, int(len(made) >= each.at), group=each.mode)
