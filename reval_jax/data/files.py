"""Reads the records of JSON-lines, JSON, parquet and CSV files, each with its file and line."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reval_jax.data import rows

if TYPE_CHECKING:
    import pyarrow

ENDINGS = (".jsonl", ".json", ".parquet", ".csv")

_SPACE = " \t\r\n"


def read(path: Path, *, columns: Collection[str] | None = None) -> Iterable[rows.Record]:
    """`file:line` and the fields of every record, or a `rows.BadRecord` for one that can't be read.

    A parquet file has no lines; the number is that of the row, from 1. A `.json` file is an array of objects, or JSON lines.

    Args:
      columns: the columns of a parquet file to read, those that it has; the values of the others are None. By default, all.

    Raises:
      ValueError: the file is missing, unreadable, or of another kind, or two of its columns have one name.
    """
    kind = path.suffix.lower()
    if kind not in ENDINGS or not path.is_file():
        actual = "does not exist"
        if path.exists():
            actual = "is a directory" if path.is_dir() else "is a file of another kind"
        raise ValueError(f"{path} {actual}. Name a file that ends in {', '.join(ENDINGS)}.")
    if kind == ".parquet":
        return _parquet_records(path, columns)
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
    at = _skip_space(text, text.index("[") + 1)
    line, start = 1, 0  # of the current element; lines are counted from the start of the previous one
    while text[at : at + 1] != "]":
        line, start = line + text.count("\n", start, at), at
        try:
            record, at = rows.parse_json(text, at)
            at = _skip_space(text, at)
            if text[at : at + 1] not in (",", "]"):
                raise ValueError("no comma or end of the array after the element")
        except (ValueError, RecursionError) as error:
            # The start of the next element is unknown, so reading stops.
            yield f"{path}:{line}", rows.BadRecord(f"not JSON ({error}); the rest was not read", ends_file=True)
            return
        yield f"{path}:{line}", record
        if text[at] == ",":
            at = _skip_space(text, at + 1)
    if (behind := _skip_space(text, at + 1)) < len(text):
        line += text.count("\n", start, behind)
        reason = "text behind the ] that ends the array; it was not read"
        yield f"{path}:{line}", rows.BadRecord(reason, ends_file=True)


def _skip_space(text: str, at: int) -> int:
    while text[at : at + 1] and text[at] in _SPACE:
        at += 1
    return at


def _parquet_records(path: Path, columns: Collection[str] | None) -> Iterator[rows.Record]:
    import pyarrow
    from pyarrow import parquet

    try:
        opened = parquet.ParquetFile(path)
        names = opened.schema_arrow.names
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} can't be read as parquet ({error}). Download or write it again.") from error
    _refuse_doubled(str(path), names)
    number = 0
    try:
        # A column that nothing uses may have a type that can't be read, so it is not touched.
        wanted = [name for name in names if columns is None or name in columns]
        for batch in opened.iter_batches(batch_size=1024, columns=wanted):
            for index in range(batch.num_rows):
                number += 1
                yield f"{path}:{number}", _parquet_record(batch, index, names)
    except (OSError, pyarrow.ArrowException) as error:
        reason = f"damaged parquet ({error}); the rest was not read"
        yield f"{path}:{number + 1}", rows.BadRecord(reason, ends_file=True)


def _parquet_record(batch: pyarrow.RecordBatch, index: int, names: list[str]) -> dict[str, Any] | rows.BadRecord:
    """The fields of one row; those that were not read are None."""
    fields = dict.fromkeys(names)
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            fields[name] = _shortest(column[index].as_py(), column.type)
        except Exception as error:  # pyarrow raises many kinds: ValueError, OverflowError, KeyError, UnicodeDecodeError
            return rows.BadRecord(f"the value of '{name}', a {column.type}, can't be read ({error})")
    return fields


def _shortest(value: Any, kind: pyarrow.DataType) -> Any:
    """The value with numbers of half and single precision as the shortest decimal that means them: 0.1, not 0.10000000149."""
    from pyarrow import types

    if value is None:
        return None
    if types.is_float16(kind) or types.is_float32(kind):
        return float(str(kind.to_pandas_dtype()(value)))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return [_shortest(each, kind.value_type) for each in value]
    if types.is_dictionary(kind):
        return _shortest(value, kind.value_type)
    return value


def _csv_records(path: Path) -> Iterator[rows.Record]:
    # Bytes that are not UTF-8 become lone surrogates, which `rows.sift` reports.
    text = _bytes(path).decode("utf-8", errors="surrogateescape")
    # The limit holds for the whole process. A field may be as long as the file; `--max_characters` bounds what is used.
    limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))
    try:
        with io.StringIO(text, newline="") as lines:
            yield from _csv_rows(path, lines)
    finally:
        csv.field_size_limit(limit)


def _csv_rows(path: Path, lines: io.StringIO) -> Iterator[rows.Record]:
    # Not strict, a quote that is never closed would make the rest of the file one field.
    reader = csv.DictReader(lines, strict=True)
    line = 1
    try:
        names = list(reader.fieldnames or [])
        _refuse_doubled(f"{path}:1", names)
        line = reader.line_num + 1
        for record in reader:
            if None in record or None in record.values():
                reason = f"the number of fields is not {len(names)}, as in the first line"
                yield f"{path}:{line}", rows.BadRecord(reason)
            else:
                yield f"{path}:{line}", dict(record)
            line = reader.line_num + 1
    except csv.Error as error:
        reason = f"not CSV ({error}: a quote that is not closed?); the rest was not read"
        yield f"{path}:{line}", rows.BadRecord(reason, ends_file=True)


def _refuse_doubled(where: str, names: Iterable[str]) -> None:
    """Refuse two columns of one name; columns without a name are never used."""
    if doubled := rows.find_doubled(name for name in names if name):
        raise ValueError(f"{where}: two columns are named '{doubled[0]}', so which one counts is unknown. Rename one.")
