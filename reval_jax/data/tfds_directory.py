"""Opens TFDS directories so that nothing they name is run.

TFDS imports the module of each class that features.json names, whatever module that is, and TensorFlow for a type of number
that NumPy does not know. A directory may come from anyone, so its files are checked before TFDS reads them: only the features
of texts and numbers below pass.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

INFO = "dataset_info.json"
"""File of a TFDS directory that names the data set."""
FEATURES = "features.json"
"""File of a TFDS directory that names the class of each field."""

_MODULE = "tensorflow_datasets.core.features."
_CONTENT = {
    f"{_MODULE}features_dict.FeaturesDict": "featuresDict",
    f"{_MODULE}sequence_feature.Sequence": "sequence",
    f"{_MODULE}text_feature.Text": "text",
    f"{_MODULE}tensor_feature.Tensor": "tensor",
    f"{_MODULE}scalar.Scalar": "tensor",
    f"{_MODULE}class_label_feature.ClassLabel": "classLabel",
}
"""The classes that may be named, and the key of what describes each."""
_ABOUT = ("description", "valueRange")  # texts that any feature may have
_NUMBERS = (
    "bool",
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    "float16",
    "float32",
    "float64",
)
_TYPES = ("string", "object", *_NUMBERS)  # that TFDS finds without TensorFlow


def opened(path: Path) -> Any:
    """The `tfds.core.DatasetBuilder` of a directory.

    Raises:
      Exception: TFDS raises many kinds for a directory that it can't read.
      ValueError: a file names a class or type other than those above, or is not JSON.
    """
    for file, is_whole in ((FEATURES, True), (INFO, False)):
        if (path / file).is_file():
            content = json.loads((path / file).read_text(encoding="utf-8"))
            described = content if is_whole else content.get("features") if isinstance(content, dict) else None
            if described is not None:
                _check(described, f"{path / file}")
    import tensorflow_datasets as tfds  # imported on demand: it takes a second, and .jsonl files do not need it

    return tfds.builder_from_directory(str(path))


def splits(path: Path) -> list[str]:
    """The names of the splits; raises what `opened` does."""
    return list(opened(path).info.splits)


def rows(path: Path, split: str, batch: int) -> Iterator[list[dict[str, Any]]]:
    """The fields of every row of a split, `batch` rows at a time; raises what TFDS does, a RuntimeError for a missing file."""
    source = opened(path).as_data_source(split)
    for start in range(0, len(source), batch):
        yield source.__getitems__(list(range(start, min(start + batch, len(source)))))


def _check(feature: Any, where: str) -> None:
    """Refuse a description of a feature that has anything but the classes, keys and types above, at any depth."""
    name = feature.get("pythonClassName") if isinstance(feature, dict) else None
    content = _CONTENT.get(name) if isinstance(name, str) else None
    if content is None or (unknown := set(feature) - {"pythonClassName", content, *_ABOUT}):
        named = f"the feature class {name!r}" if content is None else f"the key {min(unknown)!r} of a {name}"
        raise ValueError(
            f"{where} has {named}, which could run code and is not read (only {', '.join(sorted(map(_short, _CONTENT)))} of TFDS "
            "are)"
        )
    described = feature.get(content, {})
    parts = described.get("features", {}) if isinstance(described, dict) else None
    if not isinstance(parts, dict):
        raise ValueError(f"{where} has a {_short(str(name))} that is not described by an object")
    if content == "featuresDict":
        for part in parts.values():
            _check(part, where)
    elif content == "sequence":
        _check(described.get("feature"), where)
    elif content == "tensor" and described.get("dtype", "") not in _TYPES:
        raise ValueError(
            f"{where} has the type {described.get('dtype')!r}, which is not read (only {', '.join(_TYPES)} are)"
        )


def _short(name: str) -> str:
    return name.rpartition(".")[2]
