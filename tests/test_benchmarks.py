"""Benchmarks: their splits and names, and which of them are comparable."""

from __future__ import annotations

import dataclasses
import json

import pytest
from support import graded_responses, tiny_runs

from reval_jax import config, data, evaluate, weights
from reval_jax.evaluate import intervals


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny_runs.write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture
def prepared(tmp_path):
    """Two benchmarks written by `data prepare`, one with the split train and one with test."""
    for number, split in enumerate(("train", "test")):
        file = tmp_path / f"{split}.jsonl"
        file.write_text(json.dumps({"question": f"{number}+1=", "answer": str(number + 1)}) + "\n")
        data.prepare([file], tmp_path / f"as_{split}", data.PrepareSettings(split=split))
    return tmp_path


def with_benchmarks(files, *benchmarks, **fields):
    """The settings with these benchmarks, and the model's tokenizer."""
    settings = config.load(files)
    chosen = dataclasses.replace(settings.eval, benchmarks=tuple(map(str, benchmarks)), **fields)
    return dataclasses.replace(settings, eval=chosen), weights.read(settings.model.path)[1]


def test_directories_whose_splits_have_different_names_are_evaluated_together(files, prepared):
    settings = with_benchmarks(files, prepared / "as_train", prepared / "as_test", prepared / "test.jsonl")
    train, test, file = evaluate.load(*settings)
    assert [each.name for each in (train, test, file)] == ["as_train", "as_test", "test"]
    assert test.fingerprint == file.fingerprint != train.fingerprint


def test_eval_split_is_read_and_a_missing_split_is_named(files, prepared):
    assert len(evaluate.load(*with_benchmarks(files, prepared / "as_test", split="test"))) == 1
    with pytest.raises(ValueError, match=r"eval\.benchmarks=.*as_train with eval\.split=test can't be read"):
        evaluate.load(*with_benchmarks(files, prepared / "as_train", split="test"))


def test_two_benchmarks_of_the_same_name_are_refused_and_the_remedies_work(files, prepared):
    again = prepared / "again" / "as_test"
    data.prepare([prepared / "train.jsonl"], again, data.PrepareSettings())
    with pytest.raises(ValueError, match=r"rename a file, or prepare a directory again with another --output"):
        evaluate.load(*with_benchmarks(files, prepared / "as_test", again))
    data.prepare([prepared / "train.jsonl"], prepared / "again" / "other", data.PrepareSettings())
    assert len(evaluate.load(*with_benchmarks(files, prepared / "as_test", prepared / "again" / "other"))) == 2
    arithmetic = "procedural:arithmetic,level=2,split=test"
    different = [arithmetic, *(f"{arithmetic},{key}" for key in ("seed=1", "size=64", "style=raw"))]
    loaded = evaluate.load(*with_benchmarks(files, *different))
    assert len({each.name for each in loaded}) == len({each.fingerprint for each in loaded}) == 4


def test_policies_that_would_answer_different_problems_are_not_compared(files):
    settings = config.load(files)
    ours = evaluate.load(settings, weights.read(settings.model.path)[1])
    evaluate.check_same_problems(ours, ours)
    fewer = [ours[0]._replace(num_rows=1)]
    with pytest.raises(ValueError, match="has 1 usable rows with one model's tokenizer and 2"):
        evaluate.check_same_problems(fewer, ours)


def test_results_on_two_benchmarks_are_not_compared():
    graded = graded_responses.of_rewards([[1, 0], [0, 0]])
    one, other = (evaluate.Result(name, graded, intervals.estimates(graded), ("",) * 4) for name in ("a", "b"))
    with pytest.raises(ValueError, match="two benchmarks"):
        evaluate.differences(one, other)


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("data/math500.jsonl", "math500"),
        ("procedural:arithmetic,level=2,split=test", "arithmetic_level_2_test"),
    ],
)
def test_a_benchmarks_name_fits_into_a_metrics_name(dataset, name):
    assert data.rows.label(dataset) == name
