"""Files of questions for tests of `data`: written in every kind of file, prepared and read back."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from reval_jax import data

Row = dict[str, Any]


def write(path: Path, rows: list[Any]) -> Path:
    """The rows as JSON lines, a JSON array with one element a line, CSV or parquet, by the file's ending."""
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    else:
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def questions(n: int, start: int = 0) -> list[Row]:
    return [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(start, start + n)]


def prepare(inputs: Path | list[Path], output: Path, **fields: Any) -> data.Prepared:
    paths = inputs if isinstance(inputs, list) else [inputs]
    return data.prepare(paths, output, data.PrepareSettings(**fields))


def read(path: Path, **fields: Any) -> tuple[list[tuple[str, str]], list[str]]:
    """Questions and answers of the usable rows, and the bad ones as LINE: REASON."""
    usable, problems = data.preparation.read([path], data.PrepareSettings(**fields))
    return [row[1:] for row in usable], [f"{each.where.rpartition(':')[2]}: {each.reason}" for each in problems]


def one(tmp_path: Path, format: str, row: Row) -> tuple[str, str] | str:
    usable, problems = read(write(tmp_path / "row.jsonl", [row]), format=format)
    return usable[0] if usable else problems[0].removeprefix("1: ")
