"""`reval eval`: which policies are asked, the same problems for all, and the record of what they answered."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from reval_jax import config as config_lib
from reval_jax.cli import arguments, output, parsing

if TYPE_CHECKING:
    from reval_jax import console as console_lib
    from reval_jax import evaluate

    Measured = list[tuple[evaluate.Benchmark, evaluate.Result]]

LISTS = ("--run_dir", "--round", "--eval.benchmarks")
"""Flags that take several values."""

PROMPTING = ("task.template", "task.instruction", "task.answer_format")
"""Settings that decide what a policy is asked, and how its answer is found."""


class Asked(NamedTuple):
    """A policy to evaluate."""

    run_dir: Path | None  # None: published weights
    round: int | None  # of the checkpoint; 0 is the run's model before training
    model_path: str


def eval(argv: list[str]) -> int:
    """Measures policies on eval.benchmarks, and each against the first."""
    _check_lists(argv)
    given = parsing.parse(arguments.Eval, "eval", argv)
    config = parsing.checked(given.settings)
    if not config.eval.benchmarks:
        raise ValueError(
            "eval.benchmarks is empty. Name at least one .jsonl file, directory of `reval data prepare` or procedural:NAME: "
            "--eval.benchmarks BENCHMARK [BENCHMARK ...]."
        )
    output.check_writable(given.json)
    trained_with = [config_lib.load(run_dir / "config.yaml") for run_dir in given.run_dir]
    asked = _asked(config, given.run_dir, given.round, [each.model.path for each in trained_with])
    for note in _notes(config, given.run_dir, trained_with):
        output.say(given.json, f"note: {note}")

    from reval_jax import console, evaluate, verifier

    verifier.check(config.verifier)
    shown = console.Console()
    policies: list[dict[str, Any]] = []
    measured: list[dict[str, Any]] = []
    compared: list[dict[str, Any]] = []
    first: Measured = []
    for index, each in enumerate(asked):
        described, found = _measure(config, each, [benchmark for benchmark, _ in first], shown)
        first = first or found
        policies.append(described)
        if len(asked) > 1:
            output.say(given.json, f"policy {index}: {described['source']}")
        for (benchmark, result), (_, baseline) in zip(found, first, strict=True):
            output.say(given.json, evaluate.sentence(result))
            measured.append(evaluate.record.of_result(benchmark, result, policy=index))
            if index:
                difference = evaluate.differences(result, baseline)
                output.say(given.json, f"    minus policy 0: {evaluate.comparison(result, difference)}")
                compared.append(evaluate.record.of_comparison(result, difference, policy=index, baseline=0))
    command = shlex.join(["reval", "eval", *argv])
    output.write_json(given.json, evaluate.record.of_evaluation(config, command, policies, measured, compared))
    return 0


def _check_lists(argv: list[str]) -> None:
    """Refuses a list flag that stands twice: the later would silently replace the earlier."""
    flags = ["--" + word.removeprefix("--").split("=")[0].replace("-", "_") for word in argv if word.startswith("--")]
    for flag in LISTS:
        if flags.count(flag) > 1:
            raise ValueError(
                f"{flag} stands {flags.count(flag)} times, and only the last would count. Name all its values after one."
            )


def _asked(
    config: config_lib.Config, run_dirs: tuple[Path, ...], rounds: tuple[int, ...], recorded: list[str]
) -> list[Asked]:
    """Every round of every run, each checkpoint known to be there; a model that several runs began with comes once.

    Args:
      recorded: `model.path` of each run's own settings. Where it is the first run's, the settings' own takes its place, so that
        an override holds for all of these runs.

    Raises:
      ValueError: a round without a run, or one that was not saved.
    """
    if not run_dirs:
        if rounds:
            raise ValueError(
                f"--round {rounds[0]} names a checkpoint, but no run to take it from. Add --run-dir, or leave it out."
            )
        return [Asked(None, None, config.model.path)]

    from reval_jax import checkpoint

    asked: dict[Any, Asked] = {}
    for run_dir, path in zip(run_dirs, recorded, strict=True):
        model_path = config.model.path if path == recorded[0] else path
        for round in rounds or (None,):
            if round == 0:
                asked.setdefault(model_path, Asked(run_dir, 0, model_path))
                continue
            store = checkpoint.Store.open(run_dir / "checkpoints")
            one = Asked(run_dir, store.choose(round), model_path)
            store.close()
            asked[one] = one
    return list(asked.values())


def _notes(config: config_lib.Config, run_dirs: tuple[Path, ...], trained_with: list[config_lib.Config]) -> list[str]:
    """Runs that were trained on other prompts, or graded otherwise, than all are evaluated with."""
    notes = []
    for run_dir, own in zip(run_dirs, trained_with, strict=True):
        changes = [each for each in config_lib.changed(own, config) if each.split(":")[0] in PROMPTING]
        if changes:
            notes.append(f"{run_dir} was trained with other settings than it is evaluated with ({'; '.join(changes)})")
    return notes


def _measure(
    config: config_lib.Config, asked: Asked, baselines: list[evaluate.Benchmark], shown: console_lib.Console
) -> tuple[dict[str, Any], Measured]:
    """What the policy is, and its result on each benchmark.

    Raises:
      ValueError: the model or a benchmark can't be used, or its problems would not be the baselines'.
    """
    from reval_jax import evaluate, inference, verifier

    config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=asked.model_path))
    policy = inference.load_policy(config, asked.run_dir, round=asked.round)
    benchmarks = evaluate.load(config, policy.tokenizer)
    if baselines:
        evaluate.check_same_problems(benchmarks, baselines)
    prompt_tokens = (tokens for each in benchmarks for tokens in each.prompts.tokens)
    sampling_policy = inference.ready(policy, config, prompt_tokens)
    found = []
    with verifier.Grader(config, say=shown.say) as grader:
        for benchmark in benchmarks:
            with shown.working(f"evaluating {benchmark.name}") as report:
                result = evaluate.run(
                    sampling_policy,
                    benchmark,
                    config=config,
                    round=policy.round,
                    grader=grader,
                    on_progress=report,
                )
            found.append((benchmark, result))
    described = evaluate.record.of_policy(
        policy.params,
        source=policy.source,
        model_path=asked.model_path,
        run_dir=None if asked.run_dir is None else str(asked.run_dir),
        round=policy.round,
        stop_ids=policy.stop_ids,
    )
    return described, found
