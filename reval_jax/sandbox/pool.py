"""A pool of killable worker processes that call one function on untrusted texts; `worker` runs inside them.

A worker starts clean: a new interpreter, not a fork of this one (a fork would lose its threads), an environment of a few
variables, no open files, an empty directory and its own session.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from reval_jax.sandbox import frames, search_path, worker

START_SECONDS = 300.0  # time to import the function; on a busy machine importing SymPy is slow
RESCUE_SECONDS = 10.0  # after the longest time that a worker itself can take, with two attempts

_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from reval_jax.sandbox import worker; worker.main()"
)


class TaskOutcome(NamedTuple):
    """The outcome of one task."""

    kind: str  # done, limit, timeout or crash
    value: bool | float | str | None  # the function's result if the kind is done
    message: str  # the reason of another kind, for a person
    seconds: float  # from dispatch to reply; varies from run to run


class StoppedError(Exception):
    """The caller asked to stop; the outcomes so far are lost."""


class RefusedError(Exception):
    """A worker cannot load the function or confine a child; the message gives the reason."""


class Pool:
    """Workers that call one function; a context manager. The first task starts the first process."""

    def __init__(self, settings: worker.WorkerSettings, *, num_workers: int, path: Sequence[Path] = ()) -> None:
        """A pool of at most `num_workers` workers.

        Args:
          path: directories to search for the function, before those of this process and behind the standard library.
        """
        self._settings, self._num_workers = settings, num_workers
        root = Path(__file__).resolve().parents[2]
        self._path = search_path.with_directories([str(Path(entry).resolve()) for entry in sys.path], (*path, root))
        self._workers: list[_WorkerProcess] = []
        self.peak_bytes = 0  # peak resident memory of the largest process that has run a task
        self.num_replaced = 0  # workers that died and were replaced

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def capacity(self) -> int:
        """Number of live workers."""
        return sum(each.is_alive() for each in self._workers)

    def start(self, num_workers: int = 1, *, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Starts workers up to this number, and waits until they are ready.

        Raises:
          RefusedError: the function can't be loaded.
          StoppedError: as `run`.
        """
        try:
            while len(self._workers) < min(num_workers, self._num_workers):
                self._workers.append(_WorkerProcess(self._settings, self._path))
            for each in self._workers:
                each.wait_until_ready(should_stop)
        except BaseException:
            self.close()
            raise

    def run(
        self,
        tasks: Sequence[Sequence[str]],
        *,
        should_stop: Callable[[], bool] = lambda: False,
        on_outcome: Callable[[int, TaskOutcome], None] = lambda index, outcome: None,
    ) -> list[TaskOutcome]:
        """The outcome of each task, in order. A task is the sequence of the function's arguments.

        Args:
          on_outcome: called with the index and the outcome of each task when it is known.
          should_stop: asked about once a second whether to give up.

        Raises:
          RefusedError: the function can't be loaded.
          StoppedError: `should_stop` returned True; the workers have been ended.
        """
        if not tasks:
            return []
        self.start(len(tasks), should_stop=should_stop)
        try:
            return self._run(tasks, should_stop, on_outcome)
        except BaseException:
            # Late replies to these tasks would be taken for replies to the next ones.
            self.close()
            raise

    def _run(
        self,
        tasks: Sequence[Sequence[str]],
        should_stop: Callable[[], bool],
        on_outcome: Callable[[int, TaskOutcome], None],
    ) -> list[TaskOutcome]:
        outcomes: list[TaskOutcome | None] = [None] * len(tasks)
        has_died = [False] * len(tasks)  # whether a worker has died at the task: one may die by chance, two do not
        waiting = collections.deque(range(len(tasks)))

        def dispatch(each: _WorkerProcess) -> None:
            if waiting:
                index = waiting.popleft()
                each.send(list(tasks[index]))
                selector.register(each.replies, selectors.EVENT_READ, (index, each))

        with selectors.DefaultSelector() as selector:
            for each in self._workers:
                dispatch(each)
            while selector.get_map():
                _give_up_if(should_stop)
                ready = {key.fileobj for key, _ in selector.select(timeout=1.0)}
                for key in list(selector.get_map().values()):
                    index, each = key.data
                    outcome = each.receive() if key.fileobj in ready else each.kill_if_overdue()
                    if outcome is None:
                        continue
                    selector.unregister(key.fileobj)
                    self.peak_bytes = max(self.peak_bytes, each.peak_bytes)
                    if outcome.kind == "crash" and not each.is_alive() and not has_died[index]:
                        has_died[index] = True
                        waiting.appendleft(index)
                    else:
                        on_outcome(index, outcome)
                    outcomes[index] = outcome
                    dispatch(each if each.is_alive() else self._replace(each, should_stop))
        return [outcome for outcome in outcomes if outcome is not None]

    def _replace(self, dead: _WorkerProcess, should_stop: Callable[[], bool]) -> _WorkerProcess:
        dead.close()
        replacement = _WorkerProcess(self._settings, self._path)
        self._workers[self._workers.index(dead)] = replacement
        self.num_replaced += 1
        replacement.wait_until_ready(should_stop)
        return replacement

    def close(self) -> None:
        """Ends all workers; the next task starts new ones."""
        while self._workers:
            self._workers.pop().close()


class _WorkerProcess:
    """The trainer's side of one worker process."""

    def __init__(self, settings: worker.WorkerSettings, path: list[str]) -> None:
        self._settings, self._is_ready, self._reply = settings, False, b""
        self.peak_bytes = 0
        self._directory = tempfile.TemporaryDirectory(prefix="reval_worker_", ignore_cleanup_errors=True)
        # Outside the directory that the worker starts in, which has to be empty.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed in `close`
        self._process = subprocess.Popen(  # noqa: S603  # this interpreter, on _PROGRAM
            # -s and -P exclude the user's site packages and the start directory. -I would also ignore the hash seed.
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

    def wait_until_ready(self, should_stop: Callable[[], bool]) -> None:
        """Returns when the worker is ready for tasks.

        Raises:
          RefusedError: it can't load the function, or does not start.
          StoppedError: `should_stop` returned True.
        """
        if self._is_ready:
            return
        deadline = time.monotonic() + START_SECONDS
        reply, reason = (
            None,
            f"the worker process did not start within {START_SECONDS:.0f} s: importing the function takes too long",
        )
        with selectors.DefaultSelector() as selector:
            selector.register(self.replies, selectors.EVENT_READ)
            while reply is None and time.monotonic() < deadline:
                _give_up_if(should_stop)
                if not selector.select(timeout=1.0):
                    continue
                piece = os.read(self.replies, frames.MAX_REPLY)
                if not piece:
                    self._kill()
                    reason = f"the worker process ended {_how(self._process.returncode)} while it imported the function"
                    break
                self._reply += piece
                reply = frames.decode(self._reply)
        self._reply = b""
        if reply is None:
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines()
            raise RefusedError(f"{reason} ({lines[-1]})" if lines else reason)
        if "refused" in reply:
            raise RefusedError(reply["refused"])
        self._is_ready = True

    def send(self, arguments: list[str]) -> None:
        """Sends a task."""
        self._reply, self._sent = b"", time.monotonic()
        self._write(arguments)

    def _write(self, content: Any) -> None:
        # `receive` notices that a worker has died, because its pipe closes.
        with contextlib.suppress(BrokenPipeError):
            frames.write(self._tasks, frames.encode(content))

    def receive(self) -> TaskOutcome | None:
        """The outcome of the task; None while the reply is incomplete."""
        piece = os.read(self.replies, frames.MAX_REPLY)
        if not piece:
            self._kill()
            return TaskOutcome("crash", None, "the worker process has died", self._seconds())
        self._reply += piece
        reply = frames.decode(self._reply)
        if reply is None:
            return None
        self.peak_bytes = reply["peak"] * 1024
        return TaskOutcome(reply["kind"], reply.get("value"), reply.get("message", ""), self._seconds())

    def kill_if_overdue(self) -> TaskOutcome | None:
        """Kills a worker that should have replied long ago, and returns the outcome `timeout`; None for any other worker."""
        longest = 2 * (1 + worker.MAX_RENEWALS) * self._settings.wall_limit
        if self._seconds() < longest + RESCUE_SECONDS:
            return None
        self._kill()
        return TaskOutcome("timeout", None, "the worker process did not answer", self._seconds())

    def _seconds(self) -> float:
        return time.monotonic() - self._sent

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def _kill(self) -> None:
        # The worker has its own session, so this kills its children too.
        if self._process.returncode is None:  # a process that has been waited for may have passed its id to another
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Ends the process and frees its files."""
        if self.is_alive():
            self._kill()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(BrokenPipeError):
                stream.close()  # type: ignore[union-attr]
        self._directory.cleanup()


def _how(returncode: int) -> str:
    """How a process ended, for messages."""
    return f"by signal {-returncode}" if returncode < 0 else f"with exit status {returncode}"


def _give_up_if(should_stop: Callable[[], bool]) -> None:
    if should_stop():
        raise StoppedError


def _environment() -> dict[str, str]:
    """The few environment variables that a Python process needs for reproducible results."""
    fixed = {
        "LC_ALL": "C.UTF-8",
        "PYTHONHASHSEED": "0",  # the order of a set of symbols can change the result of a simplification
        "OPENBLAS_NUM_THREADS": "1",  # forking a process with threads is unsafe
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    # Some builds of Python need it to load their own library.
    return fixed | {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
