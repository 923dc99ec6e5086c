"""The live view of a run: in a pseudo-terminal, and the lines it is made of."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import rich.console
from support import screen, tiny_runs

from reval_jax import console, progress

ROOT = Path(__file__).resolve().parent.parent


def line(round, score=0.5, **others):
    return {
        "training/round": round,
        "critic/score/mean": score,
        "training/updates": 2 * round,
        "actor/kl_ref": 0.25,
        "actor/lr": 1e-6,
        "timing_s/generate": 4.0,
        "timing_s/round": 6.0,
        **others,
    }


def view(rounds=650, num_played=3, past=()):
    shown = progress.View(rounds, past, lambda: "update")
    for round in range(1, num_played + 1):
        shown.add(line(round, score=round / 10))
    return shown


def text(shown, width=100, height=24):
    return [each.plain for each in shown.lines(width, height)]


# What it says


def test_the_view_says_score_phase_seconds_policy_and_the_time_left():
    shown = view()
    shown.work("round 4: sampling", 64, 128)
    *curve, seconds, policy, left, now = text(shown)
    assert curve[0].startswith("score   0.30 ┃")
    assert curve[2].startswith("        0.10 ┃")
    assert curve[2].endswith("rounds 1 … 3")
    assert seconds == "seconds generate 4.00 · round 6.00 (round 3)"
    assert policy == "policy  updates 6 · kl_ref 0.250 · learning rate 1e-06"
    assert left == "left    about 1 h 04 min, an estimate: 647 rounds of 6.00 s"
    assert re.fullmatch(r"round 4 of 650: sampling ━{15}─{15} 64/128 0:00 min", now)
    shown.rest()
    assert text(shown)[-1] == "round 4 of 650: update 0:00 min"


def test_the_time_left_is_that_of_the_median_of_this_processs_last_rounds():
    shown = view(rounds=103, num_played=0, past=[line(1, **{"timing_s/round": 1e6})])
    shown.add(line(2, **{"timing_s/round": 90.0}))  # it compiles
    assert "left    101 rounds; the time after two more" in text(shown)
    shown.add(line(3, **{"timing_s/round": 2.0}))
    shown.add(line(4, **{"timing_s/round": 4.0}))
    assert "left    about 6:36 min, an estimate: 99 rounds of 4.00 s" in text(shown)
    for round in range(5, 104):
        shown.add(line(round))
    assert "left    no round" in text(shown)


def test_before_the_first_round_there_is_only_the_phase():
    assert text(view(num_played=0)) == ["round 1 of 650: update 0:00 min"]


def test_a_line_without_a_score_is_no_round_of_the_curve():
    shown = progress.View(5, [{"training/round": 0, "val-core/x/acc/mean@4": 0.5}], lambda: "")
    assert text(shown) == ["round 1 of 5: between two phases 0:00 min"]


@pytest.mark.parametrize("num_played", [0, 1, 5, 300])
def test_the_view_stays_within_any_terminal(num_played):
    shown = view(num_played=num_played)
    for description in ("round 4: sampling", "evaluating " + "数" * 200):
        shown.work(description, 7, 1000)
        for width in (1, 5, 20, 40, 80, 300):
            for height in (0, 1, 2, 5, 24):
                lines = shown.lines(width, height)
                assert 1 <= len(lines) <= max(1, height)
                assert all(each.cell_len <= width for each in lines)
        assert text(shown, 80, 1)[0].startswith(f"round {num_played + 1} of 650: ")  # the last thing to go


# The curve


def dots(rows):
    """The heights of the dots by column, counted from below."""
    bits = [[0x40, 0x04, 0x02, 0x01], [0x80, 0x20, 0x10, 0x08]]
    found = []
    for column in range(len(rows[0])):
        for side in bits:
            cells = [ord(row[column]) - 0x2800 for row in reversed(rows)]
            found.append([4 * i + j for i, cell in enumerate(cells) for j, bit in enumerate(side) if cell & bit])
    return found


def test_the_curve_has_a_dot_at_every_value_and_joins_them():
    rows, low, high = progress.curve([0.0, 0.1, 1.0, 0.5], rows=3)
    assert (low, high) == (0.0, 1.0)
    assert dots(rows) == [[0], [1], list(range(2, 12)), [6, 7, 8, 9, 10]]


def test_a_flat_curve_is_flat_and_small_changes_stay_small():
    rows, low, high = progress.curve([0.5, 0.501, 0.5], rows=3)
    assert high - low == pytest.approx(0.05)
    assert low < 0.5 < high
    assert {len(column) for column in dots(rows)[:3]} == {1}
    assert progress.curve([0.0], rows=3)[1:] == (0.0, 0.05)
    low, high = progress.curve([1.0], rows=3)[1:]
    assert (low, high) == (pytest.approx(0.95), pytest.approx(1.0))


# Where it is printed


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_what_is_printed_stands_above_the_view_whatever_the_terminals_size(monkeypatch):
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 1e6)
    file, shown, seen = Terminal(), view(), screen.Screen(100)
    out = rich.console.Console(file=file, force_terminal=True, width=100, height=24, color_system=None, soft_wrap=True)

    def show():
        seen.write(file.getvalue())
        file.seek(0)
        file.truncate()

    with progress.Live(out, shown):
        for number, width in enumerate((100, 37, 60, 100, 20)):
            show()
            seen.resize(width)
            out.size = (width, 24)
            out.print(f"message {number}")
            print(f"warning {number}", file=sys.stderr)
            show()
            assert seen.lines()[: 2 * number + 2] == [
                f"{kind} {n}" for n in range(number + 1) for kind in ("message", "warning")
            ]
            rows = [each.rstrip() for each in seen.lines()[2 * number + 2 :]]
            assert rows == [each.rstrip() for each in text(shown, width - 1)]
    show()
    assert seen.lines() == [*(f"{kind} {n}" for n in range(5) for kind in ("message", "warning"))]
    assert not isinstance(sys.stderr, rich.console.Console)


def played(file, run_dir, *, until=None, columns=120, rows=30, **environment):
    """Runs `reval train` on a terminal; returns its exit code and all it printed there. `until` text it gets SIGINT."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    kept = {
        name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "reval_jax", "train", "--config", str(file), "--run-dir", str(run_dir)],
        env={**kept, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1", "TERM": "xterm-256color", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=child,
        cwd=run_dir.parent,
    )
    os.close(child)
    printed = b""
    while True:
        try:
            piece = os.read(parent, 65536)
        except OSError:  # the other end is closed
            break
        printed += piece
        if until is not None and until.encode() in printed:
            process.send_signal(signal.SIGINT)
            until = None
    os.close(parent)
    return process.wait(60), printed.decode()


def final(printed, width=120):
    """What stays on the terminal, without the parts that the clock decides."""
    seen = screen.Screen(width)
    seen.write(printed)
    return [re.sub(r"\d+\.\d+s", "", each).rstrip() for each in seen.lines()]


@pytest.fixture(scope="module")
def run_file(tmp_path_factory):
    """A run whose lines on a file, which is no terminal, are in plain.txt beside it."""
    file = tiny_runs.write_files(tmp_path_factory.mktemp("run"))
    process = tiny_runs.start(file, file.parent / "plain")
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert "\x1b" not in error
    (file.parent / "plain.txt").write_text(error)
    return file


@pytest.mark.slow
def test_a_run_on_a_terminal_shows_the_view_and_leaves_the_same_lines_as_elsewhere(run_file, tmp_path):
    code, printed = played(run_file, tmp_path / "run")
    assert code == 0
    for expected in (
        "round 1 of 4: ",
        "round 4 of 4: ",
        "score   ",
        "an estimate: ",
        "learning rate 0.01",
    ):
        assert expected in re.sub(r"\x1b\[[\d;]*m", "", printed)
    assert "\x1b[32m" in printed  # green
    expected = [
        re.sub(r"\d+\.\d+s", "", each).rstrip() for each in (run_file.parent / "plain.txt").read_text().split("\n")
    ]
    assert sum(each.startswith("round ") for each in expected) == 4
    assert final(printed) == expected[:-1]  # which is empty, behind the last line's end


@pytest.mark.slow
def test_no_color_is_respected_and_a_dumb_terminal_gets_plain_lines(run_file, tmp_path):
    _, printed = played(run_file, tmp_path / "no_color", NO_COLOR="1")
    assert "score   " in printed
    codes = {code for found in re.findall(r"\x1b\[([\d;]*)m", printed) for code in found.split(";")}
    assert not {code for code in codes if code and int(code) >= 30}
    _, printed = played(run_file, tmp_path / "dumb", TERM="dumb")
    assert "\x1b" not in printed
    assert "round    4/4" in printed


@pytest.mark.slow
def test_ctrl_c_leaves_the_message_below_the_last_line_and_no_view(run_file, tmp_path):
    started = time.monotonic()
    code, printed = played(run_file, tmp_path / "run", until="round    2/4")
    assert code == 130, f"{time.monotonic() - started:.0f} s: {printed}"
    *lines, last = final(printed)
    assert last == "reval: interrupted. Saved checkpoints are kept."
    assert not any("┃" in each or " of 4: " in each for each in lines)


def test_a_console_that_is_no_terminal_has_no_view(capsys):
    shown = console.Console()
    with shown.live(4, [], phase=lambda: ""), shown.working("round 1: sampling") as report:
        report(1, 2)
        shown.log("a line")
    assert capsys.readouterr().err == "a line\n"
