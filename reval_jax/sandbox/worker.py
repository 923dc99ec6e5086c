"""A worker process: calls one function on model output, in a child that can be killed at any moment.

The worker itself never interprets an answer: it imports the function, warms it up, and forks a confined child
(`confinement`) that makes the calls. So a child is replaced in milliseconds, whatever happened to it, and each child starts in
the same state. The worker has no threads, so forking it is safe. `pool` starts workers and exchanges messages with them.

The kernel enforces the limits, because Python cannot interrupt the product of two large integers: an interval timer on the
child's CPU time kills it, and its address space is bounded. Both count what the child used, not how long it waited, so a loaded
machine gives the same verdicts.
"""

from __future__ import annotations

import contextlib
import decimal
import gc
import importlib
import inspect
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
GROWTH_SHARE = 16  # a child that has kept more than 1/16 of its memory limit is replaced
CPU_GRACE = 1.0  # seconds of CPU time beyond its limit after which a child without a timer is killed
MAX_RENEWALS = 9  # extensions of the wall limit
MIN_FREE = 32 << 20  # bytes that must be free for a task
MAX_WORD = 50  # characters of a result that is a string
_MEMORY_REPLY = frames.encode({"kind": "limit", "message": "the memory limit was reached", "is_last": True})


class WorkerSettings(NamedTuple):
    """The first message to a worker."""

    target: str  # module:function
    may_compile: bool
    cpu_limit: float  # seconds
    wall_limit: float  # seconds
    memory_limit: int  # bytes
    tasks_per_child: int
    warm_up: list[list[str]]  # arguments of calls before the first child exists; trusted, never model output
    num_arguments: int = 0  # of every call, compared with the function's signature at the start; 0: not compared


class _Child(NamedTuple):
    pid: int
    writer: int  # descriptor to the child
    reader: int  # descriptor from the child


def main() -> None:
    """Serves the trainer, which started this process, until it hangs up."""
    # The trainer ends this process by hanging up. A signal to stop the trainer may reach its whole process group.
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    for signum in CPU_SIGNALS:  # set the default, to die: a process inherits ignored signals
        signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    requests, replies = os.dup(0), os.dup(1)
    # The function's output must not mix with the messages. Standard error goes to a file of the pool.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    first = frames.read(requests)
    if first is not None:
        with contextlib.suppress(ConnectionAbortedError, BrokenPipeError):
            _serve(WorkerSettings(**first), requests, replies)
    # A trainer that was killed leaves this process's directory behind. rmdir removes it only if it is empty.
    with contextlib.suppress(OSError):
        os.rmdir(os.getcwd())


def _serve(settings: WorkerSettings, requests: int, replies: int) -> None:
    """Loads the function, reports success or failure, and answers tasks until the trainer hangs up."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    try:
        function = load_function(settings.target)
        # Children inherit what these calls import and cache.
        for arguments in settings.warm_up:
            function(*arguments)
        if settings.num_arguments:
            _check_signature(function, settings)
    except BaseException as error:  # sys.exit() in a module's import too
        frames.write(replies, frames.encode({"refused": frames.describe(error)}))
        return
    # Children share these objects; frozen ones are not touched by the collector, so their pages are not copied.
    gc.collect()
    gc.freeze()
    problem = _confinement_problem(settings)
    frames.write(replies, frames.encode({"refused": problem} if problem else {"ready": True}))
    _TaskServer(function, settings, requests, replies).serve()


def load_function(target: str) -> Callable[..., Any]:
    """The function that `module:function` names.

    Raises:
      Exception: any exception of the import; AttributeError or TypeError if the module has no such function.
    """
    module, _, name = target.partition(":")
    function: Any = importlib.import_module(module)
    for part in name.split("."):
        function = getattr(function, part)
    if not callable(function):
        raise TypeError(f"{target} is a {type(function).__name__}, not a function")
    return function


def _check_signature(function: Callable[..., Any], settings: WorkerSettings) -> None:
    """Refuse a function that no call can succeed with: one of another number of arguments, or a coroutine.

    Raises:
      TypeError: the function is one of these.
    """
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{settings.target} is async; it has to return its result")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions in C have none
        return
    try:
        signature.bind(*[""] * settings.num_arguments)
    except TypeError as error:
        raise TypeError(
            f"{settings.target}{signature} can't be called with {settings.num_arguments} arguments ({error})"
        ) from None


def _confinement_problem(settings: WorkerSettings) -> str | None:
    """Why a child cannot be confined, or has too little memory under its limit; None if there is no problem."""
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
        return f"verifier.memory_limit is too small: {confinement.address_space() >> 20} MiB are in use before the first answer"
    return "a process cannot be confined here: this kernel refuses a limit or the system call filter" if code else None


class _TaskServer:
    """The worker's loop: reads tasks, has a child run them, and replaces the child."""

    def __init__(self, function: Callable[..., Any], settings: WorkerSettings, requests: int, replies: int) -> None:
        self._function, self._settings = function, settings
        self._requests, self._replies = requests, replies
        self._child: _Child | None = None
        self._num_tasks = 0  # tasks that the child has run
        self._peak = 0  # KiB; peak resident memory of the largest child

    def serve(self) -> None:
        while (arguments := frames.read(self._requests)) is not None:
            frames.write(self._replies, frames.encode(self._reply_to(frames.encode(arguments))))
        if self._child:
            self._kill_child()

    def _reply_to(self, message: bytes) -> dict[str, Any]:
        """The reply to one task, whatever happens to the child; a doubtful failure is tried once more."""
        reply, is_doubtful = self._try(message)
        if is_doubtful:
            reply, _ = self._try(message)
        return reply | {"peak": self._peak}

    def _try(self, message: bytes) -> tuple[dict[str, Any], bool]:
        """The reply, and whether something other than the task may have caused it.

        Memory that a child kept from earlier tasks must not cause a failure, so only a fresh child may run out of memory. A
        child that died may have been killed by a system short of memory.
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
                may_extend=_extend_if_starved(child.pid),
                is_spent=_is_spent(child.pid, self._settings.cpu_limit),
                check_seconds=max(self._settings.cpu_limit, 1.0),
                owner=self._requests,
            )
        except frames.SpentError:
            self._kill_child()
            return {"kind": "limit", "message": "the CPU time limit was reached"}, False
        except TimeoutError:
            self._kill_child()
            return {"kind": "timeout", "message": "the wall clock ran out"}, False
        except ConnectionAbortedError:
            self._kill_child()
            raise
        except ValueError:
            self._kill_child()
            return {"kind": "crash", "message": "the reply was malformed"}, True
        except frames.ClosedError:
            status = self._kill_child()
            if status in CPU_SIGNALS:
                return {"kind": "limit", "message": "the CPU time limit was reached"}, False
            how = f"by signal {status}" if status > 0 else f"with exit status {-status}"
            return {"kind": "crash", "message": f"the process ended {how}"}, True
        self._peak = max(self._peak, int(reply.pop("peak", 0)))
        is_last = bool(reply.pop("is_last"))
        if is_last or self._num_tasks >= self._settings.tasks_per_child:
            self._kill_child()
        return reply, is_last and reply["kind"] == "limit" and not is_fresh

    def _fork(self) -> _Child:
        task_reader, task_writer = os.pipe()
        reply_reader, reply_writer = os.pipe()
        self._num_tasks = 0
        pid = os.fork()
        if pid == 0:
            try:
                _child_main(self._function, self._settings, task_reader, reply_writer)
            finally:
                os._exit(70)  # a child must never return to the worker's loop
        os.close(task_reader)
        os.close(reply_writer)
        for descriptor in (task_writer, reply_reader):
            os.set_blocking(descriptor, False)
        return _Child(pid, task_writer, reply_reader)

    def _kill_child(self) -> int:
        """Kills the child; returns the number of the signal that ended it, or minus its exit status."""
        child, self._child = self._child, None
        assert child is not None  # noqa: S101
        self._num_tasks = 0
        os.kill(child.pid, signal.SIGKILL)  # has no effect on a dead child
        _, status, used = os.wait4(child.pid, 0)
        self._peak = max(self._peak, used.ru_maxrss)
        os.close(child.writer)
        os.close(child.reader)
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def _is_spent(pid: int, cpu_limit: float) -> Callable[[], bool]:
    """A function that says whether the child has used more CPU time than its timer allows, from now on.

    The timer ends every other child: only one that blocked its signal, or stopped it, gets this far.
    """
    start = _cpu_seconds(pid)
    return lambda: _cpu_seconds(pid) - start > cpu_limit + CPU_GRACE


def _cpu_seconds(pid: int) -> float:
    """CPU time that the process has used; 0 if the system does not report it."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user and system time


def _extend_if_starved(pid: int) -> Callable[[], bool]:
    """A function that extends the wall limit while the child is runnable but starved of CPU.

    So a busy machine gives the same verdicts: the child's CPU time limit will end it. It extends at most MAX_RENEWALS times,
    since hostile code could sleep and be runnable at each check.
    """
    remaining = MAX_RENEWALS

    def may_extend() -> bool:
        nonlocal remaining
        remaining -= 1
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                state = file.read().rpartition(b")")[2].split()[0]
        except OSError:  # no /proc: the wall clock decides
            return False
        return remaining >= 0 and state in (b"R", b"D", b"T")  # runnable, waiting for a page, stopped

    return may_extend


def _child_main(function: Callable[..., Any], settings: WorkerSettings, tasks: int, replies: int) -> None:
    """The main function of a child: confines it, then calls the function for one task after another."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 2)
    keep = sorted((tasks, replies))
    # The inherited pipes lead to the trainer: a child that wrote to them could forge verdicts.
    os.closerange(3, keep[0])
    os.closerange(keep[0] + 1, keep[1])
    os.closerange(keep[1] + 1, keep[1] + 4096)
    confinement.confine(memory_bytes=settings.memory_limit, may_compile=settings.may_compile)
    before = confinement.address_space()
    while (arguments := frames.read(tasks)) is not None:
        message = _call(function, arguments, settings, before)
        frames.write(replies, message)


def _call(function: Callable[..., Any], arguments: list[Any], settings: WorkerSettings, before: int) -> bytes:
    """The encoded reply to one task."""
    signal.setitimer(signal.ITIMER_PROF, settings.cpu_limit)
    try:
        reply = {"kind": "done", "value": _to_json(function(*arguments))}
    except MemoryError:
        return _MEMORY_REPLY
    except RecursionError:
        reply = {"kind": "limit", "message": "the recursion limit was reached"}
    except BaseException as error:  # any exception, even SystemExit, is the verdict `crash`
        reply = {"kind": "crash", "message": frames.describe(error)}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    has_grown = confinement.address_space() - before > settings.memory_limit // GROWTH_SHARE
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return frames.encode({**reply, "peak": peak, "is_last": has_grown})


def _to_json(value: Any) -> bool | float | str:
    """A function's result as a JSON value; scalars of array libraries, and arrays of no axes, count as the value they hold.

    Raises:
      TypeError: the result is neither a number nor a short string.
      ValueError: the result is not finite.
    """
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool):
        return value
    if type(value) is str and len(value) <= MAX_WORD:
        return value
    if not isinstance(value, numbers.Real | decimal.Decimal):
        raise TypeError(f"the function returned a {type(value).__name__}, not a number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"the function returned {number}, not a finite number")
    return number
