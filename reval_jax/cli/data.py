"""`reval data`: prepares and inspects data sets of prompts, and collects right responses to them."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reval_jax import config as config_lib
from reval_jax import exit_codes
from reval_jax.cli import arguments, output, parsing


def data(argv: list[str]) -> int:
    """Runs the subcommand that the first argument names."""
    choices = {name: dataclass for name, (dataclass, _) in SUBCOMMANDS.items()}
    name = parsing.subcommand(argv, "data", str(arguments.Data.__doc__), choices)
    if name is None:
        return exit_codes.DONE if argv else exit_codes.WRONG_INPUT
    return SUBCOMMANDS[name][1](argv[1:])


def _prepare(argv: list[str]) -> int:
    args = _parse_prepare(argv)
    if args.output is None:
        raise ValueError("--output is missing. Name the directory to write, for example --output prompts/gsm8k.")
    if not args.input and args.format == "plain":
        raise ValueError("--input is missing. Name at least one file, or a published data set with --format.")

    from reval_jax import console
    from reval_jax import data as data_lib

    inputs = list(args.input) or [data_lib.formats.download(args.format, args.split)]
    tokenizer = _tokenizer(args.model)
    try:
        with console.Console().working("reading, then writing rows") as report:
            prepared = data_lib.prepare(inputs, args.output, _settings(args), tokenizer=tokenizer, on_progress=report)
    except data_lib.BadRowsError as error:
        for row in error.bad_rows:
            output.warn(f"{row.where}: {row.reason}")
        problems = [data_lib.writing.as_json(row) for row in error.bad_rows]
        output.write_json(args.json, {"directory": None, "rows": 0, "problems": problems})
        raise
    left_out = len(prepared.quarantined)
    quarantine = (
        f"; {left_out} left out, named in {prepared.directory / data_lib.writing.QUARANTINE}" if left_out else ""
    )
    output.show(
        args.json, f"{prepared.rows} rows in {prepared.directory}, fingerprint {prepared.fingerprint}{quarantine}"
    )
    problems = [data_lib.writing.as_json(row) for row in prepared.quarantined]
    summary = {"directory": str(prepared.directory), "rows": prepared.rows, "fingerprint": prepared.fingerprint}
    output.write_json(args.json, summary | {"problems": problems})
    return exit_codes.DONE


def _inspect(argv: list[str]) -> int:
    args = parsing.parse(arguments.DataInspect, "data inspect", argv)

    from reval_jax import data as data_lib

    findings = data_lib.inspect(
        args.dataset,
        _settings(args),
        against=args.against,
        tokenizer=_tokenizer(args.model),
        num_examples=args.examples,
    )
    output.show(args.json, data_lib.summary(findings))
    output.write_json(args.json, findings)
    return exit_codes.DONE


def _pool(argv: list[str]) -> int:
    parsing.refuse_repeated(argv, ("--round",))
    args = parsing.parse(arguments.DataPool, "data pool", argv)
    path = args.output or args.run_dir / "pool.npz"
    if path.exists():
        raise ValueError(f"--output {path} exists. Name a new file, or remove that one first.")
    output.check_writable(args.output, option="--output")
    output.check_writable(args.json)

    # Checkpoints are read to host memory: leave this machine's accelerator to others.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from reval_jax import pool

    parsing.recorded(args.run_dir)  # says so if they are the copy's
    collected = pool.collect(args.run_dir, args.round)
    pool.save(collected, path)
    counts = {"responses": collected.trajectories.size, "questions": collected.num_questions}
    output.show(
        args.json,
        f"{counts['responses']} right responses to {counts['questions']} questions in {path}, from the buffers after rounds "
        f"{', '.join(map(str, collected.about['rounds']))}",
    )
    output.write_json(args.json, {"pool": str(path), **counts, "fingerprint": collected.fingerprint, **collected.about})
    return exit_codes.DONE


def _settings(args: Any) -> Any:
    """The arguments that say how to read files."""
    from reval_jax import data as data_lib

    names = {field.name for field in dataclasses.fields(data_lib.PrepareSettings)}
    return data_lib.PrepareSettings(**{name: value for name, value in vars(args).items() if name in names})


def _tokenizer(model: str) -> Any:
    if not model:
        return None
    from reval_jax import weights

    return weights.load_tokenizer(model)


def _parse_prepare(argv: list[str]) -> arguments.DataPrepare:
    """The arguments; those on the command line override those of the YAML file that --config names."""
    configs, _ = parsing.configs_and_run_dirs(argv)
    defaults = _from_yaml(configs[-1]) if configs else None
    return parsing.parse(arguments.DataPrepare, "data prepare", argv, defaults=defaults)


def _from_yaml(path: Path) -> arguments.DataPrepare:
    import pydantic

    tree = config_lib.read_yaml(path)
    known = [field.name for field in dataclasses.fields(arguments.DataPrepare) if field.name != "config"]
    for name in tree:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
            raise ValueError(f"{path}: unknown key '{name}'. Did you mean '{nearest}'?")
    numbers = {field.name for field in dataclasses.fields(arguments.DataPrepare) if type(field.default) in (int, float)}
    for name, value in tree.items():
        if name in numbers and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{path}: {name}={value!r}: a number is needed.")
    try:
        return pydantic.TypeAdapter(arguments.DataPrepare).validate_python(tree)
    except pydantic.ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}={each['input']!r}: {each['msg']}" for each in error.errors()]
        raise ValueError(f"{path}: {'; '.join(problems)}") from error


SUBCOMMANDS: dict[str, tuple[Any, Callable[[list[str]], int]]] = {
    "prepare": (arguments.DataPrepare, _prepare),
    "inspect": (arguments.DataInspect, _inspect),
    "pool": (arguments.DataPool, _pool),
}
