"""Text printed for a person: a terminal obeys nothing in it, and no encoding ends a command."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import data_files, prompt_sets, tiny_programs

from reval_jax import __main__, cli, config, console, rollout_files, tensorboard, terminal, types, verifier

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31mred\rover\u202eback\x7f"
SHOWN = "\\x1b]0;owned\\x07\\x1b[2J\\x9b31mred\\rover\\u202eback\\x7f"


def test_what_a_terminal_obeys_is_escaped_and_all_other_text_kept():
    assert terminal.visible(HOSTILE) == SHOWN
    kept = "a\nb\tc é 数 🙂 \\x1b {}$^_"
    assert terminal.visible(kept) == kept
    every = "".join(map(chr, range(0x300)))
    assert [c for c in terminal.visible(every) if ord(c) < 32 or 127 <= ord(c) < 160] == ["\t", "\n"]


def test_commands_print_other_peoples_text_with_its_control_characters_escaped(tmp_path, capsys):
    path = data_files.write(tmp_path / f"{HOSTILE.replace('/', '')}.jsonl", [{"question": HOSTILE, "answer": "1"}, "{"])
    for words in (
        ("data", "inspect", str(path)),
        ("data", "prepare", "--input", str(path), "--output", str(tmp_path / "out")),
        ("verify", f"\\boxed{{{HOSTILE}}}", "1"),
        ("verify", "1", f"1{HOSTILE}"),
        (f"no {HOSTILE}",),
        ("report", "--run-dir", str(path)),
        ("sample", "--model.path", str(path), "--task.dataset", str(path), "--prompt", HOSTILE),
        ("eval", "--model.path", str(path), "--eval.benchmarks", str(path)),
    ):
        cli.main(list(words))
        printed = capsys.readouterr()
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", printed.out + printed.err), words
        assert "x1b" in printed.out + printed.err or words[0] == "verify", words


def test_json_keeps_the_text_as_it_is(tmp_path, capsys):
    path = data_files.write(tmp_path / "rows.jsonl", [{"question": HOSTILE, "answer": "1"}])
    assert cli.main(["data", "inspect", str(path), "--json", str(tmp_path / "found.json")]) == 0
    assert json.loads((tmp_path / "found.json").read_text())["examples"][0]["question"] == HOSTILE


def test_progress_and_messages_of_a_run_are_escaped_too(capsys):
    shown = console.Console()
    shown.log(f"evaluating {HOSTILE}")
    assert capsys.readouterr().err == f"evaluating {SHOWN}\n"
    on_terminal = console.Console()
    on_terminal._console = type(on_terminal._console)(file=io.StringIO(), force_terminal=True, width=200)
    with on_terminal.working(f"evaluating a[/b] {HOSTILE}") as report:  # brackets are no markup
        report(1, 2)
    assert SHOWN in on_terminal._console.file.getvalue().replace("\x1b[0m", "")
    settings = config.Verifier(
        function="hostile_rewards:fail", function_path=str(ROOT / "tests" / "support"), workers=1
    )
    with verifier.Grader(config.Config(verifier=settings)) as grader:
        grader._log(HOSTILE)
    assert capsys.readouterr().err == f"{SHOWN}\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252:strict"])
def test_no_encoding_of_the_output_ends_a_command(encoding, tmp_path):
    rows = data_files.write(tmp_path / "é数.jsonl", [{"question": "π = 数?", "answer": "√2"}])
    program = (
        "import sys; from reval_jax import cli; sys.exit(max(cli.main(words) for words in ("
        f"['verify', '\\\\boxed{{√数}}', '√2'], ['data', 'inspect', {str(rows)!r}],"
        f"['data', 'inspect', {str(rows)!r}, '--json', '/dev/stdout'], ['--help'])))"
    )
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"\\u6570" in done.stdout
    text = done.stdout.decode(encoding.partition(":")[0])
    found = json.loads(text[text.index("{\n") : text.rindex("}\n") + 1])
    assert found["examples"][0]["question"] == "π = 数?"


def test_a_file_name_that_is_no_text_is_written_as_escapes(tmp_path):
    name = os.fsdecode(b"bad\xff")
    path = data_files.write(tmp_path / f"{name}.jsonl", data_files.questions(2))
    assert cli.main(["data", "inspect", str(path), "--json", str(tmp_path / "found.json")]) == 0
    assert json.loads((tmp_path / "found.json").read_text())["dataset"] == str(path)
    event = tensorboard.scalars_event(0.0, 1, {f"val-core/{name}/acc": 0.5})
    assert b"val-core/bad\\udcff/acc" in event


def test_the_traceback_of_a_fault_is_escaped(monkeypatch, capsys):
    def fail() -> int:
        raise KeyError(HOSTILE + "\n") from RuntimeError(HOSTILE)

    monkeypatch.setattr(cli, "main", fail)
    assert __main__._run() == 1
    printed = capsys.readouterr().err
    assert f"RuntimeError: {SHOWN}" in printed
    assert "\x1b" not in printed


# Numbers that JSON lacks


def test_a_log_probability_that_is_not_finite_is_null_in_a_rollouts_file(tmp_path):
    trajectories = tiny_programs.random_trajectories(3)._replace(cursor=np.array([4, 4, 4]))
    trajectories = trajectories._replace(verdict=np.zeros(3, np.int8))
    log_prob = trajectories.log_prob.copy()
    log_prob[0], log_prob[-1] = np.nan, -np.inf
    prompts = types.Prompts(np.array([4]), np.array([0]), ("p",), (np.array([1], np.int32),), ("1",))
    tokenizer = prompt_sets.chatml_tokenizer()
    target = tmp_path / "round_000001.jsonl.gz"
    rollout_files.write(target, prompts, trajectories._replace(log_prob=log_prob), tokenizer)
    lines = gzip.decompress(target.read_bytes()).decode().splitlines()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [row["log_prob"] is None for row in rows] == [True, False, True]


def test_the_files_that_others_read_are_written_as_strict_json():
    """Not the sandbox's pipes, hashes, and hand-overs between processes, which this package alone reads."""
    writers = ("metrics.py", "rollout_files.py", "run_directory.py", "pool.py", "cli/output.py", "data/writing.py")
    for name in (*writers, "weights/exporting.py"):
        source = (ROOT / "reval_jax" / name).read_text()
        calls = re.findall(r"json\.dumps?\((?:[^()]|\([^()]*(?:\([^()]*\)[^()]*)*\))*\)", source)
        assert calls, name
        loose = [call for call in calls if "allow_nan=False" not in call and call != "json.dumps(found[0])"]
        assert loose == [], name
