"""What every command but `bench` does with its arguments; returns the exit code.

Each imports what it needs when it runs, so that `--help` and a mistyped flag answer at once.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from pathlib import Path

from reval_jax import config as config_lib
from reval_jax.cli import arguments, output, parsing

PREEMPTED = 75


def train(argv: list[str]) -> int:
    """Plays or resumes a run."""
    given = parsing.parse(arguments.Train, "train", argv)
    config = config_lib.check(parsing.checked(given.settings))
    run_dir = given.run_dir or Path("runs") / (given.config.stem if given.config else "default")

    from reval_jax import console, train

    outcome = train.train(config, run_dir, console=console.Console())
    said = "preempted; the same command goes on" if outcome.is_preempted else "done"
    print(f"{said}: {outcome.rounds} rounds in {run_dir}")
    return PREEMPTED if outcome.is_preempted else 0


def sample(argv: list[str]) -> int:
    """Shows responses to one question."""
    given = parsing.parse(arguments.Sample, "sample", argv)
    config = parsing.checked(given.settings)
    if given.samples < 1:
        raise ValueError(f"--samples {given.samples}: at least one response has to be drawn. Use 1 or more.")
    if not given.prompt:
        raise ValueError("--prompt is empty. Give the question, for example --prompt '2+2='.")

    from reval_jax import inference

    policy = inference.load_policy(config, given.run_dir, round=given.round)
    show = functools.partial(_show_text, given.json, {}, given.samples)
    responses = inference.respond(policy, config, given.prompt, given.samples, on_text=show)
    for index, response in enumerate(responses):
        cut = ", cut" if response.is_truncated else ""
        facts = f"{response.num_tokens} tokens{cut}, log-probability {response.log_prob:.2f}"
        output.say(given.json, f"--- {index + 1} of {given.samples}: {facts}")
    output.write_json(
        given.json,
        {"model": policy.source, "prompt": given.prompt, "responses": [response._asdict() for response in responses]},
    )
    return 0


def _show_text(
    json_file: Path | None, texts: dict[int, str], num_samples: int, sample: int, new: str, is_done: bool
) -> None:
    """One response is shown as it grows, several each when it is complete."""
    if num_samples == 1:
        output.say(json_file, new, end="\n" if is_done else "")
        return
    texts[sample] = texts.get(sample, "") + new
    if is_done:
        output.say(json_file, f"--- {sample + 1} of {num_samples}\n{texts.pop(sample)}")


def export(argv: list[str]) -> int:
    """Writes a checkpoint for other libraries."""
    given = parsing.parse(arguments.Export, "export", argv)
    config = config_lib.load(given.run_dir / "config.yaml")

    from reval_jax import distributed, inference, weights

    policy = inference.load_policy(config, given.run_dir, round=given.round)
    weights.export(
        given.output,
        policy.architecture,
        distributed.fetch(policy.params),
        policy.tokenizer,
        eos_token_ids=policy.stop_ids,
        dtype=given.dtype,
    )
    print(f"{policy.source} written to {given.output}")
    return 0


def report(argv: list[str]) -> int:
    """Draws a run."""
    given = parsing.parse(arguments.Report, "report", argv)

    from reval_jax.tools import report

    print(report.write(given.run_dir, given.output or given.run_dir / "report.html"))
    return 0


def plan(argv: list[str]) -> int:
    """Says whether a run fits a TPU slice."""
    given = parsing.parse(arguments.Plan, "plan", argv)
    config = parsing.checked(given.settings)
    if not given.topology:
        raise ValueError("--topology is missing. Name the slice to plan for, for example --topology v5e-256.")

    # A plan runs nothing: an accelerator of this machine may be another program's.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from reval_jax.tools import plan

    found = plan.plan(
        config, given.topology, is_searching=given.search, say=lambda text: print(text, file=sys.stderr, flush=True)
    )
    output.say(given.json, plan.sentences(found))
    output.write_json(given.json, plan.as_json(found))
    return 0


def verify(argv: list[str]) -> int:
    """Grades one response."""
    if argv[-1:] in (["-h"], ["--help"]):
        parsing.parse(arguments.Verify, "verify", argv[-1:])
    if len(argv) < 2:
        raise ValueError("verify needs PREDICTION and GOLD, for example: reval verify '\\boxed{1/2}' 0.5.")
    *options, prediction, gold = _options_first(argv)
    names = {field.name for field in dataclasses.fields(arguments.Verify)} - {"prediction", "gold"}
    flags = {f"__{start}{name}" for name in names for start in ("", "no_")}
    for word in (prediction, gold):
        if word.partition("=")[0].replace("-", "_") in flags:
            raise ValueError(
                f"{word} stands where verify reads PREDICTION or GOLD, so one of the two is missing. Give both, for example: "
                "reval verify --extracted 1/2 0.5."
            )
    # What the flags' parser would take for one: both may begin with -.
    given = parsing.parse(arguments.Verify, "verify", ["PREDICTION", "GOLD", *options])

    from reval_jax import verifier

    config = config_lib.Config(task=config_lib.Task(answer_format=given.answer_format))
    with verifier.Grader(config) as grader:
        grade = grader.grade(prediction, gold, extracted=given.extracted)
    output.say(given.json, f"reward {grade.reward:g}, verdict {grade.kind}: {grade.explanation}")
    found = grade._asdict()
    del found["pairs"]  # none is left once a grade is settled
    output.write_json(given.json, {"verdict": grade.kind, **found})
    return 0


def _options_first(argv: list[str]) -> list[str]:
    """The words of `verify` with the options that follow PREDICTION and GOLD put before them."""
    for _ in argv:
        if len(argv) > 3 and argv[-2] in ("--json", "--answer_format", "--answer-format"):
            argv = [*argv[-2:], *argv[:-2]]
        elif len(argv) > 2 and argv[-1] == "--extracted":
            argv = [argv[-1], *argv[:-1]]
    return argv


def doctor(argv: list[str]) -> int:
    """Looks at this machine."""
    given = parsing.parse(arguments.Doctor, "doctor", argv)

    from reval_jax.tools import doctor

    findings = doctor.examine()
    for finding in findings:
        output.say(given.json, f"{'ok  ' if finding.is_fine else 'BAD '} {finding.name}: {finding.found}")
    output.write_json(given.json, [finding._asdict() for finding in findings])
    return 0 if all(finding.is_fine for finding in findings) else 1
