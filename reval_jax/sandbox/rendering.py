"""Renders chat templates in a process of its own, with limits of time and memory and a fixed date.

A chat template comes with a model and is a program. jinja's sandbox keeps it away from files and Python's internals, but not from
endless loops and huge strings, and no thread can interrupt the product of two large integers. So `transformers` renders it in a
confined process, and the kernel enforces the limits. The process ends itself when it is idle.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reval_jax.sandbox import confinement, frames

BASE_SECONDS = 5.0  # of CPU time for the prompts of one request, which may begin with the template's compilation
SECONDS_PER_PROMPT = 0.01  # in addition; an ordinary template takes 2e-5 s
MAX_CHARACTERS = 1 << 20  # of a rendered prompt
MEMORY = 512 << 20  # bytes of address space for template and prompts
PROMPTS_PER_REQUEST = 200
IDLE_SECONDS = 10.0
START_SECONDS = 300.0  # to import transformers, and then for each reply: a busy machine may be slow

_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from reval_jax.sandbox import rendering; rendering.main()"
)
_MAX_REPLY = 16 * MAX_CHARACTERS  # bytes: JSON takes up to 12 for a character


class RenderError(Exception):
    """A template that cannot be rendered; `index` is the chat's, and the message is the reason."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


def render(
    template: str,
    variables: dict[str, Any],
    chats: Sequence[list[dict[str, str]]],
    *,
    date: str,
    add_generation_prompt: bool,
) -> list[str]:
    """The text of each chat, as `transformers` renders it; a function of the arguments alone.

    Args:
      template: jinja source.
      variables: of the template, besides `messages`.
      chats: messages with `role` and `content`.
      date: YYYY-MM-DD, which the template's clock shows at midnight.

    Raises:
      RenderError: the template raises, or exceeds a limit.
    """
    texts: list[str] = []
    for start in range(0, len(chats), PROMPTS_PER_REQUEST):
        part = list(chats[start : start + PROMPTS_PER_REQUEST])
        seconds = BASE_SECONDS + SECONDS_PER_PROMPT * len(part)
        request = frames.encode([template, variables, part, date, add_generation_prompt, seconds])
        for reply in _Renderer.replies(request, len(part)):
            if "error" in reply:
                raise RenderError(len(texts), reply["error"])
            texts.append(reply["text"])
    return texts


def close() -> None:
    """Ends the process, which the next call of `render` starts again."""
    _Renderer.close()


class _Renderer:
    """The process, as the program sees it."""

    current: _Renderer | None = None

    def __init__(self) -> None:
        root = Path(__file__).resolve().parents[2]
        path = [str(entry.resolve()) for entry in (root, *map(Path, sys.path))]
        self._process = subprocess.Popen(  # noqa: S603  # this interpreter, on _PROGRAM
            [sys.executable, "-s", "-P", "-c", _PROGRAM, json.dumps(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}
            | {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "HOME") if name in os.environ},
        )
        self._buffer, self._start = b"", 0  # what was received, and where the next reply begins in it
        self._is_ready = False

    @classmethod
    def replies(cls, request: bytes, count: int) -> list[dict[str, str]]:
        """The replies to one request: up to `count` texts, or fewer and then an error."""
        found: list[dict[str, str]] = []
        try:
            cls._current().ask(request, count, found)
        except _EndedError as ended:
            cls.close()
            if found or ended.code != 0:
                found.append({"error": str(ended)})
            else:  # it was idle for too long, just before the request
                cls._current().ask(request, count, found)
        except BaseException:
            cls.close()
            raise
        return found

    @classmethod
    def _current(cls) -> _Renderer:
        if cls.current is not None and cls.current._process.poll() is not None:
            cls.close()
        cls.current = cls.current or cls()
        return cls.current

    @classmethod
    def close(cls) -> None:
        """Ends the process."""
        if cls.current is not None:
            cls.current._end()
            cls.current = None

    def ask(self, request: bytes, count: int, found: list[dict[str, str]]) -> None:
        if not self._is_ready:
            ready = self._read()
            if "error" in ready:
                raise _EndedError(f"its process did not start ({ready['error']})")
            self._is_ready = True
        with contextlib.suppress(BrokenPipeError):  # `_read` notices
            frames.write(self._process.stdin.fileno(), request)  # type: ignore[union-attr]
        while len(found) < count and not (found and "error" in found[-1]):
            found.append(self._read())

    def _read(self) -> dict[str, str]:
        deadline = time.monotonic() + START_SECONDS
        output = self._process.stdout.fileno()  # type: ignore[union-attr]
        while True:
            end = self._start + 4 + int.from_bytes(self._buffer[self._start : self._start + 4], "big")
            if end - self._start > _MAX_REPLY:
                raise _EndedError("its process sent more than a prompt")
            if len(self._buffer) >= end > self._start + 4:
                reply: dict[str, str] = json.loads(self._buffer[self._start + 4 : end])
                self._start = end
                return reply
            if not select.select([output], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise _EndedError(f"its process did not answer within {START_SECONDS:.0f} s")
            piece = os.read(output, 1 << 20)
            if not piece:
                code = self._process.wait()
                raise _EndedError(_how_it_ended(code), code)
            self._buffer, self._start = self._buffer[self._start :] + piece, 0

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                stream.close()  # type: ignore[union-attr]


class _EndedError(Exception):
    """The process has ended, or is of no use; the message is the reason, `code` its exit status if it has ended."""

    def __init__(self, reason: str, code: int | None = None) -> None:
        super().__init__(reason)
        self.code = code


atexit.register(close)


def _how_it_ended(code: int) -> str:
    if -code in (signal.SIGPROF, signal.SIGXCPU):
        seconds = BASE_SECONDS + PROMPTS_PER_REQUEST * SECONDS_PER_PROMPT
        return f"it took more CPU time than prompts are given ({BASE_SECONDS:g} to {seconds:g} s)"
    return f"its process ended {f'by signal {-code}' if code < 0 else f'with exit status {code}'}"


# --- inside the process ----------------------------------------------------------------------------------------------


def main() -> None:
    """Serves requests until the program hangs up or asks for nothing for a while."""
    # A signal to stop the program may reach its whole process group; the program ends this process by hanging up.
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    with contextlib.suppress(BrokenPipeError):
        try:
            from transformers.utils import chat_template_utils

            # Imports jinja2, which opens files.
            chat_template_utils.render_jinja_template([[]], chat_template="{{ messages | length }}")
            confinement.confine(memory_bytes=confinement.address_space() + MEMORY, may_compile=True)
        except Exception as error:
            frames.write(replies, frames.encode({"error": " ".join(frames.describe(error).split())}))
            return
        frames.write(replies, frames.encode({"ready": ""}))
        while select.select([requests], [], [], IDLE_SECONDS)[0] and (request := frames.read(requests)) is not None:
            if not _answer(replies, chat_template_utils, *request):
                return


def _answer(
    replies: int,
    utils: Any,
    template: str,
    variables: dict[str, Any],
    chats: list[list[dict[str, str]]],
    date: str,
    add_generation_prompt: bool,
    cpu_seconds: float,
) -> bool:
    """Writes the text of each chat; after an error it leaves the others out. False if this process should not go on."""
    utils.datetime = _clock(date)
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    has_memory = True
    for chat in chats:
        random.seed(0)  # jinja's filter `random`: a prompt depends on its question alone
        try:
            (text,), _ = utils.render_jinja_template(
                [chat], chat_template=template, add_generation_prompt=add_generation_prompt, **variables
            )
            text.encode()  # a lone surrogate is an error here: no tokenizer takes it
            reply = {"text": text}
            if len(text) > MAX_CHARACTERS:
                reply = {"error": f"the prompt has {len(text)} characters, more than {MAX_CHARACTERS}"}
        except MemoryError:
            has_memory = False
            reply = {"error": f"it needs more than {MEMORY >> 20} MiB of memory"}
        except BaseException as error:
            reply = {"error": " ".join(frames.describe(error).split())}
        frames.write(replies, frames.encode(reply))
        if "error" in reply:
            break
    signal.setitimer(signal.ITIMER_PROF, 0)
    return has_memory


def _clock(date: str) -> type[datetime.datetime]:
    """A class for `datetime.datetime` in which it is always midnight of this date."""
    day = datetime.date.fromisoformat(date)

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Clock:
            return cls(day.year, day.month, day.day, tzinfo=tz)

    return Clock
