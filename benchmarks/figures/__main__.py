"""Runs the figures, and draws them.

    python -m benchmarks.figures run fig03 fig09    # plays what is missing, then writes records and pictures
    python -m benchmarks.figures run --part 2/3     # a third of the runs; copy runs/figures/journal_* together to join them
    python -m benchmarks.figures run fig09_smollm2  # on SmolLM2-135M: hours, so only where it is named
    python -m benchmarks.figures draw               # pictures and tables from the records; plays nothing
    python -m benchmarks.figures quick              # figures 3 and 9 with four seeds, into runs/quick, in some minutes
    python -m benchmarks.figures check              # one short run of each figure, of SmolLM2 of one, into runs/check

`make evidence`, `make figures` and `make evidence-quick` are the first, `draw` and `quick`. An interrupted command goes on where
it stopped. Runs that the records in docs/evidence have are not played again, but with --anew.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from benchmarks.figures import grid, page, plan
from benchmarks.figures.experiments import FIGURES, ON_TEST_BED
from benchmarks.figures.journal import RECORDS, WORK, Journal, Run
from benchmarks.testbed import runs, smollm2
from reval_jax import durable, run_directory

ROOT = Path(__file__).resolve().parents[2]


QUICK = ("fig03", "fig09")
CHECK_ROUNDS, SMOLLM2_CHECK_ROUNDS = 4, 1
DEFAULTS = {"run": ON_TEST_BED, "draw": FIGURES, "quick": QUICK, "check": [*ON_TEST_BED, "fig09_smollm2"]}
"""Figures of a command that names none."""
INTERRUPTED = 75  # exit code, as that of `reval train`


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 75 if a signal stopped the runs, or 2 if a record cannot be drawn."""
    args = parse(argv)
    figures = chosen(args)
    if args.command != "draw":
        if any(runs.TASKS[task].bed == runs.SMOLLM2 for figure in figures for task in tasks_of(figure)):
            smollm2.make()
        journal = Journal(args.work, None if args.anew else RECORDS)
        if not args.is_worker:
            say(grid.left(figures, journal, args.seeds, args.part))
        code = play(figures, journal, args) if args.jobs == 1 else start_workers(args)
        if code and not args.is_worker:
            say(
                "stopped by a signal: the same command goes on" if code == INTERRUPTED else "a worker failed, see above"
            )
        if code or args.is_worker:
            return code
        write(figures, args)
    try:
        picture(figures, args.records)
    except page.RecordError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def play(figures: Sequence[plan.Figure], journal: Journal, args: argparse.Namespace) -> int:
    """Plays in this process what no other plays; 0, or INTERRUPTED."""
    try:
        grid.work(figures, journal, seeds=args.seeds, about=about(), part=args.part, log=say)
    except (runs.InterruptedRunError, KeyboardInterrupt):  # after Ctrl-C the run begins from its last save
        return INTERRUPTED
    return 0


def chosen(args: argparse.Namespace) -> list[plan.Figure]:
    """The figures that the command plays or draws."""
    named = [FIGURES[name] for name in args.figures]
    if args.command == "check":
        rounds = {figure.name: CHECK_ROUNDS if figure.name in ON_TEST_BED else SMOLLM2_CHECK_ROUNDS for figure in named}
        return [plan.one_cell(figure, rounds[figure.name]) for figure in named]
    if args.command == "quick":
        rates = {
            figure.name: json.loads((RECORDS / f"{figure.name}.json").read_text("utf-8"))["rates"] for figure in named
        }
        return [plan.quick(figure, rates[figure.name]) for figure in named]
    return named


def tasks_of(figure: plan.Figure) -> tuple[str, ...]:
    """Every task that the figure plays."""
    return (*figure.tasks, figure.tuning) if figure.searches else figure.tasks


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; exits with 2 if they are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["run", "draw", "quick", "check"])
    parser.add_argument(
        "figures",
        nargs="*",
        help=f"of {', '.join(FIGURES)} (default: of run those of the test bed; of quick {', '.join(QUICK)}; else all)",
    )
    parser.add_argument(
        "--seeds", type=int, default=8, help="how many of a figure's seeds, 1 to 8 (default: 8; of quick: 4)"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--part", default="1/1", help="I/N: of N machines that share the runs, this is the I-th")
    parser.add_argument("--anew", action="store_true", help="also play what the records in docs/evidence have")
    parser.add_argument(
        "--work", type=Path, help="directory of the journal (default: runs/figures; runs/quick, runs/check)"
    )
    parser.add_argument(
        "--records", type=Path, help="directory of records and pictures (default: docs/evidence, or --work)"
    )
    parser.add_argument("--is-worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    is_full = args.command in ("run", "draw")
    args.work = args.work or (WORK if is_full else Path("runs") / args.command)
    args.records = args.records or (RECORDS if is_full else args.work)
    args.anew |= not is_full
    args.figures = args.figures or list(DEFAULTS[args.command])
    if unknown := [name for name in args.figures if name not in FIGURES]:
        parser.error(f"there is no figure {', '.join(unknown)}. There are {', '.join(FIGURES)}.")
    if args.command == "quick":
        args.seeds = min(args.seeds, 4)
    if args.command == "check":
        args.seeds, args.jobs = 1, 1
        shutil.rmtree(args.work, ignore_errors=True)
    if not 1 <= args.seeds <= 8 or args.jobs < 1:
        parser.error(f"--seeds {args.seeds} is not 1 to 8, or --jobs {args.jobs} is not 1 or more.")
    index, _, count = args.part.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        parser.error(f"--part {args.part} is not I/N with 1 <= I <= N, for example 2/3.")
    args.seeds, args.part = range(1, args.seeds + 1), (int(index) - 1, int(count))
    return args


def start_workers(args: argparse.Namespace) -> int:
    """Runs worker processes, each on cores of its own, until all are done; the first exit code that is not 0."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    command = [sys.executable, "-m", "benchmarks.figures", args.command, *args.figures, "--is-worker", "--jobs", "1"]
    command += [
        "--seeds",
        str(len(args.seeds)),
        "--part",
        f"{args.part[0] + 1}/{args.part[1]}",
        "--work",
        str(args.work),
    ]
    command += ["--anew"] if args.anew else []
    workers = []
    for index in range(args.jobs):
        workers.append(subprocess.Popen(command, cwd=ROOT))
        if own := cores[index :: args.jobs]:
            os.sched_setaffinity(workers[-1].pid, own)
    codes = []
    try:
        codes = [worker.wait() for worker in workers]
    except KeyboardInterrupt:  # the workers have the signal too, and save their runs
        codes = [worker.wait() for worker in workers]
    return next((code for code in codes if code), 0)


def write(figures: Sequence[plan.Figure], args: argparse.Namespace) -> None:
    """The records of these figures from the journal, with seeds that an earlier command played as well."""
    journal = Journal(args.work, None if args.anew else RECORDS)
    args.records.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        record = grid.record(figure, journal, figure.seeds)
        durable.write(args.records / f"{figure.name}.json", dump(record).encode())
        say(f"{figure.name}: {len(record['runs'])} runs, {len(record['search'])} of the search")


def picture(figures: Sequence[plan.Figure], records: Path) -> None:
    """The pictures of these figures from their records, and the tables of the pages."""
    from benchmarks.figures import draw  # workers, which do without matplotlib, draw nothing

    found = page.records(records)
    for figure in figures:
        if figure.name in found and found[figure.name]["runs"]:
            path = records / f"{figure.name}.svg"
            draw.draw(figure, found[figure.name], path)
            say(f"{path}: {figure.title}")
    if records == RECORDS:
        page.main()


def dump(record: Run) -> str:
    """A record as JSON with one run on a line, so that its changes can be read."""
    head = {name: value for name, value in record.items() if name not in ("search", "runs")}
    text = json.dumps(head, indent=1, allow_nan=False)[:-2]
    for name in ("search", "runs"):
        lines = ",\n".join("  " + json.dumps(run, separators=(",", ":"), allow_nan=False) for run in record[name])
        text += f',\n "{name}": [\n{lines}\n ]'
    return text + "\n}\n"


def about() -> Run:
    """The machine, the versions and the commit, as every record names them."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "command": "python -m benchmarks.figures run",
        "commit": commit.stdout.strip() or "unknown",
        "machine": f"{platform.machine()}, {platform.platform()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": run_directory.package_versions(),
    }


def say(text: str) -> None:
    """Prints a line at once."""
    print(text, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
