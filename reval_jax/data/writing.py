"""Writes checked rows as a TFDS array_record directory, complete or not at all."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from reval_jax import types
from reval_jax.data import rows as rows_lib

QUARANTINE = "quarantine.jsonl"
"""File of a prepared directory that lists the bad rows."""
VERSION = "1.0.0"


def check_target(output: Path, split: str) -> None:
    """Refuse an output that exists and is not empty, and a split name that TFDS does not allow.

    Raises:
      ValueError: one of the two.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {output} exists and is not empty. Name a new directory, or remove that one first.")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", split) or split == "all":
        raise ValueError(f"--split {split!r} can't name a split. Use small letters, digits and _, for example train.")


def write(
    output: Path,
    rows: list[rows_lib.Row],
    *,
    split: str,
    manifest: types.Json,
    quarantined: Iterable[rows_lib.BadRow] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the rows as the data set `output`, in order; the directory appears complete or not at all.

    Raises:
      ValueError: the directory can't be written.
    """
    working = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # Next to the target, so that the last step is a rename within one file system.
        working = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
        written = _write_tfds(working, dataset_name(output), rows, split, on_progress)
        (written / rows_lib.MANIFEST).write_text(
            json.dumps(manifest, indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )
        if lines := [json.dumps(as_json(bad_row), allow_nan=False) + "\n" for bad_row in quarantined]:
            (written / QUARANTINE).write_text("".join(lines), encoding="utf-8")
        os.rename(written, output)
    except OSError as error:
        raise ValueError(f"--output {output} can't be written: {error.strerror}. Choose another directory.") from error
    finally:
        if working:
            shutil.rmtree(working, ignore_errors=True)


def as_json(bad_row: rows_lib.BadRow) -> types.Json:
    """A bad row as `file`, `line` and `reason`."""
    file, _, line = bad_row.where.rpartition(":")
    return {"file": file, "line": int(line), "reason": bad_row.reason}


def dataset_name(output: Path) -> str:
    """The directory's name, reduced to the characters that TFDS allows; a benchmark's metrics have it."""
    name = re.sub(r"[^a-z0-9]+", "_", output.resolve().name.lower()).strip("_")
    return name if name[:1].isalpha() else f"data_{name}".rstrip("_")


def _write_tfds(
    parent: Path, name: str, rows: list[rows_lib.Row], split: str, on_progress: Callable[[int, int], None] | None
) -> Path:
    """Write the rows as a TFDS data set below `parent`; returns its directory."""
    import tensorflow_datasets as tfds  # imported on demand: it takes a second

    def examples() -> Iterator[tuple[int, dict[str, str]]]:
        for index, row in enumerate(rows):
            # Unique numbers as keys: TFDS would import TensorFlow to report equal ones.
            yield index, {"question": row.question, "answer": row.answer, "origin": row.where}
            if on_progress and (index % 1000 == 0 or index == len(rows) - 1):
                on_progress(index + 1, len(rows))

    def info(builder: Any) -> Any:
        text = tfds.features.Text()
        features = tfds.features.FeaturesDict(dict.fromkeys(("question", "answer", "origin"), text))
        return tfds.core.DatasetInfo(builder=builder, features=features, disable_shuffling=True)

    # A class statement at module level would import TFDS with this module. The class stays out of TFDS's registry of builders.
    with tfds.core.registered.skip_registration():
        builder = type(
            "Prepared",
            (tfds.core.GeneratorBasedBuilder,),
            {
                "__module__": __name__,
                "name": name,
                "VERSION": tfds.core.Version(VERSION),
                "_info": info,
                "_split_generators": lambda self, downloads: {split: examples()},
                "_generate_examples": None,  # required by TFDS, but unused: _split_generators returns the examples
                "url_infos": None,  # nothing is downloaded; without this TFDS looks for a checksum file next to this module
            },
        )
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints to stdout, which `--json /dev/stdout` may use
        builder(data_dir=str(parent), file_format="array_record").download_and_prepare()
    return parent / name / VERSION
