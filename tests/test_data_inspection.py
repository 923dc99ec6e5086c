"""`reval data inspect`: duplicates, overlap and lengths of a data set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support import data_files

from reval_jax import cli, data

# Inspection


def test_inspection_counts_duplicates_and_questions_shared_with_an_evaluation_set(tmp_path: Path) -> None:
    long = "In how many ways can the five letters of a word be put on a line so that two of them never touch"
    rows = [
        {"question": "What is $x^2$ at {3}?", "answer": "9"},
        {"question": "what is x^2  at 3?", "answer": "9"},  # the first, up to spacing and case
        {"question": "What is $x^3$ at {3}?", "answer": "27"},  # another
        {"question": "What is $x^3$ at {3}?", "answer": "28"},  # exactly the one before
        {"question": f"Easy. {long}, please?", "answer": "72"},
        {"question": "alone", "answer": "1"},
    ]
    held_out = [
        {"Problem": "WHAT IS X^2 AT 3?"},
        {"Problem": "alone"},
        {"Problem": f"Hard. {long} another?"},
        {"Problem": "In how many ways can the five letters of a word be put?"},
    ]
    path, other = data_files.write(tmp_path / "rows.jsonl", rows), data_files.write(tmp_path / "eval.json", held_out)
    findings = data.inspect(str(path), data.PrepareSettings(), against=(str(other),))
    assert findings["rows"] == 5
    assert {key: findings["duplicates"][key] for key in ("exact", "normalised")} == {"exact": 1, "normalised": 1}
    assert findings["duplicates"]["groups"] == [[f"{path}:1", f"{path}:2"]]
    (overlap,) = findings["overlap"]
    assert {key: overlap[key] for key in ("rows", "exact", "normalised", "grams")} == {
        "rows": 4, "exact": 1, "normalised": 2, "grams": 1,
    }  # fmt: skip
    assert (f"{path}:5", f"{other}:4") in overlap["pairs"]
    assert findings["problems"] == [{"file": str(path), "line": 4, "reason": f"the same question as {path}:3"}]
    lengths = [len(row["question"]) for row in (*rows[:3], *rows[4:])]
    assert findings["lengths"]["question_characters"]["max"] == max(lengths)
    assert findings["lengths"]["question_characters"]["median"] == np.median(lengths)


@pytest.mark.parametrize(
    "content", ['[{"question": "a"}, {"question": "b"} {"question": "shared"}]', '[{"question": "a"}] [1]']
)
def test_an_evaluation_set_that_is_not_read_whole_is_refused(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was not read may be what the data set shares."""
    path = data_files.write(tmp_path / "rows.jsonl", [{"question": "shared", "answer": "1"}])
    (tmp_path / "eval.json").write_text(content)
    assert cli.main(["data", "inspect", str(path), "--against", str(tmp_path / "eval.json")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"--against {tmp_path / 'eval.json'}: 1 row can't be used: {tmp_path / 'eval.json'}:1: " in printed.err


def test_questions_that_differ_in_an_operator_are_not_duplicates() -> None:
    texts = ["3+4", "3-4", "3*4", "3/4", "34", "3^4", "(3,4)", "[3,4]", "3<4", "3>4", "3=4", "3.4", "-34", "|34|"]
    assert len({data.inspection.normalised(text) for text in texts}) == len(texts)
    assert data.inspection.normalised("\\left( A ,\\! b\\right)") == data.inspection.normalised("(a,b)")
    assert data.inspection.normalised("\\leftarrow") != data.inspection.normalised("arrow")


def test_a_directory_its_file_and_a_procedural_set_are_inspected_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = data_files.write(tmp_path / "rows.jsonl", data_files.questions(5))
    assert (
        cli.main(["data", "prepare", "--input", str(path), "--output", str(tmp_path / "set"), "--json", "/dev/stdout"])
        == 0
    )
    printed = capsys.readouterr()
    printed_json = json.loads(printed.out)
    assert printed_json["rows"] == 5
    assert "5 rows in " in printed.err
    for dataset in (path, tmp_path / "set"):
        assert (
            cli.main(["data", "inspect", str(dataset), "--against", str(tmp_path / "set"), "--json", "/dev/stdout"])
            == 0
        )
        findings = json.loads(capsys.readouterr().out)
        assert findings["fingerprint"] == printed_json["fingerprint"]
        assert findings["overlap"][0]["exact"] == 5
        assert len(findings["examples"]) == 3
    assert cli.main(["data", "inspect", "procedural:arithmetic,size=20", "--examples", "1"]) == 0
    assert "20 rows, fingerprint" in capsys.readouterr().out


def test_messages_of_inspection_name_only_its_own_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_files.prepare(
        data_files.write(tmp_path / "rows.jsonl", data_files.questions(2)), tmp_path / "set", split="test"
    )
    path, folder = str(tmp_path / "rows.jsonl"), str(tmp_path / "set")
    for argv, code, message in (
        (["inspect", path, "--max_characters", "5"], 0, "more than the 5 of --max_characters"),
        (["inspect", folder], 2, f"reval: {folder} with --split train can't be read"),
        (["inspect", path, "--against", str(tmp_path)], 2, f"reval: --against {tmp_path} can't be read"),
    ):
        assert cli.main(["data", *argv]) == code
        printed = capsys.readouterr()
        assert message in printed.out + printed.err
        assert "task." not in printed.err
