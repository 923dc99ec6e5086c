"""The `reval` command: help, exit codes, and every command on a tiny run."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from support import tiny_runs

import reval_jax
from reval_jax import cli, config, model, terminal, weights
from reval_jax.cli import arguments, parsing
from reval_jax.tools import doctor

ROOT = Path(__file__).resolve().parent.parent
FIELDS = [
    (section.name, field)
    for section in dataclasses.fields(config.Config)
    for field in dataclasses.fields(section.default)
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny_runs.write_files(tmp_path_factory.mktemp("files")).parent


@pytest.fixture(scope="module")
def run_dir(files, tmp_path_factory):
    """A finished run of two rounds."""
    path = tmp_path_factory.mktemp("runs") / "run"
    tiny_runs.play(files / "config.yaml", path, run__rounds=2, checkpoint__every=1)
    return path


def output_of(capsys, *arguments, code=0):
    """Standard output of the command, which must end with this exit code."""
    assert cli.main([str(argument) for argument in arguments]) == code
    return capsys.readouterr().out


def with_flags_joined(text):
    """Help without its frame and line breaks."""
    return " ".join(re.sub("[│─╭╮╰╯|+]", " ", text).split())


@pytest.mark.parametrize("command", cli.COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_help(command, flag, capsys):
    text = output_of(capsys, command, flag)
    assert f"reval {command}" in text
    for field in dataclasses.fields(cli.ARGUMENTS[command]):
        if field.name in ("prediction", "gold"):  # words, not flags
            assert f" {field.name.upper()} " in text.replace("\n", " ")
        elif field.name != "settings":
            assert f"--{field.name}" in text


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_the_overview_names_every_command(flag, capsys):
    text = output_of(capsys, flag)
    assert all(f"\n  {command} " in text for command in cli.COMMANDS)


@pytest.mark.parametrize("command", ["train", "eval", "sample", "inspect"])
def test_help_names_every_setting_with_its_default_and_its_comment(command, capsys):
    text = with_flags_joined(output_of(capsys, command, "--help"))
    for section, field in FIELDS:
        name = f"--{section}.{field.name}"
        assert name in text
        entry = text[text.index(f"{name} ") :]
        default = field.default if field.default not in ((), "") else ""
        shown = re.search(r"\(default: ?([^)]*)\)", entry)
        assert shown, name
        # The comment beside or above the field; a formatter that moves it silently takes the flag's help away.
        explanation = re.sub(r"\{[^}]*\}|\[STR.*?\]\]", "", entry[len(name) : shown.start()])
        assert re.search(r"[a-z]{3,}", explanation), f"{name} has no help"
        if isinstance(default, float):
            assert float(shown[1]) == default, name
        elif default != "":
            assert shown[1] == str(default), name


def test_help_shows_the_config_files_values_as_defaults(files, capsys):
    text = with_flags_joined(output_of(capsys, "train", "--config", files / "config.yaml", "--help"))
    assert re.search(r"--update\.beta FLOAT [^-]*\(default: 0\.5\)", text)


@pytest.mark.parametrize(
    "words",
    [
        ["--update.fresh_first", "false"],
        ["--update.fresh-first=false"],
        ["--update.fresh_first=FALSE"],
        ["--update.fresh_first=False"],
    ],
)
def test_a_switch_is_written_as_in_a_config_file_or_as_in_python(words):
    args = parsing.parse(arguments.Train, "train", [*words, "--task.dataset", "false"])
    assert args.settings.update.fresh_first is False
    assert args.settings.task.dataset == "false"


def test_the_module_is_the_command():
    result = subprocess.run(
        [sys.executable, "-m", "reval_jax", "--version"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{reval_jax.__version__}\n", "")


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_a_closed_standard_output_ends_the_command_without_a_traceback(arguments):
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        [sys.executable, "-m", "reval_jax", *arguments],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    os.close(write)
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.parametrize(
    ("arguments", "reward", "verdict"),
    [
        (("\\boxed{1/2}", "0.5"), 1.0, "ok"),
        (("\\boxed{1/3}", "0.5"), 0.0, "wrong"),
        (("--extracted", "-1", "-1"), 1.0, "ok"),
        (("--extracted", "-1", "1"), 0.0, "wrong"),
        (("--answer_format", "first_number", "-3 apples", "-3"), 1.0, "ok"),
        (("--answer-format", "first_number", "--7", "-7"), None, None),
        (("no box", "1"), 0.0, "no_box"),
        (("-1", "-1", "--extracted"), 1.0, "ok"),
        (("-3 apples", "-3", "--answer_format", "first_number"), 1.0, "ok"),
    ],
)
def test_verify_grades_answers_that_begin_with_a_minus(arguments, reward, verdict, capsys):
    first = output_of(capsys, "verify", *arguments)
    grade = json.loads(output_of(capsys, "verify", "--json", "/dev/stdout", *arguments))
    assert first.startswith(f"reward {grade['reward']:g}, verdict {grade['verdict']}: ")
    assert isinstance(grade["reward"], float)
    if reward is not None:
        assert (grade["reward"], grade["verdict"]) == (reward, verdict)


@pytest.mark.parametrize(
    "arguments",
    [("--extracted", "1"), ("--answer-format", "1"), ("--json=x", "1"), ("--no_extracted", "1"), ("1", "--extracted")],
)
def test_verify_does_not_grade_one_of_its_own_flags(arguments, capsys):
    assert cli.main(["verify", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "verify needs PREDICTION and GOLD, but the words beside its options are " in captured.err


def test_the_help_of_verify_shows_its_arguments_and_a_working_example(capsys):
    text = with_flags_joined(output_of(capsys, "verify", "--help"))
    assert "usage: reval verify [-h] [OPTIONS] PREDICTION GOLD" in text
    _, _, example = text.partition("For example: ")
    assert output_of(capsys, *example.split()[1:5]).startswith("reward 1, verdict ok")


def test_sample_prints_the_requested_number_of_responses_and_is_reproducible(files, run_dir, capsys, tmp_path):
    base = ("sample", "--run-dir", run_dir, "--prompt", "1+1=", "--samples", "3")
    text = output_of(capsys, *base, "--json", tmp_path / "s.json")
    results = json.loads((tmp_path / "s.json").read_text())
    assert [f"--- {index} of 3" in text for index in (1, 2, 3)] == [True] * 3
    assert len(results["responses"]) == 3
    assert all(1 <= response["num_tokens"] <= 8 for response in results["responses"])
    assert "round 2" in results["model"]
    assert output_of(capsys, *base) == text
    assert output_of(capsys, *base, "--run.seed", "1") != text
    assert output_of(capsys, *base, "--round", "1") != text


@pytest.fixture
def prints(monkeypatch):
    """The texts that commands print for a person, one item per call, with line ends."""
    printed, show = [], cli.output.show

    def recorded(json_path, text, *, end="\n"):
        printed.append(text + end)
        show(json_path, text, end=end)

    monkeypatch.setattr(cli.output, "show", recorded)
    return printed


def test_one_sample_is_printed_as_it_grows(run_dir, prints, capsys, tmp_path):
    """With windows of one token, every window has a text to print."""
    base = ("sample", "--run-dir", run_dir, "--prompt", "1+1=", "--rollout.decode_window", "1")
    text = output_of(capsys, *base, "--json", tmp_path / "s.json")
    (response,) = json.loads((tmp_path / "s.json").read_text())["responses"]
    *grown, facts = prints
    assert len(grown) == response["num_tokens"] > 1
    assert sum(bool(piece) for piece in grown) > 1
    assert "".join(grown) == response["text"] + "\n"
    assert facts.startswith(f"--- 1 of 1: {response['num_tokens']} tokens")
    assert text == terminal.visible("".join(prints))
    # The window must not change the response.
    assert output_of(capsys, *base[:-1], "5") == text


def test_several_samples_are_each_printed_whole_when_they_are_complete(run_dir, prints, capsys, tmp_path):
    arguments = ("--prompt", "1+1=", "--samples", "3", "--rollout.decode_window", "1", "--json", tmp_path / "s.json")
    output_of(capsys, "sample", "--run-dir", run_dir, *arguments)
    responses = json.loads((tmp_path / "s.json").read_text())["responses"]
    whole = [f"--- {index + 1} of 3\n{response['text']}\n" for index, response in enumerate(responses)]
    assert sorted(prints[:3]) == sorted(whole)
    assert [line.split(":")[0] for line in prints[3:]] == ["--- 1 of 3", "--- 2 of 3", "--- 3 of 3"]


@pytest.mark.parametrize("samples", ["1", "2"])
def test_with_json_on_standard_output_the_text_goes_to_standard_error(run_dir, capsys, samples):
    arguments = ["--run-dir", str(run_dir), "--prompt", "1+1=", "--samples", samples, "--json", "/dev/stdout"]
    assert cli.main(["sample", *arguments]) == 0
    captured = capsys.readouterr()
    responses = json.loads(captured.out)["responses"]
    assert len(responses) == int(samples)
    assert all(terminal.visible(response["text"]) in captured.err for response in responses)
    assert captured.err.count(f" of {samples}: ") == int(samples)


def test_sample_works_without_a_run(files, capsys):
    text = output_of(capsys, "sample", "--config", files / "config.yaml", "--prompt", "1+1=")
    assert "--- 1 of 1" in text


def test_sample_names_the_saved_rounds(run_dir, capsys):
    assert cli.main(["sample", "--run-dir", str(run_dir), "--prompt", "1+1=", "--round", "9"]) == 2
    assert "no checkpoint of round 9 exists; saved rounds: [1, 2]" in capsys.readouterr().err


def test_eval_repeats_the_evaluation_of_the_run(run_dir, capsys, tmp_path):
    text = output_of(capsys, "eval", "--run-dir", run_dir, "--json", tmp_path / "e.json")
    assert output_of(capsys, "eval", "--run-dir", run_dir, "--round", "2") == text
    evaluation = json.loads((tmp_path / "e.json").read_text())
    assert text.startswith("held_out: avg@4 = ")
    assert evaluation["settings"]["eval"]["samples_per_prompt"] == 4
    in_run = tiny_runs.metrics_lines(run_dir)[-1]
    (result,) = evaluation["results"]
    measured = {name: value for name, value in in_run.items() if name.startswith("val-core/")}
    assert measured
    assert {name: result[name] for name in measured} == measured
    assert result["num_problems"] == 2


def test_export_writes_the_checkpoints_weights(run_dir, capsys, tmp_path):
    output_of(capsys, "export", "--run-dir", run_dir, "--output", tmp_path / "out")
    loaded = weights.load(str(tmp_path / "out"))
    saved = {name: value for name, value in tiny_runs.saved_arrays(run_dir).items() if name.startswith("['params']")}
    exported = {
        f"['params']{jax.tree_util.keystr(path)}": leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(loaded.params)
    }
    assert exported.keys() == saved.keys()
    for name, value in saved.items():
        np.testing.assert_array_equal(exported[name], value)
    before = tiny_runs.tree_hash(tmp_path)
    assert cli.main(["export", "--run-dir", str(run_dir), "--output", str(tmp_path / "out")]) == 2
    assert tiny_runs.tree_hash(tmp_path) == before


def test_reading_a_run_writes_nothing_into_it(run_dir, capsys):
    before = tiny_runs.tree_hash(run_dir)
    output_of(capsys, "sample", "--run-dir", run_dir, "--prompt", "1+1=")
    assert tiny_runs.tree_hash(run_dir) == before


def test_doctor_passes_on_this_machine_and_lists_its_checks(capsys, tmp_path, monkeypatch):
    # The result must not depend on the free disk of the machine that runs the tests.
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("usage", (), {"free": 2**40}))
    text = output_of(capsys, "doctor", "--json", tmp_path / "d.json")
    findings = json.loads((tmp_path / "d.json").read_text())
    assert len(text.splitlines()) == len(findings)
    assert {"devices", "jaxlib CPU fault 39103", "token scores", "compilation cache"} <= {
        finding["name"] for finding in findings
    }
    assert "BAD" not in text


def test_doctor_compares_the_bits_of_an_attentions_gradients():
    assert doctor.repeats(model.attention.xla.attend).is_fine
    calls = itertools.count()

    def attend(query, keys, values, segments):
        """An attention whose result depends on how often it was called, as atomic sums depend on their order."""
        shape = jax.ShapeDtypeStruct((), np.float32)
        call = jax.pure_callback(lambda _: np.float32(next(calls)), shape, segments)
        return model.attention.xla.attend(query * (1 + call).astype(query.dtype), keys, values, segments)

    finding = doctor.repeats(attend)
    assert (finding.result, finding.is_fine) == ("differ from call to call", False)


def test_doctor_exits_with_1_if_a_check_fails(capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("usage", (), {"free": 2**20}))
    assert "BAD  free disk" in output_of(capsys, "doctor", code=1)


def test_train_prints_the_run_directory(files, run_dir, capsys):
    text = output_of(
        capsys,
        "train",
        "--config",
        files / "config.yaml",
        "--run-dir",
        run_dir,
        "--run.rounds",
        "2",
        "--checkpoint.every",
        "1",
    )
    assert text == f"done: 2 rounds in {run_dir}\n"
