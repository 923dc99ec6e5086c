"""Reads the records of JSON-lines, JSON, parquet and CSV files, each with its file and line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from reval_jax.data import rows

ENDINGS = (".jsonl", ".json", ".parquet", ".csv")

_SPACE = " \t\r\n"


def read(path: Path) -> Iterable[rows.Record]:
    """`file:line` and the fields of every record, or a `rows.BadRecord` for one that can't be read.

    A parquet file has no lines; the number is that of the row, from 1. A `.json` file is an array of objects, or JSON lines.

    Raises:
      ValueError: the file is missing, unreadable, or of another kind.
    """
    kind = path.suffix.lower()
    if kind not in ENDINGS or not path.is_file():
        actual = "does not exist"
        if path.exists():
            actual = "is a directory" if path.is_dir() else "is a file of another kind"
        raise ValueError(f"{path} {actual}. Name a file that ends in {', '.join(ENDINGS)}.")
    if kind == ".parquet":
        return _parquet_records(path)
    if kind == ".csv":
        return _csv_records(path)
    if kind == ".json" and _bytes(path).lstrip()[:1] == b"[":
        return _json_records(path)
    return rows.jsonl_records(path)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}. Name a readable file.") from error


def _json_records(path: Path) -> Iterator[rows.Record]:
    """The elements of the file's array, parsed one by one so that the line of each is known."""
    try:
        text = _bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        line = _bytes(path)[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}:{line}: not UTF-8 ({error.reason}). Convert the file.") from error
    decoder = json.JSONDecoder()
    at = _skip_space(text, text.index("[") + 1)
    line, start = 1, 0  # of the current element; lines are counted from the start of the previous one
    while text[at : at + 1] != "]":
        line, start = line + text.count("\n", start, at), at
        try:
            record, at = decoder.raw_decode(text, at)
            at = _skip_space(text, at)
            if text[at : at + 1] not in (",", "]"):
                raise ValueError("no comma or end of the array after the element")
        except (ValueError, RecursionError) as error:
            # The start of the next element is unknown, so reading stops.
            yield f"{path}:{line}", rows.BadRecord(f"not JSON ({error}); the rest was not read")
            return
        yield f"{path}:{line}", record
        if text[at] == ",":
            at = _skip_space(text, at + 1)


def _skip_space(text: str, at: int) -> int:
    while text[at : at + 1] and text[at] in _SPACE:
        at += 1
    return at


def _parquet_records(path: Path) -> Iterator[rows.Record]:
    import pyarrow
    from pyarrow import parquet

    try:
        opened = parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} can't be read as parquet ({error}). Download or write it again.") from error
    number = 0
    try:
        for batch in opened.iter_batches(batch_size=1024):
            for index in range(batch.num_rows):
                number += 1
                try:
                    yield f"{path}:{number}", {name: batch.column(name)[index].as_py() for name in batch.schema.names}
                except (UnicodeDecodeError, pyarrow.ArrowException) as error:
                    yield f"{path}:{number}", rows.BadRecord(f"a value that can't be read ({error})")
    except (OSError, pyarrow.ArrowException) as error:
        yield f"{path}:{number + 1}", rows.BadRecord(f"damaged parquet ({error}); the rest was not read")


def _csv_records(path: Path) -> Iterator[rows.Record]:
    # Bytes that are not UTF-8 become lone surrogates, which `rows.sift` reports.
    text = _bytes(path).decode("utf-8", errors="surrogateescape")
    with io.StringIO(text, newline="") as lines:
        reader = csv.DictReader(lines)
        line = 1
        try:
            names = reader.fieldnames or []
            line = reader.line_num + 1
            for record in reader:
                if None in record or None in record.values():
                    yield (
                        f"{path}:{line}",
                        rows.BadRecord(f"the number of fields is not {len(names)}, as in the first line"),
                    )
                else:
                    yield f"{path}:{line}", dict(record)
                line = reader.line_num + 1
        except csv.Error as error:
            yield f"{path}:{line}", rows.BadRecord(f"not CSV ({error}); the rest was not read")
