"""Prepares a data set: reads files of questions, checks every row, writes a TFDS directory with a fingerprint."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import reval_jax
from reval_jax import types
from reval_jax.data import files, formats, rows, special_tokens, writing

if TYPE_CHECKING:
    import transformers

Progress = Callable[[int, int], None]

KNOWN_MARKERS = (
    *(text for texts in (*special_tokens.MARKERS.values(), *special_tokens.STOP_TEXTS.values()) for text in texts),
    *("<think>", "</think>", "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "<start_of_turn>", "<end_of_turn>"),
)
"""Special tokens of the supported model families; no question may contain one."""


@dataclasses.dataclass(frozen=True)
class PrepareSettings:
    """Settings of `prepare` and `inspect`: how files are read, and limits."""

    format: str = "plain"  # a key of formats.FORMATS
    question: str = ""  # for plain: field with the question, "" for `question`
    answer: str = ""  # for plain: field with the gold answer, "" for `answer`
    split: str = "train"
    max_characters: int = 20_000  # of a question, and of an answer
    max_tokens: int = 0  # of a question without its template, by the model's tokenizer; 0: no limit
    # Largest fraction of the rows that may be bad; bad rows are left out. Rows that were not read can't be counted: refused.
    quarantine_fraction: float = 0.0
    seed: int = 0  # of the order of GPQA's options


class Prepared(NamedTuple):
    """The result of `prepare`."""

    directory: Path
    rows: int
    fingerprint: str
    quarantined: tuple[rows.BadRow, ...]


class BadRowsError(ValueError):
    """More rows are bad than may be left out; `bad_rows` lists all of them."""

    def __init__(self, message: str, bad_rows: list[rows.BadRow]) -> None:
        super().__init__(message)
        self.bad_rows = bad_rows


def prepare(
    inputs: list[Path],
    output: Path,
    settings: PrepareSettings,
    *,
    tokenizer: transformers.PreTrainedTokenizerBase | None = None,
    on_progress: Progress | None = None,
) -> Prepared:
    """Read files, check every row, and write the rows as the TFDS directory `output`.

    Args:
      tokenizer: questions may not contain its special tokens or have more than `settings.max_tokens` tokens.
      on_progress: called with (rows read, rows read) while files are read, then with (rows written, total rows).

    Raises:
      BadRowsError: more rows are bad than `settings.quarantine_fraction` allows; nothing was written.
      ValueError: a file can't be read, the settings contradict each other, or `output` can't be written.
    """
    _check(settings, tokenizer)
    writing.check_target(output, settings.split)
    usable, bad_rows = read(inputs, settings, tokenizer=tokenizer, on_progress=on_progress)
    _refuse_bad_rows(inputs, settings, usable, bad_rows)
    fingerprint = rows.fingerprint(usable)
    manifest = _manifest(inputs, settings, usable, fingerprint, bad_rows)
    writing.write(
        output, usable, split=settings.split, manifest=manifest, quarantined=bad_rows, on_progress=on_progress
    )
    return Prepared(output, len(usable), fingerprint, tuple(bad_rows))


def read(
    inputs: list[Path],
    settings: PrepareSettings,
    *,
    tokenizer: transformers.PreTrainedTokenizerBase | None = None,
    on_progress: Progress | None = None,
) -> tuple[list[rows.Row], list[rows.BadRow]]:
    """The usable rows of the files, and the bad rows, each in order."""
    convert, columns = formats.find(settings.format).convert, formats.find(settings.format).reads
    if settings.question or settings.answer:
        columns = (settings.question or "question", settings.answer or "answer")
        convert = formats.plain(*columns)
    special = set(KNOWN_MARKERS)
    if tokenizer is not None:
        template = "chat" if tokenizer.chat_template else "raw"
        special |= set(special_tokens.special_texts(template, tokenizer))

    def records() -> Iterator[rows.Record]:
        count = 0
        for path in inputs:
            for where, record in files.read(path, columns=columns):
                yield where, formats.converted(record, convert, settings.seed)
                count += 1
                if on_progress and count % 1000 == 0:
                    on_progress(count, count)

    def find_problem(question: str, answer: str) -> str | None:
        for field, text in (("question", question), ("answer", answer)):
            if len(text) > settings.max_characters:
                return (
                    f"'{field}' has {len(text)} characters, more than the {settings.max_characters} of --max_characters"
                )
        for marker in special:
            if marker in question:
                return f"'question' contains {marker!r}, the text of a special token"
        if tokenizer is not None and settings.max_tokens:
            length = len(tokenizer(question, add_special_tokens=False, verbose=False).input_ids)
            if length > settings.max_tokens:
                return f"'question' has {length} tokens, more than the {settings.max_tokens} of --max_tokens"
        return None

    return rows.sift(records(), find_problem=find_problem)


def _check(settings: PrepareSettings, tokenizer: transformers.PreTrainedTokenizerBase | None) -> None:
    formats.find(settings.format)
    if (settings.question or settings.answer) and settings.format != "plain":
        raise ValueError(
            f"--format {settings.format} defines its fields, but --question or --answer names others. Remove one of them."
        )
    if not 0 <= settings.quarantine_fraction < 1:
        raise ValueError(
            f"--quarantine_fraction {settings.quarantine_fraction} is not a fraction. Use a number from 0 to below 1."
        )
    if settings.max_tokens and tokenizer is None:
        raise ValueError(
            f"--max_tokens {settings.max_tokens} needs a tokenizer to count tokens. Add --model, or use --max_characters."
        )
    if settings.max_characters < 1 or settings.max_tokens < 0:
        raise ValueError("--max_characters must be at least 1, and --max_tokens at least 0.")


def _refuse_bad_rows(
    inputs: list[Path], settings: PrepareSettings, usable: list[rows.Row], bad_rows: list[rows.BadRow]
) -> None:
    """Refuse if more rows are bad than may be left out, or no row is usable."""
    source, total = ", ".join(map(str, inputs)), len(usable) + len(bad_rows)
    if not total:
        raise ValueError(f"{source}: there are no rows. Name a file with at least one.")
    unread = [bad_row.where for bad_row in bad_rows if bad_row.ends_file]
    is_allowed = len(bad_rows) <= settings.quarantine_fraction * total + 1e-9 and not unread
    if is_allowed and usable:
        return
    remedy = "No usable row is left. Name other files, or other fields."
    if unread:
        remedy = (
            f"How many rows follow {', '.join(unread[: rows.SHOWN_ROWS])} is unknown, so --quarantine_fraction can't leave them "
            "out. Mend the file there, or write it again."
        )
    elif usable:
        digits = 3
        while -(-len(bad_rows) * 10**digits // total) == 10**digits:  # rounded up to 1, which is refused
            digits += 1
        enough = f"{-(-len(bad_rows) * 10**digits // total) / 10**digits:.{digits}f}".rstrip("0")
        remedy = (
            f"That is {len(bad_rows)} of {total} rows, more than --quarantine_fraction {settings.quarantine_fraction:g} allows. "
            f"Correct or remove them, or set --quarantine_fraction {enough}."
        )
    try:
        rows.refuse(source, bad_rows, remedy)
    except ValueError as error:
        raise BadRowsError(str(error), bad_rows) from None


def _manifest(
    inputs: list[Path],
    settings: PrepareSettings,
    usable: list[rows.Row],
    fingerprint: str,
    bad_rows: list[rows.BadRow],
) -> types.Json:
    """The content of prepared.json: inputs, settings and versions to repeat the preparation, and the fingerprint to check it."""
    return {
        "fingerprint": fingerprint,
        "rows": len(usable),
        "split": settings.split,
        "quarantined": len(bad_rows),
        "settings": dataclasses.asdict(settings),
        "inputs": [{"file": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in inputs],
        "versions": {
            "reval_jax": reval_jax.__version__,
            "tensorflow_datasets": importlib.metadata.version("tensorflow-datasets"),
        },
    }
