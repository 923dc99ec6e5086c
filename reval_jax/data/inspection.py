"""Describes a data set: size, lengths, duplicates, and overlap with evaluation sets."""

from __future__ import annotations

import collections
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reval_jax import procedural, types
from reval_jax.data import files, formats, preparation, rows, tfds_directory, writing

if TYPE_CHECKING:
    import transformers

DATASET = rows.SettingNames("", "--split ")
AGAINST = rows.SettingNames("--against ", "its split ")

GRAM = 13
"""Two questions overlap if they share this many consecutive words; formulas and words of one letter are skipped."""
SHOWN = 5  # entries of a list in the findings
_QUANTILES = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
_SPACING = re.compile(r"\\(?:left|right|,|;|!|:|quad|qquad|displaystyle)(?![a-z])|[\s${}]+")
# Without formulas: "m and n are relatively prime positive integers, find m + n" ends hundreds of unrelated problems.
_WORD = re.compile(r"[^\W\d_]{2,}")


def inspect(
    dataset: str,
    settings: preparation.PrepareSettings,
    *,
    against: tuple[str, ...] = (),
    tokenizer: transformers.PreTrainedTokenizerBase | None = None,
    num_examples: int = 3,
) -> types.Json:
    """A description of a file, TFDS directory or procedural data set, as JSON values; bad rows are listed, not refused.

    Args:
      against: evaluation sets, each a file, a directory or a procedural name.
      tokenizer: adds lengths in tokens, of the question alone.
      num_examples: number of first rows to include.

    Raises:
      ValueError: a file or directory can't be read, or a prepared directory was changed later.
    """
    usable, bad_rows = _rows(dataset, settings, tokenizer)
    questions = [row.question for row in usable]
    lengths: types.Json = {
        "question_characters": _statistics(map(len, questions)),
        "answer_characters": _statistics(len(row.answer) for row in usable),
    }
    if tokenizer is not None and questions:
        encoded = tokenizer(questions, add_special_tokens=False, return_attention_mask=False, verbose=False).input_ids
        lengths["question_tokens"] = _statistics(map(len, encoded))
    return {
        "dataset": dataset,
        "rows": len(usable),
        "fingerprint": rows.fingerprint(usable),
        "lengths": lengths,
        "problems": [writing.as_json(bad_row) for bad_row in bad_rows],
        "duplicates": _duplicates(usable, bad_rows),
        "overlap": [_overlap(usable, other) for other in against],
        "examples": [
            {"where": row.where, "question": row.question, "answer": row.answer} for row in usable[:num_examples]
        ],
    }


def summary(findings: types.Json) -> str:
    """The result of `inspect` as text."""
    lines = [f"{findings['dataset']}: {findings['rows']} rows, fingerprint {findings['fingerprint']}"]
    for name, statistics in findings["lengths"].items():
        if statistics:
            figures = ", ".join(f"{key} {value:g}" for key, value in statistics.items())
            lines.append(f"  {name.replace('_', ', in ')}: {figures}")
    duplicates = findings["duplicates"]
    lines.append(f"  duplicates: {duplicates['exact']} exact, {duplicates['normalised']} more up to spacing and case")
    lines += [f"    {' = '.join(group)}" for group in duplicates["groups"]]
    for other in findings["overlap"]:
        lines.append(
            f"  shared with {other['dataset']} ({other['rows']} rows): {other['exact']} exact, {other['normalised']} more up to "
            f"spacing and case, {other['grams']} more with {GRAM} words in a row"
        )
        lines += [f"    {' ~ '.join(pair)}" for pair in other["pairs"]]
    lines.append(f"  bad rows: {len(findings['problems'])}")
    lines += [f"    {each['file']}:{each['line']}: {each['reason']}" for each in findings["problems"]]
    for example in findings["examples"]:
        lines.append(f"  {example['where']}: {_short(example['question'])} -> {_short(example['answer'])}")
    return "\n".join(lines)


def normalised(question: str) -> str:
    """The question without case, spacing, dollar signs, braces and compatibility characters, which do not change its meaning."""
    return _SPACING.sub("", unicodedata.normalize("NFKC", question).casefold())


def _rows(
    dataset: str, settings: preparation.PrepareSettings, tokenizer: transformers.PreTrainedTokenizerBase | None
) -> tuple[list[rows.Row], list[rows.BadRow]]:
    """The usable rows of a data set of any kind, and the bad rows."""
    if procedural.is_procedural(dataset):
        return rows.read(dataset), []
    if Path(os.path.expanduser(dataset)).is_dir():
        usable, bad_rows = rows.sift(rows.records(dataset, split=settings.split, names=DATASET))
        rows.check_manifest(dataset, settings.split, usable, names=DATASET)
        return usable, bad_rows
    return preparation.read([Path(os.path.expanduser(dataset))], settings, tokenizer=tokenizer)


def _questions(dataset: str) -> list[tuple[str, str]]:
    """`file:line` and text of each question of an evaluation set; its answers are not read."""
    if procedural.is_procedural(dataset):
        return [(row.where, row.question) for row in rows.read(dataset)]
    path = Path(os.path.expanduser(dataset))
    records = list(_directory_records(path) if path.is_dir() else files.read(path, columns=formats.QUESTION))
    # A row that can't be read may be one that the data set shares.
    unread = [rows.BadRow(where, record.reason) for where, record in records if isinstance(record, rows.BadRecord)]
    rows.refuse(f"--against {dataset}", unread, "Correct or remove them.")
    pairs = [(where, formats.find_question(record)) for where, record in records]
    questions = [(where, question) for where, question in pairs if question]
    if not questions:
        raise ValueError(
            f"--against {dataset} contains no question ({', '.join(formats.QUESTION)}). Name an evaluation set."
        )
    return questions


def _directory_records(path: Path) -> Iterable[rows.Record]:
    """Every split of a TFDS directory."""
    try:
        splits = tfds_directory.splits(path)
    except Exception as error:  # TFDS raises many kinds
        raise ValueError(
            f"--against {path} can't be read as a TFDS directory: {error}. Name one, or a file."
        ) from error
    for split in splits:
        yield from rows.records(str(path), split=split, names=AGAINST)


def _statistics(lengths: Iterable[int]) -> dict[str, float]:
    values = np.array(list(lengths))
    if not values.size:
        return {}
    quantiles = {name: float(np.quantile(values, share)) for name, share in _QUANTILES.items()}
    return quantiles | {"mean": round(float(values.mean()), 1)}


def _duplicates(usable: list[rows.Row], bad_rows: list[rows.BadRow]) -> types.Json:
    groups = collections.defaultdict(list)
    for row in usable:
        groups[normalised(row.question)].append(row.where)
    same = [group for group in groups.values() if len(group) > 1]
    return {
        "exact": sum(bad_row.is_duplicate for bad_row in bad_rows),
        "normalised": sum(len(group) - 1 for group in same),
        "groups": same[:SHOWN],
    }


def _overlap(usable: list[rows.Row], dataset: str) -> types.Json:
    """The number of rows that are also in an evaluation set, each counted once, by its strictest match."""
    others = _questions(dataset)
    by_text = {question: where for where, question in reversed(others)}
    by_form = {normalised(question): where for where, question in reversed(others)}
    by_gram = {gram: where for where, question in reversed(others) for gram in _grams(question)}
    counts = {"exact": 0, "normalised": 0, "grams": 0}
    pairs = []
    for row in usable:
        matches = {
            "exact": by_text.get(row.question),
            "normalised": by_form.get(normalised(row.question)),
            "grams": next((by_gram[gram] for gram in _grams(row.question) if gram in by_gram), None),
        }
        for kind, where in matches.items():
            if where is not None:
                counts[kind] += 1
                pairs.append((row.where, where))
                break
    return {"dataset": dataset, "rows": len(others), **counts, "pairs": pairs[:SHOWN]}


def _grams(question: str) -> Iterable[tuple[str, ...]]:
    words = _WORD.findall(unicodedata.normalize("NFKC", question).casefold())
    return zip(*(words[start:] for start in range(GRAM)), strict=False)


def _short(text: str, limit: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit]}…"
