"""Standard streams that are closed, full or without a reader, and errors that are not the user's input, in real processes."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import tiny_runs

from reval_jax import cli

ROOT = Path(__file__).resolve().parent.parent

PRINTS = """
import contextlib, logging, os, sys, warnings
from reval_jax import console, signals, streams
streams.secure(is_run=True)
signals.watch.install(is_run=True)
opened = open({path!r}, "w")
assert opened.fileno() > 2, "a warning to descriptor 2 would be written into it"
with contextlib.suppress(OSError):
    os.write(2, b"a warning of a library in C")
for _ in range(3):
    console.Console().log("a line for a person" * 1000)
    print("a line", flush=True)
    print("a line", file=sys.stderr)
    warnings.warn("a warning")
    logging.warning("a warning")
opened.write("done")
opened.close()
signals.watch.leave(75)
"""


def in_shell(command: str, program: str) -> subprocess.CompletedProcess[str]:
    """The shell command, in which "$@" is the Python program."""
    return subprocess.run(
        ["bash", "-c", command, "bash", sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
    )


@pytest.mark.parametrize(
    "redirected",
    [
        '"$@" >&-',
        '"$@" 2>&-',
        '"$@" <&- >&- 2>&-',
        '"$@" 2> /dev/full',
        '"$@" > /dev/full 2>&1',
        '"$@" 2>&1 | true; exit ${PIPESTATUS[0]}',
        '"$@" 2> >(true)',
    ],
)
def test_whatever_becomes_of_its_output_a_run_goes_on(tmp_path, redirected):
    path = tmp_path / "opened"
    assert in_shell(redirected, PRINTS.format(path=str(path))).returncode == 75
    assert path.read_text() == "done"


@pytest.mark.slow
def test_a_run_of_the_command_without_streams_ends_like_any_other(tmp_path):
    file, run_dir = tiny_runs.write_files(tmp_path), tmp_path / "run"
    command = f'"$1" -m reval_jax train --config {file} --run-dir {run_dir} --run.rounds 2'
    for redirected in (f"{command} >&- 2>&-", f"{command} --run.rounds 4 2>&1 | head -1; exit ${{PIPESTATUS[0]}}"):
        done = in_shell(redirected, "")
        assert done.returncode == 0, done.stdout + done.stderr
    assert tiny_runs.saved_rounds(run_dir) == [2, 4]


COMMAND = "from reval_jax import __main__; import sys; sys.argv[1:] = ['verify', '3', '3']; __main__.main()"


@pytest.mark.parametrize(
    ("redirected", "code", "message"),
    [
        (
            '"$@" > /dev/full',
            1,
            "reval: no space is left (No space left on device: standard output). Free some, then run the same command again.\n",
        ),
        ('"$@" | true; exit ${PIPESTATUS[0]}', 141, ""),
        ('"$@" >&-', 0, ""),
    ],
)
def test_a_command_whose_result_is_its_output_says_that_it_was_lost(redirected, code, message):
    done = in_shell(redirected, COMMAND)
    assert (done.returncode, done.stderr) == (code, message)


class SaveError(RuntimeError):
    pass


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/a/f"),
            r"no space is left \(No space .*: runs/a/f\)\. Free",
        ),
        (
            OSError(errno.EIO, "Input/output error", "runs/a/f"),
            r"a file cannot be used \(Input/output error: runs/a/f\)",
        ),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), r"a file cannot be used \(Broken pipe\)"),
        (MemoryError(), "this machine's memory is full"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmany lines"),
            r"a device's memory is full \(.*Out of memory\)",
        ),
        (SaveError("the save failed"), "the save failed"),
        (FloatingPointError("not finite"), "not finite"),
    ],
)
def test_an_error_that_is_not_the_users_input_is_one_message_and_exit_code_1(monkeypatch, capsys, error, message):
    def fail(argv):
        raise error

    monkeypatch.setitem(cli.COMMANDS, "train", fail)
    assert cli.main(["train"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.match(rf"reval: .*{message}", captured.err)
    assert captured.err.count("\n") == 1


FAILS = """
import sys
from reval_jax import __main__, cli, signals
def fail(argv):
    signals.watch.begin_rounds(grace_seconds=15, standing=lambda: "In runs/a round 4 is saved.")
    raise KeyError("a fault")
cli.COMMANDS["train"] = fail
sys.argv[1:] = ["train"]
__main__.main()
"""


def test_a_fault_keeps_its_traceback_and_ends_with_what_stands():
    done = subprocess.run([sys.executable, "-c", FAILS], cwd=ROOT, capture_output=True, text=True, timeout=90)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2:] == [
        "KeyError: 'a fault'",
        "reval: failed with KeyError, as the lines above say. In runs/a round 4 is saved.",
    ]
