"""Attacks real runs of `reval train` and checks that every promise of docs/reliability.md is kept.

    python -m benchmarks.chaos          # `make chaos`; some three hours on two cores (docs/reliability.json)
    python -m benchmarks.chaos --scale 0.1 --parts kills,calls --json FILE

Exit code 1 if a promise is broken. The parts are in `PARTS`, the possible outcomes in benchmarks/chaos/outcomes.py. A full disk
is a small file system in memory; without root the whole program starts again in a user namespace (`unshare -rm`), and where
that is not allowed either, a library makes the writes fail.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.chaos import calls, corruptions, disk, kills, outcomes, owners, peers, signals
from benchmarks.chaos.lab import ROOT, Lab
from benchmarks.chaos.outcomes import Attempt

PARTS: dict[str, Callable[[Lab, float], list[Attempt]]] = {
    "kills": kills.run,
    "calls": calls.run,
    "failures": calls.run_failures,
    "corruptions": corruptions.run,
    "disk": disk.run,
    "owners": owners.run,
    "peers": peers.run,
    "signals": signals.run,
}
"""Name → what makes its attempts at a scale from 0 to 1."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the results; returns 1 if a promise is broken."""
    args = parse(argv)
    if "disk" in args.parts and os.geteuid() != 0 and argv is None and can_become_root():
        os.execvp("unshare", ["unshare", "-rm", sys.executable, "-m", "benchmarks.chaos", *sys.argv[1:]])
    directory = args.directory or Path(tempfile.mkdtemp(prefix="chaos_"))
    try:
        lab = Lab(
            directory.resolve(),
            seed=args.seed,
            lanes=args.lanes,
            is_busy=args.busy,
            log=lambda text: print(text, flush=True),
        )
        results = run(lab, args.parts, args.scale, file=args.json)
    finally:
        if args.directory is None:
            shutil.rmtree(directory, ignore_errors=True)
    print(table(results))
    for each in results["broken"]:
        print(f"BROKEN: {each['part']} {each['name']}: {each['outcome']}: {each['detail']}")
    return 1 if results["broken"] else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; exits with 2 if they are wrong."""
    parser = argparse.ArgumentParser(prog="chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the attempts, in (0, 1]")
    parser.add_argument("--parts", default=",".join(PARTS), help="of these, separated by commas (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the instants, places and damages")
    parser.add_argument("--lanes", type=int, default=2, help="runs at the same time")
    parser.add_argument("--busy", action="store_true", help="do not check times, since other jobs are running")
    parser.add_argument("--json", type=Path, help="also write the results to this file; other parts in it stay")
    parser.add_argument("--directory", type=Path, help="keep the runs and their output here (default: a temporary one)")
    args = parser.parse_args(argv)
    args.parts = args.parts.split(",")
    if not 0 < args.scale <= 1:
        parser.error(f"--scale {args.scale} is not in (0, 1]")
    if unknown := [part for part in args.parts if part not in PARTS]:
        parser.error(f"--parts {','.join(unknown)}: there are {', '.join(PARTS)}")
    if args.directory and args.directory.exists() and any(args.directory.iterdir()):
        parser.error(f"--directory {args.directory} is not empty. Choose a new one.")
    return args


def can_become_root() -> bool:
    """Whether this user may mount file systems in a namespace of its own."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-rm", "true"], stderr=subprocess.DEVNULL, check=False).returncode == 0


def run(lab: Lab, parts: Sequence[str], scale: float, *, file: Path | None = None) -> dict[str, Any]:
    """Makes the attempts of the parts; the results, which are written to the JSON file after each part."""
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "parts": {},
        "broken": [],
    }
    for part in parts:
        lab.log(f"{part}:")
        start = time.monotonic()
        attempts = PARTS[part](lab, scale)
        results["parts"][part] = {
            "command": f"python -m benchmarks.chaos --scale {scale:g} --parts {part} --seed {lab.seed}{' --busy' * lab.is_busy}",
            "commit": commit(),
            "minutes": round((time.monotonic() - start) / 60, 1),
            **described(attempts),
        }
        lab.log(f"  {summary(results['parts'][part])}")
        results["broken"] += [attempt._asdict() for attempt in attempts if not attempt.is_kept]
        if file:
            write(file, results)
        shutil.rmtree(lab.directory / "runs", ignore_errors=True)
    return results


def write(file: Path, results: dict[str, Any]) -> None:
    """Writes the results, with those of other parts that the file has from an earlier call."""
    earlier = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"parts": {}, "broken": []}
    known = {**earlier["parts"], **results["parts"]}
    merged = {
        **results,
        "parts": {part: known[part] for part in PARTS if part in known},
        "broken": [each for each in earlier["broken"] if each["part"] not in results["parts"]] + results["broken"],
    }
    file.write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")


def described(attempts: Sequence[Attempt]) -> dict[str, Any]:
    """The figures of a part, and of each group of its attempts."""
    groups = sorted({attempt.group for attempt in attempts} - {""})
    figures = figures_of(attempts)
    if groups:
        figures["groups"] = {
            group: figures_of([attempt for attempt in attempts if attempt.group == group]) for group in groups
        }
    notes = [attempt.detail for attempt in attempts if attempt.outcome == outcomes.NOT_RUN]
    return figures | ({"not_run": notes} if notes else {})


def figures_of(attempts: Sequence[Attempt]) -> dict[str, Any]:
    """Counts, and where seconds were measured their median and maximum."""
    seconds = [attempt.seconds for attempt in attempts if attempt.seconds]
    timed = {"median_s": round(statistics.median(seconds), 2), "slowest_s": round(max(seconds), 2)} if seconds else {}
    return {
        "attempts": len(attempts),
        "faults": sum(attempt.faults for attempt in attempts),
        "outcomes": outcomes.counts(attempts),
        **timed,
    }


def summary(figures: dict[str, Any]) -> str:
    """The figures on one line."""
    ends = ", ".join(f"{count} {name}" for name, count in figures["outcomes"].items())
    times = f"; median {figures['median_s']} s, slowest {figures['slowest_s']} s" if "median_s" in figures else ""
    return f"{figures['faults']} faults in {figures['attempts']} attempts: {ends}{times}"


def table(results: dict[str, Any]) -> str:
    """The figures of all parts and groups, one on a line."""
    lines = [""]
    for part, figures in results["parts"].items():
        lines.append(f"{part:<12} {summary(figures)} ({figures['minutes']} min)")
        lines += [f"  {group:<22} {summary(each)}" for group, each in figures.get("groups", {}).items()]
        lines += [f"  NOT RUN: {note}" for note in figures.get("not_run", [])]
    return "\n".join(lines)


def commit() -> str:
    """The commit of this checkout, with a plus sign if files differ from it."""
    git = ["git", "-C", str(ROOT)]
    shown = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False)
    return (shown.stdout.strip() or "unknown") + ("+" if changed.stdout.strip() else "")


if __name__ == "__main__":
    raise SystemExit(main())
