"""Entry point of `reval`: picks the command, and turns its exceptions into one message and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from reval_jax import exit_codes, peers, signals, streams, terminal
from reval_jax.cli import arguments, bench, commands, data, evaluation, inspection, output


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code. `reval_jax.__main__` is the process around it."""
    words = list(sys.argv[1:] if argv is None else argv)
    terminal.accept_every_character()
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except OSError as error:
        is_output = error.filename == streams.OUTPUT
        if is_output:  # Python flushes it once more when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if is_output and isinstance(error, BrokenPipeError):
            return exit_codes.OUTPUT_CLOSED
        return _fail(_io_message(error))


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
        with peers.told():
            return COMMANDS[name](rest)
    except ValueError as error:
        return _refuse(str(error))
    except SystemExit as stop:  # tyro has printed help or an error message
        return int(stop.code or 0)
    except (FloatingPointError, MemoryError, RuntimeError) as error:
        message = _message_of(error)
        if not message:
            raise
        # A failed save says itself what stands.
        standing = "" if type(error).__name__ == "SaveError" else signals.watch.standing()
        return _fail(f"{message} {standing}".rstrip())
    except KeyboardInterrupt:
        print(signals.INTERRUPTED, file=sys.stderr)
        return exit_codes.INTERRUPTED


# Errors whose text is a message for the user; by name, because their modules would load jax.
_EXPLAINED = {"FloatingPointError", "UnreliableError", "SaveError", "LostError"}

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
    output.warn(f"reval: {message}")
    return exit_codes.WRONG_INPUT


def _fail(message: str) -> int:
    output.warn(f"reval: {message}")
    return exit_codes.FAILED


def _message_of(error: Exception) -> str:
    """What to tell the user of an error that is neither wrong input nor a fault in the program; empty for a fault."""
    if isinstance(error, MemoryError):
        return f"this machine's memory is full ({error or 'an allocation failed'}). Use a machine with more, or smaller settings."
    if isinstance(error, RecursionError):
        return f"something is nested too deeply to be read ({error})."
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & _EXPLAINED:
        return str(error)
    if "RESOURCE_EXHAUSTED" in str(error):
        return (
            f"a device's memory is full ({str(error).splitlines()[0][:300]}). Lower update.micro_batch_tokens or "
            "rollout.decode_slots, or set model.remat to full."
        )
    return ""


def _io_message(error: OSError) -> str:
    """What to tell the user of a file that cannot be read or written."""
    what = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space is left ({what}). Free some, then run the same command again."
    return f"a file cannot be used ({what})."
