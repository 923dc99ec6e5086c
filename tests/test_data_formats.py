"""Published formats: the question and gold answer of each, and the publishers' files."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from support import data_files

from reval_jax import cli, data
from reval_jax.cli import arguments

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent / "shared" / "data"


# Published formats


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
        ("gsm8k", {"problem": "P"}, "no field 'answer' or 'Answer' (fields: 'problem')"),
    ],
)
def test_a_published_row_gives_its_question_and_gold(
    format: str, row: data_files.Row, expected: Any, tmp_path: Path
) -> None:
    assert data_files.one(tmp_path, format, row) == expected


def test_a_solution_with_a_hundred_thousand_boxes_is_read_in_linear_time() -> None:
    """A scan from each box to the end of the text would take hours."""
    assert data.formats.last_box("\\boxed{" * 100_000) is None
    assert data.formats.last_box("\\boxed{" * 100_000 + "7}") == "7"


def gpqa(i: int) -> data_files.Row:
    options = {"Correct Answer": f"right {i} ", **{f"Incorrect Answer {k}": f"wrong {i}.{k}\n" for k in (1, 2, 3)}}
    return {"Record ID": f"r{i}", "Question": f"Question {i}?", **options}


def test_a_gpqa_question_shows_all_options_and_its_answer_is_the_letter_of_the_right_one(tmp_path: Path) -> None:
    rows = [gpqa(i) for i in range(200)]
    path = data_files.write(tmp_path / "gpqa_main.csv", rows)
    letters = ""
    for seed in (0, 1):
        usable, problems = data_files.read(path, format="gpqa", seed=seed)
        assert not problems
        for i, (question, letter) in enumerate(usable):
            head, blank, *options = question.split("\n")
            assert (head, blank) == (f"Question {i}?", "")
            shown = dict(option.split(") ", 1) for option in options)
            assert list(shown) == list("ABCD")
            assert shown[letter] == f"right {i}"
            assert sorted(shown.values()) == sorted([f"right {i}", *(f"wrong {i}.{k}" for k in (1, 2, 3))])
        assert usable == data_files.read(path, format="gpqa", seed=seed)[0]
        letters += "".join(letter for _, letter in usable)
    assert letters[:200] != letters[200:]
    # 400 draws of four letters: five standard deviations are 43.
    assert all(abs(letters.count(letter) - 100) < 43 for letter in "ABCD")


def test_the_order_of_gpqas_options_does_not_depend_on_the_other_rows(tmp_path: Path) -> None:
    rows = [gpqa(i) for i in range(20)]
    whole = data_files.read(data_files.write(tmp_path / "whole.csv", rows), format="gpqa")[0]
    assert data_files.read(data_files.write(tmp_path / "some.csv", rows[::-3]), format="gpqa")[0] == whole[::-3]


@pytest.mark.parametrize(
    "change", [{"Incorrect Answer 2": "right 0"}, {"Incorrect Answer 1": " "}, {"Question": "\ud800"}]
)
def test_a_gpqa_row_without_four_options_or_text_is_named(change: data_files.Row, tmp_path: Path) -> None:
    assert isinstance(data_files.one(tmp_path, "gpqa", gpqa(0) | change), str)


def test_the_command_has_the_formats_of_the_package() -> None:
    assert get_args(arguments.format_names()) == tuple(data.formats.FORMATS)
    for kind in (arguments.DataPrepare, arguments.DataInspect):
        for field in dataclasses.fields(kind):
            if field.name in {each.name for each in dataclasses.fields(data.PrepareSettings)}:
                assert field.default == getattr(data.PrepareSettings(), field.name)


def test_a_published_file_that_cannot_be_fetched_is_one_clear_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name, published in data.formats.FORMATS.items():
        for split in published.published.files if published.published else ():
            with pytest.raises(ValueError, match=r"could not be fetched from the Hugging Face hub .*--input FILE"):
                data.formats.download(name, split)
    for extra, message in (
        (("--format", "gpqa"), "not be reposted.*--input FILE"),
        (("--format", "math500", "--split", "train"), "--split train: HuggingFaceH4/MATH-500 has test only"),
        ((), "--input is missing"),
    ):
        assert cli.main(["data", "prepare", "--output", str(tmp_path / "out"), *extra]) == 2
        assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


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
        usable, problems = data_files.read(path, format=formats.get(path.stem, "plain"))
        assert not problems, path
        assert usable == [(row["question"], row["answer"]) for row in rows], path
