"""Files that come from elsewhere run no code: each has a canary, a module or a pickle that would leave a file behind."""

from __future__ import annotations

import io
import json
import pickle
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from support import data_files

from reval_jax import cli, data, journal, pool

TEXT = {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}}
DICTIONARY = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
SEQUENCE = "tensorflow_datasets.core.features.sequence_feature.Sequence"
EVIL = {"pythonClassName": "evilmod.Feature", "text": {}}


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that exists if the module `evilmod`, or a package named `tensorflow`, was imported."""
    mark = tmp_path / "ran"
    (tmp_path / "path").mkdir()
    for name in ("evilmod", "tensorflow"):
        (tmp_path / "path" / f"{name}.py").write_text(f"open({str(mark)!r}, 'w').close()")
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    monkeypatch.delitem(sys.modules, "evilmod", raising=False)
    return mark


class Canary:
    """Unpickling it makes the file."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return (open, (str(self._mark), "w"))


def described(**fields: Any) -> dict[str, Any]:
    """The content of features.json for these fields."""
    fields = {"question": TEXT, "answer": TEXT, "origin": TEXT} | fields
    return {"pythonClassName": DICTIONARY, "featuresDict": {"features": fields}}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    data_files.prepare(data_files.write(root / "rows.jsonl", data_files.questions(3)), root / "set")
    return root / "set"


def copied(prepared: Path, target: Path) -> Path:
    target.mkdir()
    for file in prepared.iterdir():
        if file.name != data.rows.MANIFEST:
            (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.mark.parametrize(
    ("features", "found"),
    [
        (EVIL, "the feature class 'evilmod.Feature'"),
        (described(question=EVIL), "the feature class 'evilmod.Feature'"),
        (described(question={"python_class_name": "evilmod.Feature", "text": {}}), "the feature class None"),
        (described(more={"pythonClassName": SEQUENCE, "sequence": {"feature": EVIL}}), "'evilmod.Feature'"),
        (described(more=described(inner=EVIL)), "'evilmod.Feature'"),
        ({"type": "evilmod.Feature", "content": {}}, "the feature class None"),
        (described() | {"type": "evilmod.Feature", "content": {}}, "the key 'content'"),
        (
            described(
                more={
                    "pythonClassName": SEQUENCE,
                    "jsonFeature": {"json": json.dumps({"feature": {"type": "evilmod.Feature", "content": {}}})},
                }
            ),
            "the key 'jsonFeature'",
        ),
        (
            described(
                more={
                    "pythonClassName": "tensorflow_datasets.core.features.tensor_feature.Tensor",
                    "tensor": {"dtype": "evil", "shape": {}},
                }
            ),
            "the type 'evil'",
        ),
        (described(more={"pythonClassName": "tensorflow_datasets.testing.x.Y"}), "tensorflow_datasets.testing.x.Y"),
        ([], "the feature class None"),
        ({"pythonClassName": DICTIONARY, "featuresDict": []}, "a FeaturesDict that is not described by an object"),
        ({"pythonClassName": DICTIONARY, "featuresDict": {"features": [1]}}, "not described by an object"),
    ],
)
@pytest.mark.parametrize("is_in_info", [False, True])
def test_a_tfds_directory_imports_no_module_that_it_names(
    features: Any, found: str, is_in_info: bool, prepared: Path, canary: Path, tmp_path: Path
) -> None:
    path = copied(prepared, tmp_path / "set")
    if is_in_info:
        info = json.loads((path / "dataset_info.json").read_text())
        (path / "dataset_info.json").write_text(json.dumps(info | {"features": features}))
    else:
        (path / "features.json").write_text(json.dumps(features))
    with pytest.raises(ValueError, match=f"can't be read as a TFDS directory.*{re.escape(found)}"):
        data.rows.read(str(path))
    assert cli.main(["data", "inspect", str(path)]) == 2
    rows = data_files.write(tmp_path / "rows.jsonl", data_files.questions(3))
    assert cli.main(["data", "inspect", str(rows), "--against", str(path)]) == 2
    assert not canary.exists()


def test_a_tfds_directory_runs_neither_the_module_of_its_builder_nor_python_files_beside_it(
    prepared: Path, canary: Path, tmp_path: Path
) -> None:
    path = copied(prepared, tmp_path / "set")
    info = json.loads((path / "dataset_info.json").read_text())
    (path / "dataset_info.json").write_text(json.dumps(info | {"moduleName": "evilmod"}))
    for name in ("set.py", "__init__.py", "set_dataset_builder.py", "evilmod.py"):
        (path / name).write_text((tmp_path / "path" / "evilmod.py").read_text())
    assert len(data.rows.read(str(path))) == 3
    assert not canary.exists()


def test_the_features_of_texts_and_numbers_that_tfds_writes_are_read(prepared: Path, tmp_path: Path) -> None:
    """A directory whose rows have more fields than two texts; those are described and absent from the records."""
    from tensorflow_datasets import features

    described = features.FeaturesDict(
        {
            "question": features.Text(doc="asked"),
            "answer": features.Text(),
            "origin": features.Text(),
            "level": features.Scalar(np.int32),
            "weight": features.Tensor(shape=(2,), dtype=np.float32),
            "kind": features.ClassLabel(num_classes=3),
            "more": features.Sequence({"text": features.Text(), "flag": np.bool_}),
        }
    )
    described.save_config(str(tmp_path))
    data.tfds_directory._check(json.loads((tmp_path / "features.json").read_text()), "features.json")
    assert [row.answer for row in data.rows.read(str(prepared))] == ["0", "2", "4"]


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "other"])
def test_a_missing_or_damaged_shard_is_one_message(
    damage: str, prepared: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = copied(prepared, tmp_path / "set")
    (shard,) = path.glob("*array_record*")
    if damage == "missing":
        shard.unlink()
    else:
        whole = shard.read_bytes()
        shard.write_bytes({"cut": whole[:-20], "empty": b"", "other": b"x" * len(whole)}[damage])
    assert cli.main(["data", "inspect", str(path)]) == 2
    printed = capfd.readouterr().err
    assert f"{path} with --split train can't be read as a TFDS directory" in printed
    assert "Traceback" not in printed


def test_a_parquet_file_unpickles_no_extension_type(canary: Path, tmp_path: Path) -> None:
    """Versions of pyarrow before 14.0.1 unpickled this one (CVE-2023-47248)."""
    field = pyarrow.field(
        "question",
        pyarrow.string(),
        metadata={
            "ARROW:extension:name": "arrow.py_extension_type",
            "ARROW:extension:metadata": pickle.dumps(Canary(canary)),
        },
    )
    schema = pyarrow.schema([field, pyarrow.field("answer", pyarrow.string())])
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["1"])], schema=schema)
    parquet.write_table(table, tmp_path / "rows.parquet")
    assert data_files.read(tmp_path / "rows.parquet") == ([("a", "1")], [])
    assert not canary.exists()


def pickled_array(canary: Path) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.array([Canary(canary)], object), allow_pickle=True)
    return stream.getvalue()


def test_a_pool_and_a_journal_unpickle_nothing(canary: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pool.npz", "w") as archive:
        for name in ("about", *pool.FIELDS):
            archive.writestr(f"{name}.npy", pickled_array(canary))
    with pytest.raises(ValueError, match="is damaged, or not a pool"):
        pool.load(tmp_path / "pool.npz")
    folder = tmp_path / "journal" / "round"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "000000.npz", "w") as archive:
        for name in ("prompt", "sample", "length", "is_truncated", *journal.RAGGED):
            archive.writestr(f"{name}.npy", pickled_array(canary))
    assert journal.Journal(folder.parent, "round").read(0, 1) == {}
    assert not canary.exists()


def test_a_settings_file_makes_no_objects(canary: Path, tmp_path: Path) -> None:
    settings = tmp_path / "config.yaml"
    settings.write_text(f"run: !!python/object/apply:builtins.open [{str(canary)!r}, 'w']\n")
    assert cli.main(["train", "--config", str(settings), "--run-dir", str(tmp_path / "run")]) == 2
    assert cli.main(["data", "prepare", "--config", str(settings)]) == 2
    assert not canary.exists()
