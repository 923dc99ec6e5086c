"""Passes jax's traffic with process 0 on, so that its end is not an end for jax.

A process of jax aborts with a page of C++ as soon as its connection to process 0 breaks. Behind a `Forwarder` such a break is a
silence to jax, and `watching` has time for a message.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading


class Forwarder:
    """Listens on a port of this machine's loopback, in a thread, and connects whoever comes with another address."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._other: dict[socket.socket, socket.socket] = {}  # the two ends of each connection, both ways
        threading.Thread(target=self._run, name="forwarder", daemon=True).start()

    @property
    def address(self) -> str:
        """HOST:PORT to connect to instead."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._listener:
                        self._accept(selector)
                    elif isinstance(key.fileobj, socket.socket):
                        self._pass_on(selector, key.fileobj, key.data)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(self._target, timeout=5.0)
        except OSError:
            near.close()  # process 0 does not listen yet: jax tries again
            return
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.settimeout(None)
        self._other |= {near: far, far: near}
        selector.register(near, selectors.EVENT_READ, True)
        selector.register(far, selectors.EVENT_READ, False)

    def _pass_on(self, selector: selectors.BaseSelector, end: socket.socket, is_near: bool) -> None:
        """Sends on what has arrived at one end; a far end that has closed is only no longer read."""
        other, received = self._other.get(end), b""
        if other is None:  # closed with the other end a moment ago
            return
        with contextlib.suppress(OSError):
            received = end.recv(1 << 16)
        if received:
            with contextlib.suppress(OSError):
                other.sendall(received)
            return
        selector.unregister(end)
        if is_near:
            if other in selector.get_map():
                selector.unregister(other)
            for each in (end, other):
                del self._other[each]
                each.close()
