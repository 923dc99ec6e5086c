"""metrics.jsonl and the phase timer: a written line is on disk, unsaved lines are dropped, lost lines are refused."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from support import tiny_programs, tiny_runs

from reval_jax import algorithms, keys, metrics, replay, round_metrics, types, update
from reval_jax.algorithms import own

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
    *(f"reval/fresh/{name}" for name in ("residual_mean", "residual_abs", "value_gap", "log_ratio")),
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


def writer(path: Path, keep_bytes: int = 0, round: int = 0, said: list[str] | None = None) -> metrics.Writer:
    log = (lambda text: pytest.fail(text)) if said is None else said.append
    return metrics.Writer(path, keep_bytes=keep_bytes, round=round, is_active=True, log=log)


def line(round: int, **values: Any) -> dict[str, Any]:
    return {"training/round": round, **values}


@pytest.fixture
def saved(tmp_path):
    """A file with the lines of rounds 0 to 4, its length after round 3, of which there is a checkpoint, and its bytes."""
    path = tmp_path / "metrics.jsonl"
    opened, ends = writer(path), []
    for round in range(5):
        opened.write(line(round, score=0.25 * round))
        ends.append(opened.num_bytes)
    return path, ends[3], path.read_bytes()


def test_a_written_line_is_on_disk_at_once_and_reads_back_equal(tmp_path):
    opened = writer(tmp_path / "m.jsonl")
    lines = [line(1, a=1, b=0.1 + 0.2, c="text"), line(2, a=np.int64(2), b=np.float32(0.5), c=True)]
    for each in lines:
        opened.write(each)
        assert opened.num_bytes == (tmp_path / "m.jsonl").stat().st_size
    assert metrics.read(tmp_path / "m.jsonl") == [lines[0], line(2, a=2, b=0.5, c=True)]


def test_numbers_that_are_not_finite_become_null_so_that_the_file_stays_json(tmp_path):
    writer(tmp_path / "m.jsonl").write(line(1, a=float("nan"), b=np.float32("inf"), c=-float("inf")))
    text = (tmp_path / "m.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == line(1, a=None, b=None, c=None)


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
        opened.write(line(index + 1))
    saved = opened.num_bytes
    for index in range(num_lost):
        opened.write(line(num_saved + 1 + index, lost=True))
    if is_torn:
        with path.open("a") as file:
            file.write('{"index": ')
    again = writer(path, saved, num_saved)
    again.write(line(num_saved + 1))
    assert metrics.read(path) == [line(index + 1) for index in range(num_saved + 1)]
    assert metrics.verify(path)
    assert again.num_bytes == path.stat().st_size


def test_a_file_shorter_than_at_the_last_save_is_refused_and_kept(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text("{}\n")
    with pytest.raises(ValueError, match="has 3 bytes, but had 4"):
        writer(path, 4)
    assert path.read_text() == "{}\n"


def test_every_flipped_bit_of_a_saved_line_is_noticed_and_the_advice_mends_it(saved, tmp_path):
    path, end, whole = saved
    for index in range(end):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 1 << index % 8]) + whole[index + 1 :])
        with pytest.raises(ValueError, match=r"metrics\.jsonl .*(damaged|lost|changed)"):
            metrics.check(path, keep_bytes=end, round=3)
        with pytest.raises(ValueError, match=r"does not have its checksum"):
            metrics.verify(path)
    with pytest.raises(ValueError, match=r"a new file then begins with round 4") as caught:
        writer(path, end, 3)
    source, target = re.search(r"\(mv (\S+) (\S+)\)", str(caught.value)).groups()
    Path(source).rename(target)
    said = []
    opened = writer(path, end, 3, said)
    assert "begins with round 4: the lines of earlier rounds are not in it" in said[0]
    opened.write(line(4))
    assert metrics.verify(path)
    # A kill before the next save, and one after it.
    opened = writer(path, end, 3, said)
    opened.write(line(4))
    after_4 = opened.num_bytes
    opened.write(line(5))
    opened = writer(path, after_4, 4)
    opened.write(line(5))
    assert metrics.read(path) == [line(4), line(5)]
    assert metrics.verify(path)
    # An older checkpoint than the one with which the file began.
    opened = writer(path, 17, 2, said)
    opened.write(line(3))
    assert metrics.read(path) == [line(3)]


def test_every_flipped_bit_of_the_checksums_is_noticed(saved):
    path, end, _ = saved
    sidecar = metrics.sidecar(path)
    whole = sidecar.read_bytes()
    kept = sum(map(len, whole.splitlines(keepends=True)[:4]))
    for index in range(kept):
        sidecar.write_bytes(whole[:index] + bytes([whole[index] ^ 1 << index % 8]) + whole[index + 1 :])
        with pytest.raises(ValueError, match=r"metrics\.jsonl "):
            metrics.check(path, keep_bytes=end, round=3)
    sidecar.write_bytes(whole[: kept // 2])
    with pytest.raises(ValueError, match=r"no checksum of the line of round"):
        metrics.check(path, keep_bytes=end, round=3)


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"round": 2', b'"round": 7'), (b'"end": ', b'"end": 1e999, "x": '), (b'"end": ', b'"end": [["x"]], "x": '),
     (b'"end": 36', b'"end": 36E0'), (b'{"round": 1', b'{"round": "1"')],
)  # fmt: skip
def test_checksums_that_say_something_else_are_one_message(saved, old, new):
    path, _, _ = saved
    content = metrics.sidecar(path).read_bytes()
    assert old in content
    metrics.sidecar(path).write_bytes(content.replace(old, new, 1))
    with pytest.raises(ValueError, match=r"metrics\.jsonl .*(damaged|does not have its checksum)"):
        metrics.verify(path)


@pytest.mark.parametrize("number", ["1e999", "5E9", "[]"])
def test_a_first_round_that_is_no_number_is_one_message(tmp_path, number):
    path = tmp_path / "m.jsonl"
    path.write_text("{}\n")
    metrics.sidecar(path).write_text(f'{{"first_round": {number}}}\n')
    with pytest.raises(ValueError, match="is damaged in line 1"):
        metrics.verify(path)


def test_the_last_lines_end_belongs_to_it(saved):
    path, _, whole = saved
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="does not have its checksum"):
        metrics.verify(path)


def test_lines_in_another_order_twice_or_left_out_are_noticed(saved):
    path, end, whole = saved
    rows = whole.splitlines(keepends=True)
    for order in ([0, 2, 1, 3, 4], [0, 1, 1, 2, 3, 4], [0, 1, 3, 4], [1, 2, 3, 4], [0, 1, 2]):
        metrics.sidecar(path).unlink(missing_ok=True)  # as of an earlier version: the rounds alone tell
        path.write_bytes(b"".join(rows[index] for index in order))
        with pytest.raises(ValueError, match=r"metrics\.jsonl "):
            metrics.check(path, keep_bytes=end, round=3)


def test_an_earlier_versions_file_is_read_without_checksums_and_has_them_afterwards(saved):
    path, end, _ = saved
    metrics.sidecar(path).unlink()
    assert not metrics.verify(path)
    said = []
    writer(path, end, 3, said).write(line(4))
    assert "has no checksums, as of an earlier version" in said[0]
    assert metrics.verify(path)


@pytest.mark.parametrize("foreign", [b"note\n", b'{"training/round": 4, "score": 9}\n', b"no end of line"])
def test_what_others_append_while_a_run_writes_is_moved_and_said(saved, foreign):
    path, _, whole = saved
    said = []
    opened = writer(path, len(whole), 4, said)
    with path.open("ab") as file:
        file.write(foreign)
    opened.write(line(5))
    opened.write(line(6))
    assert len(said) == 1
    assert f"has written {len(foreign)} bytes into" in said[0]
    assert path.with_name("metrics.foreign.jsonl").read_bytes() == foreign
    assert [each["training/round"] for each in metrics.read(path)] == list(range(7))
    assert metrics.verify(path)
    assert path.read_bytes().startswith(whole)


def test_what_others_append_while_no_run_writes_is_kept_apart_at_the_next_start(saved):
    path, end, whole = saved
    with path.open("ab") as file:
        file.write(b"note\n")
    said = []
    writer(path, end, 3, said)
    assert path.read_bytes() == whole[:end]
    assert path.with_name("metrics.foreign.jsonl").read_bytes() == b"note\n"
    assert len(said) == 1


def test_a_file_that_is_deleted_or_changed_while_a_run_writes_is_moved_and_a_new_one_begins(saved):
    path, _, whole = saved
    said = []
    opened = writer(path, len(whole), 4, said)
    path.unlink()
    opened.write(line(5))
    path.write_bytes(b"other")
    opened.write(line(6))
    opened.write(line(7))
    assert "was deleted, while the run used it: a new file begins with round 5" in said[0]
    assert "was changed, and is" in said[1]
    assert path.with_name("metrics.damaged.jsonl").read_bytes() == b"other"
    assert metrics.read(path) == [line(6), line(7)]
    assert metrics.verify(path)
    again = writer(path, opened.num_bytes, 7)
    again.write(line(8))
    assert metrics.read(path) == [line(6), line(7), line(8)]


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
        others -= {name for name in others if name.startswith("reval/age/")}
        others -= {
            "critic/score/mean/low",
            "critic/score/mean/high",
            "timing_s/eval",
            "timing_s/save",
            "timing_s/reference_load",
            "timing_s/reference_store",
        }
        assert others <= {
            "training/skipped",
            "training/update_tokens",
            "training/update_response_tokens",
            "training/sampled",
            "replay/reuse_at_eviction",
        }
        from_loss = {name for name in line if re.fullmatch("reval/[^/]+", name)}
        assert [name for name in line.keys() - from_loss if not own.is_reserved(name)] == []
        assert not any(own.is_reserved(name) for name in from_loss)
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
    assert ["replay/reuse_at_eviction" in line for line in rounds] == [False, False, True]
    # The fresh batch's own residual: in round 1 the second update has the same rows, after the first one.
    first = rounds[0]
    for name in ("residual_mean", "residual_abs", "value_gap"):
        assert first[f"reval/age/0/{name}"] == pytest.approx(first[f"reval/{name}"], rel=1e-4, abs=1e-6)
    assert first["reval/fresh/residual_mean"] != first["reval/residual_mean"]
    assert abs(first["reval/fresh/log_ratio"]) < 1e-3
    # Before the first update the policy is the reference, so only the sampler's rounding remains.
    assert abs(rounds[0]["actor/kl_ref"]) < 1e-3


def test_numbers_by_age_are_means_over_every_use_of_a_trajectory_of_that_age():
    ages = np.array([0, 1, 2, 3, 4, 40])
    buffer = tiny_programs.random_trajectories(6)._replace(round=(50 - ages).astype(np.int32))
    batches = [np.array([0, 1, 2]), np.array([1, 3, 4, 5])]
    residual = [np.array(each, np.float32) for each in ([1, 2, -3], [-6, 1, 5, 7])]
    done = round_metrics.Updates(
        metrics=[{}, {}],
        batches=batches,
        begins_fresh=True,
        is_on_policy=True,
        num_skipped=0,
        numbers=[algorithms.PerTrajectory(each, 10 * each) for each in residual],
    )
    by_age = {0: [1], 1: [2, -6], 2: [-3, 1], 4: [5], 16: [7]}
    expected = {
        f"reval/age/{age}/{name}": float(np.mean(of_values(values)))
        for age, values in by_age.items()
        for name, of_values in (
            ("residual_mean", lambda values: values),
            ("residual_abs", np.abs),
            ("value_gap", lambda values: np.multiply(values, 10)),
        )
    }
    assert round_metrics.by_age(done, buffer, 50) == expected
    without = done._replace(numbers=[each._replace(value_gap=None) for each in done.numbers])
    assert round_metrics.by_age(without, buffer, 50) == {
        name: value for name, value in expected.items() if "value_gap" not in name
    }
    assert round_metrics.by_age(done._replace(numbers=()), buffer, 50) == {}


def test_the_metrics_of_the_fresh_batch_are_those_of_the_first_update():
    names = ("reval/residual_mean", "actor/loss", update.SAMPLER_MISMATCH)
    rows = np.arange(4)
    done = round_metrics.Updates(
        metrics=[dict.fromkeys(names, 1.0), dict.fromkeys(names, 4.0)],
        batches=[rows, rows],
        begins_fresh=True,
        is_on_policy=True,
        num_skipped=0,
    )
    buffer = tiny_programs.random_trajectories(4)
    line = round_metrics.updates(done, buffer, 0)
    assert (line["reval/residual_mean"], line["reval/fresh/residual_mean"], line["actor/loss"]) == (2.5, 1.0, 2.5)
    assert "actor/fresh/loss" not in line
    assert not [
        name for name in round_metrics.updates(done._replace(begins_fresh=False), buffer, 0) if "fresh/" in name
    ]


def test_reuse_at_eviction_is_the_number_of_updates_of_a_round_and_the_mean_of_the_buffer_is_less():
    """Eq. 3: B fresh rows and K batches of B rows a round, so a row that leaves was used K times on average."""
    size, num_updates, capacity = 4, 2, 20
    buffer, lines = replay.init(capacity), []
    for round in range(200):
        before = buffer.trajectories
        fresh = tiny_programs.random_trajectories(size)._replace(round=np.full(size, round, np.int32))
        buffer = replay.add(buffer, fresh._replace(use_count=np.zeros(size, np.int32)))
        rows = replay.sample(buffer, keys.named_key(0, "test", round), size)
        for each in (replay.of_round(buffer, round), rows):
            buffer = replay.with_uses(buffer, each)
        after = buffer.trajectories
        lines.append(round_metrics.buffer(after, round) | round_metrics.evicted(before, after, round))
    assert ["replay/reuse_at_eviction" in line for line in lines] == [False] * 5 + [True] * 195
    at_eviction = np.mean([line["replay/reuse_at_eviction"] for line in lines[20:]])
    assert abs(at_eviction - num_updates) < 0.1
    n = capacity / size
    assert abs(np.mean([line["replay/reuse_mean"] for line in lines[20:]]) - (1 + (n + 1) / (2 * n))) < 0.1
