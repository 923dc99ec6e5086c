"""Ends this process when another of the program is lost or has failed, with one message that names it."""

from __future__ import annotations

import atexit
import contextlib
import os
import selectors
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from reval_jax import exit_codes
from reval_jax.peers import lines, meeting

BEAT_SECONDS = 2.0
"""Between two signs of life."""
LOST_SECONDS = 25.0
"""Silence after which a process counts as lost. Gloo and jax give up later, with less to say."""
STOP_SECONDS = 0.5
"""Between the signals by which a scheduler stops several processes."""
GRACE_SECONDS = 3.0
"""How long a process whose peer failed may take to end with a message of its own, as it does where all fail alike."""


class _Watch:
    """Ends this process when another is lost or has failed."""

    def __init__(self, circle: meeting.Circle, is_stopping: Callable[[], bool]) -> None:
        self._circle, self._is_stopping = circle, is_stopping
        self._has_left = threading.Event()  # this process ends by itself: what others do no longer matters
        self.advice: Callable[[], str] = str  # what the user can do
        self.release: Callable[[], None] = lambda: None  # gives back what only this process holds
        threading.Thread(target=self._run, name="peers", daemon=True).start()
        atexit.register(self._at_exit)

    def leave(self, error: BaseException | None) -> None:
        """Says to the others that this process ends: its work is done, or an error ends it.

        Many an error (of gloo a ValueError) is what another's end looks like from here, and the watch ends this process first if
        so.
        """
        if error is not None and not isinstance(error, KeyboardInterrupt):
            time.sleep(GRACE_SECONDS)
        self._has_left.set()
        message: dict[str, Any] = {"kind": "done"}
        if error is not None:
            code = exit_codes.WRONG_INPUT if isinstance(error, ValueError) else exit_codes.FAILED
            if isinstance(error, KeyboardInterrupt):
                code = exit_codes.INTERRUPTED
            reason = f"stopped: {str(error) or type(error).__name__}"
            message = _failure(self._circle.place.index, reason, code, may_be_alike=True)
        self._tell(message)

    def _tell(self, message: Mapping[str, Any], *, but: int | None = None) -> None:
        for index, connection in self._circle.connections.items():
            if index != but:
                connection.send(message)

    def _at_exit(self) -> None:
        """The end of a program that calls no `told`."""
        if not self._has_left.is_set():
            self._has_left.set()
            self._tell({"kind": "done"})

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for index, connection in self._circle.connections.items():
                selector.register(connection.link, selectors.EVENT_READ, index)
            next_beat = 0.0
            while selector.get_map():
                if time.monotonic() >= next_beat:
                    self._tell({"kind": "beat"})
                    next_beat = time.monotonic() + BEAT_SECONDS
                for key, _ in selector.select(BEAT_SECONDS / 4):
                    if not self._hear(key.data):
                        selector.unregister(key.fileobj)
                # After what has arrived was read, so that a pause of this process is not held against the others.
                for key in list(selector.get_map().values()):
                    connection = self._circle.connections[key.data]
                    if not connection.is_done and time.monotonic() - connection.heard > LOST_SECONDS:
                        reason = f"has given no sign of life for {LOST_SECONDS:g} s (stopped, or its host or network is down)"
                        self._end(key.data, reason, exit_codes.FAILED)

    def _hear(self, index: int) -> bool:
        """Reads from a process; whether there may be more."""
        connection = self._circle.connections[index]
        try:
            messages = connection.receive()
        except TimeoutError:
            return True
        except (lines.ClosedError, ValueError):
            if not connection.is_done:
                time.sleep(STOP_SECONDS)
                code = exit_codes.PREEMPTED if self._is_stopping() else exit_codes.FAILED
                self._end(index, "is gone: it was killed, or ended without a word", code)
            return False
        for message in messages:
            if message["kind"] == "done":
                connection.is_done = True
            elif message["kind"] == "failed":
                connection.is_done = True
                if not self._has_left.wait(GRACE_SECONDS if message["may_be_alike"] else 0.0):
                    self._end(message["process"], message["reason"], message["code"])
        return True

    def _end(self, index: int, reason: str, code: int) -> None:
        """Ends this process, and where it is process 0 the others, because of another; unless it ends already."""
        if self._has_left.is_set():
            return
        self._tell(_failure(index, reason, code, may_be_alike=False), but=index)
        place = self._circle.place
        who = f"process {index} of {place.count} (host {self._circle.hosts[index]})"
        # In a thread, because a file system that is out of reach must not delay the end.
        last = threading.Thread(target=self._part, args=(f"reval: {who} {reason.rstrip('.')}.",), daemon=True)
        last.start()
        last.join(GRACE_SECONDS)
        _exit(code)

    def _part(self, message: str) -> None:
        """Prints the message with the advice, and releases what this process holds."""
        advice = ""
        with contextlib.suppress(OSError, ValueError):
            advice = self.advice()
        with contextlib.suppress(OSError, ValueError):
            print(f"{message} {advice}".rstrip(), file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):
            self.release()


def _failure(index: int, reason: str, code: int, *, may_be_alike: bool) -> dict[str, Any]:
    """The message that a process has ended; where all fail alike, each has a message of its own for the user."""
    return {"kind": "failed", "process": index, "reason": reason, "code": code, "may_be_alike": may_be_alike}


def _exit(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


_watch: _Watch | None = None


def watch(circle: meeting.Circle, *, is_stopping: Callable[[], bool] = lambda: False) -> None:
    """Ends this process from now on when another is lost or fails; call `told` around what may fail.

    Args:
      is_stopping: whether this process was asked to stop, as another that is gone may have been.
    """
    global _watch
    _watch = _Watch(circle, is_stopping)


def advise(advice: Callable[[], str], *, release: Callable[[], None] = lambda: None) -> None:
    """Sets what a message about a lost process ends with, and what is called after it."""
    if _watch is not None:
        _watch.advice, _watch.release = advice, release


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Tells the other processes how the block ended: done, or failed and why."""
    try:
        yield
    except BaseException as error:
        if _watch is not None:
            _watch.leave(error)
        raise
    if _watch is not None:
        _watch.leave(None)


def command() -> str:
    """The command that was typed, as far as it is one of `reval`; else only a word for it."""
    is_reval = os.path.basename(sys.argv[0]) in ("reval", "__main__.py")
    return shlex.join(["reval", *sys.argv[1:]]) if is_reval else "this program"
