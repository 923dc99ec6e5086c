"""A checkpoint that is not as it was saved is never read, an earlier one takes its place, and a failed save says what stands."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from support import tiny_runs

from reval_jax import checkpoint, cli, owner, train
from reval_jax.checkpoint import manifest, saving

KEEP = {"checkpoint__every": 1, "checkpoint__keep": 2}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny_runs.write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def straight(file, tmp_path_factory):
    """A run of four rounds that keeps the checkpoints of rounds 3 and 4, never stopped."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    tiny_runs.play(file, run_dir, **KEEP)
    assert tiny_runs.saved_rounds(run_dir) == [3, 4]
    return run_dir


@pytest.fixture
def copy(straight, tmp_path):
    """A copy of the run that a test may damage."""
    return Path(shutil.copytree(straight, tmp_path / "copy"))


def files_of(step: Path) -> list[Path]:
    return sorted(path for path in step.rglob("*") if path.is_file())


def chosen(run_dir: Path) -> tuple[int | None, list[str]]:
    store = checkpoint.Store.open(run_dir / "checkpoints")
    try:
        return store.newest_whole()
    finally:
        store.close()


def flip(path: Path, seed: int) -> None:
    content = bytearray(path.read_bytes())
    content[seed % len(content)] ^= 1 << (seed % 8)
    path.write_bytes(content)


def reval(words: list[str]) -> int:
    # optax's adamw needs int32 to become float32.
    with jax.numpy_dtype_promotion("standard"):
        return cli.main(words)


def test_a_flipped_bit_or_a_missing_end_in_any_file_passes_the_checkpoint_over(straight, tmp_path):
    step = straight / "checkpoints" / "4"
    assert len(files_of(step)) > 10
    for index, path in enumerate(files_of(step)):
        name = path.relative_to(step)
        for damage in ("flip", "cut", "empty", "gone"):
            run_dir = tmp_path / f"{index}_{damage}"
            for round in (3, 4):
                shutil.copytree(straight / "checkpoints" / str(round), run_dir / "checkpoints" / str(round))
            target = run_dir / "checkpoints" / "4" / name
            if damage == "flip" and target.stat().st_size:
                flip(target, 7919 * (index + 1))
            elif damage == "gone" or not target.stat().st_size:
                target.unlink()
            else:
                os.truncate(target, 0 if damage == "empty" else target.stat().st_size - 1)
            found, notes = chosen(run_dir)
            assert found == 3, (name, damage)
            assert "the checkpoint of round 4: " in notes[0]
            assert str(name) in notes[0] or name.name == manifest.NAME
            shutil.rmtree(run_dir)


def test_parts_of_another_round_are_noticed(copy):
    checkpoints = copy / "checkpoints"
    for part in ("arrays", "notes"):
        shutil.rmtree(checkpoints / "4" / part)
        shutil.copytree(checkpoints / "3" / part, checkpoints / "4" / part)
        assert chosen(copy)[0] == 3
    shutil.rmtree(checkpoints / "4")
    shutil.copytree(checkpoints / "3", checkpoints / "4")
    assert chosen(copy) == (3, ["the checkpoint of round 4: it is a copy of the checkpoint of round 3"])


def test_a_resume_after_damage_says_so_and_ends_as_a_run_never_damaged(file, straight, copy, capfd):
    flip(next(path for path in files_of(copy / "checkpoints" / "4" / "arrays" / "d")), 123457)
    (copy / "checkpoints" / "99").mkdir()
    (copy / "checkpoints" / "2.saving.orbax-checkpoint-tmp").mkdir()
    (copy / "checkpoints" / "2.deleting" / "arrays").mkdir(parents=True)
    assert reval(["train", "--config", str(file), "--run-dir", str(copy), *options(KEEP)]) == 0
    error = capfd.readouterr().err
    assert "the checkpoint of round 99: checksums.json is missing" in error
    assert "the checkpoint of round 4: arrays/d/" in error
    assert f"the damaged checkpoint of round 4 is now {copy.resolve()}/checkpoints/4.damaged" in error
    assert "after round 3" in error
    tiny_runs.assert_same_run(copy, straight)
    assert sorted(path.name for path in (copy / "checkpoints").iterdir()) == ["3", "4", "4.damaged", "99.damaged"]


def test_with_no_whole_checkpoint_a_run_is_refused_and_nothing_changes(file, copy, capfd):
    for round in ("3", "4"):
        (copy / "checkpoints" / round / "notes" / "metadata").write_text("")
    before = tiny_runs.tree_hash(copy)
    assert reval(["train", "--config", str(file), "--run-dir", str(copy), *options(KEEP)]) == 2
    error = capfd.readouterr().err
    assert "is whole: the checkpoint of round 4: notes/metadata is damaged; the checkpoint of round 3" in error
    assert "Traceback" not in error
    assert tiny_runs.tree_hash(copy) == before


def test_readers_refuse_a_damaged_round_and_take_the_newest_whole_one(copy, capfd):
    (copy / "checkpoints" / "4" / "notes" / "metadata").write_text("{}")
    store = checkpoint.Store.open(copy / "checkpoints")
    capfd.readouterr()
    assert store.choose(None) == 3
    assert "note: the checkpoint of round 4: notes/metadata is damaged" in capfd.readouterr().err
    assert store.whole() == [3]
    assert "note: the checkpoint of round 4: notes/metadata is damaged" in capfd.readouterr().err
    with pytest.raises(ValueError, match=r"round 4 .* is not whole: notes/metadata is damaged"):
        store.choose(4)
    store.close()
    assert checkpoint.check(copy / "checkpoints") == {3: None, 4: "notes/metadata is damaged"}


def test_checkpoints_of_an_earlier_version_are_used_and_said_to_be_unchecked(copy, straight):
    for round in (3, 4):
        (copy / "checkpoints" / str(round) / manifest.NAME).unlink()
    found, notes = chosen(copy)
    assert found == 4
    assert "has no checksums" in notes[0]
    # After one with checksums, a checkpoint without has lost them; before it, it may be older than they are.
    shutil.copy(straight / "checkpoints" / "3" / manifest.NAME, copy / "checkpoints" / "3")
    assert chosen(copy)[0] == 3
    (copy / "checkpoints" / "3" / manifest.NAME).unlink()
    shutil.copy(straight / "checkpoints" / "4" / manifest.NAME, copy / "checkpoints" / "4")
    (copy / "checkpoints" / "4" / "notes" / "metadata").write_text("")
    assert chosen(copy)[0] == 3


@pytest.mark.parametrize("name", ["r[1]", r"back\slash", "[a]/[b]*?"])
def test_a_path_is_never_a_pattern(file, straight, tmp_path, name):
    run_dir = tmp_path / name / "run"
    tiny_runs.play(file, run_dir, **KEEP, run__rounds=2)
    tiny_runs.play(file, run_dir, **KEEP)
    assert tiny_runs.metrics_lines(run_dir) == tiny_runs.metrics_lines(straight)
    assert chosen(run_dir) == (4, [])


def options(overrides: dict[str, object]) -> list[str]:
    return [word for name, value in overrides.items() for word in (f"--{name.replace('__', '.')}", str(value))]


def test_a_save_that_does_not_fit_is_refused_before_it_begins(file, straight, tmp_path, monkeypatch, capfd):
    run_dir = tmp_path / "run"
    arguments = ["train", "--config", str(file), "--run-dir", str(run_dir), *options(KEEP)]
    real, full = os.statvfs, {"f_bavail": 10}

    def small(path):
        system = real(path)
        names = ("f_blocks", "f_bavail", "f_frsize", "f_files", "f_favail")
        return SimpleNamespace(**{name: getattr(system, name) for name in names} | full)

    monkeypatch.setattr(os, "statvfs", small)
    assert reval(arguments) == 1
    error = capfd.readouterr().err
    assert "the checkpoint of round 1 was not saved" in error
    assert "40 KiB are free there. No checkpoint was saved before" in error
    assert not run_dir.exists()
    full.clear()
    assert reval([*arguments, "--run.rounds", "2"]) == 0
    full["f_favail"] = 3
    capfd.readouterr()
    assert reval(arguments) == 1
    error = capfd.readouterr().err
    assert "has room for 3. The checkpoint of round 2 stands; later rounds are played again" in error
    assert "Traceback" not in error
    monkeypatch.undo()
    assert reval(arguments) == 0
    assert tiny_runs.metrics_lines(run_dir) == tiny_runs.metrics_lines(straight)


def test_a_save_that_fails_in_the_background_ends_the_run_at_once_and_a_resume_is_the_same(
    file, straight, tmp_path, monkeypatch
):
    run_dir, write = tmp_path / "run", manifest.write

    def fails(directory, round, **arguments):
        if round == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))
        write(directory, round, **arguments)

    monkeypatch.setattr(manifest, "write", fails)
    with pytest.raises(
        checkpoint.SaveError, match=r"round 2 was not saved .* No space left on device.* round 1 stands"
    ):
        tiny_runs.play(file, run_dir, **KEEP)
    # The failure is noticed in the next round, not at the next save.
    assert len(tiny_runs.metrics_lines(run_dir)) <= 4
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["1"]
    monkeypatch.undo()
    tiny_runs.play(file, run_dir, **KEEP)
    tiny_runs.assert_same_run(run_dir, straight)


def test_a_save_that_hangs_ends_the_run_after_the_stated_time(file, tmp_path, monkeypatch):
    stuck = threading.Event()
    monkeypatch.setattr(manifest, "write", lambda *_, **__: stuck.wait())
    begun = time.monotonic()
    with pytest.raises(checkpoint.SaveError, match=r"nothing was written for 1 seconds \(checkpoint.stall_seconds\)"):
        tiny_runs.play(file, tmp_path / "run", **KEEP, checkpoint__stall_seconds=1.0)
    assert time.monotonic() - begun < 60
    stuck.set()


def test_a_run_that_was_taken_over_commits_and_deletes_nothing_more(file, tmp_path, monkeypatch):
    run_dir, write = tmp_path / "run", manifest.write

    def taken_over(directory, round, **arguments):
        write(directory, round, **arguments)
        if round == 2:
            content = json.loads((run_dir / "owner.json").read_text())
            (run_dir / "owner.json").write_text(json.dumps(content | {"nonce": "f" * len(content["nonce"])}))

    monkeypatch.setattr(manifest, "write", taken_over)
    with pytest.raises(owner.LostError):
        tiny_runs.play(file, run_dir, **KEEP)
    assert tiny_runs.saved_rounds(run_dir) == [1]


def test_an_old_checkpoint_that_cannot_be_deleted_is_said_and_the_run_goes_on(file, tmp_path, monkeypatch, capfd):
    def fails(directory):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(directory))

    monkeypatch.setattr(saving, "remove", fails)
    words = ["train", "--config", str(file), "--run-dir", str(tmp_path / "run"), *options(KEEP), "--run.rounds", "3"]
    assert reval(words) == 0
    assert "note: the old checkpoint of round 1 was not deleted: Permission denied: " in capfd.readouterr().err
    assert tiny_runs.saved_rounds(tmp_path / "run") == [1, 2, 3]


def test_the_end_of_a_save_whose_directory_is_gone_is_an_error_of_the_save(tmp_path):
    done = threading.Event()
    checkpointer = SimpleNamespace(wait_until_finished=lambda: done.wait(1))
    save = saving.Save(checkpointer, tmp_path / "no" / "1.saving", tmp_path / "no" / "1", before=None, after=None)
    assert save.wait(stall_seconds=10.0) is None
    save = saving.Save(
        checkpointer, tmp_path / "no" / "1.saving", tmp_path / "no" / "1", before=None, after=lambda: None
    )
    assert isinstance(save.wait(stall_seconds=10.0), OSError)


def test_a_clock_that_is_set_during_a_save_changes_nothing(tmp_path, monkeypatch):
    ticks = iter(np.cumsum(np.full(10_000, 86_400.0)))
    monkeypatch.setattr(time, "time", lambda: float(next(ticks)))
    done = threading.Event()
    checkpointer = SimpleNamespace(wait_until_finished=lambda: done.wait(3))
    (tmp_path / "1.saving").mkdir()
    save = saving.Save(checkpointer, tmp_path / "1.saving", tmp_path / "1", before=None, after=lambda: None)
    assert save.wait(stall_seconds=10.0) is None
    assert (tmp_path / "1" / manifest.NAME).exists()


def test_the_manifest_names_every_file_with_its_size_and_an_independent_checksum(straight, tmp_path):
    step = straight / "checkpoints" / "4"
    content = json.loads((step / manifest.NAME).read_text())
    assert content["round"] == 4
    assert set(content["files"]) == {str(path.relative_to(step)) for path in files_of(step)} - {manifest.NAME}
    for name, entry in content["files"].items():
        # coreutils' sha256sum shares no code with hashlib.
        printed = subprocess.run(["sha256sum", step / name], check=True, capture_output=True, text=True).stdout
        assert (entry["sha256"], entry["size"]) == (printed.split()[0], (step / name).stat().st_size)


def test_train_names_the_kinds_of_its_errors():
    assert issubclass(checkpoint.SaveError, RuntimeError)
    assert "checkpoint.SaveError" in train.train.__doc__


def test_the_reason_of_a_failed_save_is_not_lost_behind_a_long_path():
    text = f"RESOURCE_EXHAUSTED: Error writing \"{'x' * 400}\": Failed to fsync directory [os_error_code='28']"
    assert saving.cause(ValueError(text)) == "No space left on device"


def test_what_other_writes_of_a_failed_save_print_is_kept_quiet_and_nothing_else(monkeypatch):
    shown, records = [], []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    saving.hush.__wrapped__()
    late = SimpleNamespace(object=None, exc_value=RuntimeError("Event loop is closed"))
    others = [
        SimpleNamespace(object=print, exc_value=RuntimeError("Event loop is closed")),
        SimpleNamespace(object=None, exc_value=RuntimeError("of a user's function")),
        SimpleNamespace(object=None, exc_value=ValueError("Event loop is closed")),
    ]
    for each in (late, *others):
        sys.unraisablehook(each)
    assert shown == others
    of_orbax = (
        "future: <Task coro=<async_serialize_from_host() done, defined at site-packages/orbax/checkpoint/x.py:126>"
    )
    # A handler of its own: other tests of the process may have set up logging.
    logger, handler = logging.getLogger("asyncio"), logging.Handler()
    monkeypatch.setattr(handler, "emit", records.append)
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "disabled", False)
    for coroutine in (of_orbax, "future: <Task coro=<users_own() done, defined at own.py:1>"):
        text = f"Task exception was never retrieved\n{coroutine}"
        # Not `error`, which asks for the level that other tests' libraries may have set.
        logger.handle(logger.makeRecord(logger.name, logging.ERROR, "base_events.py", 1, text, (), None))
    assert [("users_own" in record.getMessage()) for record in records] == [True]
