"""Reward functions that misbehave; `answer` may hold an argument.

Tests run them in the sandbox only, as `verifier.function=hostile_rewards:NAME` with `verifier.function_path` set to this
directory. Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable


def spin(response: str, answer: str) -> float:
    """Computes in Python and never returns."""
    while True:
        pass


def multiply(response: str, answer: str) -> float:
    """Multiplies two large integers, which no Python signal handler can interrupt."""
    number = 3 ** (10**8)
    return float(number * number > 0)


def hang(response: str, answer: str) -> float:
    """Sleeps and never returns."""
    time.sleep(1e6)
    return 1.0


def stall(response: str, answer: str) -> float:
    """Calls the one of the three functions above that the answer names; returns 1 for any other answer."""
    functions = {"spin": spin, "multiply": multiply, "hang": hang}
    return functions[answer](response, answer) if answer in functions else 1.0


def block_signals(response: str, answer: str) -> float:
    """Blocks the signals of the CPU timer and never returns."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPROF, signal.SIGXCPU])
    return spin(response, answer)


def stop_timer(response: str, answer: str) -> float:
    """Stops the CPU timer and never returns, as code of a response that is run may do."""
    exec("import signal; signal.setitimer(signal.ITIMER_PROF, 0)")  # noqa: S102
    return spin(response, answer)


async def later(response: str, answer: str) -> float:
    """Returns a coroutine instead of a number."""
    return 1.0


def only_response(response: str) -> float:
    """Takes one argument."""
    return 1.0


def three(response: str, answer: str, question: str) -> float:
    """Takes three arguments."""
    return 1.0


def any_number(*arguments: str, scale: float = 1.0) -> float:
    """Takes any number of arguments."""
    return scale


def allocate(response: str, answer: str) -> float:
    """Allocates memory without end."""
    kept = []
    while True:
        kept.append(bytearray(10_000_000))


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def remember(response: str, answer: str, kept: list[bytearray] = []) -> float:  # noqa: B006
    """Allocates as many bytes as the answer says, and keeps them."""
    kept.append(bytearray(int(answer)))
    return 1.0


_START_BYTES = _address_space()  # of the worker, before any child exists


def remember_or_fill(response: str, answer: str) -> float:
    """`remember` for an empty response; otherwise briefly allocates 29/30 of the answer's bytes, minus _START_BYTES."""
    if not response:
        return remember(response, answer)
    return float(len(bytearray(int(answer) * 29 // 30 - _START_BYTES)) > 0)


def recurse(response: str, answer: str) -> float:
    """Recurses without end."""
    return recurse(response, answer) + 1


def exit_process(response: str, answer: str) -> float:
    """Ends the process."""
    os._exit(3)


def fail(response: str, answer: str) -> float:
    """Raises."""
    raise KeyError("no such thing")


def constant(response: str, answer: str) -> float:
    """Returns the gold answer as a number."""
    return float(answer)


def text(response: str, answer: str) -> float:
    """Returns a string instead of a number."""
    return "1"  # type: ignore[return-value]


def by_length(response: str, answer: str) -> float:
    """Returns a reward from 0 to 1 that grows with the response's length."""
    return min(1.0, len(response) / 10)


def evaluate(response: str, answer: str) -> float:
    """Evaluates the response as Python, as many reward functions do."""
    return float(eval(response) == float(answer))  # noqa: S307


def process_id(response: str, answer: str) -> float:
    """Returns a number below 1 that identifies the process."""
    return os.getpid() / 2**32


def sees_trainer(response: str, answer: str) -> float:
    """Returns 1 if the trainer's environment or directory is visible here."""
    return float(any(name in os.environ for name in ("HOME", "PATH", "USER", "REVAL_SECRET")) or bool(os.listdir(".")))


_libc = ctypes.CDLL(None, use_errno=True)  # loaded before confinement: the audit hook does not see its calls


def ways_out(directory: str) -> dict[str, Callable[[], object]]:
    """Attempts that an answer's code may make in a directory with a file `victim`. Each raises OSError if a fence stops it."""
    victim, canary = (os.path.join(directory, name) for name in ("victim", "canary"))

    def call(name: str, *arguments: object) -> None:
        if getattr(_libc, name)(*arguments) < 0:
            raise OSError(ctypes.get_errno(), name)

    def run(*arguments: str) -> None:
        if subprocess.call(arguments) != 0:
            raise OSError

    def system(command: str) -> None:
        if os.system(command) != 0:  # noqa: S605
            raise OSError

    path, other = victim.encode(), canary.encode()
    return {
        "open": lambda: open(canary, "w").close(),
        "append": lambda: open(victim, "a").close(),
        "os.open": lambda: os.close(os.open(canary, os.O_CREAT | os.O_WRONLY)),
        "mkdir": lambda: os.mkdir(canary),
        "remove": lambda: os.remove(victim),
        "rename": lambda: os.rename(victim, canary),
        "chmod": lambda: os.chmod(victim, 0o600),
        "system": lambda: system("true"),
        "subprocess": lambda: run(sys.executable, "-c", ""),
        "fork": lambda: os.fork() or os._exit(0),
        "kill": lambda: os.kill(os.getppid(), 0),
        "socket": lambda: socket.socket().close(),
        "resolve": lambda: socket.getaddrinfo("127.0.0.1", 80),
        "libc open": lambda: call("open", other, os.O_CREAT | os.O_WRONLY, 0o600),
        "libc creat": lambda: call("creat", other, 0o600),
        "libc truncate": lambda: call("truncate", path, 0),
        "libc fork": lambda: call("fork"),
        "libc execl": lambda: call("execl", b"/bin/true", b"true", None),
        "libc kill": lambda: call("kill", os.getppid(), 0),
        "libc socket": lambda: call("socket", 2, 1, 0),
        "libc unlink": lambda: call("unlink", path),
        "libc rename": lambda: call("rename", path, other),
        "libc ptrace": lambda: call("ptrace", 0, 0, None, None),
        "libc shmget": lambda: call("shmget", 0, 4096, 0o1600),
        "libc prlimit": lambda: call("prlimit", os.getppid(), 7, None, None),
    }


def escape(response: str, answer: str) -> float:
    """Returns 1 if the way out named by `response` is open, in the directory named by `answer`."""
    try:
        ways_out(answer)[response]()
    except OSError:
        return 0.0
    return 1.0


def has_extra_descriptor(response: str, answer: str) -> float:
    """Returns 1 if a descriptor other than this process's own two pipes is open."""
    descriptors = [name for name in os.listdir("/proc/self/fd") if int(name) > 2]
    return float(len(descriptors) > 3)  # the two pipes, and the listed directory itself
