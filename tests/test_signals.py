"""Signals in real processes: seen from the first instant on, never swallowed, and answered in time whatever the process does."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support import tiny_runs

from reval_jax import signals

ROOT = Path(__file__).resolve().parent.parent

# A minutes-long call in C that runs no Python, so no handler, as a compilation by XLA: only a thread can see the signal.
IN_C = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
SWALLOWS = """
import time
while True:
    try:
        time.sleep(100)
    except KeyboardInterrupt:
        pass
"""
WATCHED = """
import sys
from reval_jax import signals
signals.INTERRUPT_SECONDS = {interrupt_seconds}
signals.watch.install(is_run=True)
"""
PLAYING = "signals.watch.begin_rounds(grace_seconds=3, standing=lambda: 'Round 4 is saved.')\n"
# A moment later, when the main thread is stuck.
READY = "import threading; threading.Timer(0.5, print, ('ready',), {'flush': True}).start()\n"


def start(program: str, *, ignored: signal.Signals | None = None, **settings) -> subprocess.Popen[str]:
    """Starts a Python program that ignores no signal but `ignored`, and waits until it has printed `ready`."""
    numbers = (signal.SIGINT, signal.SIGHUP)
    # A child inherits what is ignored, as a shell's background jobs ignore SIGINT; handlers become defaults.
    before = [signal.signal(number, signal.SIG_IGN if number == ignored else lambda *_: None) for number in numbers]
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            **{"stderr": subprocess.PIPE, **settings},
        )
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    assert process.stdout.readline() == "ready\n"
    return process


def watched(*parts: str, interrupt_seconds: float = 60) -> str:
    return WATCHED.format(interrupt_seconds=interrupt_seconds) + "".join(parts)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny_runs.write_files(tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("module", ["pydantic", "jax"])
def test_a_run_stopped_while_it_imports_its_modules_exits_with_75(file, tmp_path, number, module):
    program = f"""
import os, sys, time
from reval_jax import __main__

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {int(number)})
            time.sleep(100)

sys.meta_path.insert(0, Finder())
sys.argv[1:] = ["train", "--config", {str(file)!r}, "--run-dir", {str(tmp_path / "run")!r}]
__main__.main()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=90)
    assert done.returncode == 75, done.stderr
    assert done.stderr == f"reval: {number.name} before the first round: nothing is lost. Run the same command again.\n"
    assert not (tmp_path / "run").exists()


def test_sigint_in_an_import_ends_the_process_at_once_since_an_exception_there_may_abort_it(tmp_path):
    (tmp_path / "interrupted.py").write_text(f"import os\nos.kill(os.getpid(), {int(signal.SIGINT)})\n")
    program = watched(f"""
sys.path.insert(0, {str(tmp_path)!r})
try:
    import interrupted
except BaseException as error:
    print("raised", repr(error))
print("goes on")
""")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == f"{signals.INTERRUPTED}\n"


def test_sigint_in_a_destructor_is_not_lost():
    program = watched(f"""
import os
class Slow:
    def __del__(self):
        os.kill(os.getpid(), {int(signal.SIGINT)})
        for _ in range(10**6):
            pass
slow = Slow()
del slow
print("goes on")
""")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{signals.INTERRUPTED}\n")


def test_after_sigint_threads_and_event_loops_have_no_say():
    program = watched(f"""
import logging, os, threading
interrupted = threading.Event()
def fails():
    interrupted.wait()
    raise RuntimeError("Event loop is closed")
thread = threading.Thread(target=fails)
thread.start()
try:
    os.kill(os.getpid(), {int(signal.SIGINT)})
    threading.Event().wait()
except KeyboardInterrupt:
    interrupted.set()
    thread.join()
    logging.getLogger("asyncio").error("Task exception was never retrieved")
signals.watch.leave(130)
""")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize("number", signals.STOPS)
def test_a_stop_that_comes_while_python_itself_ends_does_not_change_the_exit_code(number):
    # What modules hold is deleted after Python has given signals back their defaults.
    program = f"""
import os
class Last:
    def __del__(self, kill=os.kill, pid=os.getpid()):
        kill(pid, {int(number)})
last = Last()
{watched()}
signals.watch.leave(75)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (75, "")


@pytest.mark.parametrize("stuck", [IN_C, SWALLOWS], ids=["in_c", "swallowed"])
def test_an_interrupt_that_the_main_thread_does_not_heed_ends_the_process(stuck):
    process = start(watched(READY, stuck, interrupt_seconds=0.5))
    process.send_signal(signal.SIGINT)
    assert tiny_runs.finish(process) == (
        130,
        "reval: interrupted. Saved checkpoints are kept. It did not end by itself within 0.5 s, and was ended.\n",
    )


@pytest.mark.parametrize("stuck", [IN_C, SWALLOWS], ids=["in_c", "swallowed"])
def test_a_second_interrupt_ends_the_process_at_once(stuck):
    process = start(watched(READY, stuck))
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGINT)
    assert tiny_runs.finish(process) == (
        130,
        "reval: interrupted again, and ended at once. Saved checkpoints are kept.\n",
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_cannot_stop_by_itself_is_ended_within_its_grace_and_says_what_stands(number):
    process = start(watched(PLAYING, READY, IN_C))
    process.send_signal(number)
    code, text = tiny_runs.finish(process)
    assert (code, text) == (
        75,
        f"reval: {number.name} came 1 s ago (run.grace_seconds=3), and the run could not stop by itself: it was ended. "
        "Round 4 is saved. Run the same command again to resume.\n",
    )


def test_a_blocked_standard_error_does_not_keep_the_process_from_its_end():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(1 << 16))
    os.set_blocking(writer, True)
    process = start(watched(PLAYING, READY, IN_C), stderr=writer)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    process.stdout.close()
    os.close(reader)
    os.close(writer)


def test_a_hangup_that_nohup_ignores_stays_ignored():
    process = start(watched(PLAYING, READY, IN_C), ignored=signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(3)
    process.kill()
    process.communicate()


@pytest.mark.parametrize("code", [0, 1])
def test_the_process_ends_though_another_thread_never_does(code):
    """Orbax's threads held one that had printed its error for 305 s."""
    program = watched(
        "signals.LEAVE_SECONDS = signals.FINISH_SECONDS = 0.5\n",
        "import threading; threading.Thread(target=threading.Event().wait).start()\n",
        f"print('last words'); signals.watch.leave({code})",
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=90)
    assert (done.returncode, done.stdout, done.stderr) == (code, "last words\n", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "settings", "saved", "num_lines"),
    [
        # The round's start is saved: it is left after the update, and played again.
        ("HUP:update:3", (), [2], 3),
        ("TERM:verify:3", (), [2], 3),
        ("TERM:eval:2", ("--checkpoint.every", "1"), [1], 2),
        ("TERM:eval:0", (), [], 0),
        # It is not, and the updates have overwritten it: the round is finished, and saved.
        ("TERM:update:2", (), [2], 3),
        ("TERM:eval:2", (), [2], 3),
    ],
)
def test_a_run_stopped_in_any_phase_leaves_at_once_or_saves_and_resumes_the_same(
    file, straight, tmp_path, end, settings, saved, num_lines
):
    run_dir = tmp_path / "run"
    code, text = tiny_runs.finish(tiny_runs.start(file, run_dir, *settings, end=end))
    assert code == 75, text
    assert "Traceback" not in text
    assert tiny_runs.saved_rounds(run_dir) == saved
    assert len(tiny_runs.metrics_lines(run_dir)) == num_lines
    code, text = tiny_runs.finish(tiny_runs.start(file, run_dir, *settings))
    assert code == 0, text
    tiny_runs.assert_same_run(run_dir, straight)


@pytest.fixture(scope="module")
def straight(file, tmp_path_factory):
    """A run that no signal reached."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    code, text = tiny_runs.finish(tiny_runs.start(file, run_dir))
    assert code == 0, text
    return run_dir


@pytest.mark.slow
def test_an_interrupted_run_ends_with_one_message_and_keeps_its_checkpoint(file, tmp_path):
    code, text = tiny_runs.finish(tiny_runs.start(file, tmp_path / "run", end="INT:update:3"))
    assert code == 130
    assert text.count("reval: interrupted. Saved checkpoints are kept.\n") == 1
    assert "Traceback" not in text
    assert tiny_runs.saved_rounds(tmp_path / "run") == [2]


def test_jax_does_not_take_sigterm_away_when_processes_are_joined():
    """Its own handler is installed when it starts, and would write a line and let the run go on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    joined = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}
    joins = "from reval_jax import distributed; distributed.start()\n"
    process = start(watched(joins, READY, IN_C), env=os.environ | joined)
    process.send_signal(signal.SIGTERM)
    code, text = tiny_runs.finish(process)
    assert code == 75
    assert "reval: SIGTERM before the first round" in text


def test_a_run_stopped_while_slow_rewards_are_computed_leaves_at_once_with_its_workers(file, tmp_path):
    (tmp_path / "slow.py").write_text("import time\ndef reward(text, answer):\n    time.sleep(100)\n    return 0.0\n")
    options = (
        "--verifier.function",
        "slow:reward",
        "--verifier.function_path",
        str(tmp_path),
        "--verifier.wall_limit",
        "300",
    )
    options += ("--eval.every", "0", "--run.grace_seconds", "300")
    code, text = tiny_runs.finish(tiny_runs.start(file, tmp_path / "run", *options, end="TERM:grading:1"))
    assert code == 75, text
    assert tiny_runs.journalled(tiny_runs.journals(tmp_path / "run"))
    assert [line for line in processes() if str(tmp_path) in line] == []


def processes() -> list[str]:
    """The command line of every process."""
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(entry.read_text(errors="replace"))
        except OSError:  # it has ended
            continue
    return lines
