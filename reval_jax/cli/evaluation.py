"""`reval eval`: evaluates several policies on the same problems and compares each with the first."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from reval_jax import config as config_lib
from reval_jax import exit_codes, metrics, run_directory, types
from reval_jax.cli import arguments, output, parsing

if TYPE_CHECKING:
    from reval_jax import console as console_lib
    from reval_jax import evaluate

    Measured = list[tuple[evaluate.Benchmark, evaluate.Result]]

LISTS = ("--run_dir", "--round", "--eval.benchmarks")
"""Options that take several values."""

PROMPTING = ("task.template", "task.instruction", "task.answer_format")
"""Settings that determine the prompt, and how the answer is extracted from the response."""


class Policy(NamedTuple):
    """A policy to evaluate."""

    run_dir: Path | None  # None for published weights
    round: int | None  # of the checkpoint; 0 is the run's model before training
    model_path: str


def eval(argv: list[str]) -> int:
    """Evaluates policies on eval.benchmarks, and compares each with the first."""
    parsing.refuse_repeated(argv, LISTS)
    args = parsing.parse(arguments.Eval, "eval", argv)
    config = parsing.checked(args.settings)
    if not config.eval.benchmarks:
        raise ValueError(
            "eval.benchmarks is empty. Name at least one .jsonl file, directory of `reval data prepare` or procedural:NAME: "
            "--eval.benchmarks BENCHMARK [BENCHMARK ...]."
        )
    output.check_writable(args.json)
    trained_with = [parsing.recorded(run_dir) for run_dir in args.run_dir]
    to_evaluate = _policies(config, args.run_dir, args.round, [each.model.path for each in trained_with])
    for note in _notes(config, args.run_dir, trained_with):
        output.show(args.json, f"note: {note}")

    from reval_jax import console, evaluate, verifier

    verifier.check(config.verifier)
    terminal = console.Console()
    policies: list[types.Json] = []
    measured: list[types.Json] = []
    compared: list[types.Json] = []
    first: Measured = []
    date = ""  # in the prompts: the first policy's, so that all answer the same ones
    for index, each in enumerate(to_evaluate):
        baselines = [benchmark for benchmark, _ in first]
        described, results, date = _measure(config, each, baselines, terminal, date=date)
        first = first or results
        policies.append(described)
        if len(to_evaluate) > 1:
            output.show(args.json, f"policy {index}: {described['source']}")
        for (benchmark, result), (_, baseline) in zip(results, first, strict=True):
            output.show(args.json, evaluate.summary(result))
            measured.append(evaluate.record.result_record(benchmark, result, policy=index))
            if index:
                difference = evaluate.differences(result, baseline)
                output.show(args.json, f"    minus policy 0: {evaluate.comparison_summary(result, difference)}")
                compared.append(evaluate.record.comparison_record(result, difference, policy=index, baseline=0))
    command = shlex.join(["reval", "eval", *argv])
    record = evaluate.record.evaluation_record(config, command, policies, measured, compared, template_date=date)
    output.write_json(args.json, record)
    return exit_codes.DONE


def _policies(
    config: config_lib.Config, run_dirs: tuple[Path, ...], rounds: tuple[int, ...], recorded_paths: list[str]
) -> list[Policy]:
    """Every round of every run, each checkpoint checked to exist; a model that several runs began with appears once.

    Args:
      recorded_paths: `model.path` in each run's own config. Where it equals the first run's, `config.model.path` replaces it, so
        that an override holds for all of these runs.

    Raises:
      ValueError: a round without a run, or one that was not saved.
    """
    if not run_dirs:
        if rounds:
            raise ValueError(
                f"--round {rounds[0]} names a checkpoint, but no run. Add --run-dir, or leave out --round."
            )
        return [Policy(None, None, config.model.path)]

    from reval_jax import checkpoint

    policies: dict[Any, Policy] = {}
    for run_dir, path in zip(run_dirs, recorded_paths, strict=True):
        model_path = config.model.path if path == recorded_paths[0] else path
        for round in rounds or (None,):
            if round == 0:
                policies.setdefault(model_path, Policy(run_dir, 0, model_path))
                continue
            store = checkpoint.Store.open(run_dir / "checkpoints")
            policy = Policy(run_dir, store.choose(round), model_path)
            store.close()
            policies[policy] = policy
    return list(policies.values())


def _notes(config: config_lib.Config, run_dirs: tuple[Path, ...], trained_with: list[config_lib.Config]) -> list[str]:
    """Notes on runs whose prompts or grading in training differ from those of this evaluation, or whose metrics are damaged."""
    notes = []
    for run_dir, own in zip(run_dirs, trained_with, strict=True):
        changes = [each for each in config_lib.changed(own, config) if each.split(":")[0] in PROMPTING]
        if changes:
            notes.append(f"{run_dir} was trained with other settings ({'; '.join(changes)})")
        record = run_directory.RunDirectory(run_dir).metrics
        try:
            if record.exists():
                metrics.verify(record)
        except ValueError as error:
            notes.append(str(error))
    return notes


def _measure(
    config: config_lib.Config,
    evaluated: Policy,
    baselines: list[evaluate.Benchmark],
    terminal: console_lib.Console,
    *,
    date: str,
) -> tuple[types.Json, Measured, str]:
    """A description of the policy, its result on each benchmark, and the date in the prompts.

    Args:
      date: that a chat template prints; empty takes the policy's.

    Raises:
      ValueError: the model or a benchmark can't be used, or its problems differ from the baselines'.
    """
    from reval_jax import evaluate, inference, verifier

    config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=evaluated.model_path))
    policy = inference.load_policy(config, evaluated.run_dir, round=evaluated.round, is_checked=True)
    date = date or policy.template_date
    benchmarks = evaluate.load(config, policy.tokenizer, date=date)
    if baselines:
        evaluate.check_same_problems(benchmarks, baselines)
    prompt_tokens = (tokens for each in benchmarks for tokens in each.prompts.tokens)
    sampling_policy = inference.ready(policy, config, prompt_tokens)
    results = []
    with verifier.Grader(config, log=terminal.log) as grader:
        for benchmark in benchmarks:
            with terminal.working(f"evaluating {benchmark.name}") as report:
                result = evaluate.run(
                    sampling_policy,
                    benchmark,
                    config=config,
                    round=policy.round,
                    grader=grader,
                    on_progress=report,
                )
            results.append((benchmark, result))
    described = evaluate.record.policy_record(
        policy.params,
        source=policy.source,
        model_path=evaluated.model_path,
        run_dir=None if evaluated.run_dir is None else str(evaluated.run_dir),
        round=policy.round,
        stop_ids=policy.stop_ids,
    )
    return described, results, date
