"""`reval data`: files read and mapped, bad rows named, a data set written whole, and what is said of one."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import random
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from support import hf_checkpoints

from reval_jax import cli, config, data, keys, prompts
from reval_jax.cli import arguments

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent / "shared" / "data"
UNHURRIED = settings(deadline=None, derandomize=True, database=None)  # the machine may be busy
SURROGATE = "\ud800"

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
    return data.prepare(paths, output, data.Settings(**fields))


def read(path: Path, **fields: Any) -> tuple[list[tuple[str, str]], list[str]]:
    """Questions and answers of the usable rows, and the bad ones as LINE: REASON."""
    found, problems = data.preparation.read([path], data.Settings(**fields))
    return [row[1:] for row in found], [f"{each.where.rpartition(':')[2]}: {each.reason}" for each in problems]


# Fuzzed rows

GOOD = "good"


def fuzzed(generator: random.Random, number: int, seen: list[str]) -> tuple[str, str]:
    """A line of a .jsonl file, and what is wrong with it by construction: a word of the message, or GOOD."""

    def text(least: int = 1) -> str:
        letters = "abz059 \t\n\\{}$^_<>|\"'/%é数🙂\u2028\u200b\ufeff\x01\x7f"
        return f"{number} " + "".join(generator.choices(letters, k=generator.randint(least, 40)))

    question, answer = text(), text()
    row: Any = {"question": question, "answer": answer, "more": [1, {"x": None}]}
    kind = generator.choice([GOOD] * 8 + sorted(BREAKS))
    if kind == GOOD:
        seen.append(question)
        return json.dumps(row, ensure_ascii=generator.random() < 0.5), GOOD
    if kind == "the same question as" and not seen:
        kind = "is empty"
    field = generator.choice(["question", "answer"])
    return BREAKS[kind](generator, row, field, seen), kind


def with_value(value: Any) -> Any:
    def change(generator: random.Random, row: Row, field: str, seen: list[str]) -> str:
        chosen = value(generator, row[field], seen) if isinstance(value, types.FunctionType) else value
        return json.dumps(row | {field: chosen})

    return change


BREAKS: dict[str, Any] = {
    "no field": lambda g, row, field, seen: json.dumps({name: row[name] for name in row if name != field}),
    "not a string": with_value(
        lambda g, old, seen: g.choice([None, True, 4, -0.5, float("nan"), [], ["x" * 999], {}, {"a": [[[]]]}, 10**400])
    ),
    "is empty": with_value(lambda g, old, seen: g.choice(["", " ", "\n\t", "\u3000", "\u2028"])),
    "NUL": with_value(lambda g, old, seen: old[:1] + "\0" + old[1:]),
    "lone surrogate": with_value(lambda g, old, seen: old + g.choice(["\ud800", "\udfff", "\ud83d x"])),
    "the same question as": lambda g, row, field, seen: json.dumps(row | {"question": g.choice(seen)}),
    "special token": lambda g, row, field, seen: json.dumps(
        row | {"question": row["question"] + g.choice(["<|im_end|>", "<｜User｜>", "</think>", "<|endoftext|>"])}
    ),
    "characters, more than": with_value(lambda g, old, seen: (old * 9000)[:20_001]),
    "not an object": lambda g, row, field, seen: g.choice(["[]", "3", '"text"', "null", "true", "[[1], {}]", "1e999"]),
    "not JSON": lambda g, row, field, seen: g.choice(
        ["{", "{'a': 1}", json.dumps(row)[: g.randint(1, 12)], "[" * 60_000, "9" * 5_000, "\x00", "nul", "{}}"]
    ),
}


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, str]]:
    """5,000 rows and, by line number, what is wrong with each."""
    generator, seen = random.Random(0), []  # noqa: S311  # no secret
    lines = [fuzzed(generator, number, seen) for number in range(5000)]
    path = tmp_path_factory.mktemp("fuzz") / "rows.jsonl"
    # "surrogatepass" would be needed for real surrogates, but json.dumps escapes them.
    path.write_text("".join(line + "\n" for line, _ in lines), encoding="utf-8")
    return path, {number: kind for number, (_, kind) in enumerate(lines, start=1)}


def test_of_5000_fuzzed_rows_every_bad_one_is_named_by_file_and_line_and_no_other(
    fuzz: tuple[Path, dict[int, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, kinds = fuzz
    bad = {number: kind for number, kind in kinds.items() if kind != GOOD}
    assert len(bad) > 1500
    assert set(bad.values()) == set(BREAKS)
    out, report = tmp_path / "out", tmp_path / "report.json"
    code = cli.main(["data", "prepare", "--input", str(path), "--output", str(out), "--json", str(report)])
    said = capsys.readouterr().err.splitlines()
    assert code == 2
    assert not out.exists()
    named = {int(line.removeprefix(f"{path}:").partition(":")[0]): line for line in said if line.startswith(f"{path}:")}
    assert named.keys() == bad.keys()
    for number, kind in bad.items():
        assert kind in named[number]
        assert len(named[number]) < len(str(path)) + 400
    listed = json.loads(report.read_text())["problems"]
    assert [each["line"] for each in listed] == sorted(bad)
    assert {each["file"] for each in listed} == {str(path)}
    assert f"{len(bad)} rows can't be used" in said[-1]
    assert f"set --quarantine_fraction {-(-len(bad) * 1000 // 5000) / 1000:g}." in said[-1]


def test_quarantine_leaves_out_exactly_the_bad_rows_and_names_them(
    fuzz: tuple[Path, dict[int, str]], tmp_path: Path
) -> None:
    path, kinds = fuzz
    prepared = prepare(path, tmp_path / "out", quarantine_fraction=0.9)
    assert prepared.rows == list(kinds.values()).count(GOOD)
    lines = path.read_text(encoding="utf-8").split("\n")
    expected = [json.loads(lines[number - 1]) for number, kind in kinds.items() if kind == GOOD]
    loaded = prompts.read(str(tmp_path / "out"))
    assert [row[1:] for row in loaded] == [(row["question"], row["answer"]) for row in expected]
    left_out = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [each["line"] for each in left_out] == [number for number, kind in kinds.items() if kind != GOOD]
    assert set(left_out[0]) == {"file", "line", "reason"}


def read_or_refusal(path: Path) -> tuple[list[Any], list[Any], str]:
    try:
        return *data.preparation.read([path], data.Settings()), ""
    except ValueError as error:
        return [], [], str(error)


@UNHURRIED
@given(
    st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b" ")), max_size=8),
    st.sampled_from(data.files.ENDINGS),
)
def test_any_bytes_give_rows_named_problems_or_one_clear_refusal(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], ending: str
) -> None:
    path = tmp_path_factory.mktemp("bytes") / f"rows{ending}"
    path.write_bytes(b"\n".join(lines))
    found, problems, refusal = read_or_refusal(path)
    assert not refusal or str(path) in refusal
    if refusal:
        return
    numbers = [int(each.where.removeprefix(f"{path}:")) for each in (*found, *problems)]
    breaks = path.read_bytes().count(b"\n") + path.read_bytes().count(b"\r")  # CSV takes either for the end of a line
    assert all(1 <= number <= breaks + 2 for number in numbers)
    if ending == ".jsonl":
        is_row = [bool(line.strip()) for line in lines]
        is_row[:1] = [bool(line.removeprefix(b"\xef\xbb\xbf").strip()) for line in lines[:1]]
        assert sorted(numbers) == [number for number, row in enumerate(is_row, start=1) if row]


@UNHURRIED
@given(st.binary(max_size=200))
def test_any_array_of_bytes_in_a_json_file_ends_in_rows_or_problems(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "rows.json"
    path.write_bytes(b'[{"question": "a", "answer": "1"},' + content)
    found, problems, refusal = read_or_refusal(path)
    assert not refusal or f"{path}:" in refusal
    if refusal:
        return
    assert [row.question for row in found][:1] == ["a"]
    assert problems or content.strip()[-1:] == b"]"


# Kinds of files


def test_every_kind_of_file_gives_the_same_rows_and_names_the_same_bad_ones(tmp_path: Path) -> None:
    rows = [*questions(3), {"question": "empty?", "answer": " "}, *questions(1), *questions(1, 7)]
    expected = [(row["question"], row["answer"]) for row in [*questions(3), *questions(1, 7)]]
    for ending, line in ((".jsonl", 4), (".json", 5), (".csv", 5), (".parquet", 4)):
        path = write(tmp_path / f"rows{ending}", rows)
        first = line - 3
        assert read(path) == (
            expected,
            [f"{line}: 'answer' is empty", f"{line + 1}: the same question as {path}:{first}"],
        )


def test_json_lines_in_a_json_file_are_read_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    write(tmp_path / "rows.jsonl", [*questions(2), "{"]).rename(path)
    found, problems = read(path)
    assert len(found) == 2
    assert [problem.partition("(")[0] for problem in problems] == ["3: not JSON "]


def test_a_json_array_is_read_up_to_what_is_not_json_and_that_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    good = json.dumps(questions(1)[0], indent=1)  # four lines
    path.write_text(f"[{good},\n\n{good.replace('0', '1')},\n{{'x'}}, {good}]")
    found, problems = read(path)
    assert len(found) == 2
    assert problems[0].startswith("10: not JSON (")
    assert problems[0].endswith("what follows was not read")


def test_records_of_several_lines_in_csv_are_named_by_their_first(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'question,answer\r\n"two\nlines",1\r\nx,\r\n"y\n",2,3\r\n\xff,4\r\n')
    assert read(path) == (
        [("two\nlines", "1")],
        [
            "4: 'answer' is empty",
            "5: not 2 fields, as the first line has",
            "7: 'question' contains a lone surrogate, which is not text",
        ],
    )


def test_a_file_of_another_kind_or_a_missing_or_damaged_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("x")
    (tmp_path / "rows.parquet").write_text("x")
    for name, found in (("rows.txt", "another kind"), ("none.jsonl", "nothing there"), (".", "a directory")):
        with pytest.raises(ValueError, match=rf"{found}.*Name a file that ends in \.jsonl"):
            read(tmp_path / name)
    with pytest.raises(ValueError, match="can't be read as parquet"):
        read(tmp_path / "rows.parquet")


def test_fields_are_mapped_by_name(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl",
        [{"prompt": "2+2=", "gold": "4"}, {"prompt": "x", "answer": "4"}, {"prompt": 3, "gold": ""}],
    )
    found, problems = read(path, question="prompt", answer="gold")
    assert found == [("2+2=", "4")]
    assert problems == [
        "2: no field 'gold' (found 'prompt', 'answer')",
        "3: 'prompt' is a int, not a string: 3",
    ]
    with pytest.raises(ValueError, match="has fields of its own"):
        prepare(path, tmp_path / "out", format="gsm8k", question="prompt")


# Published formats


def one(tmp_path: Path, format: str, row: Row) -> tuple[str, str] | str:
    found, problems = read(write(tmp_path / "row.jsonl", [row]), format=format)
    return found[0] if found else problems[0].removeprefix("1: ")


@pytest.mark.parametrize(
    ("format", "row", "expected"),
    [
        ("deepscaler", {"problem": "P", "answer": "\\frac{1}{2}", "solution": "\\boxed{3}"}, ("P", "\\frac{1}{2}")),
        (
            "aime24",
            {"id": 60, "problem": "P", "solution": "s", "answer": "204", "url": "u", "year": "2024"},
            ("P", "204"),
        ),
        ("aime24", {"ID": "2024-I-1", "Problem": "P", "Solution": "s", "Answer": 204}, ("P", "204")),
        ("aime24", {"problem": "P", "solution": "so \\boxed{1} and \\boxed{25}."}, ("P", "25")),
        ("aime25", {"problem": "P", "answer": "70", "id": "0"}, ("P", "70")),
        ("aime25", {"question": "P", "answer": "70"}, ("P", "70")),
        ("amc", {"id": 0, "problem": "P", "answer": 142.0, "url": "u"}, ("P", "142")),
        ("amc", {"problem": "P", "answer": 0.5}, ("P", "0.5")),
        ("amc", {"problem": "P", "answer": True}, "'answer' is a bool, not a string or number: True"),
        ("amc", {"problem": "P", "answer": float("nan")}, "'answer' is a float, not a string or number: nan"),
        (
            "math500",
            {"problem": "P", "solution": "s", "answer": "x^2", "subject": "A", "level": 2, "unique_id": "u"},
            ("P", "x^2"),
        ),
        ("minerva", {"question": "P", "answer": "4.5e33"}, ("P", "4.5e33")),
        (
            "minerva",
            {
                "problem": "P",
                "type": "T",
                "solution": "so $\\boxed{\\frac{a}{\\sqrt{b}} \\} c}$ \\boxed{open",
                "idx": 3,
            },
            ("P", "\\frac{a}{\\sqrt{b}} \\} c"),
        ),
        ("minerva", {"problem": "P", "solution": "\\boxed{1}, so \\fbox{ 2 }"}, ("P", "2")),
        ("minerva", {"problem": "P", "solution": "no box"}, "no 'answer', and nothing boxed in 'solution'"),
        ("olympiad_bench", {"question": "P", "final_answer": ["$2$"], "answer_type": "Numerical"}, ("P", "$2$")),
        ("olympiad_bench", {"question": "P", "final_answer": ["1", "3"], "context": "C "}, ("C\nP", "1, 3")),
        ("olympiad_bench", {"question": "P", "final_answer": None}, "'final_answer' is empty"),
        ("olympiad_bench", {"question": "P <image_1>", "final_answer": ["2"]}, "'question' refers to a picture"),
        ("olympiad_bench", {"question": "P", "answer": "2"}, ("P", "2")),
        ("gsm8k", {"question": "P", "answer": "48/2 = <<48/2=24>>24\nSo #### 2\n#### 1,072"}, ("P", "1072")),
        ("gsm8k", {"question": "P", "answer": "-3.5"}, ("P", "-3.5")),
        ("gsm8k", {"question": "P", "answer": "It is 3"}, "'answer' has no '####' before the gold answer: 'It is 3'"),
        ("gsm8k", {"question": "P", "answer": "It is ####"}, "'answer' is empty"),
        ("gsm8k", {"problem": "P"}, "no field 'answer' or 'Answer' (found 'problem')"),
    ],
)
def test_a_published_row_gives_its_question_and_gold(format: str, row: Row, expected: Any, tmp_path: Path) -> None:
    assert one(tmp_path, format, row) == expected


def test_a_solution_of_a_hundred_thousand_boxes_is_read_at_once() -> None:
    """A scan from each box to the end of the text would take hours."""
    assert data.formats.last_box("\\boxed{" * 100_000) is None
    assert data.formats.last_box("\\boxed{" * 100_000 + "7}") == "7"


def gpqa(i: int) -> Row:
    options = {"Correct Answer": f"right {i} ", **{f"Incorrect Answer {k}": f"wrong {i}.{k}\n" for k in (1, 2, 3)}}
    return {"Record ID": f"r{i}", "Question": f"Question {i}?", **options}


def test_gpqa_options_are_all_shown_and_the_letter_is_the_right_ones(tmp_path: Path) -> None:
    rows = [gpqa(i) for i in range(200)]
    path = write(tmp_path / "gpqa_main.csv", rows)
    letters = ""
    for seed in (0, 1):
        found, problems = read(path, format="gpqa", seed=seed)
        assert not problems
        for i, (question, letter) in enumerate(found):
            head, blank, *options = question.split("\n")
            assert (head, blank) == (f"Question {i}?", "")
            shown = dict(option.split(") ", 1) for option in options)
            assert list(shown) == list("ABCD")
            assert shown[letter] == f"right {i}"
            assert sorted(shown.values()) == sorted([f"right {i}", *(f"wrong {i}.{k}" for k in (1, 2, 3))])
        assert found == read(path, format="gpqa", seed=seed)[0]
        letters += "".join(letter for _, letter in found)
    assert letters[:200] != letters[200:]
    # 400 draws of four letters: five standard deviations are 43.
    assert all(abs(letters.count(letter) - 100) < 43 for letter in "ABCD")


def test_the_order_of_gpqas_options_does_not_depend_on_the_other_rows(tmp_path: Path) -> None:
    rows = [gpqa(i) for i in range(20)]
    whole = read(write(tmp_path / "whole.csv", rows), format="gpqa")[0]
    assert read(write(tmp_path / "some.csv", rows[::-3]), format="gpqa")[0] == whole[::-3]


@pytest.mark.parametrize(
    "change", [{"Incorrect Answer 2": "right 0"}, {"Incorrect Answer 1": " "}, {"Question": "\ud800"}]
)
def test_a_gpqa_row_without_four_options_or_text_is_named(change: Row, tmp_path: Path) -> None:
    assert isinstance(one(tmp_path, "gpqa", gpqa(0) | change), str)


def test_the_commands_formats_are_the_packages() -> None:
    assert get_args(arguments.format_names()) == tuple(data.formats.FORMATS)
    for kind in (arguments.DataPrepare, arguments.DataInspect):
        for field in dataclasses.fields(kind):
            if field.name in {each.name for each in dataclasses.fields(data.Settings)}:
                assert field.default == getattr(data.Settings(), field.name)


def test_a_published_file_that_cannot_be_fetched_is_one_clear_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name, published in data.formats.FORMATS.items():
        for split in published.published.files if published.published else ():
            with pytest.raises(ValueError, match=r"could not be fetched from the Hugging Face hub .*--input FILE"):
                data.formats.download(name, split)
    for extra, found in (
        (("--format", "gpqa"), "not be reposted.*--input FILE"),
        (("--format", "math500", "--split", "train"), "--split train: HuggingFaceH4/MATH-500 has test only"),
        ((), "--input is missing"),
    ):
        assert cli.main(["data", "prepare", "--output", str(tmp_path / "out"), *extra]) == 2
        assert re.search(found, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


# What is written


def test_a_prepared_directory_is_a_data_set_that_one_integer_resumes(tmp_path: Path) -> None:
    rows = [{"question": f"{i}+{i}=", "answer": str(2 * i)} for i in range(10)]
    prepare(write(tmp_path / "rows.jsonl", rows), tmp_path / "Sums-10")
    tokenizer = hf_checkpoints.tiny_tokenizer()
    by_kind = [
        prompts.load(config.Task(dataset=str(tmp_path / name), template="raw"), tokenizer)
        for name in ("Sums-10", "rows.jsonl")
    ]
    assert by_kind[0].texts == by_kind[1].texts
    assert by_kind[0].fingerprint == by_kind[1].fingerprint
    assert prompts.name(str(tmp_path / "Sums-10")) == "sums_10"
    whole, _ = prompts.take(by_kind[0], 0, 40, seed=3)
    for cursor in (37, 0, 12, 25):  # in any order: nothing is remembered
        taken, behind = prompts.take(by_kind[1], cursor, 3, seed=3)
        assert behind == cursor + 3
        assert taken.texts == whole.texts[cursor : cursor + 3]
        for number, row in zip(taken.cursor, taken.row, strict=True):
            epoch, index = divmod(int(number), 10)
            assert row == keys.host_permutation(keys.named_key(3, "prompts", epoch), 10)[index]


def test_the_manifest_says_what_was_made_of_what(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.jsonl", questions(3)), write(tmp_path / "b.json", questions(2, 5))]
    prepared = prepare(files, tmp_path / "out", split="test", seed=4)
    manifest = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert manifest["fingerprint"] == prepared.fingerprint
    assert (manifest["rows"], manifest["split"], manifest["quarantined"]) == (5, "test", 0)
    assert [each["file"] for each in manifest["inputs"]] == [str(file) for file in files]
    assert manifest["settings"]["seed"] == 4
    assert [row.question for row in prompts.read(str(tmp_path / "out"), split="test")] == [
        row["question"] for row in [*questions(3), *questions(2, 5)]
    ]


def test_the_fingerprint_changes_with_rows_and_order_and_not_with_files(tmp_path: Path) -> None:
    rows = questions(4)
    one_file = prepare(write(tmp_path / "a.jsonl", rows), tmp_path / "a").fingerprint
    two_files = [write(tmp_path / "b.json", rows[:1]), write(tmp_path / "c.csv", rows[1:])]
    assert prepare(two_files, tmp_path / "b").fingerprint == one_file
    others = {
        prepare(write(tmp_path / f"{i}.jsonl", changed), tmp_path / f"o{i}").fingerprint
        for i, changed in enumerate([rows[::-1], rows[:3], [*rows[:3], rows[3] | {"answer": "9"}]])
    }
    assert len(others | {one_file}) == 4


def test_a_directory_whose_rows_were_changed_is_refused(tmp_path: Path) -> None:
    prepare(write(tmp_path / "a.jsonl", questions(3)), tmp_path / "set")
    prepare(write(tmp_path / "b.jsonl", questions(3, 1)), tmp_path / "other" / "set")
    for file in (tmp_path / "other" / "set").glob("*array_record*"):
        file.replace(tmp_path / "set" / file.name)
    with pytest.raises(ValueError, match=r"fingerprint .* but prepared\.json says .*Prepare the data set anew"):
        prompts.read(str(tmp_path / "set"))


def test_a_directory_whose_rows_were_changed_is_refused_by_inspection_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(write(tmp_path / "a.jsonl", questions(3)), tmp_path / "set")
    manifest = tmp_path / "set" / data.rows.MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"fingerprint": "0" * 16}))
    assert cli.main(["data", "inspect", str(tmp_path / "set")]) == 2
    said = capsys.readouterr().err
    assert "prepared.json says 0000000000000000" in said
    assert "task." not in said


def test_nothing_is_left_when_writing_fails_or_rows_are_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "rows.jsonl", [*questions(3), "{"])
    with pytest.raises(data.BadRows):
        prepare(path, tmp_path / "out")

    def fail(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data.writing.os, "rename", fail)
    with pytest.raises(ValueError, match="can't be written: No space left on device"):
        prepare(path, tmp_path / "out", quarantine_fraction=0.5)
    assert [each.name for each in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_directory_that_holds_something_is_never_touched(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", questions(3))
    prepare(path, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    with pytest.raises(ValueError, match=r"--output .* exists and is not empty"):
        prepare(path, tmp_path / "out")
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    with pytest.raises(ValueError, match="can't name a split"):
        prepare(path, tmp_path / "new", split="all")


def test_the_quarantine_is_a_share_of_all_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [*questions(71), *["{"] * 29])
    with pytest.raises(data.BadRows, match=r"29 of 100 rows.*set --quarantine_fraction 0\.29\.") as raised:
        prepare(path, tmp_path / "out", quarantine_fraction=0.289)
    assert len(raised.value.problems) == 29
    assert prepare(path, tmp_path / "out", quarantine_fraction=0.29).rows == 71
    for content in (["{"], []):
        with pytest.raises(ValueError, match=r"None is left|there is no row"):
            prepare(write(tmp_path / "none.jsonl", content), tmp_path / "none", quarantine_fraction=0.99)


@pytest.mark.parametrize(("bad", "total"), [(1, 2), (1, 3000), (999, 1000), (9999, 10_000), (123_456, 123_457)])
def test_the_share_that_a_refusal_offers_is_one_that_is_accepted(bad: int, total: int) -> None:
    problems = [data.rows.Problem("f:1", "bad")] * bad
    found = [prompts.Row("f:2", "q", "a")] * (total - bad)
    check = data.preparation._refuse_bad_rows
    with pytest.raises(data.BadRows) as refused:
        check([], data.Settings(), found, problems)
    share = re.search(r"set --quarantine_fraction (0\.\d*[1-9])\.$", str(refused.value))
    assert share is not None
    accepted = data.Settings(quarantine_fraction=float(share.group(1)))
    data.preparation._check(accepted, None)
    check([], accepted, found, problems)


def test_a_models_special_tokens_and_its_count_of_tokens_are_held_against_questions(tmp_path: Path) -> None:
    tokenizer = hf_checkpoints.tiny_tokenizer()
    path = write(
        tmp_path / "rows.jsonl",
        [*questions(1), {"question": "a<|pad|>b", "answer": "1"}, {"question": "7" * 60, "answer": "1"}],
    )
    found, problems = data.preparation.read([path], data.Settings(max_tokens=59), tokenizer=tokenizer)
    assert len(found) == 1
    assert [problem.reason.partition(",")[0] for problem in problems] == [
        "'question' contains '<|pad|>'",
        "'question' has 60 tokens",
    ]
    assert not read(path)[1]
    with pytest.raises(ValueError, match="--max_tokens 59 needs a tokenizer"):
        prepare(path, tmp_path / "out", max_tokens=59)


def test_an_answer_that_poses_as_a_checkers_is_refused(tmp_path: Path) -> None:
    assert "only procedural data sets" in one(tmp_path, "plain", {"question": "x", "answer": "@countdown:1 2 3"})
    assert one(tmp_path, "plain", {"question": "x", "answer": "@someone: hello"}) == ("x", "@someone: hello")


# Inspection


def test_inspection_counts_what_stands_twice_and_what_an_evaluation_set_shares(tmp_path: Path) -> None:
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
    path, other = write(tmp_path / "rows.jsonl", rows), write(tmp_path / "eval.json", held_out)
    findings = data.inspect(str(path), data.Settings(), against=(str(other),))
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


def test_a_difference_in_an_operator_is_a_difference() -> None:
    texts = ["3+4", "3-4", "3*4", "3/4", "34", "3^4", "(3,4)", "[3,4]", "3<4", "3>4", "3=4", "3.4", "-34", "|34|"]
    assert len({data.inspection.normalised(text) for text in texts}) == len(texts)
    assert data.inspection.normalised("\\left( A ,\\! b\\right)") == data.inspection.normalised("(a,b)")
    assert data.inspection.normalised("\\leftarrow") != data.inspection.normalised("arrow")


def test_a_directory_its_file_and_a_procedural_set_are_inspected_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "rows.jsonl", questions(5))
    assert (
        cli.main(["data", "prepare", "--input", str(path), "--output", str(tmp_path / "set"), "--json", "/dev/stdout"])
        == 0
    )
    printed = capsys.readouterr()
    made = json.loads(printed.out)
    assert made["rows"] == 5
    assert "5 rows in " in printed.err
    for dataset in (path, tmp_path / "set"):
        assert (
            cli.main(["data", "inspect", str(dataset), "--against", str(tmp_path / "set"), "--json", "/dev/stdout"])
            == 0
        )
        findings = json.loads(capsys.readouterr().out)
        assert findings["fingerprint"] == made["fingerprint"]
        assert findings["overlap"][0]["exact"] == 5
        assert len(findings["examples"]) == 3
    assert cli.main(["data", "inspect", "procedural:arithmetic,size=20", "--examples", "1"]) == 0
    assert "20 rows, fingerprint" in capsys.readouterr().out


def test_inspection_names_only_options_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(write(tmp_path / "rows.jsonl", questions(2)), tmp_path / "set", split="test")
    path, folder = str(tmp_path / "rows.jsonl"), str(tmp_path / "set")
    for argv, code, found in (
        (["inspect", path, "--max_characters", "5"], 0, "more than the 5 of --max_characters"),
        (["inspect", folder], 2, f"reval: {folder} with --split train can't be read"),
        (["inspect", path, "--against", str(tmp_path)], 2, f"reval: --against {tmp_path} can't be read"),
    ):
        assert cli.main(["data", *argv]) == code
        printed = capsys.readouterr()
        assert found in printed.out + printed.err
        assert "task." not in printed.err


# The command


def test_options_come_from_a_yaml_file_and_the_command_line_goes_on_top(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "rows.jsonl", [{"q": "2+2=", "a": "4"}, {"q": "", "a": "4"}])
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
    assert [row.answer for name in ("from_yaml", "on_top") for row in prompts.read(str(tmp_path / name))] == ["4", "4"]
    capsys.readouterr()
    for line, found in (
        ("qestion: q", "unknown key 'qestion'. Did you mean 'question'"),
        ("split: 3", "split=3"),
        ("format: gms8k", "--format gms8k is unknown. Did you mean gsm8k?"),
    ):
        options.write_text("\n".join([*lines[:2], line]))
        assert cli.main(["data", "prepare", "--config", str(options)]) == 2
        assert found in capsys.readouterr().err


def test_a_mistaken_command_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, code, found in (
        ([], 2, "usage: reval data"),
        (["--help"], 0, "inspect"),
        (["clean"], 2, "reval data has no 'clean'. Use one of prepare, inspect."),
        (["prepare", "--input", "x.jsonl"], 2, "--output is missing"),
        (["prepare", "--input", "x.jsonl", "--output", str(tmp_path / "o")], 2, "x.jsonl is nothing there"),
        (["inspect", str(tmp_path)], 2, "TFDS directory"),
    ):
        assert cli.main(["data", *argv]) == code
        printed = capsys.readouterr()
        assert found in printed.out + printed.err


WITHOUT_TENSORFLOW = """
import sys
from reval_jax import cli, config, prompts

folder = sys.argv[1]
assert cli.main(["data", "prepare", "--input", f"{folder}/rows.parquet", "--output", f"{folder}/set"]) == 0
assert cli.main(["data", "inspect", f"{folder}/set", "--against", f"{folder}/set", f"{folder}/rows.parquet"]) == 0
assert len(prompts.read(f"{folder}/set")) == 3
print("tensorflow" in sys.modules or "torch" in sys.modules)
"""


@pytest.mark.slow
def test_tensorflow_is_never_imported_even_where_it_is_installed(tmp_path: Path) -> None:
    """A package of that name stands on the path, and leaves a mark if anything imports it."""
    for name in ("tensorflow", "torch"):
        (tmp_path / "path" / name).mkdir(parents=True)
        (tmp_path / "path" / name / "__init__.py").write_text(
            f"open({str(tmp_path / 'imported')!r}, 'a').write({name!r})"
        )
    write(tmp_path / "rows.parquet", questions(3))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "path"), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    assert not (tmp_path / "imported").exists()


@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data is not beside the repository")
def test_every_real_file_is_read_whole_in_its_format() -> None:
    formats = {name: name for name in data.formats.FORMATS} | {
        "minerva_math": "minerva",
        "gsm8k_test": "gsm8k",
        "gsm8k_train": "gsm8k",
        "deepscaler_sample": "deepscaler",
    }
    for path in sorted(REAL.glob("*/*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        found, problems = read(path, format=formats.get(path.stem, "plain"))
        assert not problems, path
        assert found == [(row["question"], row["answer"]) for row in rows], path
