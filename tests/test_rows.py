"""Rows of a data set: messages name every bad row by line, and the settings to change."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from support import prompt_sets

from reval_jax import prompts
from reval_jax.data import rows, tfds_directory


@pytest.fixture(scope="module")
def chatml() -> transformers.PreTrainedTokenizerFast:
    return prompt_sets.chatml_tokenizer()


# The rows


def test_every_kind_of_bad_row_is_named_by_line_in_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "SHOWN_ROWS", 20)
    good = {"question": "2+2=", "answer": "4", "source": "extra fields are ignored"}
    bad = [
        ({"question": "x"}, "no field 'answer'"),
        ({"answer": "4"}, "no field 'question'"),
        ({"question": "x", "answer": 4}, "'answer' is a int, not a string: 4"),
        ({"question": ["x"], "answer": "4"}, "'question' is a list"),
        ({"question": None, "answer": "4"}, "'question' is a NoneType"),
        ({"question": " \n", "answer": "4"}, "'question' is empty"),
        ({"question": "x", "answer": ""}, "'answer' is empty"),
        ({"question": "a\0b", "answer": "4"}, "'question' contains a NUL"),
        ('{"question": "a\\ud800b", "answer": "4"}', "'question' contains a lone surrogate"),
        ("[1, 2]", "a list, not an object"),
        ("{'question': 1}", "not JSON"),
        ("9" * 5000, "not JSON"),
        ("[" * 100_000, "not JSON"),
        (good, "the same question as "),
    ]
    path = prompt_sets.write(tmp_path / "rows.jsonl", [good, "", *(row for row, _ in bad)])
    with pytest.raises(ValueError, match=f"{len(bad)} rows can't be used") as raised:
        rows.read(path)
    for line, (_, problem) in enumerate(bad, start=3):
        assert f"rows.jsonl:{line}: {problem}" in str(raised.value)
    assert str(raised.value).endswith("Correct or remove them.")


def test_only_the_first_bad_rows_are_listed(tmp_path: Path) -> None:
    path = prompt_sets.write(tmp_path / "rows.jsonl", ["{}"] * 1000)
    with pytest.raises(ValueError, match=r"1000 rows .*rows\.jsonl:5: [^;]*; and 995 more") as raised:
        rows.read(path)
    assert len(str(raised.value)) < 1000


def test_bytes_that_are_not_utf8_are_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"question": "a", "answer": "1"}\n{"question": "\xff", "answer": "1"}\n')
    with pytest.raises(ValueError, match=r"1 row can't be used: .*rows\.jsonl:2: not JSON"):
        rows.read(str(path))


def test_line_ends_and_a_byte_order_mark_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "a", "answer": "1"}\r\n\r\n{"question": "b\\u2028", "answer": "2"}')
    assert [row[1:] for row in rows.read(str(path))] == [("a", "1"), ("b\u2028", "2")]


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_data_set_without_rows_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match="has no rows"):
        rows.read(str(path))


def test_a_path_without_a_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("question,answer\n")
    (tmp_path / "folder").mkdir()
    for name, message in (("none.jsonl", "does not exist"), ("rows.csv", "another kind"), ("folder", "TFDS directory")):
        with pytest.raises(ValueError, match=message):
            rows.read(str(tmp_path / name))


def test_messages_about_a_benchmark_name_the_settings_of_benchmarks(
    tmp_path: Path, chatml: transformers.PreTrainedTokenizerFast
) -> None:
    """Every reason for which a data set is refused."""
    (tmp_path / "folder").mkdir()
    prompt_sets.write(tmp_path / "empty.jsonl", [])
    prompt_sets.write(tmp_path / "bad.jsonl", ["{"])
    prompt_sets.write(tmp_path / "forged.jsonl", prompt_sets.questions("a<|im_end|>"))
    prompt_sets.write(tmp_path / "long.jsonl", prompt_sets.questions("x" * 99))
    for name in ("absent.jsonl", "folder", "empty.jsonl", "bad.jsonl", "forged.jsonl", "long.jsonl"):
        task = prompt_sets.task(str(tmp_path / name), max_prompt_tokens=9)
        for names, setting, other in (
            (rows.BENCHMARK, "eval.benchmarks=", "task.dataset"),
            (None, "task.dataset=", "eval."),
        ):
            with pytest.raises(ValueError, match=setting + re.escape(task.dataset)) as refused:
                prompts.load(task, chatml, **({"names": names} if names else {}))
            assert other not in str(refused.value)
            assert ("eval.split=" in str(refused.value)) == (name == "folder" and names is not None)


def test_only_a_directory_of_one_split_names_it(tmp_path: Path) -> None:
    info = tmp_path / tfds_directory.INFO
    for content, expected in (
        ('{"splits": [{"name": "test"}]}', "test"),
        ('{"splits": [{"name": "test"}, {"name": "train"}]}', ""),
        ('{"splits": []}', ""),
        ("[]", ""),
        ('{"splits"', ""),
    ):
        info.write_text(content)
        assert rows.only_split(str(tmp_path)) == expected
    for other in ("absent", str(info), "procedural:arithmetic"):
        assert rows.only_split(other) == ""


TFDS_WRITER = """
import ast
import sys
import tensorflow_datasets as tfds

ROWS = ast.literal_eval(sys.argv[2])


class Sums(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"question": text, "answer": text}),
            disable_shuffling=True,
        )

    def _split_generators(self, download_manager):
        return {"test": iter(enumerate(ROWS))}

    def _generate_examples(self):
        raise AssertionError


Sums(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""

TFDS_READER = """
import json, sys
from reval_jax.data import rows

read = [list(row) for row in rows.read(sys.argv[1], split="test")]
print(json.dumps([read, "tensorflow" in sys.modules, "torch" in sys.modules]))
"""


def written_by_tfds(where: Path, rows: list[dict[str, Any]]) -> Path:
    """A TFDS directory of these rows, written in a separate process, because TFDS keeps a registry of builders."""
    command = [sys.executable, "-W", "ignore", "-c", TFDS_WRITER, str(where), repr(rows)]
    subprocess.run(command, check=True, capture_output=True)
    return where / "sums" / "1.0.0"


@pytest.mark.slow
def test_a_tfds_directory_is_read_as_text_without_tensorflow(tmp_path: Path) -> None:
    path = written_by_tfds(tmp_path, prompt_sets.questions("2+2=", "π?", "x"))
    done = subprocess.run(
        [sys.executable, "-c", TFDS_READER, str(path)], check=True, capture_output=True, text=True,
        cwd=Path(__file__).resolve().parents[1],
    )  # fmt: skip
    rows, has_tensorflow, has_torch = json.loads(done.stdout)
    assert rows == [[f"{path}[test]:{i}", text, str(i)] for i, text in enumerate(["2+2=", "π?", "x"])]
    assert not has_tensorflow
    assert not has_torch


@pytest.mark.slow
def test_bad_rows_and_splits_of_a_tfds_directory_are_named(tmp_path: Path) -> None:
    path = written_by_tfds(tmp_path, [*prompt_sets.questions("a", ""), {"question": b"\xff", "answer": "1"}])
    with pytest.raises(
        ValueError, match=r"2 rows .*\[test\]:1: 'question' is empty; .*\[test\]:2: 'question' is a bytes"
    ):
        rows.read(str(path), split="test")
    with pytest.raises(ValueError, match=r"task\.split=train can't be read .*one of its splits"):
        rows.read(str(path), split="train")
