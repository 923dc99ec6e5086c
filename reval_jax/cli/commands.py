"""The commands `train`, `sample`, `export`, `report`, `plan`, `verify` and `doctor`: arguments in, exit code out.

Each imports its dependencies when it runs, so that `--help` and a mistyped flag answer at once.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from reval_jax import config as config_lib
from reval_jax import config_checks, exit_codes
from reval_jax.cli import arguments, output, parsing


def train(argv: list[str]) -> int:
    """Starts or resumes a run."""
    args = parsing.parse(arguments.Train, "train", argv)
    config = config_checks.check(parsing.checked(args.settings))
    run_dir = args.run_dir or Path("runs") / ("_".join(file.stem for file in args.config) or "default")

    from reval_jax import console, train

    outcome = train.train(config, run_dir, console=console.Console())
    status = "preempted and saved; run the same command again to resume" if outcome.is_preempted else "done"
    output.show(None, f"{status}: {outcome.rounds} rounds in {run_dir}")
    return exit_codes.PREEMPTED if outcome.is_preempted else exit_codes.DONE


def sample(argv: list[str]) -> int:
    """Prints responses to one question."""
    args = parsing.parse(arguments.Sample, "sample", argv)
    config = parsing.checked(args.settings)
    if args.samples < 1:
        raise ValueError(f"--samples {args.samples} asks for no response. Use 1 or more.")
    if not args.prompt:
        raise ValueError("--prompt is empty. Give the question, for example --prompt '2+2='.")

    from reval_jax import inference

    policy = inference.load_policy(config, args.run_dir, round=args.round)
    show = functools.partial(_show_text, args.json, {}, args.samples)
    responses = inference.respond(policy, config, args.prompt, args.samples, on_text=show)
    for index, response in enumerate(responses):
        cut = ", cut" if response.is_truncated else ""
        facts = f"{response.num_tokens} tokens{cut}, log-probability {response.log_prob:.2f}"
        output.show(args.json, f"--- {index + 1} of {args.samples}: {facts}")
    output.write_json(
        args.json,
        {"model": policy.source, "prompt": args.prompt, "responses": [response._asdict() for response in responses]},
    )
    return exit_codes.DONE


def _show_text(
    json_file: Path | None, texts: dict[int, str], num_samples: int, sample: int, new: str, is_done: bool
) -> None:
    """Prints a single response as it grows; of several, each when it is complete."""
    if num_samples == 1:
        output.show(json_file, new, end="\n" if is_done else "")
        return
    texts[sample] = texts.get(sample, "") + new
    if is_done:
        output.show(json_file, f"--- {sample + 1} of {num_samples}\n{texts.pop(sample)}")


def export(argv: list[str]) -> int:
    """Writes a checkpoint in the format of `transformers`."""
    args = parsing.parse(arguments.Export, "export", argv)
    config = parsing.recorded(args.run_dir)

    from reval_jax import distributed, inference, weights

    policy = inference.load_policy(config, args.run_dir, round=args.round)
    weights.export(
        args.output,
        policy.architecture,
        distributed.fetch(policy.params),
        policy.tokenizer,
        eos_token_ids=policy.stop_ids,
        value_head=None if policy.value_head is None else distributed.fetch(policy.value_head),
        dtype=args.dtype,
    )
    output.show(None, f"{policy.source} written to {args.output}")
    return exit_codes.DONE


def report(argv: list[str]) -> int:
    """Shows a run, or two, as one HTML file."""
    args = parsing.parse(arguments.Report, "report", argv)

    from reval_jax.tools import report

    if args.compare is None:
        written = report.write(args.run_dir, args.output or args.run_dir / "report.html")
    else:
        written = report.write_comparison(args.run_dir, args.compare, args.output or args.run_dir / "comparison.html")
    output.show(None, str(written))
    return exit_codes.DONE


def plan(argv: list[str]) -> int:
    """Plans the memory of a run on a TPU slice or on hosts with GPUs."""
    args = parsing.parse(arguments.Plan, "plan", argv)
    config = parsing.checked(args.settings)
    if not args.topology:
        raise ValueError(
            "--topology is missing. Name the machine to plan for, for example --topology v5e-256 or --topology h100:8."
        )

    # A plan runs no program: leave this machine's accelerator to others. Without this, jax's CUDA plugin looks for a driver.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from reval_jax.tools import plan

    result = plan.plan(config, args.topology, is_searching=args.search, log=output.warn)
    output.show(args.json, plan.summary(result))
    output.write_json(args.json, plan.as_json(result))
    return exit_codes.DONE


def verify(argv: list[str]) -> int:
    """Grades one response."""
    options, words = parsing.options_first(argv, arguments.Verify)
    if len(words) != 2 and not {"-h", "--help"} & set(options):
        raise ValueError(
            f"verify needs PREDICTION and GOLD, but the words beside its options are {words}. Give both, each in quotes, for "
            "example: reval verify '\\boxed{1/2}' 0.5."
        )
    args = parsing.parse(arguments.Verify, "verify", [*options, "--", *words])

    from reval_jax import verifier

    config = config_lib.Config(task=config_lib.Task(answer_format=args.answer_format))
    with verifier.Grader(config) as grader:
        grade = grader.grade(args.prediction, args.gold, extracted=args.extracted)
    output.show(args.json, f"reward {grade.reward:g}, verdict {grade.kind}: {grade.explanation}")
    fields = grade._asdict()
    del fields["pairs"]  # empty once a grade is settled
    output.write_json(args.json, {"verdict": grade.kind, **fields})
    return exit_codes.DONE


def doctor(argv: list[str]) -> int:
    """Checks this machine, or what of a run is whole."""
    args = parsing.parse(arguments.Doctor, "doctor", argv)

    from reval_jax.tools import doctor, run_doctor

    findings = run_doctor.examine(args.run_dir) if args.run_dir else doctor.examine()
    for finding in findings:
        output.show(args.json, f"{'ok  ' if finding.is_fine else 'BAD '} {finding.name}: {finding.result}")
    output.write_json(args.json, [finding._asdict() for finding in findings])
    return exit_codes.DONE if all(finding.is_fine for finding in findings) else exit_codes.FAILED
