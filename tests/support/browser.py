"""A headless Chromium for tests of pages, driven by DevTools messages over two pipes; no library, no port, no network."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import struct
import subprocess
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

FLAGS = (
    "--headless",
    "--no-sandbox",  # as root there is none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
TIMEOUT = 60.0
"""Seconds to wait for an answer, on a busy machine too."""


def find() -> str | None:
    """The program, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One open page, and all that it has complained of or asked for."""

    def __init__(self, reads: int, writes: int) -> None:
        self._reads, self._writes, self._rest = reads, writes, b""
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self.errors: list[str] = []  # of the console: exceptions, refused content, messages
        self.requests: list[str] = []  # addresses

    def attach(self, width: int, height: int) -> None:
        """Opens an empty page of this size."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def resize(self, width: int, height: int, *, is_dark: bool = False) -> None:
        """Sets the size of the window, pixels, and the reader's choice of light or dark."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, file: Path) -> None:
        """Goes to a file and waits until its scripts have run."""
        self.errors, self.requests = [], []
        self.call("Page.navigate", url=file.resolve().as_uri())
        end = time.monotonic() + TIMEOUT
        while self.run("document.readyState") != "complete" or self.run("location.href") == "about:blank":
            if time.monotonic() > end:
                raise TimeoutError(file)
            time.sleep(0.02)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"])
        return result["result"].get("value")

    def screenshot(self, selector: str) -> np.ndarray:
        """u8[height, width, 3]: the place of the first element that the CSS selector names, as the reader sees it."""
        rectangle = self.run(
            f"(() => {{ const found = document.querySelector({json.dumps(selector)}); found.scrollIntoView(); const at = "
            "found.getBoundingClientRect(); return {x: at.x + scrollX, y: at.y + scrollY, width: at.width, height: at.height}; "
            "})()"
        )
        picture = self.call("Page.captureScreenshot", format="png", clip={**rectangle, "scale": 1})
        return pixels(base64.b64decode(picture["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a DevTools command; what comes before it is kept."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writes, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._keep(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._reads], [], [], TIMEOUT)
            part = os.read(self._reads, 1 << 20) if ready else b""
            if not part:
                raise TimeoutError("the browser does not answer")
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _keep(self, event: dict[str, Any]) -> None:
        values = event.get("params", {})
        if event.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.errors.append(json.dumps(values))
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])


@contextlib.contextmanager
def opened(*, width: int = 1280, height: int = 1000) -> Iterator[Page]:
    """A browser with an empty page, which is closed with the block."""
    program = find()
    assert program, "no browser: `find` says so before"
    from_test, to_test = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(prefix="chromium_", ignore_cleanup_errors=True) as profile:
        # The browser reads commands from descriptor 3 and writes to 4; higher numbers cannot be in their way.
        high = [os.dup2(from_test[0], 203), os.dup2(to_test[1], 204)]
        command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        shell = f'exec "$@" 3<&{high[0]} 4>&{high[1]}'
        process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *command],
            pass_fds=high,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"HOME": profile, "PATH": os.environ["PATH"]},
        )
        for descriptor in (*high, from_test[0], to_test[1]):
            os.close(descriptor)
        try:
            page = Page(to_test[0], from_test[1])
            page.attach(width, height)
            yield page
        finally:
            process.kill()
            process.wait()
            os.close(to_test[0])
            os.close(from_test[1])


def pixels(png: bytes) -> np.ndarray:
    """u8[height, width, 3] of a PNG with 8 bits a channel that is not interlaced, as browsers write them."""
    place, compressed, header = 8, b"", b""
    while place < len(png):
        (size,), kind = struct.unpack(">I", png[place : place + 4]), png[place + 4 : place + 8]
        content = png[place + 8 : place + 8 + size]
        header = content if kind == b"IHDR" else header
        compressed += content if kind == b"IDAT" else b""
        place += 12 + size
    width, height, depth, colours, *_, interlaced = struct.unpack(">IIBBBBB", header)
    assert (depth, interlaced) == (8, 0)
    channels = {2: 3, 6: 4}[colours]
    rows = np.frombuffer(zlib.decompress(compressed), np.uint8).reshape(height, 1 + width * channels)
    image = np.zeros((height, width, channels), np.uint8)
    above = [0] * (width * channels)
    for index, row in enumerate(rows):
        above = _unfiltered(int(row[0]), row[1:].tolist(), above, channels)
        image[index] = np.array(above, np.uint8).reshape(width, channels)
    return image[..., :3]


def _unfiltered(kind: int, line: list[int], above: list[int], channels: int) -> list[int]:
    """A row's bytes from its differences to the bytes at the left and above (PNG specification, 9.2)."""
    done = [0] * len(line)
    for index, value in enumerate(line):
        up = above[index]
        left, corner = (done[index - channels], above[index - channels]) if index >= channels else (0, 0)
        guess = (0, left, up, (left + up) // 2, 0)[kind]
        if kind == 4:
            distances = [(abs(up - corner), left), (abs(left - corner), up), (abs(left + up - 2 * corner), corner)]
            guess = min(distances, key=lambda pair: pair[0])[1]
        done[index] = (value + guess) % 256
    return done
