"""Kills, torn writes and failures at a call that changes a file of the run directory."""

from __future__ import annotations

import collections
import re
import signal
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.chaos import compare, shim
from benchmarks.chaos.lab import Lab
from benchmarks.chaos.outcomes import NOT_RUN, Attempt, compared, fault

KILLS = {"KILL": 75, "TORN": 25}
"""Mode → number of attempts, spread evenly over the calls."""
FAILURES = ("EIO", "ENOSPC")
"""Modes that fail one call, in turn; the process goes on or ends by itself."""

LOST_ROLLOUTS = re.compile(r"the rollouts of round (\d+) cannot be written")
"""What a run says that goes on without a file of its log."""

OPTIONS = ("--run.rounds", "5", "--checkpoint.every", "1")
"""Of a short run, in which every save also deletes an older checkpoint."""

INSIDE = re.compile(
    r"^(/checkpoints/\*\.(?:saving|deleting)\*?)(?:\.orbax-checkpoint-tmp)?/(?!checksums\.(?:tmp|json)$).*"
)
"""Of a checkpoint that is being written or deleted, all but the file that this project itself writes there."""

Call = tuple[str, str]
"""Its name, and the path of what it changes."""


class Fault(NamedTuple):
    """What happens at which call."""

    mode: str
    at: int  # number of the call, from 1
    kind: Call | None = None  # only calls of this kind are numbered


def run(lab: Lab, scale: float) -> list[Attempt]:
    """The attempts of the part `calls`: kills at calls spread evenly over a run."""

    def choose(made: Sequence[Call]) -> list[Fault]:
        source, faults = lab.random("calls"), list[Fault]()
        for mode, full in KILLS.items():
            number = max(1, round(full * scale))
            width = len(made) / number
            faults += [Fault(mode, 1 + int((index + source.random()) * width)) for index in range(number)]
        return faults

    return attempts(lab, "calls", choose)


def run_failures(lab: Lab, scale: float) -> list[Attempt]:
    """The attempts of the part `failures`: one call of every kind fails."""

    def choose(made: Sequence[Call]) -> list[Fault]:
        source, counted = lab.random("failures"), kinds(made)
        lab.log(f"  failures: the calls are of {len(counted)} kinds")
        chosen = sorted(source.sample(sorted(counted), max(1, round(len(counted) * scale))))
        return [Fault(FAILURES[index % 2], source.randint(1, counted[kind]), kind) for index, kind in enumerate(chosen)]

    return attempts(lab, "failures", choose)


def attempts(lab: Lab, part: str, choose: Callable[[Sequence[Call]], list[Fault]]) -> list[Attempt]:
    """The attempts at the faults that are chosen among a run's calls."""
    library = shim.build(lab.directory)
    if library is None:
        missing = "no C compiler (cc, gcc, clang) was found: the part was NOT run"
        lab.log(f"  {part}: {missing}")
        return [Attempt(part, "all", NOT_RUN, missing, 0)]
    lab.reference(*OPTIONS[:2])
    made = calls_of_a_run(lab, library, part)
    lab.log(f"  {part}: a run makes {len(made)} calls that change files")
    return lab.spread(lambda each: fail(lab, library, part, each), choose(made))


def calls_of_a_run(lab: Lab, library: Path, part: str) -> list[Call]:
    """Every call of a run without a fault; paths are below the run directory."""
    run_dir, log = lab.new_run(part, "counted"), lab.directory / f"{part}_counted.txt"
    end = lab.train(run_dir, *OPTIONS, **shim.variables(library, run_dir, log)).wait()
    if end.code != 0:
        raise SystemExit(f"chaos: a run whose calls are counted ended with exit code {end.code}:\n{end.output}")
    return [(call, path.removeprefix(str(run_dir))) for call, path in shim.calls(log)]


def kinds(made: Sequence[Call]) -> collections.Counter[Call]:
    """Number of calls by kind: a name, and a pattern of fnmatch in which numbers and random parts of a path are `*`.

    Inside a checkpoint, where a library writes and deletes, all paths are one kind.
    """
    return collections.Counter((name, _pattern(path)) for name, path in made)


def _pattern(path: str) -> str:
    # Digests and random names are hexadecimal; a word as long has other letters.
    return INSIDE.sub(r"\1/*", re.sub(r"[0-9a-f]{12,}|\d+", "*", path))


def fail(lab: Lab, library: Path, part: str, each: Fault) -> Attempt:
    """One fault at one call, then the run is resumed and compared."""
    name = f"{each.mode}_{each.at:04d}{_slug(each.kind)}"
    run_dir, log = lab.new_run(part, name), lab.directory / f"{part}_{name}.txt"
    variables = shim.variables(library, run_dir, log, at=each.at, mode=each.mode, only=each.kind)
    end = lab.train(run_dir, *OPTIONS, **variables).wait()
    struck = shim.struck(log)
    place = " ".join(struck).replace(str(run_dir), "RUN") if struck else "after the last call"
    is_kill = each.mode in ("KILL", "TORN")
    # A failure of what is only a cache or a log is said, and the run goes on.
    codes = (-signal.SIGKILL, 0) if is_kill else (0, 1)
    found, output = fault(end, codes=codes, needs_message=False if is_kill else None), end.output
    if found is None:
        end = lab.train(run_dir, *OPTIONS).wait()
        found = fault(end, codes=(0,)) or judged(
            run_dir, compare.differences(run_dir, lab.reference(*OPTIONS[:2])), output
        )
        if found[1]:
            found = found[0], f"after a resume: {found[1]}"
    detail = f"{place}: {found[1]}" if found[1] else ""
    return Attempt(part, name, found[0], detail, int(struck is not None), group=each.mode)


def _slug(kind: Call | None) -> str:
    return "".join("_" + re.sub(r"\W+", "_", part).strip("_") for part in kind) if kind else ""


def judged(run_dir: Path, differences: Collection[str], output: str) -> tuple[str, str]:
    """(outcome, detail): rollouts files are a log, so one may lack if the run has said that it goes on without it.

    Args:
      output: of the process that met the fault.
    """
    lost = {f"round_{int(round):06d}.jsonl" for round in LOST_ROLLOUTS.findall(output)}
    missing = {f"rollouts/{name}" for name in lost if not list((run_dir / "rollouts").glob(f"{name}*"))}
    said = "the run went on without " + ", ".join(sorted(missing)) if missing else ""
    return compared([each for each in differences if each not in missing], said)
