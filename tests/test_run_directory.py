"""The directory of a run is claimed once and can be resumed only with the same settings."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import pytest
import yaml
from support import tiny_runs

from reval_jax import config, distributed, prompts, run_directory, setup

SETTINGS = config.Config(model=config.Model(path="model"), task=config.Task(dataset="data.jsonl"))
LONGER = dataclasses.replace(SETTINGS, run=config.Run(rounds=700))


def claim(path, settings=SETTINGS, fingerprint="f", round=0):
    return run_directory.claim(path, settings, data_fingerprint=fingerprint, round=round)


def test_inspecting_a_new_directory_creates_nothing(tmp_path):
    assert run_directory.inspect(tmp_path / "deep" / "run", SETTINGS) == []
    assert not list(tmp_path.iterdir())


def test_a_claimed_directory_is_resumed_with_the_same_settings(tmp_path):
    claim(tmp_path / "run")
    before = tiny_runs.tree_hash(tmp_path)
    assert run_directory.inspect(tmp_path / "run", SETTINGS) == []
    claim(tmp_path / "run")
    assert tiny_runs.tree_hash(tmp_path) == before


def test_the_settings_and_packages_of_a_run_are_recorded(tmp_path):
    claim(tmp_path / "run", fingerprint="abc")
    about = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["about"]
    assert about["config_hash"] == config.results_hash(SETTINGS)
    assert about["data_fingerprint"] == "abc"
    assert about["packages"]["jax"] == jax.__version__


def test_a_change_that_keeps_results_is_allowed_and_recorded(tmp_path):
    claim(tmp_path / "run")
    assert run_directory.inspect(tmp_path / "run", LONGER) == ["run.rounds: 650 -> 700"]
    run = claim(tmp_path / "run", LONGER, round=7)
    assert json.loads(run.changes.read_text()) == {"round": 7, "changes": ["run.rounds: 650 -> 700"]}
    assert config.load(run.config) == LONGER
    claim(tmp_path / "run", LONGER, round=9)
    assert len(run.changes.read_text().splitlines()) == 1


def test_a_change_that_alters_results_is_refused_and_named(tmp_path):
    claim(tmp_path / "run")
    before = tiny_runs.tree_hash(tmp_path)
    other = dataclasses.replace(SETTINGS, run=config.Run(seed=5), update=config.Update(beta=0.02))
    with pytest.raises(ValueError, match=r"update\.beta: 0\.002 -> 0\.02; run\.seed: 0 -> 5"):
        run_directory.inspect(tmp_path / "run", other)
    assert tiny_runs.tree_hash(tmp_path) == before


def test_another_data_set_is_refused(tmp_path):
    claim(tmp_path / "run", fingerprint="old")
    before = tiny_runs.tree_hash(tmp_path)
    with pytest.raises(ValueError, match=r"fingerprint new, but the run .* began with old"):
        claim(tmp_path / "run", fingerprint="new")
    assert tiny_runs.tree_hash(tmp_path) == before


def test_a_killed_claim_can_be_repeated(tmp_path):
    """The config is written to a temporary file and moved; until then no run owns the directory."""
    (tmp_path / "config.tmp").write_text("model:")
    assert run_directory.inspect(tmp_path, SETTINGS) == []
    run = claim(tmp_path)
    assert run_directory.inspect(tmp_path, SETTINGS) == []
    assert {path.name for path in tmp_path.iterdir()} == {run.config.name, run.config_copy.name, run.rollouts.name}


@pytest.mark.parametrize("content", ["", "model: {path: mine}\n"])
def test_a_users_own_config_is_not_mistaken_for_a_runs(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match="no run wrote"):
        run_directory.inspect(tmp_path, SETTINGS)


def test_foreign_files_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"holds files but no config\.yaml"):
        run_directory.inspect(tmp_path, SETTINGS)


def test_a_path_below_or_at_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / "file" / "deep" / "run"):
        with pytest.raises(ValueError, match="file is not a writable directory"):
            run_directory.inspect(path, SETTINGS)


def test_rollout_files_sort_by_round(tmp_path):
    run = run_directory.RunDirectory(tmp_path)
    names = [run.rollout(round).name for round in (1, 9, 10, 650, 100000)]
    assert names == sorted(names)


@pytest.mark.parametrize("damage", ["empty", "torn", "flipped", "deleted", "text", "unsealed", "cut"])
def test_a_damaged_config_is_read_from_its_copy_and_written_again(tmp_path, damage):
    run = claim(tmp_path / "run", fingerprint="abc")
    whole = run.config.read_bytes()
    if damage == "deleted":
        run.config.unlink()
    else:
        at = whole.index(b"beta: ") + len(b"beta: ")
        unsealed = whole[: whole.index(b"# sha256")]
        cut = unsealed[: unsealed.rindex(b"\n", 0, -1) + 1]  # at the end of a line
        changed = {"empty": b"", "torn": whole[:99], "text": b"\xff", "flipped": whole[:at] + b"9" + whole[at + 1 :]}
        changed |= {"unsealed": unsealed, "cut": cut}
        run.config.write_bytes(changed[damage])
    (note,) = run_directory.inspect(tmp_path / "run", SETTINGS)
    assert note.startswith("the copy of config.yaml, since that")
    with pytest.raises(ValueError, match=r"fingerprint new, but the run .* began with abc"):
        claim(tmp_path / "run", fingerprint="new")
    claim(tmp_path / "run", fingerprint="abc")
    assert run.config.read_bytes() == whole
    assert run_directory.inspect(tmp_path / "run", SETTINGS) == []


def test_a_config_whose_copy_is_damaged_as_well_is_refused_and_one_changed_on_purpose_is_read(tmp_path):
    run = claim(tmp_path / "run")
    whole = run.config.read_bytes()
    for file in (run.config, run.config_copy):
        file.write_bytes(whole.replace(b"rounds: 650", b"rounds: 651"))
    with pytest.raises(ValueError, match=r"does not have its checksum, and so is its copy.*delete its last line"):
        run_directory.inspect(tmp_path / "run", SETTINGS)
    run.config.write_text("".join(run.config.read_text().splitlines(keepends=True)[:-1]))
    assert run_directory.inspect(tmp_path / "run", SETTINGS) == ["run.rounds: 651 -> 650"]


def test_only_directories_with_a_rounds_number_are_saved_rounds(tmp_path):
    run = run_directory.RunDirectory(tmp_path)
    assert run_directory.saved_rounds(run.checkpoints) == []
    for name in ("7", "12", "007", "²", "٣", "9.tmp", "x"):
        (run.checkpoints / name).mkdir(parents=True)
    (run.checkpoints / "30").touch()
    assert run_directory.saved_rounds(run.checkpoints) == [7, 12]
    assert "round 12 is saved" in run_directory.standing(run)


def test_an_earlier_versions_config_without_checksum_and_copy_is_read(tmp_path):
    run = claim(tmp_path / "run")
    run.config_copy.unlink()
    run.config.write_text("".join(run.config.read_text().splitlines(keepends=True)[:-1]))
    assert run_directory.inspect(tmp_path / "run", SETTINGS) == []
    run.config.write_text("")
    (run.checkpoints / "4").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no run wrote.*The settings are in .*checkpoints/4 as well"):
        run_directory.inspect(tmp_path / "run", SETTINGS)


@pytest.mark.parametrize("is_recorded", [True, False])
def test_a_run_that_has_lost_its_checkpoints_is_not_begun_again(tmp_path, is_recorded):
    run = claim(tmp_path / "run")
    (run.checkpoints / "10").mkdir(parents=True)
    last = 21
    if is_recorded:
        run_directory.note_saved(run)
        last = 1
    run.metrics.write_text(f'{{"training/round": {last}, "score": 1}}\n')
    assert run_directory.inspect(tmp_path / "run", SETTINGS) == []
    (run.checkpoints / "10").rmdir()
    with pytest.raises(
        ValueError, match=r"has no checkpoint, but the run has saved some: beginning again from round 0"
    ):
        run_directory.inspect(tmp_path / "run", SETTINGS)
    run.metrics.unlink()
    run.rollout(1).touch()
    if is_recorded:
        with pytest.raises(ValueError, match=r"has no checkpoint"):
            run_directory.inspect(tmp_path / "run", SETTINGS)


@pytest.mark.parametrize("last", [19, 20])
def test_a_run_that_was_killed_before_its_first_save_begins_again(tmp_path, last):
    # In round 20 the first save may still be going on: only the second one, after that round's line, waits for it.
    run = claim(tmp_path / "run")
    run.metrics.write_text(f'{{"training/round": {last}, "score": 1}}\n')
    run.rollout(last).touch()
    assert run_directory.inspect(tmp_path / "run", SETTINGS) == []


def test_paths_where_no_directory_can_be_are_refused(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    for path in (tmp_path / "link", tmp_path / "link" / "run"):
        with pytest.raises(ValueError, match=r"link is a link to .*absent, which does not exist"):
            run_directory.inspect(path, SETTINGS)
    with pytest.raises(ValueError, match="cannot be used: File name too long"):
        run_directory.inspect(tmp_path / ("x" * 300), SETTINGS)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ValueError, match="the working directory does not exist any more"):
        run_directory.inspect(Path("runs") / "x", SETTINGS)


@pytest.mark.parametrize("name", ["[x]", "a\\b", "*", "{a,b}", "%s", "~", "a?b", " "])
def test_a_path_is_never_a_pattern(tmp_path, name):
    run = claim(tmp_path / name / "run")
    run.rollout(3).touch()
    (tmp_path / "x" / "run" / "rollouts").mkdir(parents=True)
    (tmp_path / "x" / "run" / "rollouts" / "round_000009.jsonl.gz").touch()
    assert run_directory.RunDirectory(tmp_path / name / "run").rollout_files() == {3: run.rollout(3)}
    assert run_directory.inspect(tmp_path / name / "run", SETTINGS) == []


def test_the_date_of_the_prompts_is_recorded_and_read_back(tmp_path):
    assert run_directory.template_date(tmp_path / "run") == ""
    run_directory.claim(tmp_path / "run", SETTINGS, data_fingerprint="f", round=0, template_date="2024-02-29")
    assert run_directory.template_date(tmp_path / "run") == setup.template_date(tmp_path / "run") == "2024-02-29"
    file = tmp_path / "run" / "config.yaml"
    lines = file.read_text().replace("2024-02-29", "yesterday").splitlines(keepends=True)
    file.write_text("".join(lines[:-1]))  # without its checksum, as a user edits it
    (tmp_path / "run" / "config_copy.yaml").unlink()  # a whole copy would be read instead
    with pytest.raises(ValueError, match=r"about\.template_date='yesterday' is no date"):
        run_directory.template_date(tmp_path / "run")


def test_all_processes_take_the_first_ones_date(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "gather_bytes", lambda payload: [b"2026-11-27", payload])
    monkeypatch.setattr(prompts, "today", lambda: "2026-11-28")
    assert setup.template_date(None) == "2026-11-27"
