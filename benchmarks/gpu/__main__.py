"""Checks and measures everything that needs an NVIDIA GPU, within 8 minutes on one H100 with a cold cache.

    python -m benchmarks.gpu                          # every part, the most decisive first
    python -m benchmarks.gpu --parts decode,update    # some of them, in this order
    python -m benchmarks.gpu --small --parts numerics # the same code with tiny sizes, on any machine

A case is printed as one line of JSON as soon as it is measured. Each part runs in a process of its own and is killed at its
time limit, to which the time is added that the parts before it left; a part that fails, or runs out of time, does not stop the
rest, and keeps the cases that it has printed. The results are written after every part as JSON, and at the end as a plot (which
needs matplotlib), to docs/performance_gpu.json and .svg, or with --small to runs/. No network is needed; BUILD.md lists the
wheels to bring. The exit code is 1 if a part failed or a check was not met.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from benchmarks.gpu import parts as parts_lib

ROOT = Path(__file__).resolve().parents[2]
MACHINE_SECONDS = 60  # until the description of the machine is given up


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Check and measure everything that needs an NVIDIA GPU."""

    parts: str = ",".join(parts_lib.PARTS)  # names, separated by commas; they run in this order
    small: bool = False  # tiny sizes, on any machine: shows that everything runs
    minutes: float = 8.0  # all parts together; those that are left then do not run
    json: Path | None = None  # results; the plot is written beside them


class Result(NamedTuple):
    """How a part ended."""

    end: str  # done, failed, skipped, or out of time
    seconds: float
    reason: str
    cases: list[dict[str, Any]]

    @property
    def is_fine(self) -> bool:
        """It did not fail, and no check of its cases was missed."""
        return self.end in ("done", "skipped") and all(case.get("is_fine", True) for case in self.cases)


def main(argv: list[str] | None = None) -> int:
    """Runs the parts; returns an exit code."""
    listed = "\n".join(f"  {name:<23}{part.limit:>4.0f} s  {part.describes}" for name, part in parts_lib.PARTS.items())
    description = f"{__doc__}\nParts, with their time limits:\n{listed}"
    args = tyro.cli(Gpu, args=argv, prog="python -m benchmarks.gpu", description=description)
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running part is ended too
    try:
        return _run(args)
    except ValueError as error:
        print(f"gpu: {error}", file=sys.stderr)
        return 2
    finally:
        signal.signal(signal.SIGTERM, previous)


def _run(args: Gpu) -> int:
    names = args.parts.split(",")
    if unknown := sorted(set(names) - parts_lib.PARTS.keys()):
        raise ValueError(f"--parts {','.join(unknown)}: no such part. Use some of {','.join(parts_lib.PARTS)}.")
    if args.minutes <= 0:
        raise ValueError(f"--minutes {args.minutes}: use a positive number.")
    default = ROOT / ("runs/performance_gpu_small.json" if args.small else "docs/performance_gpu.json")
    target = args.json or default
    target.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as scratch:
        environment = _environment(Path(scratch))
        record: dict[str, Any] = {
            "command": f"python -m benchmarks.gpu --parts {args.parts}{' --small' if args.small else ''}",
            "commit": _commit(),
            "machine": _machine(args, environment, target.with_suffix(".machine.log")),
            "parts": {},
        }
        is_fine = True
        for index, name in enumerate(names):
            left = deadline - time.monotonic()
            own, *later = (parts_lib.PARTS[each].limit * (10 if args.small else 1) for each in names[index:])
            limit = min(max(own, left - sum(later)), left)
            if left < 5:
                result = Result("out of time", 0.0, f"the {args.minutes:g} minutes of --minutes are over", [])
            else:
                print(f"{name}: at most {limit:.0f} s", file=sys.stderr, flush=True)
                result = run_part(
                    parts_lib.command(name, is_small=args.small),
                    limit=limit,
                    environment=environment,
                    log=target.with_suffix(f".{name}.log"),
                    on_case=functools.partial(_print_case, name),
                )
            print(f"{name}: {result.end} in {result.seconds:.0f} s {result.reason}", file=sys.stderr, flush=True)
            is_fine &= result.is_fine
            record["parts"][name] = result._asdict()
            target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{target}\n{_plot(record, target.with_suffix('.svg'))}", file=sys.stderr)
    return 0 if is_fine else 1


def _print_case(part: str, case: dict[str, Any]) -> None:
    print(json.dumps({"part": part} | case), flush=True)


def _environment(scratch: Path) -> dict[str, str]:
    """The parts' variables: an empty compilation cache that they share, and most of the GPU's memory for each in turn."""
    temporary = scratch / "tmp"  # a part that is killed leaves its files there, and they are deleted at the end
    temporary.mkdir()
    variables = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(scratch / "xla"),
        "PYTHONPATH": _python_path(),
        "TMPDIR": str(temporary),
    }
    variables.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    return variables


def _python_path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def _commit() -> str:
    words = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown: no git repository"


def _machine(args: Gpu, environment: dict[str, str], log: Path) -> dict[str, Any]:
    """What the parts will run on, or that this took too long to find out: the parts then run nevertheless.

    Raises:
      ValueError: jax sees no GPU, or does not start.
    """
    words = parts_lib.command("machine", is_small=args.small)
    limit = MACHINE_SECONDS * (10 if args.small else 1)
    done = run_part(words, limit=limit, environment=environment, log=log, on_case=lambda _: None)
    if done.end == "out of time":
        print(f"machine: {done.end}: {done.reason}", file=sys.stderr, flush=True)
        return {"device": "unknown", "reason": done.reason}
    if done.end != "done" or not done.cases:
        raise ValueError(f"jax does not start here: {done.reason}")
    found: dict[str, Any] = done.cases[0]
    if not args.small and not found["device"].startswith("gpu"):
        raise ValueError(
            f"jax sees no GPU here ({found['device']}). Install the extra `cuda` (BUILD.md), or use --small, which runs "
            "everything with tiny sizes on this machine."
        )
    return found


def run_part(
    command: Sequence[str],
    *,
    limit: float,
    environment: dict[str, str],
    log: Path,
    on_case: Callable[[dict[str, Any]], None],
) -> Result:
    """Runs a part's command, kills it and its children after `limit` seconds, and keeps the cases that it printed.

    Args:
      log: file for its standard error, deleted if the part succeeds.
    """
    start = time.monotonic()
    cases: list[dict[str, Any]] = []
    end, reason, cut = "failed", "", ""
    is_late = threading.Event()
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        ) as process,
    ):

        def stop() -> None:
            is_late.set()
            _kill(process)

        timer = threading.Timer(limit, stop)
        timer.start()
        try:
            for text in process.stdout or ():
                try:
                    line = json.loads(text)
                except ValueError:  # killed while it wrote
                    cut = f"; a line was cut off after {len(text)} characters"
                    continue
                if "case" in line:
                    cases.append(line["case"])
                    on_case(line["case"])
                else:
                    end, reason = line["end"], line.get("reason", "")
            code = process.wait()
        finally:
            timer.cancel()
            _kill(process)
    if is_late.is_set():
        end, reason = "out of time", f"killed after {limit:.0f} s with {len(cases)} cases{cut}; see {log}"
    elif end == "failed":
        reason = f"{reason or f'exit code {code}'}{cut}; see {log}"
    else:
        log.unlink()
    return Result(end, time.monotonic() - start, reason, cases)


def _kill(process: subprocess.Popen[str]) -> None:
    """Ends a part and what it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _plot(record: dict[str, Any], path: Path) -> str:
    """Draws the results; returns the path, or why there is no plot."""
    try:
        from benchmarks.gpu import draw
    except ImportError as error:
        return f"no plot: {error}"
    return str(draw.draw(record, path))


if __name__ == "__main__":
    raise SystemExit(main())
