"""A run gives the same results however it is stopped: killed, preempted, extended after its end, moved to other devices."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import time
import types
from concurrent import futures
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from orbax.checkpoint._src.serialization import serialization
from support import tiny_programs, tiny_runs

from reval_jax import (
    batch,
    config,
    console,
    distributed,
    inference,
    metrics,
    prompts,
    reference,
    rollout,
    setup,
    train,
    weights,
)

LIVES = {
    # Each word names the end of one process; the same command then starts the next, and the last one finishes the run.
    "one": ("KILL:claim:0", "KILL:generate:1", "KILL:commit:2", "KILL:saved:2", "TERM:generate:3", "KILL:line:4"),
    "two": ("KILL:eval:0", "KILL:verify:2", "KILL:reference:3", "KILL:update:4", "KILL:eval:4"),
}

FEW_SLOTS = ("--rollout.decode_slots", "2", "--rollout.decode_window", "3")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny_runs.write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def straight(file, tmp_path_factory):
    """A run without interruption, on eight devices, with every round saved."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    tiny_runs.play(file, run_dir, checkpoint__every=1)
    return run_dir


@pytest.fixture(scope="module")
def straight_of_few_slots(file, tmp_path_factory):
    """The same with two slots, so that the responses of a round finish one after the other."""
    run_dir = tmp_path_factory.mktemp("straight_of_few_slots") / "run"
    code, output = tiny_runs.finish(tiny_runs.start(file, run_dir, *FEW_SLOTS))
    assert code == 0, output
    return run_dir


@pytest.fixture
def copy(straight, tmp_path):
    """A copy of the finished run that a test may damage."""
    return Path(shutil.copytree(straight, tmp_path / "copy"))


@pytest.fixture(scope="module")
def straight_process(file, tmp_path_factory):
    """The same in a separate process, on one device."""
    run_dir = tmp_path_factory.mktemp("straight_process") / "run"
    code, output = tiny_runs.finish(tiny_runs.start(file, run_dir))
    assert code == 0, output
    return run_dir


def test_a_run_killed_between_two_updates_ends_as_one_never_killed(file, straight, tmp_path):
    run_dir = tmp_path / "run"
    code, output = tiny_runs.finish(tiny_runs.start(file, run_dir, end="KILL:update:3", devices=8))
    assert code == -9, output
    # The save of round 2 may or may not be committed by then; both outcomes are correct.
    assert set(tiny_runs.rollouts(run_dir)) == {"round_000001.jsonl", "round_000002.jsonl"}
    tiny_runs.play(file, run_dir)
    tiny_runs.assert_same_run(run_dir, straight)


@pytest.mark.slow
def test_a_run_killed_in_every_phase_ends_as_one_never_killed(file, straight_process, tmp_path):
    """SIGKILL ends the process at once; after SIGTERM it saves the finished rounds, and exits with 75."""

    def live_and_die(name: str, ends: tuple[str, ...]) -> Path:
        run_dir = tmp_path / name
        for end in ends:
            code, output = tiny_runs.finish(tiny_runs.start(file, run_dir, end=end))
            assert code == (75 if end.startswith("TERM") else -9), f"{end}: {output}"
            if code == 75:
                # The signal came just before the round was sampled, so the round was not sampled.
                assert "preempted and saved; run the same command again to resume: 2 rounds" in output
                assert tiny_runs.saved_rounds(run_dir) == [2]
                assert "round_000003.jsonl" not in tiny_runs.rollouts(run_dir)
        code, output = tiny_runs.finish(tiny_runs.start(file, run_dir))
        assert code == 0, output
        return run_dir

    with futures.ThreadPoolExecutor(len(LIVES)) as pool:
        for life in [pool.submit(live_and_die, name, ends) for name, ends in LIVES.items()]:
            run_dir = life.result()
            tiny_runs.assert_same_run(run_dir, straight_process)
            assert not list((run_dir / "checkpoints").glob("*tmp*")), "a killed save is left on disk"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "round"), [("TERM", 2), ("KILL", 3)])
def test_a_round_interrupted_while_sampling_continues_from_its_journal(
    file, straight_of_few_slots, tmp_path, name, round
):
    """SIGTERM comes in a round without a checkpoint before it, which is then saved; SIGKILL comes in a round with one."""
    run_dir = tmp_path / "run"
    code, output = tiny_runs.finish(tiny_runs.start(file, run_dir, *FEW_SLOTS, end=f"{name}:journal:{round}"))
    left_at = time.time()
    assert code == (75 if name == "TERM" else -9), output
    assert tiny_runs.saved_rounds(run_dir) == [round - 1]
    first = tiny_runs.journals(run_dir)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in first}
    assert 0 < len(tiny_runs.journalled(first)) < 8
    # The signal was sent when the last file was written. A platform kills a process that does not exit soon after the signal.
    assert left_at - max(path.stat().st_mtime for path in first) < 15

    code, output = tiny_runs.finish(tiny_runs.start(file, run_dir, *FEW_SLOTS, end=f"TERM:sampled:{round}"))
    assert code == 75, output
    after = tiny_runs.journals(run_dir)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in after if path in before} == before
    assert sorted(tiny_runs.journalled(after)) == [(prompt, sample) for prompt in range(4) for sample in range(2)]

    code, output = tiny_runs.finish(tiny_runs.start(file, run_dir, *FEW_SLOTS))
    assert code == 0, output
    tiny_runs.assert_same_run(run_dir, straight_of_few_slots)


@pytest.mark.slow
def test_a_journal_file_that_was_torn_is_sampled_again_and_the_run_is_the_same(file, straight_of_few_slots, tmp_path):
    run_dir = tmp_path / "run"
    code, output = tiny_runs.finish(tiny_runs.start(file, run_dir, *FEW_SLOTS, end="TERM:sampled:2"))
    assert code == 75, output
    whole = tiny_runs.journals(run_dir)
    assert len(whole) >= 4
    torn, lost = whole[1], tiny_runs.journalled(whole[1:2])
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])

    code, output = tiny_runs.finish(tiny_runs.start(file, run_dir, *FEW_SLOTS, end="TERM:sampled:2"))
    assert code == 75, output
    assert sorted(tiny_runs.journalled(tiny_runs.journals(run_dir)[len(whole) :])) == sorted(lost)

    code, output = tiny_runs.finish(tiny_runs.start(file, run_dir, *FEW_SLOTS))
    assert code == 0, output
    tiny_runs.assert_same_run(run_dir, straight_of_few_slots)


def test_a_journal_that_cannot_be_used_is_reported_once_and_the_run_is_the_same(file, straight, tmp_path, monkeypatch):
    said, run_dir = [], tmp_path / "run"
    run_dir.mkdir()
    tiny_runs.play(file, run_dir, run__rounds=1, checkpoint__every=1)
    shutil.rmtree(run_dir / "journal")
    (run_dir / "journal").write_text("a file")
    monkeypatch.setattr(console.Console, "log", lambda self, text: said.append(text))
    tiny_runs.play(file, run_dir, checkpoint__every=1)
    tiny_runs.assert_same_run(run_dir, straight)
    assert len([text for text in said if text.startswith("the journal")]) == 1


@pytest.mark.slow
def test_sampling_stops_between_two_windows_and_finished_responses_return_to_the_sampler(file, tmp_path):
    # 24 responses for 16 slots, so that some have not begun when the first are finished.
    settings = {"rollout__samples_per_prompt": 6, "update__batch_size": 24, "replay__capacity": 40, "run__rounds": 2}
    settings |= {"eval__every": 0, "update__reference_reset_every": 0}
    tiny_runs.play(file, tmp_path / "straight", **settings)
    sampled: list[int] = []

    def is_in_the_second_round(count, first):
        sampled.append(count)
        return sum(sampled) == 24 + count

    with tiny_runs.stopped_when(is_in_the_second_round):
        outcome = tiny_runs.play(file, tmp_path / "run", **settings)
    assert (outcome.rounds, outcome.is_preempted) == (1, True)
    assert 24 < sum(sampled) < 48
    with tiny_runs.counting_restored() as restored:
        outcome = tiny_runs.play(file, tmp_path / "run", **settings)
    assert (outcome.rounds, outcome.is_preempted) == (2, False)
    assert restored == [sum(sampled) - 24]
    tiny_runs.assert_same_run(tmp_path / "run", tmp_path / "straight")


def test_the_journal_of_another_round_policy_or_config_is_deleted_and_never_used(file, straight, tmp_path):
    run_dir = tmp_path / "run"
    tiny_runs.play(file, run_dir, run__rounds=2, checkpoint__every=1)
    (current,) = (run_dir / "journal" / "process_0_of_1").iterdir()
    config_hash, version = re.fullmatch(r"(\w{16})_round_000001_policy_(\d+)", current.name).groups()
    third, fourth = (f"{config_hash}_round_{round:06d}_policy_{round * int(version)}" for round in (2, 3))
    for name in (
        third.replace("round_000002", "round_000003"),
        third.replace(f"policy_{2 * int(version)}", f"policy_{version}"),
        third.replace(config_hash, config_hash[::-1]),
    ):
        shutil.copytree(current, current.with_name(name))
    tiny_runs.play(file, run_dir, checkpoint__every=1)
    # Checks the assumption of this test about the name of a round's journal.
    assert [path.name for path in current.parent.iterdir()] == [fourth]
    tiny_runs.assert_same_run(run_dir, straight)


def test_the_journal_of_the_round_is_used(file, straight, tmp_path):
    """The test above would pass if no journal were ever used. Here a journal with other tokens changes the run."""
    run_dir = tmp_path / "run"
    tiny_runs.play(file, run_dir, run__rounds=1, eval__every=0)
    (journal_file,) = tiny_runs.journals(run_dir)
    with np.load(journal_file) as stored:
        arrays = dict(stored)
    shutil.rmtree(run_dir / "checkpoints")
    shutil.rmtree(run_dir / "rollouts")
    (run_dir / "metrics.jsonl").unlink()
    arrays["tokens"][0] = 99 if arrays["tokens"][0] != 99 else 98
    np.savez(journal_file, **arrays)
    tiny_runs.play(file, run_dir, run__rounds=1, eval__every=0)
    actual, expected = (tiny_runs.rollouts(path)["round_000001.jsonl"].splitlines() for path in (run_dir, straight))
    assert [one == other for one, other in zip(actual, expected, strict=True)] == [False, *[True] * 7]


@pytest.mark.slow
def test_a_run_resumed_on_eight_devices_instead_of_one_agrees_to_rounding(file, straight_process, tmp_path):
    run_dir = tmp_path / "run"
    code, output = tiny_runs.finish(tiny_runs.start(file, run_dir, end="KILL:saved:2"))
    assert code == -9, output
    assert tiny_runs.saved_rounds(run_dir) == [2]
    tiny_runs.play(file, run_dir)
    for name, text in tiny_runs.rollouts(straight_process).items():
        for line, other in zip(text.splitlines(), tiny_runs.rollouts(run_dir)[name].splitlines(), strict=True):
            row, moved = json.loads(line), json.loads(other)
            assert moved.pop("log_prob") == pytest.approx(row.pop("log_prob"), abs=1e-3)
            assert moved == row
    actual, expected = tiny_runs.saved_arrays(run_dir), tiny_runs.saved_arrays(straight_process)
    assert actual.keys() == expected.keys()
    start = weights.load(tiny_runs.with_overrides(file, {}).model.path).params
    start = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(start)}
    for name, value in expected.items():
        if not np.issubdtype(value.dtype, np.floating):
            np.testing.assert_array_equal(actual[name], value, err_msg=name)
            continue
        # Sums over rows and weights are cut in eight. Adam divides by sqrt(v), so a weight whose gradient is near 0 may
        # move by any share of the learning rate: the claim is on each array's whole movement.
        moved = value - start.get(name.removeprefix("['params']").removeprefix("['reference']"), 0)
        assert np.linalg.norm(actual[name] - value) <= 1e-3 * np.linalg.norm(moved), name


@pytest.mark.slow
def test_the_compilation_cache_changes_nothing(file, straight_process, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    code, output = tiny_runs.finish(tiny_runs.start(file, tmp_path / "run"))
    assert code == 0, output
    tiny_runs.assert_same_run(tmp_path / "run", straight_process)


@pytest.mark.slow
def test_the_same_seed_and_config_give_the_same_run(file, straight, tmp_path):
    tiny_runs.play(file, tmp_path / "again", checkpoint__every=1)
    tiny_runs.assert_same_run(tmp_path / "again", straight)


@pytest.mark.slow
def test_another_seed_gives_another_run(file, straight, tmp_path):
    tiny_runs.play(file, tmp_path / "other", run__seed=1)
    assert tiny_runs.rollouts(tmp_path / "other") != tiny_runs.rollouts(straight)
    actual, expected = (tiny_runs.saved_arrays(path) for path in (tmp_path / "other", straight))
    assert all(np.any(actual[name] != value) for name, value in expected.items() if name.startswith("['params']"))


def test_a_finished_run_started_again_does_nothing(file, straight):
    before = tiny_runs.tree_hash(straight)
    outcome = tiny_runs.play(file, straight, checkpoint__every=1)
    assert (outcome.rounds, outcome.is_preempted) == (4, False)
    assert tiny_runs.tree_hash(straight) == before


@pytest.mark.slow
def test_a_run_extended_by_more_rounds_records_the_change_and_equals_a_longer_run(file, straight, tmp_path):
    run_dir = tmp_path / "run"
    tiny_runs.play(file, run_dir, run__rounds=3)
    assert tiny_runs.saved_rounds(run_dir) == [2, 3]
    tiny_runs.play(file, run_dir)
    tiny_runs.assert_same_run(run_dir, straight)
    changes = [json.loads(line) for line in (run_dir / "config_changes.jsonl").read_text().splitlines()]
    assert changes == [{"round": 3, "changes": ["run.rounds: 3 -> 4"]}]


def test_a_background_save_holds_the_round_it_was_begun_in(file, straight, tmp_path, monkeypatch):
    """Orbax writes late: the memory must not be donated to the next updates before."""
    write, late = serialization.async_serialize_from_host, []

    async def write_late(*arguments, **settings):
        await asyncio.sleep(1.0)
        late.append(True)
        return await write(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(serialization, "async_serialize_from_host", write_late)
        tiny_runs.play(file, tmp_path / "run", run__rounds=6, checkpoint__every=4)
    assert late, "Orbax no longer writes by this function: delay the one it uses now"
    assert tiny_runs.saved_rounds(straight)[-1] == 4
    assert (
        tiny_runs.different_arrays(tiny_runs.saved_arrays(tmp_path / "run", 4), tiny_runs.saved_arrays(straight)) == []
    )


@pytest.mark.slow
def test_no_batch_mixes_reference_versions_across_a_reset(file, tmp_path, monkeypatch):
    """After a reset every row of a batch has the new reference's scores, also in a resumed run."""
    versions, step = [], batch.pack

    def noted_pack(rows, mesh, **settings):
        if (rows.reference_version >= 0).all():
            versions.append(np.unique(rows.reference_version).tolist())
        return step(rows, mesh, **settings)

    # The rows that `reference.score` packs are stale by definition, so only the learner's packing is recorded.
    of_learner = {"pack": noted_pack, "arrange": batch.arrange, "per_trajectory": batch.per_trajectory}
    monkeypatch.setattr(train, "batch", types.SimpleNamespace(**of_learner))
    tiny_runs.play(file, tmp_path / "run", update__reference_reset_every=2, run__rounds=3, checkpoint__every=1)
    tiny_runs.play(file, tmp_path / "run", update__reference_reset_every=2, run__rounds=5, checkpoint__every=1)
    assert versions == [[0]] * 4 + [[1]] * 4 + [[2]] * 2


def test_stored_scores_equal_those_of_the_reference_of_their_version(file, copy):
    """Rows scored since the reset agree with the checkpoint's reference parameters, and rows from before it do not."""
    config = tiny_runs.with_overrides(file, {})
    components, run = setup.prepare(config, copy, console=console.Console(is_quiet=True))
    components.store.close()
    assert run.reference.version == 1
    rows = run.buffer.trajectories
    fresh = np.flatnonzero(rows.reference_version == run.reference.version)
    assert 0 < fresh.size < rows.size, "nothing is left stale, so nothing is shown"
    chosen = train.replay.gather(rows, fresh[:8])
    params, limits = reference.load(run.reference), tiny_programs.limits(config)
    log_prob, value = reference.score(components.score, params, chosen, components.meshes.learner, limits=limits)
    # In another batch the rows have other places in a product, which changes float32 rounding.
    np.testing.assert_allclose(chosen.reference_log_prob, log_prob, atol=1e-4)
    np.testing.assert_allclose(chosen.reference_value, value, atol=1e-4)
    stale = train.replay.gather(rows, np.setdiff1d(np.arange(rows.size), fresh)[:8])
    log_prob, _ = reference.score(components.score, params, stale, components.meshes.learner, limits=limits)
    assert np.abs(stale.reference_log_prob - log_prob).max() > 1e-2, "the references are too alike for this test"


@pytest.mark.slow
def test_a_reset_makes_the_policy_the_reference_and_can_forget_the_optimizer(file, tmp_path):
    settings = {"update__reference_reset_every": 2, "run__rounds": 2, "checkpoint__every": 1}
    tiny_runs.play(file, tmp_path / "without_reset", **settings)
    tiny_runs.play(file, tmp_path / "with_reset", **settings, update__reset_optimizer=True)
    before, without_reset, with_reset = (
        tiny_runs.saved_arrays(tmp_path / name, round)
        for name, round in (("without_reset", 1), ("without_reset", 2), ("with_reset", 2))
    )
    names = [name.removeprefix("['params']") for name in without_reset if name.startswith("['params']")]
    assert any(np.any(before[f"['params']{name}"] != before[f"['reference']{name}"]) for name in names)
    for name in names:
        np.testing.assert_array_equal(without_reset[f"['params']{name}"], without_reset[f"['reference']{name}"])
        np.testing.assert_array_equal(without_reset[f"['params']{name}"], with_reset[f"['params']{name}"])
    moments = [name for name in without_reset if ".mu" in name or ".nu" in name]
    assert moments
    assert all(
        np.any(without_reset[name]) and not np.any(with_reset[name]) for name in moments if without_reset[name].ndim
    )


def test_lost_metrics_lines_are_refused_not_invented(file, copy):
    record = copy / "metrics.jsonl"
    record.write_text(record.read_text()[:-1])
    before = tiny_runs.tree_hash(copy)
    with pytest.raises(ValueError, match="lines are lost"):
        tiny_runs.play(file, copy)
    assert tiny_runs.tree_hash(copy) == before


@pytest.mark.slow
def test_a_stop_score_ends_the_run_and_rounds_are_counted_across_a_resume(file, tmp_path):
    """Every response scores at least 0, so a stop score of 0 ends after `stop_rounds`."""
    settings = {"run__stop_score": 0.0, "run__stop_rounds": 3}
    assert tiny_runs.play(file, tmp_path / "run", **settings, run__rounds=2).rounds == 2
    assert tiny_runs.play(file, tmp_path / "run", **settings).rounds == 3
    assert tiny_runs.play(file, tmp_path / "run", **settings).rounds == 3


@pytest.mark.slow
def test_grpo_which_has_no_reference_resumes_as_if_never_stopped(file, tmp_path):
    # 16 trajectories a round, so that its two mini-batches divide over the eight devices.
    settings = {
        "update__objective": "grpo",
        "update__reference_reset_every": 0,
        "rollout__prompts_per_round": 8,
        "update__batch_size": 16,
    }
    tiny_runs.play(file, tmp_path / "straight", **settings, run__rounds=2)
    tiny_runs.play(file, tmp_path / "parts", **settings, run__rounds=1)
    tiny_runs.play(file, tmp_path / "parts", **settings, run__rounds=2)
    tiny_runs.assert_same_run(tmp_path / "parts", tmp_path / "straight")
    assert not any(name.startswith("['reference']") for name in tiny_runs.saved_arrays(tmp_path / "parts"))


@pytest.mark.slow
def test_an_update_that_is_skipped_is_no_use_of_its_rows(file, copy):
    components, run = setup.prepare(tiny_runs.with_overrides(file, {}), copy, console=console.Console(is_quiet=True))
    components = components._replace(config=tiny_runs.with_overrides(file, {"update.max_skipped": 100}))
    broken = jax.tree.map(lambda leaf: leaf * np.float32("nan"), run.reference.params)
    run = run._replace(reference=run.reference._replace(params=broken, version=run.reference.version + 1))
    preemption = distributed.Preemption()
    with jax.numpy_dtype_promotion("standard"):
        after = train.play_round(components, run, rollout.synchronous(components, preemption), preemption)
    components.store.close()
    assert int(after.state.num_skipped) == 2
    before, now = run.buffer.trajectories, after.buffer.trajectories
    is_fresh = now.round == run.progress.round
    assert now.use_count[is_fresh].tolist() == [0] * is_fresh.sum()
    assert now.use_count[~is_fresh].tolist() == before.use_count[-(~is_fresh).sum() :].tolist()
    assert before.use_count.max() > 0


@pytest.mark.slow
def test_updates_that_are_not_finite_stop_the_run_and_keep_the_last_checkpoint(file, copy):
    before, lines = tiny_runs.saved_arrays(copy), metrics.read(copy / "metrics.jsonl")
    components, run = setup.prepare(tiny_runs.with_overrides(file, {}), copy, console=console.Console(is_quiet=True))
    components = components._replace(config=tiny_runs.with_overrides(file, {"update.max_skipped": 3}))
    broken = jax.tree.map(lambda leaf: leaf * np.float32("nan"), run.reference.params)
    run = run._replace(reference=run.reference._replace(params=broken, version=run.reference.version + 1))
    preemption = distributed.Preemption()
    actor = rollout.synchronous(components, preemption)
    with jax.numpy_dtype_promotion("standard"), pytest.raises(FloatingPointError, match=r"update\.max_skipped=3"):
        train.play_round(components, train.play_round(components, run, actor, preemption), actor, preemption)
    components.store.close()
    assert tiny_runs.different_arrays(tiny_runs.saved_arrays(copy), before) == []
    assert metrics.read(copy / "metrics.jsonl")[: len(lines)] == lines


@pytest.mark.slow
def test_a_template_that_prints_the_date_prints_the_day_of_the_runs_start(tmp_path, monkeypatch):
    file = tiny_runs.write_files(tmp_path)
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}")
    settings = {"task__template": "chat", "task__max_prompt_tokens": 64, "checkpoint__every": 1, "eval__every": 0}
    monkeypatch.setattr(prompts, "today", lambda: "2026-11-27")
    tiny_runs.play(file, tmp_path / "run", run__rounds=1, **settings)
    monkeypatch.setattr(prompts, "today", lambda: "2026-11-28")
    tiny_runs.play(file, tmp_path / "run", run__rounds=2, **settings)
    texts = tiny_runs.rollouts(tmp_path / "run").values()
    assert len(texts) == 2
    assert all('"prompt": "27 Nov 2026 ' in text for text in texts)
    recorded = tmp_path / "run" / "config.yaml"
    assert yaml.safe_load(recorded.read_text())["about"]["template_date"] == "2026-11-27"
    assert inference.load_policy(config.load(recorded), tmp_path / "run").template_date == "2026-11-27"
    assert inference.load_policy(config.load(recorded), tmp_path / "run", round=0).template_date == "2026-11-27"
    assert inference.load_policy(config.load(file), None).template_date == "2026-11-28"
