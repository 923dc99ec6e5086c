"""Text and JSON output of the commands."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from reval_jax import durable, terminal


def show(json_path: Path | None, text: str, *, end: str = "\n") -> None:
    """Prints text for a person, on standard error if standard output is reserved for JSON."""
    file = sys.stderr if str(json_path) == "/dev/stdout" else sys.stdout
    print(terminal.visible(text), file=file, flush=True, end=end)


def warn(text: str) -> None:
    """Prints a message on standard error."""
    print(terminal.visible(text), file=sys.stderr)


def check_writable(path: Path | None, *, option: str = "--json") -> None:
    """Checks that the file can be written, before hours are spent on its content.

    Raises:
      ValueError: its directory does not exist or is not writable.
    """
    if path is None or path.exists():
        return
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(
            f"{option} {path} cannot be written: {path.parent} is not a writable directory. Choose another file."
        )


def write_json(path: Path | None, content: Any) -> None:
    """Writes the results of a command as JSON, if a path is given; NaN and infinities become null."""
    if path is None:
        return
    text = json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if str(path) == "/dev/stdout":
        sys.stdout.write(_encodable(text, sys.stdout.encoding))
        return
    try:
        with durable.output(path) as file:
            file.write(_encodable(text, "utf-8").encode())
    except OSError as error:
        raise ValueError(f"--json {path} cannot be written: {error.strerror}. Choose another file.") from error


def write_json_lines(path: Path, records: Iterable[Any]) -> None:
    """Writes one JSON object a line to the file of --output; NaN and infinities become null."""
    try:
        with durable.output(path) as lines:
            for record in records:
                text = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n"
                lines.write(_encodable(text, "utf-8").encode())
    except OSError as error:
        raise ValueError(f"--output {path} cannot be written: {error.strerror}. Choose another file.") from error


def _encodable(text: str, encoding: str) -> str:
    """The JSON text, with JSON's escapes in place of characters beyond ASCII if the encoding lacks one of them.

    UTF-8 lacks the lone surrogates that stand for a file name's other bytes.
    """
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return re.sub(r"[^\x00-\x7f]+", lambda found: json.dumps(found[0])[1:-1], text)
    return text


def _finite(content: Any) -> Any:
    """The same content with null in place of NaN and infinities, which JSON lacks."""
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
