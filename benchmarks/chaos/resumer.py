"""Resumes the run directories named on standard input, one a line, with the programs that the first of them compiled.

    python -m benchmarks.chaos.resumer CONFIG [OPTIONS of `reval train`]

Answers each with a line of JSON: exit code, output, and what `reval doctor --run-dir` said before the resume. Every run has the
same settings, so that the functions that make compiled programs can return those of the first run.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

WATCH_S = 0.5  # of a damaged owner's file, instead of a minute


def main() -> None:
    """Answers until standard input ends."""
    from reval_jax import cli, owner, setup

    keep_programs(setup)
    acquire = owner.acquire
    owner.acquire = functools.partial(acquire, watch_s=WATCH_S)  # type: ignore[assignment]
    answers = sys.stdout
    config, *options = sys.argv[1:]
    for line in sys.stdin:
        run_dir = line.rstrip("\n")
        doctor = called(cli.main, ["doctor", "--run-dir", run_dir])[1]
        code, output = called(cli.main, ["train", "--config", config, "--run-dir", run_dir, *options])
        answers.write(json.dumps({"code": code, "output": output, "doctor": doctor}) + "\n")
        answers.flush()


def keep_programs(setup: Any) -> None:
    """Makes the functions that build the parts of a run return what they returned first."""
    setup.update.make_step = once(setup.update.make_step)
    setup.reference.make_scorer = once(setup.reference.make_scorer)
    choose = setup.sampler.engines.choose
    setup.sampler.engines.choose = lambda name: once_by_name(name, choose)


@functools.cache
def once_by_name(name: str, choose: Callable[..., Any]) -> Callable[..., Any]:
    """The engine's function, whose sampler is made once."""
    return once(choose(name))


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which returns its first result whatever it is called with."""
    results: list[Any] = []

    @functools.wraps(function)
    def kept(*arguments: Any, **options: Any) -> Any:
        if not results:
            results.append(function(*arguments, **options))
        return results[0]

    return kept


def called(command: Callable[[list[str]], int], words: list[str]) -> tuple[int, str]:
    """(exit code, output) of a command that runs in this process."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            code = command(words)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            output.write(traceback.format_exc())
            code = 1
    return code, output.getvalue()


if __name__ == "__main__":
    main()
