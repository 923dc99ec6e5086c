"""Messages over pipes between the trainer, a worker and its child: four bytes for the length, then JSON.

The other side may die or be hostile, so a reader bounds the size of a message and waits no longer than its deadline. JSON
escapes lone surrogates in texts.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Callable
from typing import Any

MAX_REPLY = 1 << 16  # bytes of a reply from a worker or child
_HEADER = 4


def describe(error: BaseException) -> str:
    """The error's kind and text, cut, for a message to the program; a text that cannot be made is left out."""
    try:
        return f"{type(error).__name__}: {error}"[:500]
    except Exception:
        return type(error).__name__


def encode(content: Any) -> bytes:
    """The encoded message."""
    body = json.dumps(content).encode("ascii")
    return len(body).to_bytes(_HEADER, "big") + body


def decode(buffer: bytes, *, max_bytes: int = MAX_REPLY) -> Any | None:
    """The content of the message in `buffer`; None while it is incomplete.

    Raises:
      ValueError: the message is longer than `max_bytes`, has bytes after its end, or is not JSON.
    """
    if len(buffer) < _HEADER:
        return None
    length = int.from_bytes(buffer[:_HEADER], "big")
    if length > max_bytes or len(buffer) > _HEADER + length:
        raise ValueError("a message is longer than allowed")
    return json.loads(buffer[_HEADER:]) if len(buffer) == _HEADER + length else None


def read(descriptor: int) -> Any | None:
    """The next message from the trusted side, without a deadline; None if that side has closed its end."""
    header = _read_exactly(descriptor, _HEADER)
    body = _read_exactly(descriptor, int.from_bytes(header, "big")) if header else None
    return json.loads(body) if body else None


def _read_exactly(descriptor: int, size: int) -> bytes | None:
    pieces = []
    while size:
        piece = os.read(descriptor, min(size, 1 << 20))
        if not piece:
            return None
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def write(descriptor: int, message: bytes) -> None:
    """Writes an encoded message; raises BrokenPipeError if the reader has closed its end."""
    view = memoryview(message)
    while view:
        view = view[os.write(descriptor, view) :]


class ClosedError(Exception):
    """The other side closed its end before it replied."""


class SpentError(Exception):
    """The other side has used more CPU time than it may."""


def exchange(
    writer: int,
    reader: int,
    message: bytes,
    *,
    wall_limit: float,
    may_extend: Callable[[], bool],
    is_spent: Callable[[], bool],
    check_seconds: float,
    owner: int,
) -> Any:
    """Sends an encoded message and returns the reply.

    Args:
      writer, reader: non-blocking descriptors to and from the other side.
      wall_limit: seconds to wait for the whole reply.
      may_extend: called when they have passed; True waits as long again.
      is_spent: called every `check_seconds` without a reply; True ends the exchange.
      owner: descriptor to the process that needs the reply; if it hangs up, the exchange is aborted.

    Raises:
      TimeoutError: no complete reply in time.
      SpentError: `is_spent`.
      ClosedError: the other side closed its end.
      ConnectionAbortedError: the owner hung up.
      ValueError: the reply is malformed.
    """
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    poll.register(writer, select.POLLOUT)
    poll.register(owner, 0)  # poll always reports a hang-up
    view, reply = memoryview(message), b""
    start = time.monotonic()
    deadline, check = start + wall_limit, start + check_seconds
    while True:
        remaining, until_check = deadline - time.monotonic(), check - time.monotonic()
        ready = dict(poll.poll(max(0.0, min(remaining, until_check)) * 1000))
        if owner in ready:
            raise ConnectionAbortedError
        if reader in ready:
            piece = os.read(reader, MAX_REPLY)
            if not piece:
                raise ClosedError
            reply += piece
            content = decode(reply)
            if content is not None:
                return content
        elif writer in ready:
            try:
                view = view[os.write(writer, view) :]
            except BrokenPipeError:
                raise ClosedError from None
            if not view:
                poll.unregister(writer)
        elif until_check <= 0:
            if is_spent():
                raise SpentError
            check += check_seconds
        elif remaining <= 0:
            if not may_extend():
                raise TimeoutError
            deadline += wall_limit
