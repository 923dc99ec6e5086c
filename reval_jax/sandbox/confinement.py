"""Confines a process that grades model text: bounded memory, no writing, no processes, no network, no `eval` unless allowed.

Three fences, each enough against most attacks: kernel limits (every platform), a system call filter that needs no privilege
(seccomp; Linux on x86-64 and arm64), and Python's audit hook, which cannot be removed (every platform). The confined process
cannot lift any of them. Standard library only.
"""

from __future__ import annotations

import ast
import collections
import ctypes
import os
import platform
import resource
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

MAX_FILES = 32  # open files; a task needs its two pipes and the files that an import reads

_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# Calls that use the network, start or affect another process, or change a file: <asm/unistd.h> of each architecture.
_FORBIDDEN_CALLS = {
    # shmget, socket … listen, socketpair, clone, fork, vfork, execve, kill, truncate, rename … symlink, chmod … lchown,
    # ptrace, rt_sigqueueinfo, mknod, tkill, tgkill, mkdirat … fchmodat, unshare, rt_tgsigqueueinfo, renameat2, …
    "x86_64": (
        29, 41, 42, 43, 44, 46, 49, 50, 53, 56, 57, 58, 59, 62, 76, 82, 83, 84, 85, 86, 87, 88, 90, 91, 92, 93, 94, 101,
        129, 133, 165, 200, 234, 258, 259, 260, 263, 264, 265, 266, 268, 272, 297, 302, 310, 311, 316, 321, 322,
        424, 425, 434, 435, 437, 438, 452,
    ),
    "aarch64": (
        33, 34, 35, 36, 37, 38, 40, 45, 52, 53, 54, 55, 97, 117, 129, 130, 131, 138, 194, 198, 199, 200, 201, 202, 203,
        206, 211, 220, 221, 240, 261, 270, 271, 276, 280, 281, 424, 425, 434, 435, 437, 438, 452,
    ),
}  # fmt: skip
_OPEN_CALLS = {
    "x86_64": ((2, 1), (257, 2)),
    "aarch64": ((56, 2),),
}  # (call, index of the argument that holds its flags)
_AUDIT_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # <linux/audit.h>
_X32_CALLS = 0x40000000  # x86-64 numbers its x32 calls from here: a second way to make each call

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 1, 38, 22, 2  # <linux/prctl.h>
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # <linux/bpf_common.h>
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 1  # <linux/seccomp.h>: _REFUSE returns EPERM

# SymPy generates source code for the product of two monomials, from the number of variables alone. These files of
# reasoning-gym evaluate expressions that they generate for a question; `procedural.gym` replaces what they do with an answer.
_COMPILING_FILES = (
    os.path.join("sympy", "polys", "monomials.py"),
    os.path.join("reasoning_gym", "code", "codeio.py"),
    os.path.join("reasoning_gym", "arithmetic", "basic_arithmetic.py"),
    os.path.join("reasoning_gym", "arithmetic", "gsm_symbolic", "generators_00_49.py"),
    os.path.join("reasoning_gym", "arithmetic", "gsm_symbolic", "generators_50_99.py"),
)
# ast.parse builds a tree, not code; namedtuple generates a function from names that it has checked.
_COMPILING_FUNCTIONS = (ast.parse.__code__, collections.namedtuple.__code__)

_FORBIDDEN_EVENTS = (
    "ctypes.", "ftplib.", "http.", "mmap.", "os.chflags", "os.chmod", "os.chown", "os.exec", "os.fork", "os.kill",
    "os.link", "os.lockf", "os.mkdir", "os.posix_spawn", "os.putenv", "os.remove", "os.rename", "os.rmdir", "os.setxattr",
    "os.spawn", "os.startfile", "os.symlink", "os.system", "os.truncate", "os.utime", "pty.", "resource.", "shutil.",
    "smtplib.", "socket.", "sqlite3.", "subprocess.", "syslog.", "tempfile.", "urllib.", "webbrowser.",
)  # fmt: skip


def confine(*, memory_bytes: int, may_compile: bool) -> None:
    """Confines this process permanently; call it in a process with a single thread.

    Args:
      memory_bytes: limit of the whole address space, including what the process already uses.
      may_compile: allow Python source to be compiled, hence `eval` and `exec`, for a user's own function. Never for answers
        that our code, or a library that it calls, compares.
    """
    # Load libc first: loading it later would need ctypes and files.
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    if libc is not None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    for limit, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, MAX_FILES),
    ):
        _, hard_limit = resource.getrlimit(limit)
        value = value if hard_limit == resource.RLIM_INFINITY else min(value, hard_limit)
        resource.setrlimit(limit, (value, value))
    if libc is not None:
        _filter_calls(libc)
    sys.addaudithook(_hook(may_compile))


def address_space() -> int:
    """Bytes of this process's address space; 0 if the system does not report it."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def has_call_filter() -> bool:
    """Whether this system has the system call filter, not only Python's audit hook."""
    return sys.platform == "linux" and sys.byteorder == "little" and platform.machine() in _AUDIT_ARCHITECTURE


def _filter_calls(libc: ctypes.CDLL) -> None:
    """Makes every forbidden system call of this process fail with EPERM.

    Raises:
      OSError: this kernel has no seccomp.
    """
    if not has_call_filter():
        return
    program = _program(platform.machine())
    code = b"".join(
        operation.to_bytes(2, "little") + bytes((if_true, if_false)) + value.to_bytes(4, "little")
        for operation, if_true, if_false, value in program
    )
    buffer = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    filter_program = Program(len(program), ctypes.addressof(buffer))
    # Without this bit an unprivileged process may not set a filter.
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(filter_program), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "this kernel refuses a system call filter (seccomp)")


def _program(machine: str) -> list[tuple[int, int, int, int]]:
    """Instructions of the filter: (operation, steps to skip if true, if false, operand)."""
    calls, opens = _FORBIDDEN_CALLS[machine], _OPEN_CALLS[machine]
    # Fields of struct seccomp_data: the call's number at byte 0, the architecture at 4, its arguments from 16.
    body: list[tuple[int, int, int, int]] = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _AUDIT_ARCHITECTURE[machine])]
    body += [(_RETURN, 0, 0, _REFUSE), (_LOAD, 0, 0, 0), (_AT_LEAST, 0, 1, _X32_CALLS), (_RETURN, 0, 0, _REFUSE)]
    for call in calls:
        body += [(_EQUAL, 0, 1, call), (_RETURN, 0, 0, _REFUSE)]
    for call, argument in opens:
        flags = [(_LOAD, 0, 0, 16 + 8 * argument), (_ANY_BIT, 0, 1, _WRITE_FLAGS), (_RETURN, 0, 0, _REFUSE)]
        body += [(_EQUAL, 0, len(flags) + 1, call), *flags, (_RETURN, 0, 0, _ALLOW)]
    return [*body, (_RETURN, 0, 0, _ALLOW)]


def _hook(may_compile: bool) -> Callable[[str, tuple[Any, ...]], None]:
    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            # The arguments are path, mode and flags.
            if isinstance(arguments[2], int) and arguments[2] & _WRITE_FLAGS:
                raise PermissionError("a grading process may not write files")
        elif event == "compile":
            # An import compiles under its file's name; source from a string has a name in angle brackets.
            is_string = not isinstance(arguments[1], str) or arguments[1].startswith("<")
            if is_string and not may_compile and not _is_library(sys._getframe(1)):
                raise PermissionError("a grading process may not compile text")
        elif event.startswith(_FORBIDDEN_EVENTS):
            raise PermissionError(f"a grading process may not do this: {event}")

    return refuse


def _is_library(caller: FrameType) -> bool:
    """Whether `caller` compiles a library's own source: during its import, or in a file or function listed above."""
    if caller.f_code in _COMPILING_FUNCTIONS or caller.f_code.co_filename.endswith(_COMPILING_FILES):
        return True
    frame: FrameType | None = caller
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None
