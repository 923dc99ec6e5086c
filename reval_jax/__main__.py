"""The process of the `reval` command, also `python -m reval_jax`: its streams, its signals, the command, its end."""

from __future__ import annotations

import sys
import traceback
from typing import NoReturn

from reval_jax import exit_codes, signals, streams, terminal


def main() -> NoReturn:
    """Runs the command of this process's arguments, and ends the process with its exit code."""
    # The help of `train` is a result, whose loss is to be told.
    is_run = sys.argv[1:2] == ["train"] and not {"-h", "--help"} & set(sys.argv)
    streams.secure(is_run=is_run)
    signals.watch.install(is_run=is_run)
    signals.watch.leave(_run())


def _run() -> int:
    try:
        # Only now: a signal that arrives while these modules are imported is handled.
        from reval_jax import cli

        code = cli.main()
    except BaseException as error:
        if not signals.watch.is_interrupted:
            print(terminal.visible(f"{traceback.format_exc()}{_last_line(error)}"), file=sys.stderr)
            return exit_codes.FAILED
        code = exit_codes.INTERRUPTED
        print(signals.INTERRUPTED, file=sys.stderr)
    # A library may have turned the interrupt into an error of its own.
    is_failure = code in (exit_codes.FAILED, exit_codes.WRONG_INPUT)
    return exit_codes.INTERRUPTED if signals.watch.is_interrupted and is_failure else code


def _last_line(error: BaseException) -> str:
    standing = signals.watch.standing()
    return f"reval: failed with {type(error).__name__}, as the lines above say." + (f" {standing}" if standing else "")


if __name__ == "__main__":
    main()
