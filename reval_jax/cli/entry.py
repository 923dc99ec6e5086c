"""Entry point of `reval`: picks the command, and turns its exceptions into one message and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from reval_jax import exit_codes
from reval_jax.cli import arguments, bench, commands, data, evaluation, inspection


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return exit_codes.OUTPUT_CLOSED


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return exit_codes.DONE if words else exit_codes.WRONG_INPUT
    name, *rest = words
    if name == "--version":
        import reval_jax

        print(reval_jax.__version__)
        return exit_codes.DONE
    if name not in COMMANDS:
        return _refuse(f"unknown command '{name}'. {_nearest(name)}")
    try:
        return COMMANDS[name](rest)
    except ValueError as error:
        return _refuse(str(error))
    except SystemExit as stop:  # tyro has printed help or an error message
        return int(stop.code or 0)
    except FloatingPointError as error:
        print(f"reval: {error}", file=sys.stderr)
        return exit_codes.FAILED
    except RuntimeError as error:
        from reval_jax import checkpoint, owner, verifier

        if not isinstance(error, verifier.UnreliableError | owner.LostError | checkpoint.SaveError):
            raise
        print(f"reval: {error}", file=sys.stderr)
        return exit_codes.FAILED
    except KeyboardInterrupt:
        print("reval: interrupted. Saved checkpoints are kept.", file=sys.stderr)
        return exit_codes.INTERRUPTED


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": commands.train,
    "eval": evaluation.eval,
    "sample": commands.sample,
    "inspect": inspection.inspect,
    "export": commands.export,
    "report": commands.report,
    "plan": commands.plan,
    "verify": commands.verify,
    "data": data.data,
    "bench": bench.bench,
    "doctor": commands.doctor,
}
ARGUMENTS: dict[str, Any] = {
    "train": arguments.Train,
    "eval": arguments.Eval,
    "sample": arguments.Sample,
    "inspect": arguments.Inspect,
    "export": arguments.Export,
    "report": arguments.Report,
    "plan": arguments.Plan,
    "verify": arguments.Verify,
    "data": arguments.Data,
    "bench": arguments.Bench,
    "doctor": arguments.Doctor,
}


def _overview() -> str:
    lines = [f"  {name:<8} {dataclass.__doc__.splitlines()[0]}" for name, dataclass in ARGUMENTS.items()]
    return (
        "usage: reval COMMAND [OPTIONS]\n\nReVal: off-policy, value-based reinforcement learning of language models, on JAX.\n\n"
        + "\n".join(lines)
        + "\n\n`reval COMMAND --help` lists the options of a command with units and defaults."
    )


def _nearest(name: str) -> str:
    import difflib

    return f"Did you mean '{difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)[0]}'? See reval --help."


def _refuse(message: str) -> int:
    print(f"reval: {message}", file=sys.stderr)
    return exit_codes.WRONG_INPUT


if __name__ == "__main__":
    raise SystemExit(main())
