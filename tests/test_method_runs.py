"""Tiny runs of the methods that keep state of their own: stopped anywhere they end alike, and what adapts follows the log."""

from __future__ import annotations

import itertools
import json
import shutil
import zlib
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import yaml
from support import tiny_programs, tiny_runs
from test_dynamic_sampling import graded_by_chance

from reval_jax import algorithms, console, reference, replay, setup, types, verifier

PRESETS = Path(__file__).resolve().parent.parent / "configs" / "algorithms"
ALWAYS = {"eval__every": 0, "checkpoint__every": 1}
# Mini-batches of 16 trajectories divide over the eight devices.
TWO_MINI_BATCHES = {"rollout__prompts_per_round": 8, "update__batch_size": 16, "update__updates_per_round": 2}
NO_RESET = {"update__reference_reset_every": 0}


@pytest.fixture(autouse=True)
def chance(monkeypatch):
    """Rewards by chance, so that groups are mixed."""
    monkeypatch.setattr(verifier.Grader, "score", graded_by_chance)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny_runs.write_files(tmp_path_factory.mktemp("files"))


def preset(name, **overrides):
    """The settings of a published name, as arguments of `tiny_runs.play`."""
    tree = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())
    settings = {f"{section}__{field}": value for section, fields in tree.items() for field, value in fields.items()}
    return NO_RESET | settings | overrides


METHODS = {
    "priority by residual": {"replay__priority": "residual", "replay__weight_rounds": 4},
    "priority by success": {"replay__priority": "success", **NO_RESET},
    "adaptive updates": {"update__max_updates_per_round": 4, **NO_RESET},
    "resets by the pull ratio": {
        **NO_RESET,
        "update__reference_reset_pull": 0.1,
        "update__reference_reset_wait": 1,
        "rollout__samples_per_prompt": 6,
        "update__batch_size": 24,
        "replay__capacity": 60,
    },
    "remax": preset("remax"),
    "rover": preset("rover", **TWO_MINI_BATCHES),
    "ppo": preset("ppo", **TWO_MINI_BATCHES),
    "oapl": preset("oapl", update__beta=0.5, update__reference_reset_every=2),
    "passes": preset("grpo", update__passes=2),
}


def check_state(name, run_dir, lines):
    """The checkpoint holds the method's own state, and the run made use of it."""
    arrays, progress = tiny_runs.saved_arrays(run_dir), tiny_runs.saved_progress(run_dir)
    updates = np.diff([0, *(line["training/updates"] for line in lines)]).tolist()
    match name:
        case "priority by residual":
            # The third round's reset made them new; those of the second are from its residuals.
            assert (arrays["['replay']['priority']"] == types.NEW).all()
            assert (tiny_runs.saved_arrays(run_dir, 2)["['replay']['priority']"] > 0).sum() >= 8
        case "adaptive updates":
            assert len(set(updates)) > 1
            assert progress["adaptation"]["updates"] >= 2
        case "resets by the pull ratio":
            assert progress["reference_version"] > 0
            assert 0 < progress["adaptation"]["last_reset"] <= 3
        case "remax":
            assert 0 < arrays["['replay']['greedy_reward']"].mean() < 1
        case "rover":
            assert (arrays["['replay']['token_values']"] < 0).all()
        case "ppo":
            heads = [value for path, value in arrays.items() if "value_head" in path]
            assert len(heads) == 6  # kernel and bias, and two moments of each
            assert all(np.any(head) for head in heads)
            assert arrays["['replay']['token_values']"].shape[1] == 3
        case "oapl":
            assert progress["reference_version"] == 1
            assert set(arrays["['replay']['round']"].tolist()) == {2}  # the reset emptied the buffer
            assert not any("timing_s/reference" in line for line in lines)
        case "passes":
            assert updates == [2, 2, 2]
            assert (arrays["['replay']['use_count']"] == 2).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_stops_after_its_second_round_ends_as_one_that_never_did(file, tmp_path, name):
    settings = ALWAYS | METHODS[name]
    straight = tiny_runs.play(file, tmp_path / "straight", **settings, run__rounds=3)
    assert all(line["training/skipped"] == 0 for line in straight.lines)
    check_state(name, tmp_path / "straight", straight.lines)
    for rounds in (2, 3):
        tiny_runs.play(file, tmp_path / "parts", **settings, run__rounds=rounds)
    tiny_runs.assert_same_run(tmp_path / "parts", tmp_path / "straight")


@pytest.mark.slow
def test_greedy_responses_of_an_interrupted_round_return_from_a_journal_of_their_own(file, tmp_path):
    """24 prompts for 16 slots: stopped among the greedy responses, and once more among the sampled ones."""
    settings = ALWAYS | preset("remax", rollout__prompts_per_round=24, update__batch_size=48, replay__capacity=48)
    tiny_runs.play(file, tmp_path / "straight", **settings, run__rounds=2)
    finished: list[int] = []

    def is_after(count):
        """Of the responses that this start of the run has sampled."""
        finished.clear()

        def is_time(num_responses, first):
            finished.append(num_responses)
            return count < sum(finished) <= count + num_responses

        return is_time

    run_dir = tmp_path / "parts"
    with tiny_runs.stopped_when(is_after(24 + 48)):  # of the first round
        assert tiny_runs.play(file, run_dir, **settings, run__rounds=2).is_preempted
    num_greedy = sum(finished) - 72
    assert 0 < num_greedy < 24
    with tiny_runs.stopped_when(is_after(24 - num_greedy)), tiny_runs.counting_restored() as restored:
        assert tiny_runs.play(file, run_dir, **settings, run__rounds=2).is_preempted
    num_sampled = sum(finished) - (24 - num_greedy)
    assert 0 < num_sampled < 48
    assert restored == [num_greedy, 0]
    with tiny_runs.counting_restored() as restored:
        assert not tiny_runs.play(file, run_dir, **settings, run__rounds=2).is_preempted
    assert restored == [24, num_sampled]
    tiny_runs.assert_same_run(run_dir, tmp_path / "straight")


@pytest.mark.slow
def test_a_threshold_that_is_never_reached_changes_no_bit_of_the_run(file, tmp_path):
    """On CPU, where the program with residuals among its results computes the same bits as the one without."""
    settings = ALWAYS | NO_RESET | {"run__rounds": 3}
    tiny_runs.play(file, tmp_path / "never", **settings)
    tiny_runs.play(file, tmp_path / "unreached", **settings, update__reference_reset_pull=1e9)
    never, unreached = (tiny_runs.metrics_lines(tmp_path / name) for name in ("never", "unreached"))
    added = {"reset/pull_ratio", "reset/pull_average"}
    assert all(added <= line.keys() for line in unreached)
    assert [{name: value for name, value in line.items() if name not in added} for line in unreached] == never
    assert tiny_runs.rollouts(tmp_path / "unreached") == tiny_runs.rollouts(tmp_path / "never")
    arrays = [tiny_runs.saved_arrays(tmp_path / name) for name in ("unreached", "never")]
    assert tiny_runs.different_arrays(*arrays) == []


@pytest.mark.slow
def test_oapl_runs_no_scoring_pass_and_stores_what_one_would_give(file, tmp_path, monkeypatch):
    settings = ALWAYS | METHODS["oapl"]
    prepare, score, seen = setup.prepare, reference.score, []

    def noted(*arguments, **options):
        seen.append(prepare(*arguments, **options))
        return seen[-1]

    def refused(*_, **__):
        raise AssertionError("a scoring pass ran")

    with monkeypatch.context() as patch:
        patch.setattr(setup, "prepare", noted)
        patch.setattr(reference, "score", refused)
        tiny_runs.play(file, tmp_path / "run", **settings, run__rounds=3)
    ((components, _),) = seen
    assert components.score._cache_size() == 0

    config = tiny_runs.with_overrides(file, {name.replace("__", "."): value for name, value in settings.items()})
    components, run = setup.prepare(config, tmp_path / "run", console=console.Console(is_quiet=True))
    components.store.close()
    # The third round's rows, of the reference that the reset after the second made.
    rows = run.buffer.trajectories
    assert (rows.size, run.reference.version, set(rows.reference_version.tolist())) == (8, 1, {1})
    params, limits = reference.load(run.reference), tiny_programs.limits(config)
    log_prob, _ = score(components.score, params, rows, components.meshes.learner, limits=limits)
    np.testing.assert_allclose(rows.reference_log_prob, log_prob, atol=1e-4)
    assert components.score._cache_size() == 1


@pytest.mark.slow
def test_the_logged_shares_give_the_next_round_s_number_of_updates(file, tmp_path):
    settings = ALWAYS | METHODS["adaptive updates"] | {"update__reuse_threshold": 1.0}
    lines = tiny_runs.play(file, tmp_path / "run", **settings, run__rounds=6).lines
    updates = np.diff([0, *(line["training/updates"] for line in lines)]).tolist()
    assert updates[0] == 2
    assert updates[1:] == [line["reuse/next_updates"] for line in lines[:-1]]
    number, expected = 2.0, []
    for line in lines:
        fresh, replayed = line["reuse/unexplained_fresh"], line["reuse/unexplained_replayed"]
        if None not in (fresh, replayed):
            number = min(4.0, max(2.0, number / 1.3 if replayed < fresh else number * 1.3))
        expected.append(round(number))
    assert [line["reuse/next_updates"] for line in lines] == expected
    assert len(set(expected)) > 1


@pytest.mark.slow
def test_passes_over_the_fresh_batch_alone_are_a_control_without_replay(file, tmp_path):
    """ReVal's twin: as many updates, none of them on an old row."""
    settings = ALWAYS | NO_RESET | {"update__draws": "fresh", "update__updates_per_round": 1, "update__passes": 3}
    lines = tiny_runs.play(file, tmp_path / "run", **settings, run__rounds=2).lines
    assert [line["training/updates"] for line in lines] == [3, 6]
    assert [line["replay/fresh_fraction"] for line in lines] == [1.0, 1.0]
    assert (tiny_runs.saved_arrays(tmp_path / "run")["['replay']['use_count']"] == 3).all()


@pytest.mark.parametrize("objective", ["reval", "grpo"])
def test_each_pass_takes_another_permutation_and_the_first_is_that_of_a_single_pass(objective):
    """The permutation is computed again from the key's words."""
    update = {"objective": objective, "draws": "fresh", "updates_per_round": 4}
    trajectories = tiny_programs.random_trajectories(24)._replace(round=np.repeat([6, 7], [16, 8]).astype(np.int32))
    buffer = replay.add(replay.init(24), trajectories)

    def rows(passes):
        algorithm = algorithms.choose(tiny_programs.settings(update=update | {"passes": passes}))
        assert algorithm.num_updates == 4 * passes
        return [algorithm.draw(buffer, 7, index).rows.tolist() for index in range(algorithm.num_updates)]

    single, several = rows(1), rows(3)
    assert several[:4] == single
    key = jax.random.key(0, impl="threefry2x32")
    for number in (zlib.crc32(b"mini_batches"), 7):
        key = jax.random.fold_in(key, number)
    high, low = np.asarray(jax.random.key_data(key)).tolist()
    order = np.argsort(np.random.Philox(key=high << 32 | low).random_raw(8), kind="stable")
    assert np.concatenate(single).tolist() == (16 + order).tolist()
    passes = [list(itertools.chain.from_iterable(several[first : first + 4])) for first in (0, 4, 8)]
    assert all(sorted(rows) == list(range(16, 24)) for rows in passes)
    assert len({tuple(rows) for rows in passes}) == 3


@pytest.mark.slow
def test_a_checkpoint_from_before_these_methods_continues_as_if_it_had_their_fields(file, tmp_path):
    tiny_runs.play(file, tmp_path / "run", **ALWAYS, run__rounds=4)
    tiny_runs.play(file, tmp_path / "old", **ALWAYS, run__rounds=2)
    saved = tmp_path / "old" / "checkpoints" / "2"
    tree = tiny_runs.saved_tree(tmp_path / "old")
    for name in ("priority", "greedy_reward", "row"):
        del tree["replay"][name]
    shutil.rmtree(saved / "arrays")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(saved / "arrays", args=ocp.args.PyTreeSave(tree))
    notes = json.loads((saved / "notes" / "metadata").read_text())
    del notes["progress"]["adaptation"]
    (saved / "notes" / "metadata").write_text(json.dumps(notes))

    tiny_runs.play(file, tmp_path / "old", **ALWAYS, run__rounds=4)
    assert tiny_runs.metrics_lines(tmp_path / "old") == tiny_runs.metrics_lines(tmp_path / "run")
    continued, straight = (tiny_runs.saved_arrays(tmp_path / name) for name in ("old", "run"))
    different = tiny_runs.different_arrays(continued, straight)
    assert set(different) <= {"['replay']['row']"}  # of the rows from before, it is not known
