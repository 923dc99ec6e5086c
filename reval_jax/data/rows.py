"""Rows of a data set: read from a file, a TFDS directory or a procedural task, and checked before any is used."""

from __future__ import annotations

import collections
import hashlib
import json
import os
import reprlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from reval_jax import procedural
from reval_jax.data import tfds_directory
from reval_jax.verifier import checkers

SHOWN_ROWS = 5  # rows listed in an error message
MANIFEST = "prepared.json"
"""File that describes a directory written by `reval data prepare`."""

_BATCH = 1024  # rows of a TFDS directory read at once: eight times as fast as one by one


class Row(NamedTuple):
    """A usable row."""

    where: str  # file:line, for messages
    question: str
    answer: str


class BadRecord(NamedTuple):
    """Takes the place of a record that cannot be read or converted."""

    reason: str
    ends_file: bool = (
        False  # what follows in the file could not be read either, and nobody knows how many records it has
    )


class BadRow(NamedTuple):
    """A row that can't be used."""

    where: str  # file:line
    reason: str
    is_duplicate: bool = False  # an earlier row has the same question
    ends_file: bool = False  # the file's rest was not read


class SettingNames(NamedTuple):
    """The settings of a data set and its split, as messages name them: a prefix of the value."""

    dataset: str
    split: str


TASK = SettingNames("task.dataset=", "task.split=")
BENCHMARK = SettingNames("eval.benchmarks=", "eval.split=")

Record = tuple[
    str, Any
]  # file:line, and the parsed JSON value (a dict of fields if it is well formed) or a `BadRecord`


def read(dataset: str, *, split: str = "train", names: SettingNames = TASK) -> list[Row]:
    """The rows of a `.jsonl` file, of one split of a TFDS directory, or of a `procedural:` data set.

    Args:
      names: the settings that messages tell the user to change.

    Raises:
      ValueError: the data set is unreadable or empty, has bad rows (the message names the first), or is a directory of
        `reval data prepare` that was changed later. A row is bad if a field is missing, empty, not text, or contains a NUL
        or lone surrogate, or if an earlier row has the same question.
    """
    if procedural.is_procedural(dataset):
        pairs = procedural.rows(dataset)
        return [Row(f"{dataset}:{number}", *pair) for number, pair in enumerate(pairs, start=1)]
    rows, bad_rows = sift(records(dataset, split=split, names=names))
    refuse(f"{names.dataset}{dataset}", bad_rows, "Correct or remove them.")
    if not rows:
        raise ValueError(f"{names.dataset}{dataset} has no rows. Add at least one.")
    check_manifest(dataset, split, rows, names=names)
    return rows


def label(dataset: str) -> str:
    """A short name for metrics: a file name without its ending, the name in a TFDS directory, or a procedural label."""
    path = Path(os.path.expanduser(dataset))
    if procedural.is_procedural(dataset):
        return procedural.label(dataset)
    if path.is_dir():
        try:
            return str(json.loads((path / tfds_directory.INFO).read_text(encoding="utf-8"))["name"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # absent, or damaged, which `read` refuses
            return path.resolve().name
    return path.stem


def only_split(dataset: str) -> str:
    """The split of a TFDS directory that has exactly one; "" for every other data set."""
    try:
        splits = [
            str(split["name"])
            for split in json.loads((Path(os.path.expanduser(dataset)) / tfds_directory.INFO).read_text("utf-8"))[
                "splits"
            ]
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # none, or a damaged one, which `read` refuses
        return ""
    return splits[0] if len(splits) == 1 else ""


def records(dataset: str, *, split: str, names: SettingNames = TASK) -> Iterable[Record]:
    """The unchecked records of a `.jsonl` file or of one split of a TFDS directory."""
    path = Path(os.path.expanduser(dataset))
    if path.is_dir():
        return _tfds_records(path, split, names)
    if path.suffix == ".jsonl" and path.is_file():
        return jsonl_records(path)
    actual = "is a file of another kind" if path.exists() else "does not exist"
    raise ValueError(
        f"{names.dataset}{dataset} {actual}. Name a .jsonl file or a TFDS directory, for "
        'example a .jsonl file with lines like {"question": "2+2=", "answer": "4"}; `reval data prepare` converts '
        "other files to a directory."
    )


def sift(
    records: Iterable[Record], *, find_problem: Callable[[str, str], str | None] = lambda question, answer: None
) -> tuple[list[Row], list[BadRow]]:
    """The usable rows and the others, each in order; of rows with the same question only the first is usable.

    Args:
      find_problem: a further check, (question, answer) -> reason or None, for rows that pass the others.
    """
    rows: list[Row] = []
    bad_rows: list[BadRow] = []
    places: dict[str, str] = {}  # file:line of each usable question
    for where, record in records:
        if reason := _reason(record):
            ends_file = isinstance(record, BadRecord) and record.ends_file
            bad_rows.append(BadRow(where, reason, ends_file=ends_file))
            continue
        row = Row(where, record["question"], record["answer"])
        if row.question in places:
            bad_rows.append(BadRow(where, f"the same question as {places[row.question]}", is_duplicate=True))
        elif reason := find_problem(row.question, row.answer):
            bad_rows.append(BadRow(where, reason))
        else:
            places[row.question] = where
            rows.append(row)
    return rows, bad_rows


def fingerprint(rows: Iterable[Row]) -> str:
    """16 hex digits of every question and answer, in order."""
    digest = hashlib.sha256()
    for row in rows:
        for part in (row.question.encode(), row.answer.encode()):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]


def refuse(source: str, bad_rows: list[BadRow], remedy: str) -> None:
    """Raise one ValueError that names `source` and the first bad rows, if there are any."""
    if bad_rows:
        more = f"; and {len(bad_rows) - SHOWN_ROWS} more" if len(bad_rows) > SHOWN_ROWS else ""
        rows = f"{len(bad_rows)} row{'s' * (len(bad_rows) > 1)}"
        shown = "; ".join(f"{bad_row.where}: {bad_row.reason}" for bad_row in bad_rows[:SHOWN_ROWS])
        raise ValueError(f"{source}: {rows} can't be used: {shown}{more}. {remedy}")


def jsonl_records(path: Path) -> Iterator[Record]:
    """`file:line` and the parsed value, or a `BadRecord`, of every line that is not blank."""
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}. Name a readable file.") from error
    yield from parsed_lines(path, lines)


def parsed_lines(path: Path, lines: Iterable[bytes]) -> Iterator[Record]:
    """`jsonl_records` of the lines of a file that has been read."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield f"{path}:{number}", parse_json(line.decode("utf-8"))[0]
            except (ValueError, RecursionError) as error:  # reported with the other bad rows
                yield f"{path}:{number}", BadRecord(f"not JSON ({error})")


def parse_json(text: str, start: int | None = None) -> tuple[Any, int]:
    """The JSON value of the text, or the one that begins at `start`, and the index after it.

    A value with a key that stands twice is a `BadRecord`: Python would take the last, other readers the first.

    Raises:
      ValueError, RecursionError: the text is not JSON.
    """
    doubled: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(items)
        if len(fields) < len(items):
            doubled.extend(find_doubled(name for name, _ in items))
        return fields

    decoder = json.JSONDecoder(object_pairs_hook=pairs)
    value, end = (decoder.decode(text), len(text)) if start is None else decoder.raw_decode(text, start)
    return (BadRecord(f"the key {reprlib.repr(doubled[0])} stands twice") if doubled else value), end


def find_doubled(names: Iterable[str]) -> list[str]:
    """The names that stand more than once, each once."""
    return [name for name, count in collections.Counter(names).items() if count > 1]


def is_text(text: str) -> bool:
    """Whether the text has no NUL and no lone surrogate, which some libraries can't write or tokenize."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _tfds_records(path: Path, split: str, names: SettingNames) -> Iterator[Record]:
    """`directory[split]:index` and the fields, with texts decoded, of every row."""
    index = 0
    try:
        for batch in tfds_directory.rows(path, split, _BATCH):
            for values in batch:
                yield f"{path}[{split}]:{index}", {field: _decoded(value) for field, value in values.items()}
                index += 1
    except Exception as error:  # TFDS raises many kinds for a directory, split or file that it can't read
        behind = f" behind row {index}" if index else ""
        raise ValueError(
            f"{names.dataset}{path} with {names.split}{split} can't be read as a TFDS directory{behind}: {error}. Name a whole "
            "version directory (it contains dataset_info.json) written with file_format='array_record', and one of its splits."
        ) from error


def _decoded(value: Any) -> Any:
    """The value with bytes decoded, since TFDS returns text as bytes; bytes that are not UTF-8 stay, and make a bad row."""
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


def _reason(record: Any) -> str | None:
    """The reason why a record is not a usable row; None if it is usable."""
    if isinstance(record, BadRecord):
        return record.reason
    if not isinstance(record, dict):
        return f"a {type(record).__name__}, not an object with 'question' and 'answer'"
    for field in ("question", "answer"):
        if field not in record:
            return f"no field '{field}' ({field_names(record)})"
        value = record[field]
        if not isinstance(value, str):
            return f"'{field}' is a {type(value).__name__}, not a string: {reprlib.repr(value)}"
        if not value.strip():
            return f"'{field}' is empty"
        if not is_text(value):
            return f"'{field}' contains a {'NUL character' if chr(0) in value else 'lone surrogate, which is not text'}"
    if checkers.parse_gold(record["answer"]):
        return f"'answer' begins like a checker's ({record['answer'][:20]}), which only procedural data sets may have"
    return None


def field_names(record: dict[Any, Any]) -> str:
    """The names of a record's fields, for messages."""
    return f"fields: {', '.join(reprlib.repr(field) for field in list(record)[:12]) or 'none'}"


def check_manifest(dataset: str, split: str, rows: list[Row], *, names: SettingNames = TASK) -> None:
    """Refuse a directory of `reval data prepare` that was changed later.

    Raises:
      ValueError: the fingerprint of its rows differs from its manifest's, or the manifest can't be read.
    """
    path = Path(os.path.expanduser(dataset))
    if not (path / MANIFEST).is_file():
        return
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        expected = manifest["fingerprint"] if manifest["split"] == split else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path / MANIFEST} can't be read ({error}), so the rows can't be checked. Prepare it again."
        ) from error
    if expected not in (None, fingerprint(rows)):
        raise ValueError(
            f"{names.dataset}{path}: its rows have the fingerprint {fingerprint(rows)}, but {MANIFEST} says {expected}: files "
            "were changed after `reval data prepare`. Prepare the data set again."
        )
