"""The directory of a run is claimed once and can be resumed only with the same settings."""

from __future__ import annotations

import dataclasses
import json

import jax
import pytest
import yaml
from support import tiny_runs

from reval_jax import config, run_directory

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
    assert {path.name for path in tmp_path.iterdir()} == {run.config.name, run.rollouts.name}


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
