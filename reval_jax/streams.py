"""Standard streams of the command: a closed or full one never ends a run, and no file takes a closed one's number."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO

OUTPUT = "standard output"


def secure(*, is_run: bool) -> None:
    """Replace streams whose failure must not end the command; call it before anything is opened or printed.

    Args:
      is_run: the command trains. What it prints on standard output is then progress and no result, so it may be lost too.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # Started without it (`2>&-`): the next file would get its number, and a library's warnings would be written into it.
            os.open(os.devnull, os.O_RDWR)
    sys.stderr = _text(_LossyFile(2, "w", closefd=False), sys.stderr)
    kind = _LossyFile if is_run or sys.stdout is None else _OutputFile
    sys.stdout = _text(kind(1, "w", closefd=False), sys.stdout)


class _LossyFile(io.FileIO):
    """A descriptor to write to; text that it does not take is lost."""

    def write(self, text: Any, /) -> int:
        try:
            written = super().write(text)
        except OSError:
            written = None
        return len(text) if written is None else written


class _OutputFile(io.FileIO):
    """Standard output; an error in writing it says so, as that of another file gives its name."""

    def write(self, text: Any, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            error.filename = OUTPUT
            raise


def _text(file: io.FileIO, like: TextIO | None) -> TextIO:
    """A text stream to the file, encoded like the stream that it replaces."""
    return io.TextIOWrapper(
        io.BufferedWriter(file),
        encoding=like.encoding if like else "utf-8",
        errors=(like.errors if like else None) or "backslashreplace",
        line_buffering=file.fileno() == 2 or file.isatty(),
    )
