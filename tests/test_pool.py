"""Stored responses of an earlier run: collected exactly, refused where they do not fit, joined to groups of their questions."""

from __future__ import annotations

import json
import zipfile

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies
from support import tiny_programs, tiny_runs
from test_dynamic_sampling import graded_by_chance

from reval_jax import algorithms, checkpoint, cli, pool, prompts, replay, run_directory, types, verifier, weights
from reval_jax import config as config_lib

STOP = 2


def of_rows(*rows, **fields):
    """A pool of one response to each of these rows; the prompt of row r is the tokens 10 + r, 7; a response ends with STOP."""
    num = len(rows)
    responses = [[20 + index, STOP] for index in range(num)]
    tokens = [token for row, response in zip(rows, responses, strict=True) for token in (10 + row, 7, *response)]
    stored = {
        "tokens": np.array(tokens, np.int32),
        "prompt_length": np.full(num, 2, np.int32),
        "response_length": np.full(num, 2, np.int32),
        "is_truncated": np.zeros(num, np.bool_),
        "row": np.array(rows, np.int64),
    }
    about = {"data_fingerprint": "f" * 16, "task": task(), "run_dir": "runs/first", "rounds": [2]}
    return pool.of(stored | fields, about)


def task(**changes):
    settings = tiny_programs.settings().task
    return {name: getattr(settings, name) for name in pool.TASK} | changes


def dataset(size, fingerprint="f" * 16):
    return prompts.Dataset(
        texts=("",) * size,
        tokens=tuple(np.array([10 + row, 7], np.int32) for row in range(size)),
        answers=("",) * size,
        num_dropped=0,
        fingerprint=fingerprint,
        prompt_opens_think=False,
    )


# --- The draw ---


@hypothesis.settings(deadline=None, max_examples=50)
@hypothesis.given(
    rows=strategies.lists(strategies.integers(0, 5), min_size=1, max_size=20),
    asked=strategies.lists(strategies.integers(0, 7), max_size=6),
    m=strategies.integers(1, 4),
)
def test_each_prompt_gets_different_responses_of_its_own_question_as_many_as_there_are(rows, asked, m):
    stored = of_rows(*sorted(rows))
    cursors = 100 + np.arange(len(asked))
    chosen, counts = pool.of_questions(stored, np.array(asked, np.int64), cursors, m, seed=3)
    assert counts.tolist() == [min(m, rows.count(row)) for row in asked]
    parts = np.split(chosen, np.cumsum(counts)[:-1]) if asked else []
    for row, cursor, part in zip(asked, cursors, parts, strict=True):
        assert len(set(part.tolist())) == part.size
        assert all(stored.trajectories.row[index] == row for index in part)
        alone, _ = pool.of_questions(stored, np.array([row]), np.array([cursor]), m, seed=3)
        np.testing.assert_array_equal(alone, part, "a draw depends on the round's other prompts")


def test_every_stored_response_is_drawn_equally_often_and_another_seed_draws_others():
    stored, cursors = of_rows(0, 1, 1, 1, 1, 1, 2), np.arange(400)
    chosen, _ = pool.of_questions(stored, np.ones(400, np.int64), cursors, 2, seed=0)
    times = np.bincount(chosen, minlength=7)
    assert times[[0, 6]].tolist() == [0, 0]
    # Binomial(400, 2/5) has mean 160 and standard deviation 9.8.
    assert np.abs(times[1:6] - 160).max() < 4 * 9.8
    other, _ = pool.of_questions(stored, np.ones(400, np.int64), cursors, 2, seed=1)
    assert (other != chosen).any()


def test_stored_responses_join_with_this_runs_rewards_and_the_next_sample_indices():
    stored = of_rows(1, 1, 1, 4)
    config = tiny_programs.settings(
        rollout={
            "pool": "pool.npz",
            "pool_samples": 2,
            "samples_per_prompt": 2,
            "truncated": "penalty",
            "penalty_tokens": 8,
        },
        update={"reward_design": "signed", "batch_size": 4},
    )
    fresh = tiny_programs.random_trajectories(6)._replace(
        row=np.array([4, 4, 0, 0, 1, 1]),
        cursor=np.array([7, 7, 8, 8, 9, 9]),
        round=np.full(6, 5, np.int32),
        greedy_reward=np.array([1, 1, 0, 0, 0.5, 0.5], np.float32),
    )
    joined = pool.responses(stored, fresh, config, policy_version=11)
    assert joined.row.tolist() == [4, 1, 1]
    assert joined.cursor.tolist() == [7, 9, 9]
    assert joined.sample.tolist() == [2, 2, 3]
    assert joined.round.tolist() == [5] * 3
    assert joined.policy_version.tolist() == [11] * 3
    assert joined.greedy_reward.tolist() == [1, 0.5, 0.5]
    assert joined.raw_reward.tolist() == [1] * 3
    np.testing.assert_allclose(joined.reward, 1 - 2 / 8, err_msg="2 tokens of the last 8 before the limit")
    assert joined.use_count.tolist() == [0] * 3
    assert joined.priority.tolist() == [types.NEW] * 3
    assert joined.reference_version.tolist() == [types.NOT_SCORED] * 3
    assert {types.VERDICTS[kind] for kind in joined.verdict} == {"ok"}
    replay.add(replay.init(9), replay.concatenate([fresh, joined]))  # which checks shapes and dtypes


# --- The file ---


def same(one, other):
    return (
        all((getattr(one.trajectories, name) == getattr(other.trajectories, name)).all() for name in pool.FIELDS)
        and one.about == other.about
    )


def test_a_pool_is_read_as_it_was_written_and_a_file_is_never_overwritten(tmp_path):
    stored, file = of_rows(0, 0, 3), tmp_path / "pool.npz"
    pool.save(stored, file)
    again = pool.load(file)
    assert same(again, stored)
    assert again.fingerprint == stored.fingerprint
    with pytest.raises(ValueError, match="exists"):
        pool.save(stored, file)
    assert [path.name for path in tmp_path.iterdir()] == ["pool.npz"]
    assert of_rows(0, 0, 4).fingerprint != stored.fingerprint


def test_a_damaged_file_is_refused_or_reads_the_same(tmp_path):
    stored, file, damaged = of_rows(0, 0, 3), tmp_path / "pool.npz", tmp_path / "damaged.npz"
    pool.save(stored, file)
    content = file.read_bytes()
    num_refused = 0
    for position in range(0, len(content), 5):
        damaged.write_bytes(content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :])
        try:
            read = pool.load(damaged)
        except ValueError as error:
            num_refused += str(error).startswith(f"rollout.pool={damaged} ")
        else:
            assert same(read, stored)
    assert num_refused > 50
    damaged.write_bytes(content[:-30])
    with pytest.raises(ValueError, match="damaged, or not a pool"):
        pool.load(damaged)


@pytest.mark.parametrize(
    ("stored", "changes", "message"),
    [
        (of_rows(0), {"fingerprint": "0" * 16}, "rows, tokenizer or chat template differ"),
        (of_rows(0)._replace(about=of_rows(0).about | {"data_fingerprint": "0", "task": task(template="chat")}), {},
         "task.template='chat' and here 'raw'"),
        (of_rows(0, 5), {}, "other prompt tokens for row 5"),
        (of_rows(1, tokens=np.array([10, 7, 20, STOP], np.int32)), {}, "other prompt tokens for row 1"),
        (of_rows(1, tokens=np.array([11, 7, *[9] * 8, STOP], np.int32), response_length=np.array([9], np.int32)), {},
         "a response of 9 tokens, but rollout.max_response_tokens=8"),
        (of_rows(1, tokens=np.array([11, 7, 20, 21], np.int32)), {}, "end with token 21"),
    ],
)  # fmt: skip
def test_a_pool_that_does_not_fit_the_run_is_refused(stored, changes, message):
    config = tiny_programs.settings(rollout={"pool": "pool.npz"})
    with pytest.raises(ValueError, match=message) as caught:
        pool.check(stored, dataset(5, **changes), config, (STOP, 3))
    assert "rollout.pool=pool.npz" in str(caught.value)


def test_a_pool_that_fits_is_accepted_and_a_response_that_was_cut_needs_no_stop_token():
    config = tiny_programs.settings(rollout={"pool": "pool.npz"})
    pool.check(of_rows(0, 4), dataset(5), config, (STOP,))
    cut = of_rows(1, tokens=np.array([11, 7, 20, 21], np.int32), is_truncated=np.array([True]))
    same_limit = tiny_programs.settings(rollout={"pool": "pool.npz", "max_response_tokens": 2})
    pool.check(cut, dataset(5), same_limit, (STOP,))
    with pytest.raises(ValueError, match="end with token 21, but responses of this run end with"):
        pool.check(cut, dataset(5), config, (STOP,))


def test_an_objective_whose_numbers_the_sampler_records_takes_no_pool():
    with pytest.raises(ValueError, match=r"update\.objective=rover, which reads numbers that the sampler records"):
        algorithms.choose(tiny_programs.settings(rollout={"pool": "pool.npz"}, update={"objective": "rover"}))
    for objective in ("ppo", "grpo", "reval"):
        algorithms.choose(tiny_programs.settings(rollout={"pool": "pool.npz"}, update={"objective": objective}))


# --- The command ---


def saved_run(directory, buffers, **about):
    """A run directory whose checkpoints hold these replay buffers, by round, and parameters of no meaning."""
    config = tiny_programs.settings(checkpoint={"keep": 10})
    run_directory.claim(directory, config, data_fingerprint="a" * 16, round=0)
    store = checkpoint.Store(directory / "checkpoints", config.checkpoint)
    for round, trajectories in buffers.items():
        ones = {"weight": jax.numpy.ones(2)}
        store.save(
            round, checkpoint.CheckpointState(ones, ones, None, trajectories, checkpoint.Progress(round)), config
        )
    store.wait()
    store.close()
    return directory


def command(capsys, *arguments):
    code = cli.main(["data", "pool", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_the_command_keeps_each_right_response_to_a_question_once_with_its_exact_tokens(tmp_path, capsys):
    first = tiny_programs.random_trajectories(12, seed=1)._replace(row=np.arange(12) % 5)
    later = replay.concatenate(
        [
            replay.gather(first, np.arange(4, 12)),
            tiny_programs.random_trajectories(4, seed=2)._replace(row=np.arange(4) + 3),
        ]
    )
    run_dir = saved_run(tmp_path / "run", {1: first, 2: later, 3: replay.empty()})
    code, out, err = command(capsys, "--run-dir", run_dir, "--json", "/dev/stdout")
    assert code == 0, err
    expected: dict[int, list[tuple]] = {}
    for buffer in (first, later):
        for index in np.flatnonzero(buffer.raw_reward == 1):
            tokens, length, _ = tiny_programs.tokens_of(buffer, index)
            found = expected.setdefault(int(buffer.row[index]), [])
            if (*tokens[length:],) not in [(*other[1],) for other in found]:
                found.append((tokens[:length].tolist(), tokens[length:].tolist(), bool(buffer.is_truncated[index])))
    stored = pool.load(run_dir / "pool.npz").trajectories
    actual: dict[int, list[tuple]] = {}
    for index in range(stored.size):
        tokens, length, _ = tiny_programs.tokens_of(stored, index)
        parts = (tokens[:length].tolist(), tokens[length:].tolist(), bool(stored.is_truncated[index]))
        actual.setdefault(int(stored.row[index]), []).append(parts)
    assert actual == expected
    assert stored.row.tolist() == sorted(stored.row)
    size, questions = sum(map(len, expected.values())), len(expected)
    told = json.loads(out)
    assert (told["responses"], told["questions"], told["rounds"]) == (size, questions, [1, 2, 3])
    assert told["data_fingerprint"] == "a" * 16
    assert f"{size} right responses to {questions} questions in {run_dir / 'pool.npz'}" in err

    code, _, err = command(capsys, "--run-dir", run_dir)
    assert code == 2
    assert f"--output {run_dir / 'pool.npz'} exists" in err
    code, _, err = command(capsys, "--run-dir", run_dir, "--round", 2, "--output", tmp_path / "second.npz")
    assert code == 0, err
    assert pool.load(tmp_path / "second.npz").about["rounds"] == [2]
    assert pool.load(tmp_path / "second.npz").trajectories.size == int(later.raw_reward.sum())


def test_the_command_refuses_with_one_message_and_writes_nothing(tmp_path, capsys):
    wrong = tiny_programs.random_trajectories(4)._replace(verdict=np.ones(4, np.int8))
    run_dir = saved_run(tmp_path / "run", {3: wrong})
    claimed = saved_run(tmp_path / "claimed", {})
    run_directory.claim(tmp_path / "new", config_lib.Config(), data_fingerprint="a", round=0)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.yaml").write_text("model: {path: x}")
    before = tiny_runs.tree_hash(tmp_path)
    for arguments, message in (
        (("--run-dir", run_dir), "has no right response among the 4"),
        (("--run-dir", run_dir, "--round", 1), "no checkpoint of round 1 exists; saved rounds: [3]"),
        (("--run-dir", run_dir, "--round", 1, "--round", 3), "--round appears 2 times"),
        (("--run-dir", claimed), "has no checkpoints"),
        (("--run-dir", tmp_path / "new"), "has no checkpoints"),
        (("--run-dir", tmp_path / "foreign"), "config.yaml that no run wrote"),
        (("--run-dir", tmp_path / "absent"), "cannot be read"),
        (("--run-dir", run_dir, "--output", tmp_path / "no" / "pool.npz"), "is not a writable directory"),
        (("--run-dir", run_dir, "--output", tmp_path / "foreign" / "config.yaml"), "exists. Name a new file"),
    ):
        code, out, err = command(capsys, *arguments)
        assert (code, out, len(err.splitlines())) == (2, "", 1), err
        assert message in err
    assert tiny_runs.tree_hash(tmp_path) == before


# --- In a run ---


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny_runs.write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def pooled(file, tmp_path_factory):
    """The pool of a first run, in which a third of the responses were right by chance, without those of two questions."""
    directory = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verifier.Grader, "score", graded_by_chance)
        tiny_runs.play(file, directory / "run", run__rounds=3, eval__every=0, checkpoint__every=1)
    assert cli.main(["data", "pool", "--run-dir", str(directory / "run")]) == 0
    whole = pool.load(directory / "run" / "pool.npz")
    kept = replay.gather(whole.trajectories, np.flatnonzero(whole.trajectories.row >= 2))
    assert len(np.unique(kept.row)) > 1
    pool.save(whole._replace(trajectories=kept), directory / "pool.npz")
    return directory / "pool.npz"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rollout.pool": "absent.npz"}, "rollout.pool=absent.npz cannot be read: No such file"),
        ({"rollout.pool": "model/model.safetensors"}, "is damaged, or not a pool"),
        ({"rollout.pool": "."}, "cannot be read"),
        ({"rollout.pool": "journal.npz"}, "is damaged, or not a pool"),
        ({"rollout.pool": "other.npz"}, "has responses to a data set with the fingerprint ffffffffffffffff"),
        ({"rollout.pool": "other.npz", "replay.capacity": 15}, "at most 16"),
        (
            {"rollout.pool": "other.npz", "update.objective": "rover", "update.reference_reset_every": 0},
            "the sampler records",
        ),
    ],
)
def test_a_run_refuses_a_pool_before_it_writes_anything(file, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(file.parent)
    if not (file.parent / "other.npz").exists():
        pool.save(of_rows(0), file.parent / "other.npz")
        with zipfile.ZipFile(file.parent / "journal.npz", "w") as archive:
            archive.writestr("tokens.npy", b"")
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    code = cli.main(["train", "--config", str(file), "--run-dir", str(tmp_path / "run"), *flags])
    err = capsys.readouterr().err
    assert (code, len(err.splitlines())) == (2, 1), err
    assert message in err
    assert not list(tmp_path.iterdir())


GRPO = {"update__objective": "grpo", "update__reference_reset_every": 0, "eval__every": 0, "replay__capacity": 40}


def buffer_of(run_dir, round=None):
    """The trajectories of a checkpoint, read without our own code."""
    arrays = tiny_runs.saved_arrays(run_dir, round)
    names = {
        name: arrays[f"['replay']['{name}']"]
        for name in types.Trajectories._fields
        if f"['replay']['{name}']" in arrays
    }
    return replay.completed(names)


def log_prob_of(file, trajectories, index):
    """f64[n], of the tokens of a response under the published parameters."""
    loaded = weights.load(tiny_runs.with_overrides(file, {}).model.path)
    tokens, prompt, _ = tiny_programs.tokens_of(trajectories, index)
    scores = tiny_programs.log_softmax(tiny_programs.full_logits(loaded.architecture, loaded.params, tokens))
    return scores[np.arange(prompt - 1, len(tokens) - 1), tokens[prompt:]]


def check_groups(rows, stored, *, round, samples=2, most=2):
    """Every prompt of the round has its fresh responses, then stored ones of its question: at most `most`, none twice."""
    of_round = np.flatnonzero(rows.round == round)
    num_stored = 0
    for cursor in np.unique(rows.cursor[of_round]):
        group = of_round[rows.cursor[of_round] == cursor]
        assert np.diff(group).tolist() == [1] * (len(group) - 1), "the rows of a group are not together"
        (row,) = set(rows.row[group].tolist())
        candidates = {
            tiny_programs.tokens_of(stored, index)[0].tobytes() for index in np.flatnonzero(stored.row == row)
        }
        assert rows.sample[group].tolist() == list(range(samples + min(most, len(candidates))))
        joined = [tiny_programs.tokens_of(rows, index)[0].tobytes() for index in group[samples:]]
        assert len(set(joined)) == len(joined)
        assert set(joined) <= candidates
        num_stored += len(joined)
    return num_stored


@pytest.mark.slow
def test_a_run_trains_on_whole_groups_with_stored_responses_whose_ratios_begin_at_one(file, pooled, tmp_path):
    without = tiny_runs.play(file, tmp_path / "without", **GRPO, run__rounds=1)
    outcome = tiny_runs.play(
        file, tmp_path / "run", **GRPO, run__rounds=2, checkpoint__every=1, rollout__pool=str(pooled)
    )
    stored, rows = pool.load(pooled).trajectories, buffer_of(tmp_path / "run", 1)
    num_stored = check_groups(rows, stored, round=0)
    assert 0 < num_stored == rows.size - 8
    num_with = len(np.unique(rows.cursor[rows.sample >= 2]))
    assert 0 < num_with < 4, "some prompts have stored responses, and others are not padded"
    line = outcome.lines[0]
    assert (line["pool/responses"], line["pool/prompts"]) == (num_stored, num_with / 4)

    for index in np.flatnonzero(rows.sample >= 2):
        start = int(rows.response_length[:index].sum())
        actual = rows.log_prob[start : start + rows.response_length[index]]
        np.testing.assert_allclose(actual, log_prob_of(file, rows, index), atol=1e-4)
        assert rows.raw_reward[index] == 1
        assert rows.use_count[index] == 1
    # The mean over the first mini-batch, stored responses among them, of |log ratio|.
    assert line["training/sampler_learner_logprob_diff"] < 1e-5
    for cursor in np.unique(rows.cursor):
        reward = rows.raw_reward[rows.cursor == cursor].astype(np.float64)
        advantage = (reward - reward.mean()) / (reward.std(ddof=1) + 1e-6)
        np.testing.assert_allclose(rows.reward[rows.cursor == cursor], advantage, atol=1e-5)
    # What is sampled and reported of it does not know of the pool.
    assert (
        tiny_runs.rollouts(tmp_path / "run")["round_000001.jsonl"]
        == tiny_runs.rollouts(tmp_path / "without")["round_000001.jsonl"]
    )
    for name in ("critic/score/mean", "training/sampled", "actor/entropy", "verifier/ok", "training/trajectories"):
        assert line[name] == without.lines[0][name]
    # The second round's stored responses are scored by the policy that has moved.
    later = buffer_of(tmp_path / "run", 2)
    assert check_groups(later, stored, round=1) == outcome.lines[1]["pool/responses"]
    assert set(later.policy_version[later.round == 1].tolist()) == {2}
    assert outcome.lines[1]["training/sampler_learner_logprob_diff"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"update__objective": "reval"},
        {"update__objective": "regression", "rollout__policy": "reference", "update__baseline": "optimal_value"},
    ],
)
def test_the_reference_scores_stored_responses_by_a_pass_of_its_own(file, pooled, tmp_path, settings):
    settings |= {"eval__every": 0, "replay__capacity": 40, "run__rounds": 1, "rollout__pool": str(pooled)}
    (line,) = tiny_runs.play(file, tmp_path / "run", **settings).lines
    rows = buffer_of(tmp_path / "run")
    assert check_groups(rows, pool.load(pooled).trajectories, round=0) == line["pool/responses"] > 0
    for index in np.flatnonzero(rows.sample >= 2):
        expected = log_prob_of(file, rows, index).sum()
        np.testing.assert_allclose(rows.reference_log_prob[index], expected, atol=1e-3)
        assert rows.reference_version[index] == 0
    # Before the first update the policy is the reference; stored responses, which it did not sample, do not count.
    assert abs(line["actor/kl_ref"]) < 1e-4


@pytest.mark.slow
def test_a_value_function_is_filled_for_stored_responses_too(file, pooled, tmp_path):
    settings = GRPO | {"update__objective": "ppo", "run__rounds": 1, "rollout__pool": str(pooled)}
    (line,) = tiny_runs.play(file, tmp_path / "run", **settings).lines
    rows = buffer_of(tmp_path / "run")
    assert line["pool/responses"] > 0
    assert rows.token_values.shape == (rows.response_length.sum(), 3)
    is_stored = np.repeat(rows.sample >= 2, rows.response_length)
    np.testing.assert_allclose(
        rows.token_values[is_stored, 2], 1, err_msg="the return of a right response at discount 1"
    )


@pytest.mark.slow
def test_a_run_with_a_pool_that_is_killed_ends_as_one_never_killed_and_refuses_another_pool(file, pooled, tmp_path):
    used = tmp_path / "used.npz"
    used.write_bytes(pooled.read_bytes())
    settings = GRPO | {"run__rounds": 2, "checkpoint__every": 1, "rollout__pool": str(used)}
    tiny_runs.play(file, tmp_path / "straight", **settings)
    options = [word for name, value in settings.items() for word in ("--" + name.replace("__", "."), str(value))]
    killed = tiny_runs.start(file, tmp_path / "run", *options, end="KILL:old_log_prob:2", devices=8)
    code, output = tiny_runs.finish(killed)
    assert code == -9, output

    whole = pool.load(used)
    used.unlink()
    fewer = replay.gather(whole.trajectories, np.arange(1, whole.trajectories.size))
    pool.save(whole._replace(trajectories=fewer), used)
    before = tiny_runs.tree_hash(tmp_path)
    with pytest.raises(ValueError, match="began with " + whole.fingerprint):
        tiny_runs.play(file, tmp_path / "straight", **settings)
    assert tiny_runs.tree_hash(tmp_path) == before
    used.write_bytes(pooled.read_bytes())

    tiny_runs.play(file, tmp_path / "run", **settings)
    tiny_runs.assert_same_run(tmp_path / "run", tmp_path / "straight")
