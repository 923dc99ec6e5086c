"""`reval data prepare`: a data set is written whole, with its fingerprint, or refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import data_files, hf_checkpoints

from reval_jax import cli, config, data, keys, prompts

ROOT = Path(__file__).resolve().parent.parent


# What is written


def test_prompts_from_a_prepared_directory_resume_from_one_integer(tmp_path: Path) -> None:
    rows = [{"question": f"{i}+{i}=", "answer": str(2 * i)} for i in range(10)]
    data_files.prepare(data_files.write(tmp_path / "rows.jsonl", rows), tmp_path / "Sums-10")
    tokenizer = hf_checkpoints.tiny_tokenizer()
    by_kind = [
        prompts.load(config.Task(dataset=str(tmp_path / name), template="raw"), tokenizer)
        for name in ("Sums-10", "rows.jsonl")
    ]
    assert by_kind[0].texts == by_kind[1].texts
    assert by_kind[0].fingerprint == by_kind[1].fingerprint
    assert data.rows.label(str(tmp_path / "Sums-10")) == "sums_10"
    for damaged in ("[]", "{}", "[" * 100_000):
        (tmp_path / "Sums-10" / "dataset_info.json").write_text(damaged)
        assert data.rows.label(str(tmp_path / "Sums-10")) == "Sums-10"
    whole, _ = prompts.take(by_kind[0], 0, 40, seed=3)
    for cursor in (37, 0, 12, 25):  # in any order: nothing is remembered
        taken, behind = prompts.take(by_kind[1], cursor, 3, seed=3)
        assert behind == cursor + 3
        assert taken.texts == whole.texts[cursor : cursor + 3]
        for number, row in zip(taken.cursor, taken.row, strict=True):
            epoch, index = divmod(int(number), 10)
            assert row == keys.host_permutation(keys.named_key(3, "prompts", epoch), 10)[index]


def test_the_manifest_lists_inputs_settings_and_results(tmp_path: Path) -> None:
    files = [
        data_files.write(tmp_path / "a.jsonl", data_files.questions(3)),
        data_files.write(tmp_path / "b.json", data_files.questions(2, 5)),
    ]
    prepared = data_files.prepare(files, tmp_path / "out", split="test", seed=4)
    manifest = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert manifest["fingerprint"] == prepared.fingerprint
    assert (manifest["rows"], manifest["split"], manifest["quarantined"]) == (5, "test", 0)
    assert [each["file"] for each in manifest["inputs"]] == [str(file) for file in files]
    assert manifest["settings"]["seed"] == 4
    assert [row.question for row in data.rows.read(str(tmp_path / "out"), split="test")] == [
        row["question"] for row in [*data_files.questions(3), *data_files.questions(2, 5)]
    ]


def test_the_fingerprint_changes_with_rows_and_order_and_not_with_files(tmp_path: Path) -> None:
    rows = data_files.questions(4)
    one_file = data_files.prepare(data_files.write(tmp_path / "a.jsonl", rows), tmp_path / "a").fingerprint
    two_files = [data_files.write(tmp_path / "b.json", rows[:1]), data_files.write(tmp_path / "c.csv", rows[1:])]
    assert data_files.prepare(two_files, tmp_path / "b").fingerprint == one_file
    others = {
        data_files.prepare(data_files.write(tmp_path / f"{i}.jsonl", changed), tmp_path / f"o{i}").fingerprint
        for i, changed in enumerate([rows[::-1], rows[:3], [*rows[:3], rows[3] | {"answer": "9"}]])
    }
    assert len(others | {one_file}) == 4


def test_a_directory_whose_rows_were_changed_is_refused(tmp_path: Path) -> None:
    data_files.prepare(data_files.write(tmp_path / "a.jsonl", data_files.questions(3)), tmp_path / "set")
    data_files.prepare(data_files.write(tmp_path / "b.jsonl", data_files.questions(3, 1)), tmp_path / "other" / "set")
    for file in (tmp_path / "other" / "set").glob("*array_record*"):
        file.replace(tmp_path / "set" / file.name)
    with pytest.raises(ValueError, match=r"fingerprint .* but prepared\.json says .*Prepare the data set again"):
        data.rows.read(str(tmp_path / "set"))


def test_a_directory_whose_rows_were_changed_is_refused_by_inspection_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data_files.prepare(data_files.write(tmp_path / "a.jsonl", data_files.questions(3)), tmp_path / "set")
    manifest = tmp_path / "set" / data.rows.MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"fingerprint": "0" * 16}))
    assert cli.main(["data", "inspect", str(tmp_path / "set")]) == 2
    output = capsys.readouterr().err
    assert "prepared.json says 0000000000000000" in output
    assert "task." not in output


def test_nothing_is_left_when_writing_fails_or_rows_are_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = data_files.write(tmp_path / "rows.jsonl", [*data_files.questions(3), "{"])
    with pytest.raises(data.BadRowsError):
        data_files.prepare(path, tmp_path / "out")

    def fail(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data.writing.os, "rename", fail)
    with pytest.raises(ValueError, match="can't be written: No space left on device"):
        data_files.prepare(path, tmp_path / "out", quarantine_fraction=0.5)
    assert [each.name for each in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_directory_that_is_not_empty_is_never_changed(tmp_path: Path) -> None:
    path = data_files.write(tmp_path / "rows.jsonl", data_files.questions(3))
    data_files.prepare(path, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    with pytest.raises(ValueError, match=r"--output .* exists and is not empty"):
        data_files.prepare(path, tmp_path / "out")
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    with pytest.raises(ValueError, match="can't name a split"):
        data_files.prepare(path, tmp_path / "new", split="all")


def test_the_quarantine_is_a_share_of_all_rows(tmp_path: Path) -> None:
    path = data_files.write(tmp_path / "rows.jsonl", [*data_files.questions(71), *["{"] * 29])
    with pytest.raises(data.BadRowsError, match=r"29 of 100 rows.*set --quarantine_fraction 0\.29\.") as raised:
        data_files.prepare(path, tmp_path / "out", quarantine_fraction=0.289)
    assert len(raised.value.bad_rows) == 29
    assert data_files.prepare(path, tmp_path / "out", quarantine_fraction=0.29).rows == 71
    for content in (["{"], []):
        with pytest.raises(ValueError, match=r"No usable row is left|there are no rows"):
            data_files.prepare(
                data_files.write(tmp_path / "none.jsonl", content), tmp_path / "none", quarantine_fraction=0.99
            )


@pytest.mark.parametrize(("bad", "total"), [(1, 2), (1, 3000), (999, 1000), (9999, 10_000), (123_456, 123_457)])
def test_the_share_that_a_refusal_suggests_is_accepted(bad: int, total: int) -> None:
    problems = [data.rows.BadRow("f:1", "bad")] * bad
    usable = [data.rows.Row("f:2", "q", "a")] * (total - bad)
    check = data.preparation._refuse_bad_rows
    with pytest.raises(data.BadRowsError) as refused:
        check([], data.PrepareSettings(), usable, problems)
    share = re.search(r"set --quarantine_fraction (0\.\d*[1-9])\.$", str(refused.value))
    assert share is not None
    accepted = data.PrepareSettings(quarantine_fraction=float(share.group(1)))
    data.preparation._check(accepted, None)
    check([], accepted, usable, problems)


def test_a_question_with_the_models_special_tokens_or_too_many_tokens_is_bad(tmp_path: Path) -> None:
    tokenizer = hf_checkpoints.tiny_tokenizer()
    path = data_files.write(
        tmp_path / "rows.jsonl",
        [*data_files.questions(1), {"question": "a<|pad|>b", "answer": "1"}, {"question": "7" * 60, "answer": "1"}],
    )
    usable, problems = data.preparation.read([path], data.PrepareSettings(max_tokens=59), tokenizer=tokenizer)
    assert len(usable) == 1
    assert [problem.reason.partition(",")[0] for problem in problems] == [
        "'question' contains '<|pad|>'",
        "'question' has 60 tokens",
    ]
    assert not data_files.read(path)[1]
    with pytest.raises(ValueError, match="--max_tokens 59 needs a tokenizer"):
        data_files.prepare(path, tmp_path / "out", max_tokens=59)


def test_an_answer_in_the_form_of_a_checkers_is_refused(tmp_path: Path) -> None:
    assert "only procedural data sets" in data_files.one(
        tmp_path, "plain", {"question": "x", "answer": "@countdown:1 2 3"}
    )
    assert data_files.one(tmp_path, "plain", {"question": "x", "answer": "@someone: hello"}) == ("x", "@someone: hello")


# The command


def test_options_come_from_a_yaml_file_and_the_command_line_overrides_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = data_files.write(tmp_path / "rows.jsonl", [{"q": "2+2=", "a": "4"}, {"q": "", "a": "4"}])
    options = tmp_path / "prepare.yaml"
    lines = [
        f"input: [{path}]",
        f"output: {tmp_path / 'from_yaml'}",
        "question: q",
        "answer: a",
        "quarantine_fraction: 0.5",
    ]
    options.write_text("\n".join(lines))
    assert cli.main(["data", "prepare", "--config", str(options)]) == 0
    assert cli.main(["data", "prepare", "--config", str(options), "--output", str(tmp_path / "on_top")]) == 0
    assert [row.answer for name in ("from_yaml", "on_top") for row in data.rows.read(str(tmp_path / name))] == [
        "4",
        "4",
    ]
    capsys.readouterr()
    for line, message in (
        ("qestion: q", "unknown key 'qestion'. Did you mean 'question'"),
        ("split: 3", "split=3"),
        ("format: gms8k", "--format gms8k is unknown. Did you mean gsm8k?"),
    ):
        options.write_text("\n".join([*lines[:2], line]))
        assert cli.main(["data", "prepare", "--config", str(options)]) == 2
        assert message in capsys.readouterr().err


def test_a_mistaken_command_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, code, message in (
        ([], 2, "usage: reval data"),
        (["--help"], 0, "inspect"),
        (["clean"], 2, "reval data has no 'clean'. Use one of prepare, inspect, pool."),
        (["prepare", "--input", "x.jsonl"], 2, "--output is missing"),
        (["prepare", "--input", "x.jsonl", "--output", str(tmp_path / "o")], 2, "x.jsonl does not exist"),
        (["inspect", str(tmp_path)], 2, "TFDS directory"),
    ):
        assert cli.main(["data", *argv]) == code
        printed = capsys.readouterr()
        assert message in printed.out + printed.err


WITHOUT_TENSORFLOW = """
import sys
from reval_jax import cli, config, data, prompts

folder = sys.argv[1]
assert cli.main(["data", "prepare", "--input", f"{folder}/rows.parquet", "--output", f"{folder}/set"]) == 0
assert cli.main(["data", "inspect", f"{folder}/set", "--against", f"{folder}/set", f"{folder}/rows.parquet"]) == 0
assert len(data.rows.read(f"{folder}/set")) == 3
print("tensorflow" in sys.modules or "torch" in sys.modules)
"""


@pytest.mark.slow
def test_tensorflow_is_never_imported_even_where_it_is_installed(tmp_path: Path) -> None:
    """A package named tensorflow is on the path, and writes a file if anything imports it."""
    for name in ("tensorflow", "torch"):
        (tmp_path / "path" / name).mkdir(parents=True)
        (tmp_path / "path" / name / "__init__.py").write_text(
            f"open({str(tmp_path / 'imported')!r}, 'a').write({name!r})"
        )
    data_files.write(tmp_path / "rows.parquet", data_files.questions(3))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "path"), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    assert not (tmp_path / "imported").exists()
