"""The benchmark of all presets: its settings, its table and its picture; and, slow, two rounds of two presets."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import pytest

from reval_jax import algorithms, config_checks

pytest.importorskip("matplotlib", reason="matplotlib is not installed, which draws the picture")
from benchmarks.presets import __main__ as presets
from benchmarks.presets import tiny_model

NAMES = sorted(file.stem for file in presets.PRESETS.glob("*.yaml"))


@pytest.fixture(autouse=True)
def untaught(monkeypatch, tmp_path):
    """The model is taught for two steps only, and no run is made for a pool."""
    monkeypatch.setattr(tiny_model, "STEPS", 2)
    monkeypatch.setattr(tiny_model, "BATCH", 4)
    monkeypatch.setattr(presets, "_pool", lambda args, task: tmp_path / "pool.npz")


@pytest.mark.parametrize("task", list(presets.TREES))
@pytest.mark.parametrize("name", NAMES)
def test_every_preset_has_settings_that_can_train(tmp_path, monkeypatch, task, name):
    monkeypatch.setattr(tiny_model, "make", lambda directory: directory)
    config = presets._config(presets.Presets(runs=tmp_path), task, name, seed=3)
    algorithms.choose(config_checks.check(config))
    assert config.run.rounds == 10
    assert config.run.seed == 3


def test_the_table_has_the_rise_of_each_preset_and_the_picture_is_drawn(tmp_path):
    record = {
        "scores": {
            "medium": {"grpo": [[0.2, 0.4, 0.6, 0.8], [0.4, 0.4, 0.8, 0.8]]},
            "sums": {"grpo": [[0.5] * 4] * 2, "psr": []},
        }
    }
    assert presets.table(record).splitlines()[2:] == [
        "| `grpo` | 0.35 → 0.75, +0.40 ± 0.00 | 0.50 → 0.50, +0.00 ± 0.00 |",
        "| `psr` | not run | not run |",
    ]
    presets._draw(record, tmp_path / "picture.svg")
    assert "<svg" in (tmp_path / "picture.svg").read_text()


@pytest.mark.slow
def test_runs_are_recorded_and_a_complete_one_is_not_repeated(tmp_path, monkeypatch):
    arguments = [
        *("presets", "--names", "grpo", "rover", "--seeds", "0", "--tasks", "sums", "--rounds", "2"),
        *("--runs", str(tmp_path / "runs"), "--docs", str(tmp_path)),
    ]
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    with jax.numpy_dtype_promotion("standard"):
        presets.main()
        record = json.loads((tmp_path / "presets_tiny.json").read_text())
        assert {name: [len(seed) for seed in runs] for name, runs in record["scores"]["sums"].items()} == {
            "grpo": [2],
            "rover": [2],
        }
        monkeypatch.setattr(presets.train, "train", lambda *_, **__: pytest.fail("a complete run was repeated"))
        presets.main()
    assert json.loads((tmp_path / "presets_tiny.json").read_text())["scores"] == record["scores"]
    assert (tmp_path / "presets_tiny.svg").exists()
    assert Path(tmp_path / "runs" / "tiny" / "sums" / "rover_0" / "metrics.jsonl").exists()
