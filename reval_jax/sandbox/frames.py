"""Messages over pipes between the trainer, a worker and its child: a length of four bytes, then JSON.

Either side may die or be hostile: a reader bounds what it takes, and waits no longer than its deadline. Texts may hold
lone surrogates: JSON escapes them.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Callable
from typing import Any

MAX_REPLY = 1 << 16  # bytes of an answer from below
_HEADER = 4


def encode(content: Any) -> bytes:
    """The message."""
    body = json.dumps(content).encode("ascii")
    return len(body).to_bytes(_HEADER, "big") + body


def decode(buffer: bytes, *, max_bytes: int = MAX_REPLY) -> Any | None:
    """The content of the one message in `buffer`, None where it is not all there yet.

    Raises:
      ValueError: it is longer than `max_bytes`, goes on behind its end, or is not JSON.
    """
    if len(buffer) < _HEADER:
        return None
    length = int.from_bytes(buffer[:_HEADER], "big")
    if length > max_bytes or len(buffer) > _HEADER + length:
        raise ValueError("a message is longer than it may be")
    return json.loads(buffer[_HEADER:]) if len(buffer) == _HEADER + length else None


def read(descriptor: int) -> Any | None:
    """The next message, waiting as long as it takes, None where the other side has closed; for messages from above."""
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
    """Writes an encoded message; raises BrokenPipeError where nobody reads any more."""
    view = memoryview(message)
    while view:
        view = view[os.write(descriptor, view) :]


class ClosedError(Exception):
    """The other side has closed its end before it answered."""


def exchange(
    writer: int, reader: int, message: bytes, *, wall_limit: float, may_go_on: Callable[[], bool], owner: int
) -> Any:
    """The answer to an encoded message.

    Args:
      writer, reader: descriptors of the other side, which do not block.
      wall_limit: seconds to wait for a whole answer.
      may_go_on: asked whenever they have passed, whether to wait as long again.
      owner: descriptor of who asked; when it hangs up nobody needs the answer.

    Raises:
      TimeoutError: no whole answer in time.
      ClosedError: the other side closed its end.
      ConnectionAbortedError: the owner has hung up.
      ValueError: the answer is malformed.
    """
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    poll.register(writer, select.POLLOUT)
    poll.register(owner, 0)  # a hang-up is reported unasked
    view, answer = memoryview(message), b""
    deadline = time.monotonic() + wall_limit
    while True:
        remaining = deadline - time.monotonic()
        ready = dict(poll.poll(max(0.0, remaining) * 1000))
        if owner in ready:
            raise ConnectionAbortedError
        if reader in ready:
            piece = os.read(reader, MAX_REPLY)
            if not piece:
                raise ClosedError
            answer += piece
            content = decode(answer)
            if content is not None:
                return content
        elif writer in ready:
            try:
                view = view[os.write(writer, view) :]
            except BrokenPipeError:
                raise ClosedError from None
            if not view:
                poll.unregister(writer)
        elif remaining <= 0:
            if not may_go_on():
                raise TimeoutError
            deadline += wall_limit
