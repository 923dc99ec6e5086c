"""A pool of killable worker processes, each calling one function on untrusted texts; see `worker` for what runs in them.

Started with a clean slate: another interpreter, not a fork of this one (whose threads a fork would lose), an environment
of a few words, no open files, an empty directory, a session of its own.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from reval_jax.sandbox import frames, worker

START_SECONDS = 300.0  # a worker has to import its function; on a busy machine sympy takes a while
RESCUE_SECONDS = 10.0  # beyond all the wall limits that the worker itself keeps, in two attempts

_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from reval_jax.sandbox import worker; worker.main()"
)


class Outcome(NamedTuple):
    """What became of one task."""

    kind: str  # done, limit, timeout or crash
    value: bool | float | str | None  # the function's result where it is done
    message: str  # why it is not done, for a person
    seconds: float  # from dispatch to reply; varies from run to run


class RefusedError(Exception):
    """A worker could not load the function; says why."""


class Pool:
    """Workers that call one function; a context manager. No process is started before there is a task."""

    def __init__(self, settings: worker.Settings, *, num_workers: int, path: Sequence[Path] = ()) -> None:
        """A pool of at most `num_workers` workers.

        Args:
          path: directories the function is looked for in, before those of this process.
        """
        self._settings, self._num_workers = settings, num_workers
        root = Path(__file__).resolve().parents[2]
        self._path = [str(entry.resolve()) for entry in (*path, root, *map(Path, sys.path))]
        self._workers: list[_Worker] = []
        self.peak_bytes = 0  # resident memory of the largest process a task has run in so far
        self.num_replaced = 0  # workers that had to be started again

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def capacity(self) -> int:
        """Workers that are alive."""
        return sum(each.is_alive() for each in self._workers)

    def start(self, num_workers: int = 1) -> None:
        """Starts workers up to this number, and waits until they can take tasks.

        Raises:
          RefusedError: the function can't be loaded.
        """
        try:
            while len(self._workers) < min(num_workers, self._num_workers):
                self._workers.append(_Worker(self._settings, self._path))
            for each in self._workers:
                each.wait_until_ready()
        except BaseException:
            self.close()
            raise

    def run(self, tasks: Sequence[Sequence[str]]) -> list[Outcome]:
        """The outcome of each task, a tuple of the function's arguments, in the order of the tasks.

        Raises:
          RefusedError: the function can't be loaded.
        """
        if not tasks:
            return []
        self.start(len(tasks))
        try:
            return self._run(tasks)
        except BaseException:
            # Replies to what was dispatched would be taken for replies to the next tasks.
            self.close()
            raise

    def _run(self, tasks: Sequence[Sequence[str]]) -> list[Outcome]:
        outcomes: list[Outcome | None] = [None] * len(tasks)
        has_died = [False] * len(tasks)  # a worker at this task: one may die of what happens on the machine, not two
        waiting = collections.deque(range(len(tasks)))

        def dispatch(each: _Worker) -> None:
            if waiting:
                index = waiting.popleft()
                each.send(list(tasks[index]))
                selector.register(each.replies, selectors.EVENT_READ, (index, each))

        with selectors.DefaultSelector() as selector:
            for each in self._workers:
                dispatch(each)
            while selector.get_map():
                ready = {key.fileobj for key, _ in selector.select(timeout=1.0)}
                for key in list(selector.get_map().values()):
                    index, each = key.data
                    outcome = each.receive() if key.fileobj in ready else each.overdue()
                    if outcome is None:
                        continue
                    selector.unregister(key.fileobj)
                    self.peak_bytes = max(self.peak_bytes, each.peak_bytes)
                    if outcome.kind == "crash" and not each.is_alive() and not has_died[index]:
                        has_died[index] = True
                        waiting.appendleft(index)
                    outcomes[index] = outcome
                    dispatch(each if each.is_alive() else self._replace(each))
        return [outcome for outcome in outcomes if outcome is not None]

    def _replace(self, dead: _Worker) -> _Worker:
        dead.close()
        fresh = _Worker(self._settings, self._path)
        self._workers[self._workers.index(dead)] = fresh
        self.num_replaced += 1
        fresh.wait_until_ready()
        return fresh

    def close(self) -> None:
        """Ends every worker; the next task starts new ones."""
        while self._workers:
            self._workers.pop().close()


class _Worker:
    """This side of one worker process."""

    def __init__(self, settings: worker.Settings, path: list[str]) -> None:
        self._settings, self._is_ready, self._answer = settings, False, b""
        self.peak_bytes = 0
        self._directory = tempfile.TemporaryDirectory(prefix="reval_worker_", ignore_cleanup_errors=True)
        # The file is outside of the directory that the worker starts in, which is empty.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed in `close`
        self._process = subprocess.Popen(  # noqa: S603  # this interpreter, on a program above
            # -s and -P: neither a user's own packages nor the directory it starts in. Not -I, which would forbid the seed.
            [sys.executable, "-s", "-P", "-c", _PROGRAM, json.dumps(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=self._directory.name,
            env=_environment(),
            start_new_session=True,
        )
        assert self._process.stdin is not None  # noqa: S101
        assert self._process.stdout is not None  # noqa: S101
        self._tasks, self.replies = self._process.stdin.fileno(), self._process.stdout.fileno()
        self._write(settings._asdict())

    def wait_until_ready(self) -> None:
        """Returns when the worker can take tasks.

        Raises:
          RefusedError: it can't load the function, or does not start.
        """
        if self._is_ready:
            return
        deadline = time.monotonic() + START_SECONDS
        reply = None
        with selectors.DefaultSelector() as selector:
            selector.register(self.replies, selectors.EVENT_READ)
            while reply is None and selector.select(timeout=max(0.0, deadline - time.monotonic())):
                piece = os.read(self.replies, frames.MAX_REPLY)
                if not piece:
                    break
                self._answer += piece
                reply = frames.decode(self._answer)
        self._answer = b""
        if reply is None:
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines()
            raise RefusedError(lines[-1] if lines else f"the worker process did not start within {START_SECONDS:.0f} s")
        if "refused" in reply:
            raise RefusedError(reply["refused"])
        self._is_ready = True

    def send(self, arguments: list[str]) -> None:
        """Hands a task over."""
        self._answer, self._sent = b"", time.monotonic()
        self._write(arguments)

    def _write(self, content: Any) -> None:
        # A worker that has died is noticed by its hanging up, in `receive`.
        with contextlib.suppress(BrokenPipeError):
            frames.write(self._tasks, frames.encode(content))

    def receive(self) -> Outcome | None:
        """The outcome of the task, None where the reply is not all there yet."""
        piece = os.read(self.replies, frames.MAX_REPLY)
        if not piece:
            self._kill()
            return Outcome("crash", None, "the worker process has died", self._seconds())
        self._answer += piece
        reply = frames.decode(self._answer)
        if reply is None:
            return None
        self.peak_bytes = reply["peak"] * 1024
        return Outcome(reply["kind"], reply.get("value"), reply.get("message", ""), self._seconds())

    def overdue(self) -> Outcome | None:
        """The outcome `timeout`, the worker killed, if it should have replied long ago."""
        longest = 2 * (1 + worker.MAX_RENEWALS) * self._settings.wall_limit
        if self._seconds() < longest + RESCUE_SECONDS:
            return None
        self._kill()
        return Outcome("timeout", None, "the worker process did not answer", self._seconds())

    def _seconds(self) -> float:
        return time.monotonic() - self._sent

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def _kill(self) -> None:
        # The session is the worker's own: whatever it has started goes with it.
        if self._process.returncode is None:  # once it has been waited for, its number may be another's
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Ends the process and frees what it held."""
        if self.is_alive():
            self._kill()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(BrokenPipeError):
                stream.close()  # type: ignore[union-attr]
        self._directory.cleanup()


def _environment() -> dict[str, str]:
    """The few variables a Python process needs to compute the same thing every time."""
    fixed = {
        "LC_ALL": "C.UTF-8",
        "PYTHONHASHSEED": "0",  # the order of a set of symbols can change how far a simplification gets
        "OPENBLAS_NUM_THREADS": "1",  # a thread could not be forked, and none is wanted
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    # Without it some builds of Python do not find their own library.
    return fixed | {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
