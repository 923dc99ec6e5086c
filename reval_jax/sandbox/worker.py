"""A worker process: calls one function on texts that a model wrote, in a child that can be killed at any moment.

The worker itself never sees an answer's meaning: it imports the function, warms it up, and forks a child that is fenced
in (`confinement`) and does the calls. So a child is replaced in milliseconds, whatever happened to it, and each begins as
the same process. It has no thread, so that forking it is safe. `pool` starts workers and talks to them.

Limits are kept by the kernel, not by Python, which cannot interrupt the product of two large integers: a child's own
interval timer on CPU time kills it, and its address space is bounded. Both count what the child did, not how long it had
to wait, so a loaded machine gives the same verdicts.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import math
import numbers
import os
import resource
import signal
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from reval_jax.sandbox import confinement, frames

CPU_SIGNALS = (signal.SIGPROF, signal.SIGXCPU)
GROWTH_SHARE = 16  # a child that has kept more than this part of its memory limit is replaced
MAX_RENEWALS = 9  # of the wall limit
MIN_FREE = 32 << 20  # bytes that a task must have
MAX_WORD = 50  # characters of a result that is a word
_MEMORY_REPLY = frames.encode({"kind": "limit", "message": "the memory limit was reached", "is_last": True})


class Settings(NamedTuple):
    """What a worker is told first; the units are config.Verifier's."""

    target: str  # module:function
    may_compile: bool
    cpu_limit: float  # seconds
    wall_limit: float  # seconds
    memory_limit: int  # bytes
    tasks_per_child: int
    warm_up: list[list[str]]  # arguments to call the function with before any child exists; ours, never a model's


class _Child(NamedTuple):
    pid: int
    writer: int  # descriptors of this side
    reader: int


def main() -> None:
    """Serves the process that started this one, until it hangs up."""
    # The trainer ends this process by hanging up. What asks the trainer to stop may ask its whole group.
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    for signum in CPU_SIGNALS:  # the default is to die; being ignored would be inherited
        signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    requests, replies = os.dup(0), os.dup(1)
    # A function that prints must not write into the protocol; errors go to a file of the pool's.
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    first = frames.read(requests)
    if first is not None:
        with contextlib.suppress(ConnectionAbortedError, BrokenPipeError):
            _serve(Settings(**first), requests, replies)
    # A trainer that was killed has not done it. Only the empty directory that it made for this process can go.
    with contextlib.suppress(OSError):
        os.rmdir(os.getcwd())


def _serve(settings: Settings, requests: int, replies: int) -> None:
    """Loads the function, says whether that went well, and answers tasks until the trainer hangs up."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    try:
        function = find(settings.target)
        # What these import and cache, no child has to.
        for arguments in settings.warm_up:
            function(*arguments)
    except Exception as error:
        frames.write(replies, frames.encode({"refused": _describe(error)}))
        return
    # What exists by now is shared with every child: left alone, its pages are not copied.
    gc.collect()
    gc.freeze()
    trouble = _trouble(settings)
    frames.write(replies, frames.encode({"refused": trouble} if trouble else {"ready": True}))
    _Worker(function, settings, requests, replies).serve()


def find(target: str) -> Callable[..., Any]:
    """The function that `module:function` names.

    Raises:
      Exception: whatever importing the module raises; AttributeError or TypeError where it has no such function.
    """
    module, _, name = target.partition(":")
    function: Any = importlib.import_module(module)
    for part in name.split("."):
        function = getattr(function, part)
    if not callable(function):
        raise TypeError(f"{target} is a {type(function).__name__}, not a function")
    return function


def _trouble(settings: Settings) -> str | None:
    """Why a child can't be fenced in, or has no memory left where it is; None where all is well."""
    pid = os.fork()
    if pid == 0:
        code = 0
        try:
            confinement.confine(memory_bytes=settings.memory_limit, may_compile=settings.may_compile)
            bytearray(MIN_FREE)
        except MemoryError:
            code = 1
        except BaseException:
            code = 2
        finally:
            os._exit(code)
    code = os.WEXITSTATUS(os.waitpid(pid, 0)[1])
    if code == 1:
        return f"verifier.memory_limit is too small: {_address_space() >> 20} MiB are taken before the first answer"
    return "a process cannot be fenced in here: this kernel refuses a limit or the system call filter" if code else None


class _Worker:
    """The process that forks; `serve` is its life."""

    def __init__(self, function: Callable[..., Any], settings: Settings, requests: int, replies: int) -> None:
        self._function, self._settings = function, settings
        self._requests, self._replies = requests, replies
        self._child: _Child | None = None
        self._num_tasks = 0  # that the child has done
        self._peak = 0  # KiB, the largest child so far

    def serve(self) -> None:
        while (arguments := frames.read(self._requests)) is not None:
            frames.write(self._replies, frames.encode(self._answer(frames.encode(arguments))))
        if self._child:
            self._bury()

    def _answer(self, message: bytes) -> dict[str, Any]:
        """The reply to one task, whatever becomes of the child."""
        reply, is_doubtful = self._try(message)
        if is_doubtful:
            reply, _ = self._try(message)
        return reply | {"peak": self._peak}

    def _try(self, message: bytes) -> tuple[dict[str, Any], bool]:
        """The reply, and whether it may be owed to something else than the task.

        What a child had kept from earlier tasks must not decide: only a fresh one may fail for want of memory. A child
        that dies may have been chosen by a system that was short of memory.
        """
        is_fresh = self._num_tasks == 0
        child = self._child = self._child or self._fork()
        self._num_tasks += 1
        try:
            reply = frames.exchange(
                child.writer,
                child.reader,
                message,
                wall_limit=self._settings.wall_limit,
                may_go_on=_patience(child.pid),
                owner=self._requests,
            )
        except TimeoutError:
            self._bury()
            return {"kind": "timeout", "message": "the wall clock ran out"}, False
        except ConnectionAbortedError:
            self._bury()
            raise
        except ValueError:
            self._bury()
            return {"kind": "crash", "message": "the reply was malformed"}, True
        except frames.ClosedError:
            ended = self._bury()
            if ended in CPU_SIGNALS:
                return {"kind": "limit", "message": "the CPU time limit was reached"}, False
            how = f"by signal {ended}" if ended > 0 else f"with exit status {-ended}"
            return {"kind": "crash", "message": f"the process ended {how}"}, True
        self._peak = max(self._peak, int(reply.pop("peak", 0)))
        is_last = bool(reply.pop("is_last"))
        if is_last or self._num_tasks >= self._settings.tasks_per_child:
            self._bury()
        return reply, is_last and reply["kind"] == "limit" and not is_fresh

    def _fork(self) -> _Child:
        task_reader, task_writer = os.pipe()
        reply_reader, reply_writer = os.pipe()
        self._num_tasks = 0
        pid = os.fork()
        if pid == 0:
            try:
                _live(self._function, self._settings, task_reader, reply_writer)
            finally:
                os._exit(70)  # never back into the worker's loop
        os.close(task_reader)
        os.close(reply_writer)
        for mine in (task_writer, reply_reader):
            os.set_blocking(mine, False)
        return _Child(pid, task_writer, reply_reader)

    def _bury(self) -> int:
        """Ends the child, whatever it is doing: the signal that ended it, or minus its exit status."""
        child, self._child = self._child, None
        assert child is not None  # noqa: S101
        self._num_tasks = 0
        os.kill(child.pid, signal.SIGKILL)  # without effect on one that is dead already
        _, status, used = os.wait4(child.pid, 0)
        self._peak = max(self._peak, used.ru_maxrss)
        os.close(child.writer)
        os.close(child.reader)
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def _patience(pid: int) -> Callable[[], bool]:
    """Whether a process that has not answered is only waiting for a CPU: then its CPU time will end it, as on an idle machine.

    Says so MAX_RENEWALS times at most: what knows of this could sleep and be awake whenever it is looked at.
    """
    left = MAX_RENEWALS

    def may_go_on() -> bool:
        nonlocal left
        left -= 1
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                state = file.read().rpartition(b")")[2].split()[0]
        except OSError:  # no /proc: the wall clock decides
            return False
        return left >= 0 and state in (b"R", b"D", b"T")  # waits for a CPU, for a page, to be continued

    return may_go_on


def _live(function: Callable[..., Any], settings: Settings, tasks: int, replies: int) -> None:
    """A child's life: fenced in, then one call after another."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 2)
    keep = sorted((tasks, replies))
    # The worker's own pipes are the trainer's: a child that wrote to them could forge any verdict.
    os.closerange(3, keep[0])
    os.closerange(keep[0] + 1, keep[1])
    os.closerange(keep[1] + 1, keep[1] + 4096)
    confinement.confine(memory_bytes=settings.memory_limit, may_compile=settings.may_compile)
    before = _address_space()
    while (arguments := frames.read(tasks)) is not None:
        message = _call(function, arguments, settings, before)
        frames.write(replies, message)


def _call(function: Callable[..., Any], arguments: list[Any], settings: Settings, before: int) -> bytes:
    """The encoded reply to one task."""
    signal.setitimer(signal.ITIMER_PROF, settings.cpu_limit)
    try:
        reply = {"kind": "done", "value": _plain(function(*arguments))}
    except MemoryError:
        return _MEMORY_REPLY
    except RecursionError:
        reply = {"kind": "limit", "message": "the recursion limit was reached"}
    except BaseException as error:  # whatever a function raises, SystemExit included, is its verdict
        reply = {"kind": "crash", "message": _describe(error)}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    has_grown = _address_space() - before > settings.memory_limit // GROWTH_SHARE
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return frames.encode({**reply, "peak": peak, "is_last": has_grown})


def _plain(value: Any) -> bool | float | str:
    """A function's result as JSON has it.

    Raises:
      TypeError: it is neither a number nor a word.
      ValueError: it is not finite.
    """
    if isinstance(value, bool):
        return value
    if type(value) is str and len(value) <= MAX_WORD:
        return value
    if not isinstance(value, numbers.Real):
        raise TypeError(f"the function returned a {type(value).__name__}, not a number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"the function returned {number}, not a finite number")
    return number


def _describe(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:500]
    except Exception:
        return type(error).__name__


def _address_space() -> int:
    """Bytes of this process's address space; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0
