"""A run directory has one owner at a time: real processes that live, are killed, stopped, or seem to run on other hosts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support import tiny_runs

from reval_jax import cli, owner

HOLD = """
import sys, time
from pathlib import Path
from reval_jax import owner
held = owner.acquire(Path(sys.argv[1]), log=print)
print("held", flush=True)
time.sleep(100)
"""


@contextlib.contextmanager
def holder(directory):
    """A process that holds the directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)],
        env={**os.environ, "PYTHONPATH": str(tiny_runs.TESTS.parent)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def acquire(directory, log=None, watch_s=0.5, beat_s=60.0, **options):
    said = [] if log is None else log
    return owner.acquire(directory, log=said.append, watch_s=watch_s, beat_s=beat_s, **options)


def written(directory):
    return json.loads((directory / owner.FILE).read_text())


def pretend(directory, **facts):
    """Changes what the file says of its owner."""
    content = written(directory)
    assert content.keys() >= facts.keys()
    (directory / owner.FILE).write_text(json.dumps({**content, **facts}))


def test_a_held_directory_is_refused_with_its_owner_named_and_is_free_after_the_release(tmp_path):
    held = acquire(tmp_path / "deep" / "run")
    content = written(tmp_path / "deep" / "run")
    assert content["pid"] == os.getpid()
    with pytest.raises(ValueError, match=rf"in use by process {os.getpid()} on host {content['host']} since 20.* UTC"):
        acquire(tmp_path / "deep" / "run")
    held.check()
    held.release()
    assert not list(tmp_path.iterdir()), "directories that were made for a run that wrote nothing go with it"
    acquire(tmp_path / "deep" / "run").release()


def test_a_release_keeps_what_the_run_wrote(tmp_path):
    held = acquire(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").touch()
    held.release()
    held.release()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]


def test_a_living_process_keeps_its_directory_even_when_it_is_stopped(tmp_path):
    with holder(tmp_path) as process:
        for signal_ in (signal.SIGCONT, signal.SIGSTOP):
            process.send_signal(signal_)
            with pytest.raises(ValueError, match=f"in use by process {process.pid} "):
                acquire(tmp_path)


def test_a_killed_process_loses_its_directory_at_once_even_before_its_parent_has_noticed(tmp_path):
    with holder(tmp_path) as process:
        process.kill()
        while Path(f"/proc/{process.pid}/stat").read_text().split()[2] != "Z":
            time.sleep(0.01)
        said = []
        began = time.monotonic()
        held = acquire(tmp_path, said, watch_s=60.0)
        assert time.monotonic() - began < 5
        assert len(said) == 1
        assert f"is taken over from process {process.pid} " in said[0]
        held.check()
        held.release()


@pytest.mark.parametrize("facts", [{"started": "1"}, {"boot": "another boot"}])
def test_an_owner_whose_number_another_process_has_or_of_another_boot_is_gone_at_once(tmp_path, facts):
    acquire(tmp_path)
    pretend(tmp_path, **facts)
    said = []
    acquire(tmp_path, said, watch_s=60.0).release()
    assert "taken over" in said[0]


@pytest.mark.parametrize("facts", [{"host": "other"}, {"machine": "other"}, {"namespace": "other"}, {"started": ""}])
def test_an_owner_elsewhere_that_shows_no_sign_of_life_is_taken_over_after_a_watch(tmp_path, facts):
    first = acquire(tmp_path)
    pretend(tmp_path, **facts)
    said, waits = [], []
    began = time.monotonic()
    second = acquire(tmp_path, said, watch_s=0.5, on_wait=lambda: waits.append(1))
    assert time.monotonic() - began >= 0.5
    assert "watching 0 s" in said[0] or "watching 1 s" in said[0]
    assert "taken over" in said[1]
    assert waits
    second.check()
    with pytest.raises(owner.LostError, match=f"process {os.getpid()} .* has taken it over"):
        first.check()
    first.release()
    second.check()
    second.release()


def test_where_no_boot_is_known_an_owner_is_watched(tmp_path, monkeypatch):
    """Two hosts that say nothing about themselves may look the same, and neither sees the other's processes."""
    real = owner._text
    monkeypatch.setattr(owner, "_text", lambda path: "" if "boot_id" in path else real(path))
    acquire(tmp_path)
    pretend(tmp_path, pid=2**22 + 1)
    said = []
    acquire(tmp_path, said).release()
    assert "watching" in said[0]


def test_what_killed_newcomers_left_is_removed_once_it_is_old(tmp_path, monkeypatch):
    left = tmp_path / f"{owner.FILE}.0123456789abcdef"
    left.write_text("{}")
    acquire(tmp_path).release()
    assert left.exists()
    monkeypatch.setattr(owner, "_ABANDONED_S", -1.0)
    acquire(tmp_path).release()
    assert not list(tmp_path.iterdir())


def test_an_owner_elsewhere_that_beats_is_refused(tmp_path):
    pretending = acquire(tmp_path, beat_s=0.2)
    # Changed in place, as the owner's own descriptor stays at this file.
    content = (tmp_path / owner.FILE).read_bytes()
    moved = json.dumps({**json.loads(content), "host": "x" * len(written(tmp_path)["host"])}).encode()
    with (tmp_path / owner.FILE).open("r+b") as file:
        file.write(moved)
    began = time.monotonic()
    with pytest.raises(ValueError, match="in use by process"):
        acquire(tmp_path, watch_s=30.0)
    assert time.monotonic() - began < 10
    pretending.check()
    pretending.release()


@pytest.mark.parametrize("content", [b"", b"{", b'{"pid": 1}', b"[]", b"\xff\xfe"])
def test_a_damaged_file_is_watched_and_taken_over(tmp_path, content):
    (tmp_path / owner.FILE).write_bytes(content)
    said = []
    held = acquire(tmp_path, said)
    assert "damaged owner.json" in said[0]
    held.check()
    held.release()
    assert not list(tmp_path.iterdir())


def test_of_many_newcomers_exactly_one_takes_a_dead_owners_directory(tmp_path):
    acquire(tmp_path)
    pretend(tmp_path, boot="another boot")
    results = []
    start = threading.Barrier(8)

    def compete():
        start.wait()
        try:
            results.append(acquire(tmp_path))
        except ValueError as error:
            results.append(str(error))

    threads = [threading.Thread(target=compete) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = (result for result in results if isinstance(result, owner.Owner))
    assert len(results) == 8
    winner.check()
    winner.release()
    assert not list(tmp_path.iterdir())


def test_a_file_that_was_deleted_ends_the_run(tmp_path):
    held = acquire(tmp_path)
    (tmp_path / owner.FILE).unlink()
    with pytest.raises(owner.LostError, match="is gone"):
        held.check()
    held.release()


def test_a_directory_without_hard_links_is_held_as_well(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    held = acquire(tmp_path)
    with pytest.raises(ValueError, match="in use"):
        acquire(tmp_path)
    held.check()
    held.release()
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny_runs.write_files(tmp_path_factory.mktemp("files"))


def test_of_two_trainers_one_is_refused_and_the_other_ends_as_if_alone(file, tmp_path):
    words = ("--run.rounds", "2", "--eval.every", "0")
    started = [tiny_runs.start(file, tmp_path / "run", *words) for _ in range(2)]
    (first, text), (second, other) = sorted(map(tiny_runs.finish, started))
    assert (first, second) == (0, 2), text + other
    assert "in use by process" in other
    assert "Traceback" not in other
    alone = tiny_runs.start(file, tmp_path / "alone", *words)
    assert tiny_runs.finish(alone)[0] == 0
    tiny_runs.assert_same_run(tmp_path / "run", tmp_path / "alone")
    assert not list((tmp_path / "run").glob("owner*"))


def test_a_refused_start_leaves_nothing_behind(file, tmp_path):
    settings = tiny_runs.with_overrides(file, {"model.path": str(tmp_path / "absent")})
    with pytest.raises(ValueError, match="absent"):
        tiny_runs.train.train(settings, tmp_path / "deep" / "run", console=tiny_runs.console.Console(is_quiet=True))
    assert not list(tmp_path.iterdir())


def test_a_run_that_comes_back_after_it_was_taken_over_writes_nothing_and_ends_with_one_message(
    file, tmp_path, monkeypatch, capsys
):
    """What a process that was stopped finds: here another owner's file appears while a round is played."""
    run_dir = tmp_path / "run"
    play, lines = tiny_runs.train.play_round, []

    def taken_over(components, run, actor, preemption):
        if run.progress.round == 1:
            pretend(run_dir, nonce="another", pid=7, host="elsewhere")
            lines.append(tiny_runs.metrics_lines(run_dir))
        return play(components, run, actor, preemption)

    monkeypatch.setattr(tiny_runs.train, "play_round", taken_over)
    with tiny_runs.jax.numpy_dtype_promotion("standard"):
        code = cli.main(["train", "--config", str(file), "--run-dir", str(run_dir), "--eval.every", "0"])
    error = capsys.readouterr().err
    assert code == 1, error
    assert "belongs to another run now: process 7 on host elsewhere" in error
    assert "Traceback" not in error
    assert tiny_runs.metrics_lines(run_dir) == lines[0]
    assert written(run_dir)["nonce"] == "another", "another's file stays"
