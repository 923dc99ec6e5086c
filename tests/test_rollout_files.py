"""Files of rollouts: readable by zcat, equal for equal rounds, checked, bounded, and never the end of a run."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from support import tiny_runs

from reval_jax import cli, rollout_files, run_directory


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny_runs.write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def played(file, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    tiny_runs.play(file, run_dir, eval__every=0, checkpoint__every=1)
    return run_dir


@pytest.fixture
def first(played, tmp_path):
    """A copy of the first round's file."""
    return Path(shutil.copy(played / "rollouts" / "round_000001.jsonl.gz", tmp_path))


def test_a_rounds_file_is_gzip_without_a_time_and_zcat_prints_its_lines(first):
    content = first.read_bytes()
    assert content[:10] == b"\x1f\x8b\x08\x08\0\0\0\0\0\xff", "gzip, deflate, a name, no time, no extras, no system"
    printed = subprocess.run(["zcat", str(first)], capture_output=True, check=True).stdout
    rows = [json.loads(line) for line in printed.splitlines()]
    assert len(rows) == 8
    assert list(rows[0]) == [
        *("prompt", "response", "answer", "verdict", "reward", "is_truncated", "num_tokens", "tokens", "log_prob"),
    ]
    assert [len(row["tokens"]) for row in rows] == [row["num_tokens"] for row in rows]
    assert rollout_files.read(first) == printed
    rollout_files.check(first)


def test_an_earlier_versions_file_is_read_and_replaced(played, tmp_path, capsys):
    run = run_directory.RunDirectory(Path(shutil.copytree(played, tmp_path / "run")))
    plain = run.rollouts / "round_000002.jsonl"
    plain.write_bytes(gzip.decompress(run.rollout(2).read_bytes()))
    assert run.rollout_files()[2] == run.rollout(2), "of two files the newer version's counts"
    run.rollout(2).unlink()
    assert list(run.rollout_files()) == [1, 2, 3, 4]
    assert run.rollout_files()[2] == plain
    rollout_files.check(plain)
    words = ("inspect", "--rollouts", plain, "--model.path", played.parent, "--output", tmp_path / "out.jsonl")
    assert cli.main(list(map(str, words))) == 2
    assert "model" in capsys.readouterr().err, "the file was read, and the model, which is none, was not"


def test_every_damage_to_a_compressed_file_is_noticed(first):
    whole = first.read_bytes()
    lines = gzip.decompress(whole)
    first.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="ends too early"):
        rollout_files.check(first)
    first.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="bytes follow its end"):
        rollout_files.check(first)
    for index in range(10, len(whole)):
        first.write_bytes(whole[:index] + bytes([whole[index] ^ 1 << index % 8]) + whole[index + 1 :])
        try:
            rollout_files.check(first)
        except ValueError:
            continue
        assert rollout_files.read(first) == lines, index  # a bit that pads the last byte


def test_a_file_in_another_rounds_place_is_noticed(first):
    moved = first.rename(first.with_name("round_000002.jsonl.gz"))
    with pytest.raises(ValueError, match=r"was written as round_000001\.jsonl\."):
        rollout_files.check(moved)


def test_the_oldest_files_are_deleted_beyond_the_bound_and_the_run_is_the_same(file, played, tmp_path, capsys):
    sizes = [path.stat().st_size for path in sorted((played / "rollouts").iterdir())]
    bound = (sizes[2] + sizes[3]) / 2**30
    config = tiny_runs.with_overrides(file, {"eval.every": 0, "checkpoint.every": 1, "run.max_rollouts_gib": bound})
    words = ("--eval.every", "0", "--checkpoint.every", "1", "--run.max_rollouts_gib", str(config.run.max_rollouts_gib))
    code, output = tiny_runs.finish(tiny_runs.start(file, tmp_path / "run", *words, devices=8))
    assert code == 0, output
    assert output.count("the oldest files are deleted from now on") == 1
    assert tiny_runs.rollouts(tmp_path / "run").keys() == {"round_000003.jsonl", "round_000004.jsonl"}
    assert tiny_runs.metrics_lines(tmp_path / "run") == tiny_runs.metrics_lines(played)


def test_each_file_that_cannot_be_written_is_named_and_the_run_goes_on(file, played, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(tiny_runs.console.Console, "log", lambda self, text: said.append(text))

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rollout_files, "write", full)
    outcome = tiny_runs.play(file, tmp_path / "run", eval__every=0, checkpoint__every=1)
    assert outcome.rounds == 4
    assert [text for text in said if "No space left" in text] == [
        f"the rollouts of round {round} cannot be written ([Errno 28] No space left on device); the run goes on without"
        for round in (1, 2, 3, 4)
    ]
    assert tiny_runs.metrics_lines(tmp_path / "run") == tiny_runs.metrics_lines(played)


def test_a_write_that_fails_half_way_leaves_no_file(played, tmp_path):
    from reval_jax import durable

    path = tmp_path / "round_000001.jsonl.gz"

    def torn():
        with durable.replacing(path) as target:
            target.write(b"half")
            raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        torn()
    assert not list(tmp_path.iterdir())
