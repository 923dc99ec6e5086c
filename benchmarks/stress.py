"""What a hostile policy can do to the grading: fuzzed answers, answers written to hurt, and hangs by force.

    python -m benchmarks.stress                    # 10,000 fuzzed answers and 1,000 hangs; minutes on two cores
    python -m benchmarks.stress --scale 0.1 --json FILE

Every answer goes through the Grader by itself, with the settings' own limits, as an answer or as a response with a box.
It fails (exit code 1) if a verdict is `crash` or `timeout`, an answer was executed, one written by hand was taken for
right, an answer took longer than the CPU limit and half a second, a process more than its memory limit, or a worker is
missing at the end.

Fuzzed answers are mutated from the gold answers in ../shared/data beside the repository, or where it is absent from
those of the procedural tasks.
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reval_jax import config, procedural, types, verifier
from reval_jax.sandbox import confinement, pool, worker

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "benchmarks"
sys.path.insert(0, str(ROOT / "tests" / "support"))

import hostile  # noqa: E402

FUZZED, HANGS = 10_000, 1_000
HANG_LIMIT = 0.1  # seconds, of CPU time and of the wall clock
SLACK = 0.5  # seconds that an answer may take beyond its CPU limit
SLOW = 0.5  # seconds; an answer that takes longer is listed in the JSON file
SEED = 0

Asked = tuple[str, str, bool]
"""A text, the gold answer, and whether the text is an answer rather than a response."""


def main() -> int:
    """Prints the figures; 1 if one of them is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the counts; the answers by hand are always all"
    )
    parser.add_argument("--busy", action="store_true", help="others use the machine: print wall times, judge the rest")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    if not 0 < given.scale <= 1:
        parser.error(f"--scale {given.scale} is not in (0, 1]")
    found = run(scale=given.scale, is_busy=given.busy, say=lambda text: print(text, flush=True))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for problem in found["problems"]:
        print(f"FAILED: {problem}")
    return 1 if found["problems"] else 0


def run(*, scale: float = 1.0, is_busy: bool = False, say: Any = lambda text: None) -> dict[str, Any]:
    """The figures, and under `problems` a sentence for each that is not as it must be."""
    settings = config.Config()
    limits = settings.verifier
    found: dict[str, Any] = {
        "scale": scale,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system_call_filter": confinement.has_call_filter(),
        "cpu_limit_s": limits.cpu_limit,
        "memory_limit_mib": limits.memory_limit,
    }
    say(", ".join(f"{name} {value}" for name, value in found.items()))
    with tempfile.TemporaryDirectory() as directory, verifier.Grader(settings) as grader:
        canary = str(Path(directory) / "canary")
        grader.grade("\\boxed{(x+1)^2}", "x^2+2x+1")  # the first answer waits for a worker to start
        by_hand = both_ways(hostile.by_hand(canary)) + [(*pair, False) for pair in hostile.responses()]
        fuzzed = list(hostile.fuzzed(SEED, round(FUZZED * scale), real=real_golds(), canary=canary))
        found["by_hand"] = graded(grader, by_hand)
        say(f"by hand:  {sentence(found['by_hand'])}")
        found["fuzzed"] = graded(grader, in_turns(fuzzed))
        say(f"fuzzed:   {sentence(found['fuzzed'])}")
        found["executions"] = int(Path(canary).exists())
        found["peak_memory_mib"] = round(max(each.peak_bytes for each in grader.pools) / 2**20)
        found["workers_lost"] = sum(each.num_replaced for each in grader.pools)
    say(
        f"executed: {found['executions']}; largest process: {found['peak_memory_mib']} MiB; workers lost: {found['workers_lost']}"
    )
    found["hangs"] = [stall(kinds, round(HANGS * scale)) for kinds in (("spin", "multiply"), ("hang",))]
    for each in found["hangs"]:
        say(
            f"{each['count']} x {' and '.join(each['kinds'])}: {each['verdicts']}, slowest {each['slowest_s']:.2f} s; then "
            f"{each['capacity']} of {each['workers']} workers, {each['answered_after']} of {each['asked_after']} answers"
        )
    found["problems"] = problems(found, is_busy=is_busy)
    return found


def both_ways(pairs: Sequence[tuple[str, str]]) -> list[Asked]:
    """Each answer by itself, then each in a box."""
    return [(answer, gold, True) for answer, gold in pairs] + [(boxed(answer), gold, False) for answer, gold in pairs]


def in_turns(pairs: Sequence[tuple[str, str]]) -> list[Asked]:
    """Every other answer in a box."""
    return [
        (boxed(answer), gold, False) if index % 2 else (answer, gold, True)
        for index, (answer, gold) in enumerate(pairs)
    ]


def boxed(answer: str) -> str:
    """A response that gives the answer."""
    return f"The answer is \\boxed{{{answer}}}."


def graded(grader: verifier.Grader, asked: Sequence[Asked]) -> dict[str, Any]:
    """Counts of verdicts, and the wall time of the slowest, each answer graded by itself."""
    kinds: collections.Counter[str] = collections.Counter()
    slowest, in_worker, accepted, slow = 0.0, 0, [], []
    start = time.monotonic()
    for text, gold, extracted in asked:
        grade, seconds = timed(grader, text, gold, extracted)
        slowest = max(slowest, seconds)
        kinds[grade.kind] += 1
        in_worker += bool(verifier.grade(text, gold, answer_format="boxed", extracted=extracted).pairs)
        if grade.kind == "ok":
            accepted.append([(grade.extracted or "")[:200], gold])
        if seconds > SLOW:
            slow.append([round(seconds, 2), grade.kind, text[:200], gold])
    return {
        "count": len(asked),
        "verdicts": {kind: kinds[kind] for kind in types.VERDICTS},
        "in_worker": in_worker,
        "slowest_s": slowest,
        "seconds": time.monotonic() - start,
        "accepted": accepted,
        "slow": slow,
    }


def timed(grader: verifier.Grader, text: str, gold: str, extracted: bool) -> tuple[verifier.Grade, float]:
    """The grade and its wall time; of what took long, the quickest of three times, since the machine may be busy."""
    least = float("inf")
    for _ in range(3):
        start = time.monotonic()
        grade = grader.grade(text, gold, extracted=extracted)
        least = min(least, time.monotonic() - start)
        if least <= config.Verifier().cpu_limit + SLACK:
            break
    return grade, least


def stall(kinds: tuple[str, ...], count: int) -> dict[str, Any]:
    """`count` calls that never return, in all workers at once, and what the pool can do after them."""
    # Where the CPU time is to decide, the wall clock must not.
    wall_limit = HANG_LIMIT if kinds == ("hang",) else 60.0
    asked = worker.Settings("hostile:stall", True, HANG_LIMIT, wall_limit, 512 << 20, 100, [])
    num_workers = os.cpu_count() or 1
    with pool.Pool(asked, num_workers=num_workers, path=[ROOT / "tests"]) as workers:
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


def problems(found: dict[str, Any], *, is_busy: bool) -> list[str]:
    """What is not as it must be; on a busy machine, whatever the clock says."""
    wrong = []
    for name in ("by_hand", "fuzzed"):
        each = found[name]
        failed = {kind: each["verdicts"][kind] for kind in ("crash", "timeout") if each["verdicts"][kind]}
        if failed:
            wrong.append(f"{name}: verdicts {failed}")
        if not is_busy and each["slowest_s"] > found["cpu_limit_s"] + SLACK:
            wrong.append(
                f"{name}: an answer took {each['slowest_s']:.2f} s, the limit is {found['cpu_limit_s']:g} s + {SLACK} s"
            )
    if found["by_hand"]["accepted"]:
        wrong.append(f"by_hand: {found['by_hand']['accepted']} were taken for right")
    if found["executions"]:
        wrong.append("an answer was executed")
    if found["peak_memory_mib"] > found["memory_limit_mib"]:
        wrong.append(f"a worker took {found['peak_memory_mib']} MiB, the limit is {found['memory_limit_mib']}")
    for each, kind in zip(found["hangs"], ("limit", "timeout"), strict=True):
        name = " and ".join(each["kinds"])
        if each["verdicts"] != {kind: each["count"]}:
            wrong.append(f"{name}: verdicts {each['verdicts']}, all should be {kind}")
        if (each["capacity"], each["answered_after"]) != (each["workers"], each["asked_after"]):
            wrong.append(f"{name}: after it {each['capacity']} workers gave {each['answered_after']} answers")
    return wrong


def sentence(found: dict[str, Any]) -> str:
    """The counts on one line."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in found["verdicts"].items() if count)
    return (
        f"{found['count']} answers ({found['in_worker']} in a worker): {kinds}; slowest {found['slowest_s']:.2f} s, "
        f"{found['seconds']:.0f} s in all"
    )


def real_golds() -> list[tuple[str, str]]:
    """(question, gold answer) of real problems where they are at hand, else of procedural ones."""
    files = sorted(DATA.glob("*.jsonl"))
    if not files:
        names = ("arithmetic", "base_conversion", "modular_arithmetic")
        return [row for name in names for row in procedural.rows(f"procedural:{name},size=100")]
    rows = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return [(row["question"], row["answer"]) for row in rows]


if __name__ == "__main__":
    raise SystemExit(main())
