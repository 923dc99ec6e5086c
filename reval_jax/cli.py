"""The `reval` command.

tyro turns dataclasses into flags with help; every command imports what it needs when it runs, so that `--help` and a
mistyped flag answer at once. Exit codes: 0 done; 2 the input is wrong (one message); 75 preempted after saving, run the
same command again; 1 failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from reval_jax import config as config_lib

PREEMPTED = 75

Settings = Annotated[config_lib.Config, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]
ConfigFile = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]


@dataclasses.dataclass(frozen=True)
class Train:
    """Train by the settings in a YAML file, or go on where the same command stopped.

    Every setting below can be given as --section.field VALUE and then overrides the file.
    """

    settings: Settings
    config: ConfigFile = None  # YAML with any of the settings below
    run_dir: Path | None = None  # where the run lives; default runs/NAME, NAME being the config file's


@dataclasses.dataclass(frozen=True)
class Eval:
    """Measure avg@k of a model or of a run's checkpoint on eval.benchmarks."""

    settings: Settings
    config: ConfigFile = None  # YAML with any of the settings below
    run_dir: Path | None = None  # evaluate this run's last checkpoint; its config is the default
    round: int | None = None  # evaluate the checkpoint of this round instead of the last
    json: Path | None = None  # write the results here too; /dev/stdout allowed


@dataclasses.dataclass(frozen=True)
class Sample:
    """Print responses of a model or of a run's checkpoint to one prompt."""

    settings: Settings
    prompt: str = ""  # the question; rendered by task.template
    samples: int = 1  # responses
    config: ConfigFile = None  # YAML with any of the settings below
    run_dir: Path | None = None  # sample from this run's last checkpoint; its config is the default
    round: int | None = None  # sample from the checkpoint of this round instead of the last
    json: Path | None = None  # write the responses here too; /dev/stdout allowed


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a run's policy as a directory that `transformers` loads."""

    run_dir: Path  # the run
    output: Path  # a directory that is new or empty
    round: int | None = None  # the checkpoint of this round instead of the last
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the written weights


@dataclasses.dataclass(frozen=True)
class Report:
    """Draw a run's metrics into report.html, one file without outside references."""

    run_dir: Path  # the run
    output: Path | None = None  # the file; default RUN_DIR/report.html


@dataclasses.dataclass(frozen=True)
class Plan:
    """Say whether a run fits a TPU slice, by compiling its programs for it; needs libtpu, but no TPU."""

    settings: Settings
    config: ConfigFile = None  # YAML with any of the settings below
    topology: str = ""  # the slice, for example v5e-16, v5p-128 (64 chips; v4 and v5p count TensorCores) or v5e:4x4
    search: bool = False  # find the fastest remat, micro_batch_tokens, decode_slots and, if need be, tensor that fit
    json: Path | None = None  # write the plan here too; /dev/stdout allowed


@dataclasses.dataclass(frozen=True)
class Verify:
    """Explain how a response is graded: reval verify [OPTIONS] PREDICTION GOLD (both come last and may begin with -)."""

    extracted: bool = False  # PREDICTION is an answer, not a response it would have to be found in
    answer_format: Literal["boxed", "first_number"] = "boxed"  # how the answer is found in a response
    json: Path | None = None  # write the verdict here too; /dev/stdout allowed


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Say what this machine has and whether reval_jax computes right on it."""

    json: Path | None = None  # write the findings here too; /dev/stdout allowed


@dataclasses.dataclass(frozen=True)
class Bench:
    """Time the compiled loss: `bench scores` the head alone, `bench update` the whole step."""


@dataclasses.dataclass(frozen=True)
class BenchScores:
    """Time and memory of the fused score head, forward and backward, beside full logits, over a grid of sizes.

    Figures are medians, ours and full logits' taken in turns. docs/performance.md says how to read them.
    """

    tokens: tuple[int, ...] = (1024,)  # scored tokens
    vocabulary: tuple[int, ...] = (49152, 151936)  # columns of the head
    width: tuple[int, ...] = (576, 896)  # rows of the head, one for each vocabulary
    dtype: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")  # of the products' operands
    repeats: int = 5  # timed calls of each side
    memory: float = 8.0  # GiB; full logits that need more are compiled but not run
    json: Path | None = None  # write the results here too; /dev/stdout allowed


@dataclasses.dataclass(frozen=True)
class BenchUpdate:
    """Tokens a second and MFU of the compiled update, at fixed and at skewed lengths, and what replay saves.

    The model has random weights; only its shape matters. Figures are medians of calls taken in turns.
    """

    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"  # directory, .gguf file or hub id whose shape is used
    rows: int = 16  # trajectories of the fixed batch; the skewed one has four times as many
    tokens: int = 128  # tokens of the longest trajectory
    prompt_tokens: int = 16  # of them, the prompt's
    micro_batch_tokens: int = 1024  # tokens a device trains on at once
    dtype: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)  # of the products' operands
    remat: tuple[Literal["none", "dots", "attention", "full"], ...] = ("none", "full")  # what is recomputed
    repeats: int = 3  # timed calls of each side
    json: Path | None = None  # write the results here too; /dev/stdout allowed


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    name, *rest = arguments
    if name == "--version":
        import reval_jax

        print(reval_jax.__version__)
        return 0
    if name not in COMMANDS:
        return _refuse(f"unknown command '{name}'. {_nearest(name)}")
    try:
        return COMMANDS[name](rest)
    except ValueError as error:
        return _refuse(str(error))
    except SystemExit as stop:  # tyro has printed its help, or what is wrong with the flags
        return int(stop.code or 0)
    except FloatingPointError as error:
        print(f"reval: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("reval: interrupted; what was saved stands.", file=sys.stderr)
        return 130


def _train(argv: list[str]) -> int:
    given = _parse(Train, "train", argv)
    config = config_lib.check(_checked(given.settings))
    run_dir = given.run_dir or Path("runs") / (given.config.stem if given.config else "default")

    from reval_jax import console, train

    outcome = train.train(config, run_dir, console=console.Console())
    said = "preempted; the same command goes on" if outcome.is_preempted else "done"
    print(f"{said}: {outcome.rounds} rounds in {run_dir}")
    return PREEMPTED if outcome.is_preempted else 0


def _eval(argv: list[str]) -> int:
    given = _parse(Eval, "eval", argv)
    config = _checked(given.settings)
    if not config.eval.benchmarks:
        raise ValueError("eval.benchmarks is empty. Name at least one .jsonl file: --eval.benchmarks FILE [FILE ...].")

    from reval_jax import assemble, evaluate

    policy = assemble.load_policy(config, given.run_dir, round=given.round)
    benchmarks = evaluate.load(config, policy.tokenizer)
    params, engine = assemble.sampling_copy(policy, config)
    results = []
    for benchmark in benchmarks:
        result = evaluate.run(engine, params, policy.tokenizer, benchmark, config=config, round=policy.round)
        _say(given.json, evaluate.sentence(result))
        results.append(evaluate.as_metrics(result) | {"num_problems": result.num_problems})
    _write_json(given.json, {"model": policy.source, "settings": config_lib.to_tree(config), "results": results})
    return 0


def _sample(argv: list[str]) -> int:
    given = _parse(Sample, "sample", argv)
    config = _checked(given.settings)
    if given.samples < 1:
        raise ValueError(f"--samples {given.samples}: at least one response has to be drawn. Use 1 or more.")
    if not given.prompt:
        raise ValueError("--prompt is empty. Give the question, for example --prompt '2+2='.")

    from reval_jax import assemble

    policy = assemble.load_policy(config, given.run_dir, round=given.round)
    responses = assemble.respond(policy, config, given.prompt, given.samples)
    for index, response in enumerate(responses):
        facts = f"{response['num_tokens']} tokens, log-probability {response['log_prob']:.2f}"
        _say(given.json, f"--- {index + 1} of {given.samples}: {facts}\n{response['text']}")
    _write_json(given.json, {"model": policy.source, "prompt": given.prompt, "responses": responses})
    return 0


def _export(argv: list[str]) -> int:
    given = _parse(Export, "export", argv)
    config = config_lib.load(given.run_dir / "config.yaml")

    from reval_jax import assemble, mesh, weights

    policy = assemble.load_policy(config, given.run_dir, round=given.round)
    weights.export(
        given.output,
        policy.architecture,
        mesh.fetch(policy.params),
        policy.tokenizer,
        eos_token_ids=policy.stop_ids,
        dtype=given.dtype,
    )
    print(f"{policy.source} written to {given.output}")
    return 0


def _report(argv: list[str]) -> int:
    given = _parse(Report, "report", argv)

    from reval_jax import report

    print(report.write(given.run_dir, given.output or given.run_dir / "report.html"))
    return 0


def _plan(argv: list[str]) -> int:
    given = _parse(Plan, "plan", argv)
    config = _checked(given.settings)
    if not given.topology:
        raise ValueError("--topology is missing. Name the slice to plan for, for example --topology v5e-256.")

    # A plan runs nothing: an accelerator of this machine may be another program's.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from reval_jax import plan

    found = plan.plan(
        config, given.topology, is_searching=given.search, say=lambda text: print(text, file=sys.stderr, flush=True)
    )
    _say(given.json, plan.sentences(found))
    _write_json(given.json, plan.as_json(found))
    return 0


def _verify(argv: list[str]) -> int:
    if argv[-1:] in (["-h"], ["--help"]):
        _parse(Verify, "verify", argv[-1:])
    if len(argv) < 2:
        raise ValueError("verify needs PREDICTION and GOLD, for example: reval verify '\\boxed{1/2}' 0.5.")
    *options, prediction, gold = argv
    given = _parse(Verify, "verify", options)

    from reval_jax import verifier

    text = f"\\boxed{{{prediction}}}" if given.extracted else prediction
    answer_format = "boxed" if given.extracted else given.answer_format
    grade = verifier.grade(text, gold, answer_format=answer_format)
    _say(given.json, f"reward {grade.reward:g}, verdict {grade.kind}: {grade.explanation}")
    _write_json(given.json, {"reward": grade.reward, "verdict": grade.kind, **grade._asdict()})
    return 0


def _doctor(argv: list[str]) -> int:
    given = _parse(Doctor, "doctor", argv)

    from reval_jax import doctor

    findings = doctor.examine()
    for finding in findings:
        _say(given.json, f"{'ok  ' if finding.is_fine else 'BAD '} {finding.name}: {finding.found}")
    _write_json(given.json, [finding._asdict() for finding in findings])
    return 0 if all(finding.is_fine for finding in findings) else 1


def _bench(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:<8} {kind.__doc__.splitlines()[0]}" for name, kind in BENCHES.items()]
        print(
            f"usage: reval bench WHAT [OPTIONS]\n\n{Bench.__doc__}\n\n"
            + "\n".join(lines)
            + "\n\n`reval bench WHAT --help` lists options."
        )
        return 0 if argv else 2
    what, *rest = argv
    if what not in BENCHES:
        raise ValueError(f"reval bench has no '{what}'. Use one of {', '.join(BENCHES)}.")
    given = _parse(BENCHES[what], f"bench {what}", rest)
    sizes = [value for name, value in vars(given).items() if name not in ("dtype", "remat", "json", "model")]
    if any(number <= 0 for value in sizes for number in (value if isinstance(value, tuple) else (value,))):
        raise ValueError(f"reval bench {what} was given a size of 0 or less. Use positive numbers.")
    results = _bench_scores(given) if what == "scores" else _bench_update(given)
    _write_json(given.json, results)
    return 0


def _bench_scores(given: BenchScores) -> dict[str, Any]:
    if len(given.vocabulary) != len(given.width):
        raise ValueError(
            f"--vocabulary has {len(given.vocabulary)} sizes and --width {len(given.width)}, but they are taken in pairs. "
            "Give one width for each vocabulary."
        )

    from reval_jax import bench, mesh

    mesh.start()
    return bench.scores.run(
        tokens=given.tokens,
        shapes=list(zip(given.vocabulary, given.width, strict=True)),
        dtypes=given.dtype,
        repeats=given.repeats,
        most_bytes=int(given.memory * 2**30),
        on_case=lambda case: _say(given.json, bench.scores.sentence(case)),
    )


def _bench_update(given: BenchUpdate) -> dict[str, Any]:
    if given.prompt_tokens >= given.tokens:
        raise ValueError(
            f"--prompt_tokens {given.prompt_tokens} leaves no room for a response in --tokens {given.tokens}. Use fewer."
        )

    from reval_jax import bench, mesh, weights

    mesh.start()
    architecture, source = weights.find_architecture(given.model)
    _say(given.json, f"the shape of {source}")
    return bench.update.run(
        architecture,
        bench.update.Shape(given.rows, given.tokens, given.prompt_tokens),
        dtypes=given.dtype,
        remats=given.remat,
        micro_batch_tokens=given.micro_batch_tokens,
        repeats=given.repeats,
        on_case=lambda case: _say(given.json, bench.update.sentence(case)),
    )


BENCHES: dict[str, Any] = {"scores": BenchScores, "update": BenchUpdate}
COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "eval": _eval,
    "sample": _sample,
    "export": _export,
    "report": _report,
    "plan": _plan,
    "verify": _verify,
    "bench": _bench,
    "doctor": _doctor,
}
ARGUMENTS: dict[str, Any] = {
    "train": Train,
    "eval": Eval,
    "sample": Sample,
    "export": Export,
    "report": Report,
    "plan": Plan,
    "verify": Verify,
    "bench": Bench,
    "doctor": Doctor,
}


def _overview() -> str:
    lines = [f"  {name:<8} {kind.__doc__.splitlines()[0]}" for name, kind in ARGUMENTS.items()]
    return (
        "usage: reval COMMAND [OPTIONS]\n\nReVal: off-policy, value-based reinforcement learning of language models, on JAX.\n\n"
        + "\n".join(lines)
        + "\n\n`reval COMMAND --help` lists a command's options with units and defaults."
    )


def _parse(kind: Any, command: str, argv: list[str]) -> Any:
    """The command's arguments; its settings begin from the config file named among them, if one is."""
    default: dict[str, Any] = {}
    if any(field.name == "settings" for field in dataclasses.fields(kind)):
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        finder.add_argument("--config", type=Path)
        finder.add_argument("--run-dir", "--run_dir", type=Path)
        try:
            found, _ = finder.parse_known_args(argv)
        except argparse.ArgumentError as error:
            raise ValueError(f"{error}. Give the option a value.") from error
        default["settings"] = _start_from(found.config, found.run_dir if kind is not Train else None)
    prototype = kind(**default) if default else tyro.MISSING_NONPROP
    return tyro.cli(kind, args=argv, default=prototype, prog=f"reval {command}", use_underscores=True)


def _start_from(config: Path | None, run_dir: Path | None) -> config_lib.Config:
    if config is not None:
        return config_lib.load(config)
    if run_dir is not None:
        return config_lib.load(run_dir / "config.yaml")
    return config_lib.Config()


def _checked(settings: config_lib.Config) -> config_lib.Config:
    """The settings with the overrides' bounds checked too."""
    return config_lib.from_tree(config_lib.to_tree(settings), source="settings")


def _say(json_path: Path | None, text: str) -> None:
    """Prints for a person: to standard error where standard output is kept for JSON."""
    print(text, file=sys.stderr if str(json_path) == "/dev/stdout" else sys.stdout, flush=True)


def _write_json(path: Path | None, content: Any) -> None:
    if path is None:
        return
    text = json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if str(path) == "/dev/stdout":
        sys.stdout.write(text)
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--json {path} cannot be written: {error.strerror}. Choose another file.") from error


def _finite(content: Any) -> Any:
    """The same content with null for every number that JSON has no word for."""
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _nearest(name: str) -> str:
    import difflib

    return f"Did you mean '{difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)[0]}'? See reval --help."


def _refuse(message: str) -> int:
    print(f"reval: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
