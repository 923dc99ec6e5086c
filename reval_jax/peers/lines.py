"""A TCP connection that carries JSON objects, one a line."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any


class ClosedError(Exception):
    """The other end has closed its connection."""


class Connection:
    """A TCP connection that carries JSON objects, one a line."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.heard = time.monotonic()  # when the last byte arrived
        self.is_done = False  # the other process said that it has ended
        self._received = b""
        self._waiting: list[dict[str, Any]] = []  # came together with the first
        self._lock = threading.Lock()
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.settimeout(5.0)

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends, unless the other end is gone: whoever reads finds that out."""
        with self._lock, contextlib.suppress(OSError):
            self.link.sendall(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        """Closes it, for both."""
        self.link.close()

    def receive(self) -> list[dict[str, Any]]:
        """What has arrived, complete lines only; waits for the first byte up to the link's timeout.

        Raises:
          ClosedError: nothing will arrive any more.
          ValueError: it is not this protocol.
          TimeoutError: nothing arrived.
        """
        if self._waiting:
            messages, self._waiting = self._waiting, []
            return messages
        try:
            received = self.link.recv(1 << 16)
        except TimeoutError:
            raise
        except OSError as error:
            raise ClosedError from error
        if not received:
            raise ClosedError
        self.heard = time.monotonic()
        *lines, self._received = (self._received + received).split(b"\n")
        if len(self._received) > 1 << 20:
            raise ValueError("a line without an end")
        messages = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("not an object")
        return messages

    def first(self, deadline: float) -> dict[str, Any]:
        """The first message.

        Raises:
          ClosedError, ValueError: as `receive`.
          TimeoutError: it did not arrive before the deadline.
        """
        while True:
            self.link.settimeout(max(0.1, deadline - time.monotonic()))
            messages = self.receive()
            if messages:
                self.link.settimeout(5.0)
                self._waiting = messages[1:]
                return messages[0]
