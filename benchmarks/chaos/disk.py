"""File systems that are too small for a run, in bytes or in files; after room is made the run is resumed and compared."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

from benchmarks.chaos import compare, shim
from benchmarks.chaos.lab import Lab
from benchmarks.chaos.outcomes import NOT_RUN, Attempt, End, compared, fault

SIZES, FILE_COUNTS = 14, 6
ROUNDS = ("--run.rounds", "6")
ROOM = "256m"


class Limit(NamedTuple):
    """The size of the file system."""

    what: str  # "bytes" or "files"
    number: int

    def __str__(self) -> str:
        return f"{self.number}_{self.what}"


def run(lab: Lab, scale: float) -> list[Attempt]:
    """The attempts of this part: sizes from one page to a little less than the run needs."""
    reference = lab.reference(*ROUNDS)
    used = lab.new_run("disk", "measured")
    end = lab.train(used, *ROUNDS).wait()
    if end.code != 0:
        raise SystemExit(f"chaos: a run on a disk with room ended with exit code {end.code}:\n{end.output}")
    # Pages of 4,096 bytes, as tmpfs counts them.
    size = sum(-(-path.stat().st_size // 4096) * 4096 for path in used.rglob("*"))
    count = sum(1 for _ in used.rglob("*")) + 2
    source = lab.random("disk")
    limits = [Limit("bytes", 4096 + int(size * share)) for share in _shares(source.random(), SIZES, scale)]
    limits += [Limit("files", 4 + int(count * share)) for share in _shares(source.random(), FILE_COUNTS, scale)]
    lab.log(f"  disk: the run takes {size} bytes and {count} files at its end")
    if can_mount(lab):
        return lab.spread(lambda limit: fill_mounted(lab, limit, reference), limits)
    library = shim.build(lab.directory)
    if library is None:
        missing = "neither mount(8) nor a C compiler can be used: the part was NOT run"
        lab.log(f"  disk: {missing}")
        return [Attempt("disk", "all", NOT_RUN, missing, 0)]
    lab.log("  disk: no file system can be mounted, so a library makes the writes fail; limits on files are NOT run")
    in_bytes = [limit for limit in limits if limit.what == "bytes"]
    return lab.spread(lambda limit: fill_preloaded(lab, limit, reference, library), in_bytes)


def _shares(offset: float, full: int, scale: float) -> list[float]:
    number = max(1, round(full * scale))
    return [(index + offset) / number for index in range(number)]


def can_mount(lab: Lab) -> bool:
    """Whether a file system can be mounted here."""
    place = lab.directory / "mounted"
    place.mkdir(exist_ok=True)
    if mount(place, "size=64k") != 0:
        return False
    unmount(place)
    return True


def mount(place: Path, options: str) -> int:
    """Mounts a file system in memory; returns mount's exit code."""
    command = ["mount", "-t", "tmpfs", "-o", options, "chaos", str(place)]
    try:
        return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode
    except FileNotFoundError:
        return 1


def unmount(place: Path) -> None:
    """Unmounts it, even while a file is open."""
    subprocess.run(["umount", "-l", str(place)], check=False)


def fill_mounted(lab: Lab, limit: Limit, reference: compare.Reference) -> Attempt:
    """One small file system, then the same with room."""
    place = lab.directory / "disks" / str(limit)
    place.mkdir(parents=True, exist_ok=True)
    option = f"size={limit.number}" if limit.what == "bytes" else f"size={ROOM},nr_inodes={limit.number}"
    if mount(place, option) != 0:
        raise SystemExit(f"chaos: mount failed with {option}")
    try:
        run_dir = place / f"run_{limit}"
        end = lab.train(run_dir, *ROUNDS).wait()
        subprocess.run(["mount", "-o", f"remount,size={ROOM},nr_inodes=10000", str(place)], check=True)
        return judged(lab, limit, end, run_dir, reference)
    finally:
        unmount(place)


def fill_preloaded(lab: Lab, limit: Limit, reference: compare.Reference, library: Path) -> Attempt:
    """All writes fail once this many bytes are written, deleted ones included; then the run is resumed without the library."""
    run_dir = lab.new_run("disk", limit)
    variables = shim.variables(library, run_dir, lab.directory / f"disk_{limit}.txt", at=limit.number, mode="FULL")
    end = lab.train(run_dir, *ROUNDS, **variables).wait()
    return judged(lab, limit, end, run_dir, reference)


def judged(lab: Lab, limit: Limit, end: End, run_dir: Path, reference: compare.Reference) -> Attempt:
    """The attempt, after the resume of the run on a disk with room."""
    is_full = end.code != 0
    found = fault(end, codes=(0, 1))
    if found is None:
        end = lab.train(run_dir, *ROUNDS).wait()
        found = fault(end, codes=(0,)) or compared(compare.differences(run_dir, reference))
    return Attempt("disk", str(limit), *found, int(is_full), group=limit.what)
