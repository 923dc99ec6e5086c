"""Signals, and the end of the process: what stops a command, and that it ends in time whatever its main thread does.

Python runs a signal's handler in the main thread, between two of its own instructions: not while XLA compiles or runs a program,
and not while a lock is awaited. So the handler in C also writes each signal to a pipe (`signal.set_wakeup_fd`), and a daemon
thread that reads it ends a process that does not end by itself. Standard library only, so that it is there before jax is.

- SIGTERM and SIGHUP ask `reval train` to stop. Before its rounds begin it ends at once; afterwards the loop stops at the next
  point from which it can resume, and is ended shortly before `run.grace_seconds` have passed.
- SIGINT raises KeyboardInterrupt, in every command. The process is ended when it is still there INTERRUPT_SECONDS later, and
  at once by a second SIGINT, or while a module is imported: a library in C++ that gets an exception then may abort.
- `Watch.leave` ends the process though other threads are still running.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from reval_jax import exit_codes

STOPS = (signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a run to stop: from a scheduler, and from a terminal that closes."""

MARGIN_SECONDS = 2.0  # before the end of `run.grace_seconds`: a busy machine is slow to end a process
INTERRUPT_SECONDS = 5.0  # from the first SIGINT until the process is ended
LEAVE_SECONDS = 5.0  # that other threads get after a failure; tidying up is all that is left to them
FINISH_SECONDS = 60.0  # after success: the other processes of a run may still be at work
PRINT_SECONDS = 1.0  # for the last message, where standard error is blocked

INTERRUPTED = "reval: interrupted. Saved checkpoints are kept."


class Watch:
    """The signals of this process; `watch` is the only one."""

    def __init__(self) -> None:
        self.is_installed = False
        self.is_stopping = False  # SIGTERM or SIGHUP was received
        self.is_interrupted = False  # SIGINT was received
        self._handled: list[signal.Signals] = []
        self._num_interrupts = 0
        self._is_playing = False  # the loop looks at `is_stopping`
        self._is_leaving = False  # the exit code is settled
        self._grace = math.inf
        self._standing: Callable[[], str] = str
        self._deadline, self._code, self._reason = math.inf, exit_codes.FAILED, ""

    def install(self, *, is_run: bool) -> None:
        """Handle signals from now on; once, in the main thread.

        Args:
          is_run: the command trains, so SIGTERM and SIGHUP are handled too.
        """
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        # What is ignored stays so: SIGHUP under nohup, SIGINT in a background job of a shell.
        wanted = (signal.SIGINT, *STOPS) if is_run else (signal.SIGINT,)
        self._handled = [each for each in wanted if signal.getsignal(each) is not signal.SIG_IGN]
        threading.Thread(target=self._serve, name="signals", daemon=True).start()
        self.is_installed = True
        self.rearm()
        # Of the functions that run at exit this is the last: Python then gives signals back their defaults, and one that still
        # comes would end the process by itself, with another exit code than the settled one.
        atexit.register(self._ignore_stops)

    def rearm(self) -> None:
        """Take the signals back from a library: jax.distributed handles SIGTERM itself from its start on."""
        for each in self._handled:
            signal.signal(each, self._on_signal)

    def begin_rounds(self, *, grace_seconds: float, standing: Callable[[], str]) -> None:
        """Leave it to the loop to stop, which looks at `is_stopping` from now on.

        Args:
          grace_seconds: from the signal to the end of the process, at most.
          standing: what is on disk, in one or two sentences; called in another thread, while this one may be stuck.
        """
        self._grace, self._standing = grace_seconds, standing
        self._is_playing = True

    def standing(self) -> str:
        """What the run has on disk, in one or two sentences; empty before its rounds begin."""
        return self._standing()

    def seconds_left(self) -> float:
        """Until a signal's deadline, when this process is ended; infinite without a signal."""
        return self._deadline - time.monotonic()

    def leave(self, code: int) -> NoReturn:
        """End the process with this exit code, even if other threads never end.

        Python would wait for them, for minutes where a library's threads wait for an event that an error prevented.
        """
        self._is_leaving = True
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        is_good = code in (exit_codes.DONE, exit_codes.PREEMPTED)
        self._end_in(FINISH_SECONDS if is_good else LEAVE_SECONDS, code, "")
        os.write(self._writer, b"\0")  # so that the thread looks at its deadline
        sys.exit(code)

    def _ignore_stops(self) -> None:
        for each in set(self._handled) & set(STOPS):
            signal.signal(each, signal.SIG_IGN)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT:
            self.is_interrupted = True
            self._hush()
            if _is_importing(frame):
                self._end(exit_codes.INTERRUPTED, INTERRUPTED)
            if not self._is_leaving:
                raise KeyboardInterrupt
        else:
            self.is_stopping = True

    def _hush(self) -> None:
        """From now on what libraries' threads, event loops and destructors say of their end is no news."""
        logging.disable(logging.CRITICAL)
        threading.excepthook = lambda _: None
        sys.unraisablehook = self._on_unraisable

    def _on_unraisable(self, unraisable: sys.UnraisableHookArgs) -> None:
        if unraisable.exc_type is KeyboardInterrupt:  # raised in a destructor or callback, where Python drops it
            self._end(exit_codes.INTERRUPTED, INTERRUPTED)

    def _serve(self) -> None:
        """The thread: notes signals, and ends the process at the deadline."""
        while True:
            remaining = None if self._deadline == math.inf else max(0.0, self._deadline - time.monotonic())
            ready, _, _ = select.select([self._reader], [], [], remaining)
            if not ready:
                self._end(self._code, self._reason)
            for signum in os.read(self._reader, 1024):
                self._note(signum)

    def _note(self, signum: int) -> None:
        if signum == signal.SIGINT:
            self._num_interrupts += 1
            if self._num_interrupts > 1:
                self._end(
                    exit_codes.INTERRUPTED, "reval: interrupted again, and ended at once. Saved checkpoints are kept."
                )
            reason = f"{INTERRUPTED} It did not end by itself within {INTERRUPT_SECONDS:g} s, and was ended."
            self._end_in(INTERRUPT_SECONDS, exit_codes.INTERRUPTED, reason)
        elif signum in STOPS:
            name = signal.Signals(signum).name
            self.is_stopping = True
            if not self._is_playing:
                reason = f"reval: {name} before the first round: nothing is lost. Run the same command again."
                self._end(exit_codes.PREEMPTED, reason)
            reason = (
                f"reval: {name} came {self._grace - MARGIN_SECONDS:g} s ago (run.grace_seconds={self._grace:g}), and the run "
                "could not stop by itself: it was ended."
            )
            self._end_in(self._grace - MARGIN_SECONDS, exit_codes.PREEMPTED, reason)

    def _end_in(self, seconds: float, code: int, reason: str) -> None:
        """Set the deadline, unless an earlier one is set."""
        deadline = time.monotonic() + seconds
        if deadline < self._deadline:
            self._code, self._reason, self._deadline = code, reason, deadline

    def _end(self, code: int, reason: str) -> NoReturn:
        # A thread of its own: standard error may be blocked, and so may the file system that `standing` looks at.
        with contextlib.suppress(RuntimeError):  # no thread can be started any more
            printer = threading.Thread(target=self._print, args=(code, reason), daemon=True)
            printer.start()
            printer.join(PRINT_SECONDS)
        os._exit(code)

    def _print(self, code: int, reason: str) -> None:
        """Write the last message straight to the descriptor: the main thread may hold the stream's lock."""
        lines = [reason] if reason else []
        if code == exit_codes.PREEMPTED and self._is_playing and reason:
            lines = [f"{reason} {self.standing()} Run the same command again to resume."]
        with contextlib.suppress(OSError):
            if os.isatty(2):
                os.write(2, b"\x1b[?25h\n")  # a progress bar hides the cursor
            os.write(2, "".join(line + "\n" for line in lines).encode())


def _is_importing(frame: FrameType | None) -> bool:
    """Whether this frame is that of an import, or was called by one."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


watch = Watch()
