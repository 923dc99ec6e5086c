"""Files of commands and runs appear whole or not at all, also when two processes write one."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from reval_jax import durable
from reval_jax.cli import output


def test_of_many_writers_of_one_file_one_wins_whole(tmp_path):
    path = tmp_path / "out.json"
    start = threading.Barrier(8)

    def write(index):
        start.wait()
        for _ in range(20):
            output.write_json(path, [index] * 3000)

    threads = [threading.Thread(target=write, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    values = set(json.loads(path.read_text()))
    assert len(values) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_command_that_fails_while_it_writes_leaves_the_old_file(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("old")

    def records():
        yield {"a": 1}
        raise KeyError

    with pytest.raises(KeyError):
        output.write_json_lines(path, records())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_devices_pipes_and_links_are_written_as_they_stand(tmp_path):
    output.write_json(Path("/dev/null"), 1)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "target").write_text("old")
    output.write_json(tmp_path / "link", 1)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "1\n"
    reader, writer = os.pipe()
    output.write_json(Path(f"/dev/fd/{writer}"), 2)
    assert os.read(reader, 9) == b"2\n"
    os.close(reader)
    os.close(writer)


def test_a_file_that_must_be_new_is_never_written_over(tmp_path):
    path = tmp_path / "pool.npz"

    def write():
        with durable.output(path, is_new=True) as file:
            file.write(b"second")
            path.write_bytes(b"first")

    with pytest.raises(FileExistsError):
        write()
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        output.write_json(tmp_path / "out.json", 1)
        durable.write(tmp_path / "config.yaml", b"")
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {"0o640"}
