"""How well graders agree with the public cases, and how fast ours is on real answers.

    python -m benchmarks.graders [--json FILE]         # ../shared/data beside the repository; minutes on one core
    python -m benchmarks.graders --cases FILE          # agreement with these cases alone, and which of them ours fails

Agreement: ours, math-verify alone (its own parser and defaults) and two string comparisons, on verifier_cases.jsonl by kind
of origin. Every grader answers each case in a process of its own, killed after LIMIT seconds; a kill counts as a refusal.
Throughput: every gold of the benchmarks, put into a box, against itself, against another row's gold, against itself written
another way, and against itself with one digit changed; answers a second of CPU, in this process, no pair known from before.
The slow path is timed twice: in a process that has only warmed up, and again when the grammar's tables have grown by what
they met (answers are forgotten in between).
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import math_verify

from reval_jax import verifier
from reval_jax.equality import symbolic

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
LIMIT = 12.0  # seconds a case
ORIGINS = ("boxed", "bare", "free-form")
# Golds that are no single expression: a factor before them would change what they are.
_NOT_MOVED = r"[=,°]|\\(?:text|mbox|circ|prime|cup|pm|in|ge|le|begin)|[0-9]e[0-9-]|^[$ ]*[A-Za-z]+[$ ]*$"
ROW = "{:<26}{:<11}{:>6}{:>9}{:>9}{:>9}{:>8}"


def ours(prediction: str, gold: str, origin: str) -> bool:
    """The whole verdict of this project, algebra included."""
    is_answer = origin == "bare"
    grade = verifier.grade(prediction, gold, answer_format="boxed", extracted=is_answer)
    return bool(verifier.settle(grade, [symbolic.compare(*pair) for pair in grade.pairs]).reward)


def math_verify_alone(prediction: str, gold: str, origin: str) -> bool:
    """math-verify as its README calls it, its timeouts included; bare mathematics is put between dollars."""
    texts = (
        prediction if "$" in prediction or "\\boxed" in prediction else f"${prediction}$"
        for prediction in (gold, prediction)
    )
    return bool(math_verify.verify(*(math_verify.parse(text) for text in texts)))


def _last_box(text: str) -> str:
    begin = text.rfind("\\boxed{")
    depth = 0
    for index in range(max(begin, 0), len(text)):
        depth += (text[index] == "{") - (text[index] == "}")
        if begin >= 0 and text[index] == "}" and depth == 0:
            return text[begin + len("\\boxed{") : index]
    return ""


def same_string(prediction: str, gold: str, origin: str) -> bool:
    """The last box, or the answer, letter for letter."""
    return (prediction if origin == "bare" else _last_box(prediction)).strip() == gold.strip()


def same_stripped_string(prediction: str, gold: str, origin: str) -> bool:
    r"""The same after what the MATH data set's own comparison removes: spaces, `\left`, units in `\text`, dollars."""

    def stripped(text: str) -> str:
        text = re.sub(r"\\text\s*\{ .*", "", text).replace("\\!", "").replace("tfrac", "frac").replace("dfrac", "frac")
        for idle in ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$", "$", "\\%", "%", " ", "\n"):
            text = text.replace(idle, "")
        text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)
        return text.split("=")[-1] if text.count("=") == 1 and len(text.split("=")[0]) <= 2 else text

    return stripped(prediction if origin == "bare" else _last_box(prediction)) == stripped(gold)


GRADERS: dict[str, Callable[[str, str, str], bool]] = {
    "reval_jax": ours,
    "math-verify alone": math_verify_alone,
    "string": same_string,
    "string, MATH's stripping": same_stripped_string,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--cases", type=Path, help="lines like verifier_cases.jsonl's; speed is not measured")
    given = parser.parse_args(argv)
    if given.cases and not given.cases.is_file():
        raise SystemExit(
            f"--cases {given.cases}: there is no such file. Name one with lines like verifier_cases.jsonl's."
        )
    if not given.cases and not DATA.is_dir():
        raise SystemExit(f"No folder {DATA.parent.name}/{DATA.name} beside the repository: nothing to measure on.")
    agreement = measure_agreement(given.cases or DATA / "verifier_cases.jsonl")
    speed = {} if given.cases else measure_speed()
    print(ROW.format("grader", "origin", "cases", "agrees", "wrongly", "wrongly", "killed"))
    print(ROW.format("", "", "", "", "accepts", "refuses", ""))
    for row in agreement:
        print(ROW.format(*(value for name, value in row.items() if name != "unexpected")))
    if given.cases:
        print("\nDecided by ours as the cases do not expect:")
        print("\n".join(f"  {case}" for row in agreement[: len(ORIGINS)] for case in row["unexpected"]))
    else:
        print(f"\n{'gold against':<20}" + "".join(f"{name.replace('_', ' '):>26}" for name in speed["itself"]))
    for name, row in speed.items():
        print(f"{name:<20}" + "".join(f"{value!s:>26}" for value in row.values()))
    if given.json:
        given.json.write_text(json.dumps({"agreement": agreement, "speed": speed}, indent=2) + "\n", encoding="utf-8")


def measure_agreement(file: Path) -> list[dict[str, Any]]:
    """One row for each grader and kind of origin, ours first."""
    cases = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows = []
    for name in GRADERS:
        for origin in ORIGINS:
            chosen = [case for case in cases if case["origin"].endswith(f"[{origin}]")]
            accepted = _accepted(name, [(case["prediction"], case["gold"], origin) for case in chosen])
            pairs = [(bool(case["expected"]), found) for case, found in zip(chosen, accepted, strict=True)]
            rows.append(
                {
                    "grader": name,
                    "origin": origin,
                    "cases": len(chosen),
                    "agrees": sum(expected == bool(found) for expected, found in pairs),
                    "wrongly_accepts": sum(not expected and bool(found) for expected, found in pairs),
                    "wrongly_refuses": sum(expected and not found for expected, found in pairs),
                    "killed": sum(found is None for _, found in pairs),
                    "unexpected": [
                        f"{case['prediction'][-80:]!r} for {case['gold']!r}: {'accepted' if found else 'refused'}"
                        for case, (expected, found) in zip(chosen, pairs, strict=True)
                        if expected != bool(found)
                    ],
                }
            )
    return rows


def _serve(name: str, pipe: Any) -> None:
    while True:
        try:
            pipe.send(bool(GRADERS[name](*pipe.recv())))
        except EOFError:
            return
        except Exception:
            pipe.send(False)  # a grader that raises has refused


def _accepted(name: str, cases: Sequence[tuple[str, str, str]]) -> list[bool | None]:
    """What a grader says of each case; None where it had to be killed."""
    context = multiprocessing.get_context("spawn")
    process: Any = None
    pipe: Any = None
    results: list[bool | None] = []
    for case in cases:
        if process is None:
            pipe, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(name, theirs), daemon=True)
            process.start()
            theirs.close()
            pipe.send(("$1$", "$1$", "boxed"))  # imports are not counted
            pipe.recv()
        pipe.send(case)
        if pipe.poll(LIMIT):
            results.append(pipe.recv())
        else:
            process.kill()
            process.join()
            process = None
            results.append(None)
    if process is not None:
        process.kill()
        process.join()
    return results


def rewritten(gold: str) -> str:
    """The same answer in another spelling: a factor of one, another fraction bar, terms moved behind a zero."""
    return "0 + 1 \\cdot (" + gold.strip("$ .").replace("\\frac", "\\dfrac") + ")"


def changed(gold: str, index: int) -> str:
    """The answer with one of its digits replaced by another, which and by what depending on the index."""
    places = [place for place, symbol in enumerate(gold) if symbol.isdigit()]
    place = places[7 * index % len(places)]
    return gold[:place] + str((int(gold[place]) + 1 + index % 9) % 10) + gold[place + 1 :]


def measure_speed() -> dict[str, Any]:
    """Counts and answers a second for each path over the golds of all benchmarks."""
    golds = []
    for path in sorted((DATA / "benchmarks").glob("*.jsonl")):
        golds.append([json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()])
    own = [(gold.split(verifier.GOLD_SEPARATOR)[0], gold) for column in golds for gold in column]
    others = [
        (column[i - 1].split(verifier.GOLD_SEPARATOR)[0], gold) for column in golds for i, gold in enumerate(column)
    ]
    moved = [
        (rewritten(first), gold)
        for first, gold in own
        if re.search("[A-Za-z]", first) and not re.search(_NOT_MOVED, first)
    ]
    wrong = [(changed(first, index), gold) for index, (first, gold) in enumerate(own) if re.search("[0-9]", first)]
    named = {"itself": own, "another row's": others, "itself, rewritten": moved, "itself, a digit off": wrong}
    return {name: _timed(pairs) for name, pairs in named.items()}


def _timed(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    symbolic.warm_up()
    begin = time.process_time()
    grades = [verifier.grade(f"\\boxed{{{answer}}}", gold, answer_format="boxed") for answer, gold in pairs]
    fast = time.process_time() - begin
    slow_grades = [grade for grade in grades if grade.pairs]
    seconds = []
    for _ in range(2):
        symbolic.forget()
        begin = time.process_time()
        settled = [verifier.settle(grade, [symbolic.compare(*pair) for pair in grade.pairs]) for grade in slow_grades]
        seconds.append(time.process_time() - begin)
    verdicts = collections.Counter(grade.kind for grade in [*(g for g in grades if not g.pairs), *settled])
    return {
        "pairs": len(pairs),
        "fast_path": len(pairs) - len(slow_grades),
        "slow_path": len(slow_grades),
        "fast_per_second": round(len(pairs) / fast),
        "slow_per_second_at_first": round(len(slow_grades) / seconds[0]) if slow_grades else None,
        "slow_per_second": round(len(slow_grades) / seconds[1]) if slow_grades else None,
        "verdicts": dict(verdicts),
    }


if __name__ == "__main__":
    main()
