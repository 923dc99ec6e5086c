"""Stress test of the grader: fuzzed answers, answers written to break it, and calls that hang.

    python -m benchmarks.stress                    # 10,000 fuzzed answers and 1,000 hangs; minutes on two cores
    python -m benchmarks.stress --scale 0.1 --json FILE

The Grader grades one answer per call, with the default limits, either as a bare answer or in the box of a response. The test
fails (exit code 1) if
- a verdict is `crash` or `timeout`,
- an answer was executed,
- an answer written by hand was accepted,
- an answer took more than the CPU limit plus half a second,
- a worker used more memory than its limit, or
- workers are missing after the hangs.

Fuzzed answers are mutations of the gold answers in ../shared/data beside the repository, or of those of the procedural tasks
if that directory is absent.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from reval_jax import config, procedural, types, verifier
from reval_jax.sandbox import confinement, pool, worker

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "benchmarks"
sys.path.insert(0, str(ROOT / "tests"))

from support import fuzzed_answers, hostile_answers  # noqa: E402

FUZZED, HANGS = 10_000, 1_000
HANG_LIMIT = 0.1  # seconds of CPU time, and of wall-clock time
SLACK = 0.5  # seconds that an answer may take beyond its CPU limit
SLOW = 0.5  # seconds; an answer that takes longer is listed in the JSON file
SEED = 0

Submission = tuple[str, str, bool]
"""A text, the gold answer, and whether the text is a bare answer rather than a response."""


def main() -> int:
    """Prints the results; returns 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="share of the fuzzed answers and hangs; answers written by hand are always all graded",
    )
    parser.add_argument(
        "--busy", action="store_true", help="do not check wall-clock times, since other jobs are running"
    )
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    args = parser.parse_args()
    if not 0 < args.scale <= 1:
        parser.error(f"--scale {args.scale} is not in (0, 1]")
    results = run(scale=args.scale, is_busy=args.busy, log=lambda text: print(text, flush=True))
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    for problem in results["problems"]:
        print(f"FAILED: {problem}")
    return 1 if results["problems"] else 0


def run(*, scale: float = 1.0, is_busy: bool = False, log: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """The results; `problems` describes each failed check."""
    settings = config.Config()
    limits = settings.verifier
    results: dict[str, Any] = {
        "scale": scale,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system_call_filter": confinement.has_call_filter(),
        "cpu_limit_s": limits.cpu_limit,
        "memory_limit_mib": limits.memory_limit,
    }
    log(", ".join(f"{name} {value}" for name, value in results.items()))
    with tempfile.TemporaryDirectory() as directory, verifier.Grader(settings) as grader:
        canary = str(Path(directory) / "canary")
        grader.grade("\\boxed{(x+1)^2}", "x^2+2x+1")  # starts the workers, so that no measured time includes it
        by_hand = bare_and_boxed(hostile_answers.by_hand(canary)) + [
            (*pair, False) for pair in hostile_answers.responses()
        ]
        fuzzed = list(fuzzed_answers.fuzzed(SEED, round(FUZZED * scale), golds=real_golds(), canary=canary))
        results["by_hand"] = grade_all(grader, by_hand)
        log(f"by hand:  {summary(results['by_hand'])}")
        results["fuzzed"] = grade_all(grader, alternately_boxed(fuzzed))
        log(f"fuzzed:   {summary(results['fuzzed'])}")
        results["executions"] = int(Path(canary).exists())
        results["peak_memory_mib"] = round(max(each.peak_bytes for each in grader.pools) / 2**20)
        results["workers_lost"] = sum(each.num_replaced for each in grader.pools)
    log(
        f"executed: {results['executions']}; largest process: {results['peak_memory_mib']} MiB; "
        f"workers lost: {results['workers_lost']}"
    )
    results["hangs"] = [stall(kinds, round(HANGS * scale)) for kinds in (("spin", "multiply"), ("hang",))]
    for each in results["hangs"]:
        log(
            f"{each['count']} x {' and '.join(each['kinds'])}: {each['verdicts']}, slowest {each['slowest_s']:.2f} s; then "
            f"{each['capacity']} of {each['workers']} workers, {each['answered_after']} of {each['asked_after']} answers"
        )
    results["problems"] = problems(results, is_busy=is_busy)
    return results


def bare_and_boxed(pairs: Sequence[tuple[str, str]]) -> list[Submission]:
    """Every answer bare, then every answer in a box."""
    return [(answer, gold, True) for answer, gold in pairs] + [(boxed(answer), gold, False) for answer, gold in pairs]


def alternately_boxed(pairs: Sequence[tuple[str, str]]) -> list[Submission]:
    """The answers, every second one in a box."""
    return [
        (boxed(answer), gold, False) if index % 2 else (answer, gold, True)
        for index, (answer, gold) in enumerate(pairs)
    ]


def boxed(answer: str) -> str:
    """A response that gives the answer."""
    return f"The answer is \\boxed{{{answer}}}."


def grade_all(grader: verifier.Grader, submissions: Sequence[Submission]) -> dict[str, Any]:
    """Counts of verdicts, and wall-clock times; every submission is graded in its own call."""
    kinds: collections.Counter[str] = collections.Counter()
    slowest, in_worker, accepted, slow = 0.0, 0, [], []
    start = time.monotonic()
    for text, gold, extracted in submissions:
        grade, seconds = timed(grader, text, gold, extracted)
        slowest = max(slowest, seconds)
        kinds[grade.kind] += 1
        in_worker += bool(verifier.grade(text, gold, answer_format="boxed", extracted=extracted).pairs)
        if grade.kind == "ok":
            accepted.append([(grade.extracted or "")[:200], gold])
        if seconds > SLOW:
            slow.append([round(seconds, 2), grade.kind, text[:200], gold])
    return {
        "count": len(submissions),
        "verdicts": {kind: kinds[kind] for kind in types.VERDICTS},
        "in_worker": in_worker,
        "slowest_s": slowest,
        "seconds": time.monotonic() - start,
        "accepted": accepted,
        "slow": slow,
    }


def timed(grader: verifier.Grader, text: str, gold: str, extracted: bool) -> tuple[verifier.Grade, float]:
    """The grade and its wall-clock seconds; a slow answer is timed up to three times and the minimum counts, against noise."""
    least = float("inf")
    for _ in range(3):
        start = time.monotonic()
        grade = grader.grade(text, gold, extracted=extracted)
        least = min(least, time.monotonic() - start)
        if least <= config.Verifier().cpu_limit + SLACK:
            break
    return grade, least


def stall(kinds: tuple[str, ...], count: int) -> dict[str, Any]:
    """Makes `count` calls that never return, on all workers, and reports how many workers answer afterwards."""
    # Calls that use CPU time must end by the CPU limit, so the wall limit is out of reach for them.
    wall_limit = HANG_LIMIT if kinds == ("hang",) else 60.0
    settings = worker.WorkerSettings("hostile_rewards:stall", True, HANG_LIMIT, wall_limit, 512 << 20, 100, [])
    num_workers = os.cpu_count() or 1
    with pool.Pool(settings, num_workers=num_workers, path=[ROOT / "tests" / "support"]) as workers:
        workers.start(num_workers)
        start = time.monotonic()
        outcomes = workers.run([(str(index), kinds[index % len(kinds)]) for index in range(count)])
        seconds = time.monotonic() - start
        after = workers.run([(str(index), "") for index in range(10 * num_workers)])
        return {
            "kinds": list(kinds),
            "count": count,
            "verdicts": dict(collections.Counter(outcome.kind for outcome in outcomes)),
            "slowest_s": max(outcome.seconds for outcome in outcomes),
            "seconds": seconds,
            "workers": num_workers,
            "capacity": workers.capacity,
            "asked_after": len(after),
            "answered_after": sum(outcome.kind == "done" for outcome in after),
        }


def problems(results: dict[str, Any], *, is_busy: bool) -> list[str]:
    """A description of each failed check; on a busy machine, wall-clock times are not checked."""
    failures = []
    for name in ("by_hand", "fuzzed"):
        each = results[name]
        bad_verdicts = {kind: each["verdicts"][kind] for kind in ("crash", "timeout") if each["verdicts"][kind]}
        if bad_verdicts:
            failures.append(f"{name}: verdicts {bad_verdicts}")
        if not is_busy and each["slowest_s"] > results["cpu_limit_s"] + SLACK:
            failures.append(
                f"{name}: an answer took {each['slowest_s']:.2f} s, the limit is {results['cpu_limit_s']:g} s + {SLACK} s"
            )
    if results["by_hand"]["accepted"]:
        failures.append(f"by_hand: {results['by_hand']['accepted']} were accepted")
    if results["executions"]:
        failures.append("an answer was executed")
    if results["peak_memory_mib"] > results["memory_limit_mib"]:
        failures.append(f"a worker used {results['peak_memory_mib']} MiB, the limit is {results['memory_limit_mib']}")
    for each, kind in zip(results["hangs"], ("limit", "timeout"), strict=True):
        name = " and ".join(each["kinds"])
        if each["verdicts"] != {kind: each["count"]}:
            failures.append(f"{name}: verdicts {each['verdicts']}, all should be {kind}")
        if (each["capacity"], each["answered_after"]) != (each["workers"], each["asked_after"]):
            failures.append(f"{name}: afterwards {each['capacity']} workers gave {each['answered_after']} answers")
    return failures


def summary(counts: dict[str, Any]) -> str:
    """The result of `grade_all` on one line."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts["verdicts"].items() if count)
    return (
        f"{counts['count']} answers ({counts['in_worker']} in a worker): {kinds}; slowest {counts['slowest_s']:.2f} s, "
        f"{counts['seconds']:.0f} s in all"
    )


def real_golds() -> list[str]:
    """Gold answers of the benchmarks' problems, or of procedural ones if the benchmarks are absent."""
    files = sorted(DATA.glob("*.jsonl"))
    if not files:
        names = ("arithmetic", "base_conversion", "modular_arithmetic")
        return [answer for name in names for _, answer in procedural.rows(f"procedural:{name},level=2,size=100")]
    rows = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return [row["answer"] for row in rows]


if __name__ == "__main__":
    raise SystemExit(main())
