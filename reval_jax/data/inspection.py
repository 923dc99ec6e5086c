"""What is in a data set: its size, lengths, repetitions, and what it shares with evaluation sets."""

from __future__ import annotations

import collections
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reval_jax import procedural
from reval_jax.data import files, formats, preparation, rows, writing

if TYPE_CHECKING:
    import transformers

DATASET = rows.Named("", "--split ")
"""What messages about the inspected data set name."""
AGAINST = rows.Named("--against ", "its split ")

GRAM = 13
"""Words of two letters or more in a row, formulas left out, that two questions must share to be called overlapping."""
SHOWN = 5  # pairs a list shows
_QUANTILES = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
_SPACING = re.compile(r"\\(?:left|right|,|;|!|:|quad|qquad|displaystyle)(?![a-z])|[\s${}]+")
# Formulas left out: "m and n are relatively prime positive integers, find m + n" ends hundreds of unrelated problems.
_WORD = re.compile(r"[^\W\d_]{2,}")


def inspect(
    dataset: str,
    settings: preparation.Settings,
    *,
    against: tuple[str, ...] = (),
    tokenizer: transformers.PreTrainedTokenizerBase | None = None,
    num_examples: int = 3,
) -> dict[str, Any]:
    """Findings about a file, a TFDS directory or a procedural data set, ready for JSON; bad rows are listed, not refused.

    Args:
      against: evaluation sets, each a file, a directory or a procedural name.
      tokenizer: adds lengths in tokens, of the question alone.

    Raises:
      ValueError: a file or directory can't be read, or a prepared directory's rows are not the ones that were written.
    """
    found, problems = _rows(dataset, settings, tokenizer)
    questions = [row.question for row in found]
    lengths: dict[str, Any] = {
        "question_characters": _summary(map(len, questions)),
        "answer_characters": _summary(len(row.answer) for row in found),
    }
    if tokenizer is not None and questions:
        encoded = tokenizer(questions, add_special_tokens=False, return_attention_mask=False, verbose=False).input_ids
        lengths["question_tokens"] = _summary(map(len, encoded))
    return {
        "dataset": dataset,
        "rows": len(found),
        "fingerprint": rows.fingerprint(found),
        "lengths": lengths,
        "problems": [writing.as_json(problem) for problem in problems],
        "duplicates": _duplicates(found, problems),
        "overlap": [_overlap(found, other) for other in against],
        "examples": [
            {"where": row.where, "question": row.question, "answer": row.answer} for row in found[:num_examples]
        ],
    }


def sentences(findings: dict[str, Any]) -> str:
    """The findings for a person."""
    lines = [f"{findings['dataset']}: {findings['rows']} rows, fingerprint {findings['fingerprint']}"]
    for name, summary in findings["lengths"].items():
        if summary:
            figures = ", ".join(f"{key} {value:g}" for key, value in summary.items())
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
    """The question without what does not change its meaning: case, spacing, dollar signs, braces, forms of characters."""
    return _SPACING.sub("", unicodedata.normalize("NFKC", question).casefold())


def _rows(dataset: str, settings: preparation.Settings, tokenizer: Any) -> tuple[list[rows.Row], list[rows.Problem]]:
    if procedural.is_procedural(dataset):
        return rows.read(dataset), []
    if Path(dataset).is_dir():
        found, problems = rows.sift(rows.records(dataset, split=settings.split, named=DATASET))
        rows.check_manifest(dataset, settings.split, found, named=DATASET)
        return found, problems
    return preparation.read([Path(dataset)], settings, tokenizer=tokenizer)


def _questions(dataset: str) -> list[tuple[str, str]]:
    """Where each question of an evaluation set stands, and its text; its answers do not matter here."""
    if procedural.is_procedural(dataset):
        return [(row.where, row.question) for row in rows.read(dataset)]
    path = Path(dataset)
    records = _directory_records(path) if path.is_dir() else files.read(path)
    found = [(where, formats.question_of(record)) for where, record in records]
    questions = [(where, question) for where, question in found if question]
    if not questions:
        raise ValueError(
            f"--against {dataset} holds no question ({', '.join(formats.QUESTION)}). Name an evaluation set."
        )
    return questions


def _directory_records(path: Path) -> Iterable[rows.Record]:
    """Every split of a TFDS directory."""
    import tensorflow_datasets as tfds

    try:
        splits = list(tfds.builder_from_directory(str(path)).info.splits)
    except Exception as error:  # TFDS raises many kinds
        raise ValueError(
            f"--against {path} can't be read as a TFDS directory: {error}. Name one, or a file."
        ) from error
    for split in splits:
        yield from rows.records(str(path), split=split, named=AGAINST)


def _summary(lengths: Iterable[int]) -> dict[str, float]:
    values = np.array(list(lengths))
    if not values.size:
        return {}
    quantiles = {name: float(np.quantile(values, share)) for name, share in _QUANTILES.items()}
    return quantiles | {"mean": round(float(values.mean()), 1)}


def _duplicates(found: list[rows.Row], problems: list[rows.Problem]) -> dict[str, Any]:
    groups = collections.defaultdict(list)
    for row in found:
        groups[normalised(row.question)].append(row.where)
    same = [group for group in groups.values() if len(group) > 1]
    return {
        "exact": sum(problem.reason.startswith("the same question as ") for problem in problems),
        "normalised": sum(len(group) - 1 for group in same),
        "groups": same[:SHOWN],
    }


def _overlap(found: list[rows.Row], dataset: str) -> dict[str, Any]:
    """How many rows stand in an evaluation set too, each counted once, by the strictest way it does."""
    others = _questions(dataset)
    by_text = {question: where for where, question in reversed(others)}
    by_form = {normalised(question): where for where, question in reversed(others)}
    by_gram = {gram: where for where, question in reversed(others) for gram in _grams(question)}
    counts = {"exact": 0, "normalised": 0, "grams": 0}
    pairs = []
    for row in found:
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
