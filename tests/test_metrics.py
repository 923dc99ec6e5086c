"""metrics.jsonl and the phase timer: a written line is on disk, unsaved lines are dropped, lost lines are refused."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from support import tiny_runs

from reval_jax import metrics, types

CONTRACT = {
    "critic/score/mean",
    "response_length/mean",
    "response_length/max",
    "response_length/clip_ratio",
    "actor/loss",
    "actor/grad_norm",
    "actor/lr",
    "actor/entropy",
    "actor/kl_ref",
    "timing_s/generate",
    "timing_s/verify",
    "timing_s/reference",
    "timing_s/update",
    "timing_s/round",
    "perf/rollout_tokens_per_s",
    "perf/update_tokens_per_s",
    "perf/mfu",
    "reval/residual_mean",
    "reval/residual_abs",
    "reval/value_gap",
    "reval/log_ratio",
    "replay/size",
    "replay/fresh_fraction",
    "replay/age_mean",
    "replay/age_max",
    "replay/reuse_mean",
    *(f"verifier/{kind}" for kind in types.VERDICTS),
    "training/round",
    "training/updates",
    "training/trajectories",
    "training/sampler_learner_logprob_diff",
}
"""Names of every round's line."""


def writer(path: Path, keep_bytes: int = 0) -> metrics.Writer:
    return metrics.Writer(path, keep_bytes=keep_bytes, is_active=True)


def test_a_written_line_is_on_disk_at_once_and_reads_back_equal(tmp_path):
    opened = writer(tmp_path / "m.jsonl")
    lines = [{"a": 1, "b": 0.1 + 0.2, "c": "text"}, {"a": np.int64(2), "b": np.float32(0.5), "c": True}]
    for line in lines:
        opened.write(line)
        assert opened.num_bytes == (tmp_path / "m.jsonl").stat().st_size
    assert metrics.read(tmp_path / "m.jsonl") == [lines[0], {"a": 2, "b": 0.5, "c": True}]


def test_numbers_that_are_not_finite_become_null_so_that_the_file_stays_json(tmp_path):
    writer(tmp_path / "m.jsonl").write({"a": float("nan"), "b": np.float32("inf"), "c": -float("inf")})
    text = (tmp_path / "m.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"a": None, "b": None, "c": None}


@hypothesis.settings(
    deadline=None, max_examples=30, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(
    num_saved=strategies.integers(0, 5), num_lost=strategies.integers(0, 5), is_torn=strategies.booleans()
)
def test_lines_after_the_last_save_are_dropped_even_a_torn_one(tmp_path, num_saved, num_lost, is_torn):
    path = tmp_path / "m.jsonl"
    path.unlink(missing_ok=True)
    opened = writer(path)
    for index in range(num_saved):
        opened.write({"index": index})
    saved = opened.num_bytes
    for index in range(num_lost):
        opened.write({"index": -index})
    if is_torn:
        with path.open("a") as file:
            file.write('{"index": ')
    again = writer(path, saved)
    again.write({"index": num_saved})
    assert [line["index"] for line in metrics.read(path)] == list(range(num_saved + 1))
    assert again.num_bytes == path.stat().st_size


def test_a_file_shorter_than_at_the_last_save_is_refused_and_kept(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text("{}\n")
    with pytest.raises(ValueError, match="has 3 bytes, but had 4"):
        writer(path, 4)
    assert path.read_text() == "{}\n"


def test_a_process_that_does_not_write_touches_nothing(tmp_path):
    opened = metrics.Writer(tmp_path / "m.jsonl", keep_bytes=0, is_active=False)
    opened.write({"a": 1})
    assert not list(tmp_path.iterdir())


def test_the_clock_adds_up_phases_and_starts_anew_when_read(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = metrics.Clock()
    for name, seconds in (("update", 2.0), ("reference", 0.5), ("update", 3.0)):
        with clock.phase(name):
            now[0] += seconds
    now[0] += 1.0
    assert clock.read() == {"timing_s/update": 5.0, "timing_s/reference": 0.5, "timing_s/round": 6.5}
    assert clock.read() == {"timing_s/round": 0.0}


def test_a_phase_that_raises_is_counted(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = metrics.Clock()

    def fail():
        with clock.phase("save"):
            now[0] += 2.0
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert clock.read()["timing_s/save"] == 2.0


def test_a_runs_lines_have_the_names_dashboards_know(tmp_path):
    file = tiny_runs.write_files(tmp_path)
    lines = tiny_runs.play(file, tmp_path / "run", run__rounds=3).lines
    baseline, *rounds = lines
    assert [line["training/round"] for line in lines] == [0, 1, 2, 3]
    held_out = {name for name in baseline if not name.startswith(("timing_s/", "training/"))}
    measured = [f"acc/{name}" for name in ("mean@4", "pass@2", "pass@4", "maj@2", "maj@4")]
    measured += ["response_length/mean", "response_length/clip_ratio", "verifier/no_answer_ratio"]
    assert held_out == {
        f"val-core/held_out/{name}"
        for name in ("acc/standard_error", *(each + end for each in measured for end in ("", "/low", "/high")))
    }
    for line in rounds:
        assert line.keys() >= CONTRACT
        assert all(line[name] is not None for name in CONTRACT)
        others = line.keys() - CONTRACT - held_out
        others -= {"timing_s/eval", "timing_s/save", "timing_s/reference_load", "timing_s/reference_store"}
        assert others <= {
            "training/skipped",
            "training/update_tokens",
            "training/update_response_tokens",
            "training/sampled",
        }
        assert line["replay/size"] == min(20, 8 * line["training/round"])
        assert line["training/trajectories"] == 8 * line["training/round"]
        assert line["training/updates"] == 2 * line["training/round"]
        assert sum(line[f"verifier/{kind}"] for kind in types.VERDICTS) == 8
        assert line["training/sampler_learner_logprob_diff"] < 1e-4
        assert all(re.fullmatch(r"[a-z0-9_-]+(/[a-z0-9_@-]+)+", name) for name in line)
    assert [line.keys() >= held_out for line in rounds] == [False, True, False]
    assert "timing_s/save" in rounds[2], "the save after round 2 is timed in the line that follows it"
    assert rounds[0]["replay/fresh_fraction"] == 1.0
    assert rounds[0]["replay/age_max"] == 0
    assert rounds[0]["replay/reuse_mean"] == 2.0
    # Before the first update the policy is the reference, so only the sampler's rounding remains.
    assert abs(rounds[0]["actor/kl_ref"]) < 1e-3
