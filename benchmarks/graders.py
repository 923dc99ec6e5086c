"""Compares graders on the public cases, and measures the speed of ours on real answers.

    python -m benchmarks.graders [--json FILE]         # needs ../shared/data beside the repository; minutes on one core
    python -m benchmarks.graders --cases FILE          # agreement on these cases only; lists those that ours fails

Agreement: our grader, math-verify alone (with its own parser and defaults) and two string comparisons grade
verifier_cases.jsonl; results are listed by origin of the case. Each grader runs in its own process, which is killed if a case
takes more than LIMIT seconds; a kill counts as a refusal.

Speed: the gold answer of every benchmark problem, in a box, is graded against itself, against another problem's gold answer,
after rewriting it in another form, and after changing one digit. The unit is graded answers per CPU second in this process.
Results are not cached between pairs. The slow path is timed twice: right after the warm-up, and again with the parser's tables
filled by the first pass. Cached results are discarded in between.
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
LIMIT = 12.0  # seconds per case
ORIGINS = ("boxed", "bare", "free-form")
# Gold answers that are not one expression: `rewritten` would change their meaning.
_NOT_REWRITABLE = r"[=,°]|\\(?:text|mbox|circ|prime|cup|pm|in|ge|le|begin)|[0-9]e[0-9-]|^[$ ]*[A-Za-z]+[$ ]*$"
ROW = "{:<26}{:<11}{:>6}{:>9}{:>9}{:>9}{:>8}"


def ours(prediction: str, gold: str, origin: str) -> bool:
    """Whether this project's grader accepts the prediction, with the slow path."""
    is_answer = origin == "bare"
    grade = verifier.grade(prediction, gold, answer_format="boxed", extracted=is_answer)
    return bool(verifier.settle(grade, [symbolic.compare(*pair) for pair in grade.pairs]).reward)


def math_verify_alone(prediction: str, gold: str, origin: str) -> bool:
    """Whether math-verify accepts the prediction, called as in its README; a text without mathematics delimiters gets dollars."""
    texts = (text if "$" in text or "\\boxed" in text else f"${text}$" for text in (gold, prediction))
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
    """Whether the content of the last box, or a bare answer, equals the gold answer as a string."""
    return (prediction if origin == "bare" else _last_box(prediction)).strip() == gold.strip()


def same_stripped_string(prediction: str, gold: str, origin: str) -> bool:
    r"""`same_string` after removing what the MATH data set's comparison removes: spaces, `\left`, units in `\text`, dollars."""

    def stripped(text: str) -> str:
        text = re.sub(r"\\text\s*\{ .*", "", text).replace("\\!", "").replace("tfrac", "frac").replace("dfrac", "frac")
        for removed in ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$", "$", "\\%", "%", " ", "\n"):
            text = text.replace(removed, "")
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
    """Prints the tables, and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--cases", type=Path, help="file in the format of verifier_cases.jsonl; skips the speed")
    args = parser.parse_args(argv)
    if args.cases and not args.cases.is_file():
        raise SystemExit(f"--cases {args.cases} is not a file. Name one in the format of verifier_cases.jsonl.")
    if not args.cases and not DATA.is_dir():
        raise SystemExit(
            f"{DATA} is not a directory, so there is nothing to measure. Put the data there, or use --cases FILE."
        )
    agreement = measure_agreement(args.cases or DATA / "verifier_cases.jsonl")
    speed = {} if args.cases else measure_speed()
    print(ROW.format("grader", "origin", "cases", "agrees", "wrongly", "wrongly", "killed"))
    print(ROW.format("", "", "", "", "accepts", "refuses", ""))
    for row in agreement:
        print(ROW.format(*(value for name, value in row.items() if name != "unexpected")))
    if args.cases:
        print("\nCases that our grader decides differently from what they expect:")
        print("\n".join(f"  {case}" for row in agreement[: len(ORIGINS)] for case in row["unexpected"]))
    else:
        print(f"\n{'gold against':<20}" + "".join(f"{name.replace('_', ' '):>26}" for name in speed["itself"]))
    for name, row in speed.items():
        print(f"{name:<20}" + "".join(f"{value!s:>26}" for value in row.values()))
    if args.json:
        args.json.write_text(json.dumps({"agreement": agreement, "speed": speed}, indent=2) + "\n", encoding="utf-8")


def measure_agreement(file: Path) -> list[dict[str, Any]]:
    """One row for each grader and origin, our grader first."""
    cases = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows = []
    for name in GRADERS:
        for origin in ORIGINS:
            chosen = [case for case in cases if case["origin"].endswith(f"[{origin}]")]
            accepted = _accepted(name, [(case["prediction"], case["gold"], origin) for case in chosen])
            pairs = [(bool(case["expected"]), result) for case, result in zip(chosen, accepted, strict=True)]
            rows.append(
                {
                    "grader": name,
                    "origin": origin,
                    "cases": len(chosen),
                    "agrees": sum(expected == bool(result) for expected, result in pairs),
                    "wrongly_accepts": sum(not expected and bool(result) for expected, result in pairs),
                    "wrongly_refuses": sum(expected and not result for expected, result in pairs),
                    "killed": sum(result is None for _, result in pairs),
                    "unexpected": [
                        f"{case['prediction'][-80:]!r} for {case['gold']!r}: {'accepted' if result else 'refused'}"
                        for case, (expected, result) in zip(chosen, pairs, strict=True)
                        if expected != bool(result)
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
            pipe.send(False)  # a grader that raises refuses the answer


def _accepted(name: str, cases: Sequence[tuple[str, str, str]]) -> list[bool | None]:
    """Whether the grader accepts each case; None where it exceeded LIMIT and was killed."""
    context = multiprocessing.get_context("spawn")
    process: Any = None
    pipe: Any = None
    results: list[bool | None] = []
    for case in cases:
        if process is None:
            pipe, child_end = context.Pipe()
            process = context.Process(target=_serve, args=(name, child_end), daemon=True)
            process.start()
            child_end.close()
            pipe.send(("$1$", "$1$", "boxed"))  # finishes the imports, so that the limit excludes them
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
    """An equal answer in another form: 0 + 1 times the answer, with another fraction command."""
    return "0 + 1 \\cdot (" + gold.strip("$ .").replace("\\frac", "\\dfrac") + ")"


def changed(gold: str, index: int) -> str:
    """The answer with one digit replaced; the index determines which digit, and the new one."""
    places = [place for place, symbol in enumerate(gold) if symbol.isdigit()]
    place = places[7 * index % len(places)]
    return gold[:place] + str((int(gold[place]) + 1 + index % 9) % 10) + gold[place + 1 :]


def measure_speed() -> dict[str, Any]:
    """Number of pairs, and answers per second on each path, for every kind of pair from the benchmarks' gold answers."""
    golds = []
    for path in sorted((DATA / "benchmarks").glob("*.jsonl")):
        golds.append([json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()])
    same = [(gold.split(verifier.GOLD_SEPARATOR)[0], gold) for column in golds for gold in column]
    others = [
        (column[i - 1].split(verifier.GOLD_SEPARATOR)[0], gold) for column in golds for i, gold in enumerate(column)
    ]
    equal = [
        (rewritten(first), gold)
        for first, gold in same
        if re.search("[A-Za-z]", first) and not re.search(_NOT_REWRITABLE, first)
    ]
    wrong = [(changed(first, index), gold) for index, (first, gold) in enumerate(same) if re.search("[0-9]", first)]
    kinds = {"itself": same, "another row's": others, "itself, rewritten": equal, "itself, a digit off": wrong}
    return {name: _timed(pairs) for name, pairs in kinds.items()}


def _timed(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    symbolic.warm_up()
    begin = time.process_time()
    grades = [verifier.grade(f"\\boxed{{{answer}}}", gold, answer_format="boxed") for answer, gold in pairs]
    fast = time.process_time() - begin
    slow_grades = [grade for grade in grades if grade.pairs]
    seconds = []
    for _ in range(2):
        symbolic.clear_caches()
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
