"""The record of each algorithm (rows, rewards), and user-defined objectives: training with them, and refusals."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_programs, tiny_runs

from reval_jax import algorithms, batch, cli, policy, replay
from reval_jax import config as config_lib

ROOT = Path(__file__).resolve().parent.parent
TOY = """
from reval_jax import algorithms


def squares(config):
    def loss(scores, rows):
        distance = scores.trajectory_log_prob - rows.reward / config.update.beta
        is_real = rows.response_length > 0
        total = (is_real * distance**2).sum() / rows.num_trajectories
        return total, {"toy/distance": (is_real * distance).sum() / rows.num_trajectories}

    return algorithms.replayed(config, loss)
"""


@pytest.fixture
def path(monkeypatch):
    """Restores sys.path and sys.modules after the test; until then Python writes no bytecode beside modules."""
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    for name in ("toy_objective", "own_objective"):
        sys.modules.pop(name, None)


# --- Built-in records ---


def test_every_built_in_has_a_record():
    records = {
        name: algorithms.choose(tiny_programs.settings(update={"objective": name})) for name in config_lib.OBJECTIVES
    }
    assert {name for name, record in records.items() if record.has_reference} == {"reval", "tbrm", "regression"}
    assert {name for name, record in records.items() if record.step_size == 8} == {"reval", "tbrm", "regression"}
    assert {record.step_size for record in records.values()} == {8, 4}


def test_no_other_file_names_a_built_in_to_choose_by():
    named = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "reval_jax").rglob("*.py")
        if re.search(r"[\"'](tbrm|regression|grpo|rover|ppo)[\"']", file.read_text())
    }
    assert named == {"reval_jax/config/sections.py", "reval_jax/algorithms/choice.py"}


def buffer_of(num, *, round):
    """A buffer whose last 8 rows are those of this round."""
    trajectories = tiny_programs.random_trajectories(num)
    rounds = np.where(np.arange(num) < num - 8, round - 1, round).astype(np.int32)
    return replay.add(replay.init(num), trajectories._replace(round=rounds))


def rows_of(config, buffer, *, round):
    """The rows of each update."""
    algorithm = algorithms.choose(config)
    return [algorithm.draw(buffer, round, index).rows for index in range(algorithm.num_updates)]


def test_value_losses_train_on_the_fresh_batch_first_and_then_on_different_rows_of_the_buffer():
    config = tiny_programs.settings(update={"updates_per_round": 4})
    first, *others = rows_of(config, buffer_of(24, round=5), round=5)
    assert first.tolist() == list(range(16, 24))
    assert [len(set(rows.tolist())) for rows in others] == [8, 8, 8]
    assert len({tuple(rows) for rows in others}) == 3
    again = rows_of(config, buffer_of(24, round=5), round=5)
    np.testing.assert_array_equal(others, again[1:])


def test_without_fresh_first_every_update_is_a_replay_draw():
    config = tiny_programs.settings(update={"updates_per_round": 2, "fresh_first": False})
    first, second = rows_of(config, buffer_of(24, round=0), round=0)
    assert {first.size, second.size} == {8}
    assert first.tolist() != list(range(16, 24))


def test_on_policy_mini_batches_are_the_fresh_batch_in_another_order():
    config = tiny_programs.settings(update={"objective": "grpo", "updates_per_round": 4})
    batches = rows_of(config, buffer_of(24, round=0), round=0)
    assert [rows.size for rows in batches] == [2, 2, 2, 2]
    assert sorted(np.concatenate(batches).tolist()) == list(range(16, 24))


@pytest.mark.parametrize(("truncated", "expected"), [("keep", "all"), ("mask", "finished")])
def test_truncated_responses_are_left_out_of_the_loss_if_masked(truncated, expected):
    config = tiny_programs.settings(rollout={"truncated": truncated})
    trajectories = tiny_programs.random_trajectories(16)
    finished = np.ones(16, bool) if expected == "all" else ~trajectories.is_truncated
    np.testing.assert_array_equal(algorithms.choose(config).may_train(trajectories), finished)


# --- The user's own ---


def train(files, run_dir, *options):
    with jax.numpy_dtype_promotion("standard"):  # as a user's process runs
        return cli.main(["train", "--config", str(files / "config.yaml"), "--run-dir", str(run_dir), *options])


def test_a_toy_objective_is_one_file_whose_loss_numpy_agrees_with_and_which_resumes(tmp_path, capsys, path):
    """At the first update the learner has the sampler's parameters, so log pi(tau) is the sum in the rollouts file."""
    files = tiny_runs.write_files(tmp_path).parent
    (tmp_path / "objectives").mkdir()
    (tmp_path / "objectives" / "toy_objective.py").write_text(TOY)
    own = ("--update.objective", "toy_objective:squares", "--update.objective_path", str(tmp_path / "objectives"))
    options = (*own, "--update.updates_per_round", "1", "--eval.every", "0", "--checkpoint.every", "1")
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    assert train(files, straight, *options, "--run.rounds", "2") == 0, capsys.readouterr().err
    rows = [json.loads(line) for line in tiny_runs.rollouts(straight)["round_000001.jsonl"].splitlines()]
    distance = np.array([row["log_prob"] - row["reward"] / 0.5 for row in rows])
    first = tiny_runs.metrics_lines(straight)[0]
    np.testing.assert_allclose(first["actor/loss"], np.mean(distance**2), rtol=1e-4)
    np.testing.assert_allclose(first["toy/distance"], np.mean(distance), rtol=1e-4)
    for rounds in ("1", "2"):
        assert train(files, parts, *options, "--run.rounds", rounds) == 0, capsys.readouterr().err
    tiny_runs.assert_same_run(parts, straight)


def test_the_example_is_revals_loss_where_residuals_are_small_and_a_line_beyond(path):
    example = {"objective": "own_objective:huber", "objective_path": str(ROOT / "docs" / "examples")}
    own = algorithms.choose(tiny_programs.settings(update=example))
    rng = np.random.default_rng(0)
    rows = jax.tree.map(
        lambda leaf: jnp.ones(leaf.shape, leaf.dtype), batch.abstract_micro_batch(batch.Shape(1, 2, 7, 5, 3))
    )
    rows = rows._replace(
        response_length=jnp.array([[3, 2, 0], [5, 0, 0]], jnp.int32),
        reward=jnp.asarray(rng.uniform(0, 1, (2, 3)), jnp.float32),
        num_trajectories=jnp.float32(3),
    )
    value, log_prob = rng.normal(size=(2, 3)), rng.normal(size=(2, 3)) * np.array([1.0, 30.0, 1.0])
    scores = policy.PolicyScores(
        jnp.zeros((2, 5)), jnp.asarray(log_prob, jnp.float32), jnp.asarray(value, jnp.float32), jnp.ones((2, 5), bool)
    )
    total, lines = 0.0, 0
    for row, slot in ((0, 0), (0, 1), (1, 0)):
        residual = value[row, slot] - 1 + log_prob[row, slot] - 1 - float(rows.reward[row, slot]) / 0.1
        lines += abs(residual) > 10
        total += residual**2 if abs(residual) <= 10 else 20 * abs(residual) - 100
    assert 0 < lines < 3, "only one branch is tested"
    loss, metrics = own.loss(scores, rows)
    np.testing.assert_allclose(loss, total / 3, rtol=1e-5)
    np.testing.assert_allclose(metrics["huber/line_fraction"], lines / 3, rtol=1e-6)
    small = scores._replace(
        trajectory_log_prob=rows.reference_log_prob + rows.reward * 10, soft_value=rows.reference_value + 2
    )
    expected, _ = algorithms.choose(tiny_programs.settings()).loss(small, rows)
    np.testing.assert_allclose(own.loss(small, rows)[0], expected, rtol=1e-5)


def test_the_example_runs_by_itself(capsys):
    runpy.run_path(str(ROOT / "docs" / "examples" / "own_objective.py"), run_name="__main__")
    assert capsys.readouterr().out.splitlines()[-1].split() == ["500", "250000", "9900"]


BROKEN = {
    "a name that is no MODULE:FUNCTION": (None, "huberr", "'huberr': no objective has this name"),
    "no such module": (None, "no_such_objective:loss", "cannot be loaded: ModuleNotFoundError"),
    "no such function": ("", "toy_objective:absent", "cannot be loaded: AttributeError"),
    "a module that fails": ("1 / 0", "toy_objective:make", "cannot be loaded: ZeroDivisionError"),
    "not a function": ("make = 3", "toy_objective:make", "make is of type int, not a function"),
    "a wrong signature": (
        "def make(scores, rows): pass",
        "toy_objective:make",
        "missing 1 required positional argument",
    ),
    "no algorithm": (
        "def make(config): return 0.0",
        "toy_objective:make",
        "returned float. An objective is a function",
    ),
    "a function that ends the process": (
        "def make(config): raise SystemExit(3)",
        "toy_objective:make",
        "toy_objective:make raised SystemExit: 3",
    ),
    "settings it refuses": (
        "def make(config): raise ValueError('use a larger update.beta')",
        "toy_objective:make",
        "update.objective=toy_objective:make: use a larger update.beta",
    ),
    "a loss that fails": (
        "def make(config): return algorithms.replayed(config, lambda s, b: (s.no_such_field.sum(), {}))",
        "toy_objective:make",
        "the loss of update.objective=toy_objective:make raised AttributeError",
    ),
    "a loss a trajectory": (
        "def make(config): return algorithms.replayed(config, lambda s, b: (s.soft_value, {}))",
        "toy_objective:make",
        "returned loss as float32[2, 3], not (loss, metrics)",
    ),
    "no metrics": (
        "def make(config): return algorithms.replayed(config, lambda s, b: s.soft_value.sum())",
        "toy_objective:make",
        "returned float32[], not (loss, metrics)",
    ),
    "a metric a trajectory": (
        "def make(config): return algorithms.replayed(config, lambda s, b: (b.reward.sum(), {'toy/all': b.reward}))",
        "toy_objective:make",
        "returned toy/all as float32[2, 3]",
    ),
    "a metric of the trainer's": (
        "def make(config): return algorithms.replayed(config, lambda s, b: (b.reward.sum(), {'actor/loss': b.reward.sum()}))",
        "toy_objective:make",
        "toy_objective:make returned the metric actor/loss, but the trainer writes a metric of that name itself",
    ),
    "a metric of a built-in kind": (
        "def make(config): return algorithms.replayed(config, lambda s, b: (b.reward.sum(), {'critic/score/x': b.reward.sum()}))",
        "toy_objective:make",
        "returned the metric critic/score/x, but the trainer writes",
    ),
    "a residual a token": (
        "def make(config): return algorithms.value_based(config, lambda s, b, beta: s.log_prob)",
        "toy_objective:make",
        "the loss of update.objective=toy_objective:make: residual, is_real are combined element by element",
    ),
    "replay for on-policy": (
        "def make(config): return algorithms.on_policy(config, None, shape_reward=None)",
        "toy_objective:make",
        "with update.reference_reset_every=3: this objective has no reference policy",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_wrong_objective_is_one_message_before_the_model_is_looked_at(tmp_path, capsys, path, name):
    source, objective, message = BROKEN[name]
    files = tiny_runs.write_files(tmp_path).parent
    if source is not None:
        (tmp_path / "toy_objective.py").write_text(f"from reval_jax import algorithms\n{source}\n")
    options = ("--update.objective", objective, "--model.path", "no/such/model")
    if ":" in objective:
        options += ("--update.objective_path", str(tmp_path))
    before = tiny_runs.tree_hash(tmp_path)
    code = train(files, tmp_path / "run", *options)
    printed = capsys.readouterr()
    assert code == 2, printed
    assert printed.out == ""
    assert printed.err.count("reval: ") == 1
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert tiny_runs.tree_hash(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--update.objective", "a:b", "--update.objective_path", "nowhere"),
            "objective_path=nowhere is not a directory",
        ),
        (
            ("--update.objective_path", "docs"),
            "update.objective_path=docs with update.objective=reval, which is built in",
        ),
    ],
)
def test_a_path_that_is_of_no_use_is_refused(tmp_path, capsys, path, options, message):
    files = tiny_runs.write_files(tmp_path).parent
    assert train(files, tmp_path / "run", *options) == 2
    assert message in capsys.readouterr().err


def test_help_lists_the_built_ins(capsys):
    assert cli.main(["train", "--help"]) == 0
    printed = " ".join(re.sub("[│─╭╮╰╯|{},]", " ", capsys.readouterr().out).split())
    assert "--update.objective reval tbrm regression policy_gradient grpo rover ppo" in printed
