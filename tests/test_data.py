"""Files of questions: bad rows are named by file and line, whatever the bytes, in every kind of file."""

from __future__ import annotations

import csv
import json
import random
import re
import types
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from support import data_files

from reval_jax import cli, data

UNHURRIED = settings(deadline=None, derandomize=True, database=None)  # the machine may be busy


# Fuzzed rows

GOOD = "good"


def fuzzed(generator: random.Random, number: int, questions: list[str]) -> tuple[str, str]:
    """A line of a .jsonl file, and the reason why it is bad, as words of the message, or GOOD."""

    def text(least: int = 1) -> str:
        letters = "abz059 \t\n\\{}$^_<>|\"'/%é数🙂\u2028\u200b\ufeff\x01\x7f"
        return f"{number} " + "".join(generator.choices(letters, k=generator.randint(least, 40)))

    question, answer = text(), text()
    row: Any = {"question": question, "answer": answer, "more": [1, {"x": None}]}
    kind = generator.choice([GOOD] * 8 + sorted(BREAKS))
    if kind == GOOD:
        questions.append(question)
        return json.dumps(row, ensure_ascii=generator.random() < 0.5), GOOD
    if kind == "the same question as" and not questions:
        kind = "is empty"
    field = generator.choice(["question", "answer"])
    return BREAKS[kind](generator, row, field, questions), kind


def with_value(value: Any) -> Any:
    def change(generator: random.Random, row: data_files.Row, field: str, questions: list[str]) -> str:
        chosen = value(generator, row[field], questions) if isinstance(value, types.FunctionType) else value
        return json.dumps(row | {field: chosen})

    return change


BREAKS: dict[str, Any] = {
    "no field": lambda g, row, field, questions: json.dumps({name: row[name] for name in row if name != field}),
    "not a string": with_value(
        lambda g, old, questions: g.choice(
            [None, True, 4, -0.5, float("nan"), [], ["x" * 999], {}, {"a": [[[]]]}, 10**400]
        )
    ),
    "is empty": with_value(lambda g, old, questions: g.choice(["", " ", "\n\t", "\u3000", "\u2028"])),
    "NUL": with_value(lambda g, old, questions: old[:1] + "\0" + old[1:]),
    "lone surrogate": with_value(lambda g, old, questions: old + g.choice(["\ud800", "\udfff", "\ud83d x"])),
    "the same question as": lambda g, row, field, questions: json.dumps(row | {"question": g.choice(questions)}),
    "special token": lambda g, row, field, questions: json.dumps(
        row | {"question": row["question"] + g.choice(["<|im_end|>", "<｜User｜>", "</think>", "<|endoftext|>"])}
    ),
    "characters, more than": with_value(lambda g, old, questions: (old * 9000)[:20_001]),
    "not an object": lambda g, row, field, questions: g.choice(
        ["[]", "3", '"text"', "null", "true", "[[1], {}]", "1e999"]
    ),
    "not JSON": lambda g, row, field, questions: g.choice(
        ["{", "{'a': 1}", json.dumps(row)[: g.randint(1, 12)], "[" * 60_000, "9" * 5_000, "\x00", "nul", "{}}"]
    ),
}


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, str]]:
    """5,000 rows and, by line number, the reason why a row is bad."""
    generator, questions = random.Random(0), []  # noqa: S311  # no secret
    lines = [fuzzed(generator, number, questions) for number in range(5000)]
    path = tmp_path_factory.mktemp("fuzz") / "rows.jsonl"
    # "surrogatepass" would be needed for real surrogates, but json.dumps escapes them.
    path.write_text("".join(line + "\n" for line, _ in lines), encoding="utf-8")
    return path, {number: kind for number, (_, kind) in enumerate(lines, start=1)}


def test_exactly_the_bad_rows_of_5000_fuzzed_rows_are_named_by_file_and_line(
    fuzz: tuple[Path, dict[int, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, kinds = fuzz
    bad = {number: kind for number, kind in kinds.items() if kind != GOOD}
    assert len(bad) > 1500
    assert set(bad.values()) == set(BREAKS)
    out, report = tmp_path / "out", tmp_path / "report.json"
    code = cli.main(["data", "prepare", "--input", str(path), "--output", str(out), "--json", str(report)])
    output = capsys.readouterr().err.splitlines()
    assert code == 2
    assert not out.exists()
    named = {
        int(line.removeprefix(f"{path}:").partition(":")[0]): line for line in output if line.startswith(f"{path}:")
    }
    assert named.keys() == bad.keys()
    for number, kind in bad.items():
        assert kind in named[number]
        assert len(named[number]) < len(str(path)) + 400
    listed = json.loads(report.read_text())["problems"]
    assert [each["line"] for each in listed] == sorted(bad)
    assert {each["file"] for each in listed} == {str(path)}
    assert f"{len(bad)} rows can't be used" in output[-1]
    assert f"set --quarantine_fraction {-(-len(bad) * 1000 // 5000) / 1000:g}." in output[-1]


def test_quarantine_leaves_out_exactly_the_bad_rows_and_names_them(
    fuzz: tuple[Path, dict[int, str]], tmp_path: Path
) -> None:
    path, kinds = fuzz
    prepared = data_files.prepare(path, tmp_path / "out", quarantine_fraction=0.9)
    assert prepared.rows == list(kinds.values()).count(GOOD)
    lines = path.read_text(encoding="utf-8").split("\n")
    expected = [json.loads(lines[number - 1]) for number, kind in kinds.items() if kind == GOOD]
    loaded = data.rows.read(str(tmp_path / "out"))
    assert [row[1:] for row in loaded] == [(row["question"], row["answer"]) for row in expected]
    left_out = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [each["line"] for each in left_out] == [number for number, kind in kinds.items() if kind != GOOD]
    assert set(left_out[0]) == {"file", "line", "reason"}


def read_or_refusal(path: Path) -> tuple[list[Any], list[Any], str]:
    try:
        return *data.preparation.read([path], data.PrepareSettings()), ""
    except ValueError as error:
        return [], [], str(error)


@UNHURRIED
@given(
    st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b" ")), max_size=8),
    st.sampled_from(data.files.ENDINGS),
)
def test_any_bytes_give_usable_rows_bad_rows_or_one_refusal(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], ending: str
) -> None:
    path = tmp_path_factory.mktemp("bytes") / f"rows{ending}"
    path.write_bytes(b"\n".join(lines))
    usable, problems, refusal = read_or_refusal(path)
    assert not refusal or str(path) in refusal
    if refusal:
        return
    numbers = [int(each.where.removeprefix(f"{path}:")) for each in (*usable, *problems)]
    breaks = path.read_bytes().count(b"\n") + path.read_bytes().count(b"\r")  # CSV takes either for the end of a line
    assert all(1 <= number <= breaks + 2 for number in numbers)
    if ending == ".jsonl":
        is_row = [bool(line.strip()) for line in lines]
        is_row[:1] = [bool(line.removeprefix(b"\xef\xbb\xbf").strip()) for line in lines[:1]]
        assert sorted(numbers) == [number for number, row in enumerate(is_row, start=1) if row]


@UNHURRIED
@given(st.binary(max_size=200))
def test_any_array_of_bytes_in_a_json_file_gives_usable_or_bad_rows(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "rows.json"
    path.write_bytes(b'[{"question": "a", "answer": "1"},' + content)
    usable, problems, refusal = read_or_refusal(path)
    assert not refusal or f"{path}:" in refusal
    if refusal:
        return
    assert [row.question for row in usable][:1] == ["a"]
    assert problems or content.strip()[-1:] == b"]"


# Kinds of files


def test_every_kind_of_file_gives_the_same_rows_and_names_the_same_bad_ones(tmp_path: Path) -> None:
    rows = [
        *data_files.questions(3),
        {"question": "empty?", "answer": " "},
        *data_files.questions(1),
        *data_files.questions(1, 7),
    ]
    expected = [(row["question"], row["answer"]) for row in [*data_files.questions(3), *data_files.questions(1, 7)]]
    for ending, line in ((".jsonl", 4), (".json", 5), (".csv", 5), (".parquet", 4)):
        path = data_files.write(tmp_path / f"rows{ending}", rows)
        first = line - 3
        assert data_files.read(path) == (
            expected,
            [f"{line}: 'answer' is empty", f"{line + 1}: the same question as {path}:{first}"],
        )


def test_json_lines_in_a_json_file_are_read_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    data_files.write(tmp_path / "rows.jsonl", [*data_files.questions(2), "{"]).rename(path)
    usable, problems = data_files.read(path)
    assert len(usable) == 2
    assert [problem.partition("(")[0] for problem in problems] == ["3: not JSON "]


def test_a_json_array_is_read_up_to_its_first_error_which_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    good = json.dumps(data_files.questions(1)[0], indent=1)  # four lines
    path.write_text(f"[{good},\n\n{good.replace('0', '1')},\n{{'x'}}, {good}]")
    usable, problems = data_files.read(path)
    assert len(usable) == 2
    assert problems[0].startswith("10: not JSON (")
    assert problems[0].endswith("the rest was not read")


def test_a_csv_record_of_several_lines_is_named_by_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'question,answer\r\n"two\nlines",1\r\nx,\r\n"y\n",2,3\r\n\xff,4\r\n')
    assert data_files.read(path) == (
        [("two\nlines", "1")],
        [
            "4: 'answer' is empty",
            "5: the number of fields is not 2, as in the first line",
            "7: 'question' contains a lone surrogate, which is not text",
        ],
    )


def test_a_file_of_another_kind_or_a_missing_or_damaged_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("x")
    (tmp_path / "rows.parquet").write_text("x")
    for name, message in (("rows.txt", "another kind"), ("none.jsonl", "does not exist"), (".", "a directory")):
        with pytest.raises(ValueError, match=rf"{message}.*Name a file that ends in \.jsonl"):
            data_files.read(tmp_path / name)
    with pytest.raises(ValueError, match="can't be read as parquet"):
        data_files.read(tmp_path / "rows.parquet")


def test_fields_are_mapped_by_name(tmp_path: Path) -> None:
    path = data_files.write(
        tmp_path / "rows.jsonl",
        [{"prompt": "2+2=", "gold": "4"}, {"prompt": "x", "answer": "4"}, {"prompt": 3, "gold": ""}],
    )
    usable, problems = data_files.read(path, question="prompt", answer="gold")
    assert usable == [("2+2=", "4")]
    assert problems == [
        "2: no field 'gold' (fields: 'prompt', 'answer')",
        "3: 'prompt' is a int, not a string: 3",
    ]
    with pytest.raises(ValueError, match="defines its fields"):
        data_files.prepare(path, tmp_path / "out", format="gsm8k", question="prompt")


# Records that can't be told apart, or were not read


def test_rows_that_were_not_read_are_never_left_out_as_one_bad_row(tmp_path: Path) -> None:
    """Their number is unknown, so no fraction of the rows can allow it."""
    lines = [json.dumps(row) for row in data_files.questions(1000)]
    broken = tmp_path / "broken.json"
    broken.write_text("[" + ",\n".join([*lines[:151], "," + lines[151], *lines[152:]]) + "]")
    behind = tmp_path / "behind.json"
    behind.write_text("[" + ",\n".join(lines[:150]) + "]\n[" + lines[200] + "] more")
    quote = tmp_path / "quote.csv"
    quote.write_text('question,answer\na,1\nb,"5\nc,6\nd,7\n')
    damaged = damaged_parquet(tmp_path / "damaged.parquet")
    for path, line in ((broken, 152), (behind, 151), (quote, 3), (damaged, 1)):
        with pytest.raises(data.BadRowsError, match=f"How many rows follow {path}:{line} is unknown.*Mend the file"):
            data_files.prepare(path, tmp_path / "out", quarantine_fraction=0.99)
        assert not (tmp_path / "out").exists()


def damaged_parquet(path: Path) -> Path:
    """Two row groups of 1,000 rows; the pages of the second are overwritten."""
    table = pyarrow.Table.from_pylist(data_files.questions(2000))
    parquet.write_table(table, path, row_group_size=1000)
    start = parquet.ParquetFile(path).metadata.row_group(1).column(0).dictionary_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 400] = b"\xff" * 400
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("content", "line"), [('[{}] [{"question": "b"}]', 1), ("[]\n\n{}", 3), ("[{}\n]]", 2)])
def test_what_follows_the_end_of_a_json_array_is_named(content: str, line: int, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(content.replace("{}", '{"question": "a", "answer": "1"}', 1))
    _, problems = data_files.read(path)
    assert problems == [f"{line}: text behind the ] that ends the array; it was not read"]


def test_a_csv_quote_that_is_never_closed_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('question,answer\na,"5\nb,6\nc,7\n')
    usable, problems = data_files.read(path)
    assert usable == []
    assert problems == ["2: not CSV (unexpected end of data: a quote that is not closed?); the rest was not read"]
    path.write_text('question,answer\na,1\nb,"5" 6\nc,7\n')
    assert data_files.read(path)[1][0].startswith("3: not CSV (")


def test_a_long_csv_field_of_another_column_hides_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("question,answer,code\na,1," + "x" * 140_000 + "\nb,2,y\n" + "c" * 140_000 + ",3,z\n")
    limit = csv.field_size_limit()
    usable, problems = data_files.read(path)
    assert usable == [("a", "1"), ("b", "2")]
    assert problems == ["4: 'question' has 140000 characters, more than the 20000 of --max_characters"]
    assert csv.field_size_limit() == limit


def test_names_that_stand_twice_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("question,answer,answer\na,1,9\n")
    columns = [pyarrow.array([text]) for text in ("a", "1", "9")]
    table = pyarrow.Table.from_arrays(columns, names=["question", "answer", "answer"])
    parquet.write_table(table, tmp_path / "rows.parquet")
    for name in ("rows.csv", "rows.parquet"):
        with pytest.raises(ValueError, match=rf"{name}.*two columns are named 'answer'"):
            data_files.read(tmp_path / name)
    row = '{"question": "a", "answer": "1", "answer": "2"}'
    nested = '{"question": "b", "answer": "1", "more": {"x": 1, "x": 1}}'
    (tmp_path / "rows.jsonl").write_text(f"{row}\n{nested}\n")
    (tmp_path / "rows.json").write_text(f"[{row},\n{nested}]")
    for name in ("rows.jsonl", "rows.json"):
        usable, problems = data_files.read(tmp_path / name)
        assert (usable, problems) == ([], ["1: the key 'answer' stands twice", "2: the key 'x' stands twice"])
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: the key 'answer' stands twice"):
        data.rows.read(str(tmp_path / "rows.jsonl"))


# Types of parquet columns


@pytest.mark.parametrize(
    ("kind", "values", "texts"),
    [
        (pyarrow.float64(), [0.1, 3.0, 0.5], ["0.1", "3", "0.5"]),
        (pyarrow.float32(), [0.1, 3.3, 1e10], ["0.1", "3.3", "10000000000"]),
        (pyarrow.float16(), [0.1, 3.3, 7.0], ["0.1", "3.3", "7"]),
        (pyarrow.decimal128(9, 3), [Decimal("0.100"), Decimal("3.000"), Decimal(100)], ["0.1", "3", "100"]),
    ],
)
def test_a_number_of_a_parquet_column_is_the_shortest_text_of_its_width(
    kind: pyarrow.DataType, values: list[Any], texts: list[str], tmp_path: Path
) -> None:
    if pyarrow.types.is_float16(kind):
        values = [np.float16(value) for value in values]
    table = pyarrow.table({"problem": ["a", "b", "c"], "answer": pyarrow.array(values, kind)})
    parquet.write_table(table, tmp_path / "rows.parquet")
    usable, _ = data_files.read(tmp_path / "rows.parquet", format="amc")
    assert [answer for _, answer in usable] == texts
    lists = pyarrow.table({"question": ["a"], "final_answer": pyarrow.array([values], pyarrow.list_(kind))})
    parquet.write_table(lists, tmp_path / "lists.parquet")
    usable, _ = data_files.read(tmp_path / "lists.parquet", format="olympiad_bench")
    assert usable == [("a", ", ".join(texts))]


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array([2**62], pyarrow.timestamp("us")),
        pyarrow.array([1], pyarrow.timestamp("ns")),
        pyarrow.array([[1]], pyarrow.list_(pyarrow.timestamp("ns"))),
        pyarrow.array([{"bytes": b"\xff", "path": None}]),
        pyarrow.array([b"\xff"]),
    ],
)
def test_a_parquet_column_that_is_not_used_is_not_read_and_a_used_one_is_named(
    column: pyarrow.Array, tmp_path: Path
) -> None:
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"question": ["a"], "answer": ["1"], "more": column}), path)
    assert data_files.read(path) == ([("a", "1")], [])
    usable, problems = data_files.read(path, answer="more")
    assert not usable
    assert re.match(r"1: (the value of 'more', a [^,]+, can't be read|'more' is a \w+, not a string)", problems[0])
