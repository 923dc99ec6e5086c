"""Single corruptions of every kind of file of a run that was killed in a round, and what a resume makes of them.

Most are made in two processes that keep their compiled programs (`resumer`); a sample is resumed by `reval train` itself.
"""

from __future__ import annotations

import json
import queue
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from benchmarks.chaos import compare, damage
from benchmarks.chaos.lab import ROOT, Lab
from benchmarks.chaos.outcomes import HANG, IDENTICAL, SAID, SILENT, TRACEBACK, UNCLEAR, Attempt, has_crashed, messages

CORRUPTIONS = 1000
IN_PROCESSES = 30  # of them, resumed by a process of their own
TIME_LIMIT = 240.0  # seconds for one case, after which it counts as a hang
PER_PROCESS = 200  # cases after which a resumer is replaced

PROGRESS = re.compile(r"resuming.* after round \d+$|round +\d+/|done: ")
"""Lines that every resume prints."""

ROUNDS = ("--run.rounds", "5")
OPTIONS = (*ROUNDS, "--checkpoint.every", "1", "--checkpoint.keep", "3")


def run(lab: Lab, scale: float) -> list[Attempt]:
    """The attempts of this part."""
    lab.reference(*ROUNDS)
    base = prepare(lab)
    cases = damage.plan(base, max(1, round(CORRUPTIONS * scale)), lab.random("corruptions"))
    real = max(1, round(IN_PROCESSES * scale))
    alone = set(lab.random("alone").sample(range(len(cases)), min(real, len(cases))))
    waiting: queue.SimpleQueue[tuple[int, damage.Damage]] = queue.SimpleQueue()
    for index, case in enumerate(cases):
        if index not in alone:
            waiting.put((index, case))
    # A lane is a thread that gives its own resumer one case after the other.
    shared: list[Attempt] = []
    lanes = [threading.Thread(target=_lane, args=(lab, base, waiting, shared, len(cases))) for _ in range(lab.lanes)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    return shared + lab.spread(lambda each: resumed_alone(lab, base, each[0], each[1]), [(i, cases[i]) for i in alone])


def prepare(lab: Lab) -> Path:
    """A run that was resumed with a changed setting and killed in its fifth round: it has every kind of file."""
    run_dir = lab.directory / "to_be_damaged"
    shutil.rmtree(run_dir, ignore_errors=True)
    end = lab.train(run_dir, "--run.rounds", "2", *OPTIONS[2:]).wait()
    if end.code == 0:
        program = (str(ROOT / "tests" / "support" / "train_until.py"), "KILL:journal:5")
        end = lab.train(run_dir, *OPTIONS, program=program).wait()
    if end.code != -9:
        raise SystemExit(f"chaos: the run to be damaged ended with exit code {end.code}:\n{end.output}")
    return run_dir


def judge(damage_: damage.Damage, end: dict[str, Any], differences: list[str]) -> tuple[str, str]:
    """(outcome, detail) of a resume of a damaged run.

    Args:
      end: its `code`, `output`, and what `reval doctor` said before it, `doctor`.
      differences: to the run that was never stopped; not read unless the code is 0.
    """
    output, doctor = end["output"], end["doctor"]
    tail = " | ".join(line for line in output.splitlines()[-3:])
    if end["code"] is None:
        return HANG, tail
    if has_crashed(output) or has_crashed(doctor):
        return TRACEBACK, tail if has_crashed(output) else f"doctor: {doctor.splitlines()[-1]}"
    if end["code"] in (1, 2):
        said = messages(output)
        if len(said) != 1 or not names(damage_, said[0]):
            return UNCLEAR, f"refused without naming what is damaged: {tail}"
        if damage_.group.startswith("checkpoint") or damage_.group == "journal":
            return UNCLEAR, f"refused, though an earlier checkpoint is whole: {tail}"
        return SAID, said[0]
    if end["code"] != 0:
        return UNCLEAR, f"exit code {end['code']}: {tail}"
    reported = [line for line in doctor.splitlines() if line.startswith("BAD ") and names(damage_, line)]
    known = [line for line in output.splitlines() if names(damage_, line)] + reported
    if not differences:
        return (SAID, known[0]) if known else (IDENTICAL, "")
    # What no resume reads, an older checkpoint or the rollouts of a finished round, stays damaged; `reval doctor` says so.
    is_unread = all(difference.startswith(unread(damage_)) for difference in differences)
    if is_unread and reported:
        return SAID, reported[0]
    return SILENT, "; ".join(differences[:4])


def unread(damage_: damage.Damage) -> str:
    """The beginning of the differences that the damage itself is."""
    parts = damage_.path.split("/")
    return f"checkpoint {parts[1]} " if parts[0] == "checkpoints" else damage_.path.removesuffix(".gz")


def names(damage_: damage.Damage, text: str) -> bool:
    """Whether a line is about the damaged file: it has its name, or that of its checkpoint, and is not one of progress."""
    if PROGRESS.match(text):
        return False
    parts = damage_.path.split("/")
    if parts[0] == "checkpoints":
        return any(word in text for word in (f"checkpoints/{parts[1]}", f"round {parts[1]}", "checkpoints"))
    # metrics.jsonl and its checksums are one record, and so are config.yaml and its copy.
    return parts[-1] in text or parts[0] in text or f"{damage_.group.split()[0]}." in text


def resumed_alone(lab: Lab, base: Path, index: int, case: damage.Damage) -> Attempt:
    """The attempt in real processes: doctor, then the resume."""
    run_dir = lab.new_run("corruption", index)
    shutil.copytree(base, run_dir)
    damage.inflict(run_dir, case)
    doctor = lab.call("doctor", "--run-dir", str(run_dir))
    end = lab.train(run_dir, *OPTIONS).wait()
    found = compare.differences(run_dir, lab.reference(*ROUNDS)) if end.code == 0 else []
    outcome = judge(case, {"code": end.code, "output": end.output, "doctor": doctor.output}, found)
    return attempt_of(index, case, outcome)


def attempt_of(index: int, case: damage.Damage, outcome: tuple[str, str]) -> Attempt:
    """The attempt, named by number, kind and file."""
    return Attempt("corruptions", f"{index}_{case.kind}_{case.path}", *outcome, group=case.group)


def _lane(
    lab: Lab, base: Path, waiting: queue.SimpleQueue[tuple[int, damage.Damage]], done: list[Attempt], total: int
) -> None:
    resumer = None
    while not waiting.empty():
        try:
            index, case = waiting.get_nowait()
        except queue.Empty:
            break
        if resumer is None or resumer.cases >= PER_PROCESS:
            if resumer is not None:
                resumer.end()
            resumer = Resumer(lab)
        run_dir = lab.new_run("corruption", index)
        shutil.copytree(base, run_dir)
        damage.inflict(run_dir, case)
        end = resumer.resume(run_dir)
        found = compare.differences(run_dir, lab.reference(*ROUNDS)) if end["code"] == 0 else []
        attempt = attempt_of(index, case, judge(case, end, found))
        if end["code"] is None or not resumer.is_running():
            resumer.end()
            resumer = None
        done.append(attempt)
        if not attempt.is_kept:
            lab.log(f"  BROKEN corruptions {attempt.name}: {attempt.outcome}: {attempt.detail}")
        else:
            shutil.rmtree(run_dir, ignore_errors=True)
        if len(done) % 50 == 0:
            lab.log(f"  corruptions: {len(done)} of {total}, {sum(each.is_kept for each in done)} kept")
    if resumer is not None:
        resumer.end()


class Resumer:
    """A process that resumes one run directory after the other."""

    def __init__(self, lab: Lab) -> None:
        self.cases = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.chaos.resumer", str(lab.config), *OPTIONS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=lab.environment(),
            cwd=ROOT,
            text=True,
            start_new_session=True,
        )

    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def resume(self, run_dir: Path) -> dict[str, Any]:
        """The resume's `code` (None: it hung), its `output`, and what `doctor` said before it."""
        self.cases += 1
        requests, answers = self._process.stdin, self._process.stdout
        if requests is None or answers is None:
            raise SystemExit("chaos: the resumer has no pipes")
        timer = threading.Timer(TIME_LIMIT, self._process.kill)
        timer.start()
        try:
            requests.write(f"{run_dir}\n")
            requests.flush()
            line = answers.readline()
        except BrokenPipeError:
            line = ""
        was_in_time = timer.is_alive()
        timer.cancel()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        code = self._process.wait() if was_in_time else None
        return {"code": code, "output": f"the process ended with {code}", "doctor": ""}

    def end(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
