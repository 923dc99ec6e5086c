"""`reval inspect`: scores the tokens of rollouts with any policy, and measures how the scores tell right from wrong."""

from __future__ import annotations

import shlex
from pathlib import Path

from reval_jax import config as config_lib
from reval_jax import exit_codes, run_directory
from reval_jax.cli import arguments, output, parsing

LISTS = ("--round", "--rollouts")
"""Options that take several values."""


def inspect(argv: list[str]) -> int:
    """Scores rollouts, prints the AUCs, and writes the files that were asked for."""
    parsing.refuse_repeated(argv, LISTS)
    args = parsing.parse(arguments.Inspect, "inspect", argv)
    config = parsing.checked(args.settings)
    if args.report_tokens < 0:
        raise ValueError(f"--report_tokens {args.report_tokens} is below 0. Use 0 for none.")
    paths = _rollouts_files(args)
    if args.run_dir is None and args.checkpoint_round is not None:
        raise ValueError(
            f"--checkpoint_round {args.checkpoint_round} names a checkpoint, but no run. Add --run-dir, or leave it out."
        )
    json_file = args.json or (run_directory.RunDirectory(args.run_dir).inspection if args.run_dir else None)
    output.check_writable(json_file)
    output.check_writable(args.output, option="--output")

    from reval_jax import console, inference
    from reval_jax.tools import inspection

    rollouts = inspection.read(paths)
    for_report = _for_report(args, config)
    if (reason := inspection.why_no_auc(rollouts)) and args.output is None and for_report is None:
        raise ValueError(
            f"{reason}. Name more rounds or files of rollouts, or add --output FILE.jsonl for the tokens' rewards alone."
        )
    policy = inference.load_policy(config, args.run_dir, round=(args.checkpoint_round or 0) if args.run_dir else None)
    tokens = inspection.tokenized(rollouts, config, policy.tokenizer, vocab_size=policy.architecture.vocab_size)
    with console.Console().working(f"scoring with {policy.source}") as report:
        scores = inspection.scored(policy, tokens, config, on_progress=report)
    inspected = inspection.inspect(rollouts, tokens, scores)
    output.show(args.json, f"model: {policy.source}\nrollouts: {', '.join(map(str, paths))}")
    if inspected.num_retokenized:
        output.show(
            args.json,
            f"note: {inspected.num_retokenized} of {len(rollouts)} responses have become another number of tokens than was "
            "sampled",
        )
    if reason:
        output.show(args.json, f"note: {reason}")
    output.show(args.json, inspection.summary(inspected))
    output.write_json(
        json_file,
        inspection.as_json(
            inspected,
            policy.tokenizer,
            command=shlex.join(["reval", "inspect", *argv]),
            model=policy.source,
            paths=paths,
            temperature=config.rollout.temperature,
        ),
    )
    if args.output:
        output.write_json_lines(args.output, inspection.response_records(inspected, policy.tokenizer))
    if for_report:
        del policy  # two more follow, one after the other
        _score_for_report(for_report, config, args.report_tokens, args.round)
    return exit_codes.DONE


def _for_report(args: arguments.Inspect, config: config_lib.Config) -> run_directory.RunDirectory | None:
    """The run whose report gets colours; None where it was not asked for, or cannot be of the run's own policies."""
    if args.run_dir is None or args.rollouts or args.json or not args.report_tokens:
        return None
    directory = run_directory.RunDirectory(args.run_dir)
    is_own = run_directory.recorded(directory)[0].model.path == config.model.path
    return directory if is_own and run_directory.saved_rounds(directory.checkpoints) else None


def _score_for_report(
    directory: run_directory.RunDirectory, config: config_lib.Config, max_tokens: int, rounds: tuple[int, ...]
) -> None:
    """Writes the numbers by which `reval report` colours tokens: of the last checkpoint and of the initial model."""
    from reval_jax import console, inference
    from reval_jax.tools import inspection
    from reval_jax.tools.report import token_file

    files = directory.rollout_files()
    chosen = {round: file for round, file in files.items() if not rounds or round in rounds}
    sample = inspection.sample_for_report(chosen, max_tokens=max_tokens)
    measured, sources = [], []
    for round in (0, None):
        policy = inference.load_policy(config, directory.path, round=round)
        tokens = inspection.tokenized(
            sample.rollouts, config, policy.tokenizer, vocab_size=policy.architecture.vocab_size
        )
        with console.Console().working(f"scoring for the report with {policy.source}") as report:
            measured.append(inspection.scored(policy, tokens, config, on_progress=report))
        sources.append(policy.source)
        tokenizer, last = policy.tokenizer, policy.round
        del policy
    reference, trained = measured
    about = {"policy": sources[1], "round": last, "reference": sources[0], "temperature": config.rollout.temperature}
    rows = inspection.token_rows(sample, tokens, trained, reference, tokenizer)
    token_file.write(directory.token_scores, about, rows)
    num_rounds = len({round for round, _ in sample.keys})
    output.show(
        None,
        f"for the report: {len(sample.keys)} responses of {num_rounds} rounds, {int(tokens.response_length.sum())} tokens, by "
        f"{sources[1]} and {sources[0]}",
    )


def _rollouts_files(args: arguments.Inspect) -> list[Path]:
    """The files named by --rollouts, or those of the run's rounds.

    Raises:
      ValueError: neither is named, or the run has no such file.
    """
    if args.rollouts:
        if args.round:
            raise ValueError(
                f"--rollouts names files, and --round {args.round[0]} a round of a run. Use one of them; "
                "--checkpoint_round chooses the policy."
            )
        return list(args.rollouts)
    if args.run_dir is None:
        raise ValueError(
            "nothing to inspect. Name a run with --run-dir RUN, or files with --rollouts FILE.jsonl [...]."
        )
    directory = run_directory.RunDirectory(args.run_dir)
    existing = directory.rollout_files()
    if not existing:
        raise ValueError(
            f"--run-dir {args.run_dir} has no rollouts ({directory.rollouts}). Name a run with at least one finished round."
        )
    missing = [round for round in args.round if round not in existing]
    if missing:
        raise ValueError(
            f"--round {missing[0]}: {args.run_dir} has no rollouts of that round, only of {', '.join(map(str, existing))}."
        )
    return [existing[round] for round in args.round or [max(existing)]]
