"""The `reval` command.

tyro turns dataclasses into flags with help; every command imports what it needs when it runs, so that `--help` and a
mistyped flag answer at once. Exit codes: 0 done; 2 the input is wrong (one message); 75 preempted after saving, run the
same command again; 1 failed; 130 interrupted; 141 nobody reads the output any more (`reval ... | head`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from reval_jax.cli import arguments, bench, commands, data, evaluation


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return 141


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0 if words else 2
    name, *rest = words
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
    except RuntimeError as error:
        from reval_jax import verifier

        if not isinstance(error, verifier.UnreliableError):
            raise
        print(f"reval: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("reval: interrupted; what was saved stands.", file=sys.stderr)
        return 130


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": commands.train,
    "eval": evaluation.eval,
    "sample": commands.sample,
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
    "export": arguments.Export,
    "report": arguments.Report,
    "plan": arguments.Plan,
    "verify": arguments.Verify,
    "data": arguments.Data,
    "bench": arguments.Bench,
    "doctor": arguments.Doctor,
}


def _overview() -> str:
    lines = [f"  {name:<8} {kind.__doc__.splitlines()[0]}" for name, kind in ARGUMENTS.items()]
    return (
        "usage: reval COMMAND [OPTIONS]\n\nReVal: off-policy, value-based reinforcement learning of language models, on JAX.\n\n"
        + "\n".join(lines)
        + "\n\n`reval COMMAND --help` lists a command's options with units and defaults."
    )


def _nearest(name: str) -> str:
    import difflib

    return f"Did you mean '{difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)[0]}'? See reval --help."


def _refuse(message: str) -> int:
    print(f"reval: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
