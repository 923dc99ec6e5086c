"""Rows of a data set, read from where it lies and checked before any is used."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from reval_jax import procedural
from reval_jax.verifier import checkers

SHOWN_PROBLEMS = 5  # rows an error message names
MANIFEST = "prepared.json"
"""File of a directory written by `reval data prepare` that says what is in it."""
INFO = "dataset_info.json"
"""File of a TFDS directory that names the data set."""

_BATCH = 1024  # rows of a TFDS directory read at once: eight times as fast as one by one


class Row(NamedTuple):
    """A usable row."""

    where: str  # file:line, for messages
    question: str
    answer: str


class Bad(NamedTuple):
    """What stands in for a record that could not be read."""

    reason: str


class Problem(NamedTuple):
    """A row that can't be used."""

    where: str  # file:line
    reason: str


class Named(NamedTuple):
    """What messages call a data set and its split, each written before the value."""

    dataset: str
    split: str


TASK = Named("task.dataset=", "task.split=")
BENCHMARK = Named("eval.benchmarks=", "eval.split=")

Record = tuple[str, Any]  # where it stands, and what was read: a dict of fields, or `Bad`


def read(dataset: str, *, split: str = "train", named: Named = TASK) -> list[Row]:
    """The rows of a `.jsonl` file, of one split of a TFDS directory, or of a `procedural:` data set.

    Args:
      named: the settings that messages tell the user to change.

    Raises:
      ValueError: unreadable, empty, or naming the first bad rows: a missing, empty or non-text field, a NUL or lone
        surrogate in it, a question that stands twice. A directory of `reval data prepare` whose rows are not the ones
        that were written.
    """
    if procedural.is_procedural(dataset):
        made = procedural.rows(dataset)
        return [Row(f"{dataset}:{number}", *row) for number, row in enumerate(made, start=1)]
    rows, problems = sift(records(dataset, split=split, named=named))
    refuse(f"{named.dataset}{dataset}", problems, "Mend or remove them.")
    if not rows:
        raise ValueError(f"{named.dataset}{dataset} has no rows, so there is nothing to ask. Add at least one.")
    check_manifest(dataset, split, rows, named=named)
    return rows


def name(dataset: str) -> str:
    """A short name for metrics: a file's without its ending, a TFDS directory's own, a procedural data set's label."""
    path = Path(dataset)
    if procedural.is_procedural(dataset):
        return procedural.label(dataset)
    if path.is_dir():
        info = path / INFO
        return str(json.loads(info.read_text(encoding="utf-8"))["name"]) if info.is_file() else path.resolve().name
    return path.stem


def only_split(dataset: str) -> str:
    """The split of a TFDS directory that has exactly one; "" for every other data set."""
    try:
        splits = [str(split["name"]) for split in json.loads((Path(dataset) / INFO).read_text("utf-8"))["splits"]]
    except (OSError, ValueError, KeyError, TypeError):  # no directory, or a damaged one: reading it says so
        return ""
    return splits[0] if len(splits) == 1 else ""


def records(dataset: str, *, split: str, named: Named = TASK) -> Iterable[Record]:
    """The unchecked records of a `.jsonl` file or of one split of a TFDS directory."""
    path = Path(dataset)
    if path.is_dir():
        return _tfds_records(path, split, named)
    if path.suffix == ".jsonl" and path.is_file():
        return jsonl_records(path)
    found = "a file of another kind" if path.exists() else "nothing there"
    raise ValueError(
        f"{named.dataset}{dataset} is {found}, not a .jsonl file or a TFDS directory. Name an existing one, for "
        'example a .jsonl file with lines like {"question": "2+2=", "answer": "4"}; `reval data prepare` makes a '
        "directory out of other files."
    )


def sift(
    records: Iterable[Record], *, find_problem: Callable[[str, str], str | None] = lambda question, answer: None
) -> tuple[list[Row], list[Problem]]:
    """The usable rows and the others, each in order; of two rows with one question the first is usable.

    Args:
      find_problem: (question, answer) of a row that is otherwise usable -> what is wrong with it, None for nothing.
    """
    rows: list[Row] = []
    problems: list[Problem] = []
    first_seen: dict[str, str] = {}
    for where, record in records:
        reason = _problem(record, first_seen) or find_problem(record["question"], record["answer"])
        if reason:
            problems.append(Problem(where, reason))
            continue
        row = Row(where, record["question"], record["answer"])
        first_seen[row.question] = where
        rows.append(row)
    return rows, problems


def fingerprint(rows: Iterable[Row]) -> str:
    """16 hex digits of every question and answer, in order."""
    digest = hashlib.sha256()
    for row in rows:
        for part in (row.question.encode(), row.answer.encode()):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]


def refuse(what: str, problems: list[Problem], remedy: str) -> None:
    """Raise one ValueError that names the first problems, if there are any."""
    if problems:
        more = f"; and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        rows = f"{len(problems)} row{'s' * (len(problems) > 1)}"
        shown = "; ".join(f"{problem.where}: {problem.reason}" for problem in problems[:SHOWN_PROBLEMS])
        raise ValueError(f"{what}: {rows} can't be used: {shown}{more}. {remedy}")


def jsonl_records(path: Path) -> Iterator[Record]:
    """`file:line` and the parsed line, or why it can't be parsed, of every line that is not blank."""
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}. Name a readable file.") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield f"{path}:{number}", json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:  # reported with the other bad rows
                yield f"{path}:{number}", Bad(f"not JSON ({error})")


def is_text(text: str) -> bool:
    """Whether the text holds no NUL and no lone surrogate: neither can be written, sent or tokenized everywhere."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _tfds_records(path: Path, split: str, named: Named) -> Iterator[Record]:
    """`directory[split]:index` and the row, its texts decoded, of every row."""
    import tensorflow_datasets as tfds  # imported where it is used: it costs a second that a .jsonl run need not pay

    try:
        source = tfds.builder_from_directory(str(path)).as_data_source(split)
        size = len(source)
    except Exception as error:  # TFDS raises many kinds; each means that this directory can't be read as asked
        raise ValueError(
            f"{named.dataset}{path} with {named.split}{split} can't be read as a TFDS directory: {error}. Name a version "
            "directory (it holds dataset_info.json) written with file_format='array_record', and one of its splits."
        ) from error
    for start in range(0, size, _BATCH):
        indices = range(start, min(start + _BATCH, size))
        for index, values in zip(indices, source.__getitems__(list(indices)), strict=True):
            yield f"{path}[{split}]:{index}", {field: _decoded(value) for field, value in values.items()}


def _decoded(value: Any) -> Any:
    """TFDS gives text as bytes; bytes that are no UTF-8 stay, and are reported with the other bad rows."""
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


def _problem(record: Any, first_seen: dict[str, str]) -> str | None:
    """What is wrong with one record, None for nothing."""
    if isinstance(record, Bad):
        return record.reason
    if not isinstance(record, dict):
        return f"a {type(record).__name__}, not an object with 'question' and 'answer'"
    for field in ("question", "answer"):
        if field not in record:
            return f"no field '{field}' ({found_fields(record)})"
        value = record[field]
        if not isinstance(value, str):
            return f"'{field}' is a {type(value).__name__}, not a string: {reprlib.repr(value)}"
        if not value.strip():
            return f"'{field}' is empty"
        if not is_text(value):
            return f"'{field}' contains a {'NUL character' if chr(0) in value else 'lone surrogate, which is not text'}"
    if checkers.checked(record["answer"]):
        return f"'answer' begins as a checker's does ({record['answer'][:20]}), which only procedural data sets may use"
    if record["question"] in first_seen:
        return f"the same question as {first_seen[record['question']]}"
    return None


def found_fields(record: dict[Any, Any]) -> str:
    """The names of a record's fields, for messages."""
    return f"found {', '.join(reprlib.repr(field) for field in list(record)[:12]) or 'none'}"


def check_manifest(dataset: str, split: str, rows: list[Row], *, named: Named = TASK) -> None:
    """Refuse a directory of `reval data prepare` that does not hold what was written.

    Raises:
      ValueError: its rows are others, or what it says of them can't be read.
    """
    path = Path(dataset)
    if not (path / MANIFEST).is_file():
        return
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        expected = manifest["fingerprint"] if manifest["split"] == split else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path / MANIFEST} can't be read ({error}), so the rows can't be checked. Prepare it anew."
        ) from error
    if expected not in (None, fingerprint(rows)):
        raise ValueError(
            f"{named.dataset}{path}: its rows have the fingerprint {fingerprint(rows)}, but {MANIFEST} says {expected}: files "
            "were changed after `reval data prepare`. Prepare the data set anew."
        )
