"""The files of configs/algorithms: what each makes of a round's rewards, the reductions between them, and refused settings."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from support import tiny_programs

from reval_jax import algorithms, batch, config_checks, distributed, replay, train, types, update
from reval_jax import config as config_lib
from reval_jax.config import sections

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FILES = {file.stem: file for file in sorted((CONFIGS / "algorithms").glob("*.yaml"))}


def settings(preset: str = "", **fields: dict[str, Any]) -> config_lib.Config:
    """Tiny settings with those of a preset and others over them."""
    tree = dict(config_lib.read_yaml(FILES[preset])) if preset else {}
    for section, values in ({"replay": {"capacity": 64}} | fields).items():
        tree[section] = tree.get(section, {}) | values
    return tiny_programs.settings(**tree)


@pytest.mark.parametrize("name", FILES)
def test_a_preset_over_a_task_can_train(name):
    config = config_checks.check(config_lib.load(CONFIGS / "one_shot_medium.yaml", FILES[name]))
    assert isinstance(algorithms.choose(config), algorithms.Algorithm)


def test_every_published_name_has_a_file_and_every_file_a_name():
    assert set(FILES) == {*sections.PRESETS, *config_lib.OBJECTIVES} - {"policy_gradient"}
    assert not set(sections.PRESETS) & set(config_lib.OBJECTIVES)


# --- Rewards ---

GROUP = np.array([3, 0, 3, 1, 0, 2, 3, 0, 1, 3], np.int64)  # of 4, 3, 2 and 1
RIGHT = np.array([1, 0, 0, 1, 0, 1, 1, 1, 1, 0], np.float32)
GREEDY = np.array([1, 0, 0.5, 1], np.float32)  # of the greedy response to each prompt


def collected(reward: np.ndarray = RIGHT) -> types.Trajectories:
    """A round with these rewards and some reference's scores, one group incomplete and all mixed up."""
    rows = tiny_programs.graded(reward, GROUP)
    return rows._replace(raw_reward=RIGHT, greedy_reward=GREEDY[GROUP])


def group_mean(reward, _):
    return reward[0] - sum(reward) / len(reward)


def standardized(reward, _):
    if len(reward) == 1:
        return reward[0]
    mean = sum(reward) / len(reward)
    deviation = math.sqrt(sum((each - mean) ** 2 for each in reward) / (len(reward) - 1))
    return (reward[0] - mean) / (deviation + 1e-6)


def leave_one_out(reward, _):
    return reward[0] - (sum(reward[1:]) / (len(reward) - 1) if len(reward) > 1 else 0.0)


def optimal_value(reward, _):
    return reward[0] - math.log(sum(math.exp(each) for each in reward) / len(reward))


SHAPED = {
    "reval": group_mean,
    "regression": group_mean,
    "dr_grpo": group_mean,
    "oapl": optimal_value,
    "rloo": leave_one_out,
    "remax": lambda reward, greedy: reward[0] - greedy,
    "psr": lambda reward, _: reward[0],
    "nsr": lambda reward, _: reward[0] - 1,
    "tbrm": lambda reward, _: reward[0],
    "ppo": lambda reward, _: reward[0],
    **dict.fromkeys(("grpo", "dapo", "gspo", "cispo", "m2po", "rlep", "rover"), standardized),
}
"""(rewards of a response and then of the others of its group, the greedy one's) → reward in the loss."""


def by_loop(name: str, reward: np.ndarray) -> list[float]:
    """Each response's reward in the loss, from Python floats."""
    shaped = []
    for index, group in enumerate(GROUP):
        others = [float(reward[other]) for other in np.flatnonzero(group == GROUP) if other != index]
        shaped.append(SHAPED[name]([float(reward[index]), *others], float(GREEDY[group])))
    return shaped


@pytest.mark.parametrize("name", FILES)
def test_a_presets_rewards_equal_a_loop_over_groups(name):
    shape_reward = algorithms.choose(settings(name)).shape_reward
    np.testing.assert_allclose(shape_reward(collected()), by_loop(name, RIGHT), atol=2e-6)
    # A verifier's reward may lie between 0 and 1, and a penalty for length lowers it.
    partial = np.random.default_rng(0).uniform(-0.5, 1, GROUP.size).astype(np.float32)
    np.testing.assert_allclose(shape_reward(collected(partial)), by_loop(name, partial), atol=2e-6)


@pytest.mark.parametrize("name", ["reval", "tbrm", "grpo", "rloo"])
def test_the_endogenous_reward_is_added_before_rewards_are_compared_and_a_weight_of_zero_changes_no_bit(name):
    rows = collected()
    returns = (rows.reference_log_prob.astype(np.float64) + rows.reference_value).tolist()
    centred = [
        own - sum(returns[other] for other in np.flatnonzero(group == GROUP)) / sum(group == GROUP)
        for own, group in zip(returns, GROUP, strict=True)
    ]
    with_weight = algorithms.choose(settings(name, update={"endogenous_weight": 0.03}))
    assert {"reference_log_prob", "reference_value"} <= with_weight.reads
    np.testing.assert_allclose(
        with_weight.shape_reward(rows), by_loop(name, RIGHT + 0.03 * np.array(centred)), atol=5e-6
    )
    plain, zero = (algorithms.choose(settings(name, **more)) for more in ({}, {"update": {"endogenous_weight": 0.0}}))
    assert plain.reads == zero.reads
    assert plain.shape_reward(rows).tobytes() == zero.shape_reward(rows).tobytes()


def test_ppos_columns_are_the_old_value_the_whitened_reward_less_it_and_the_reward():
    rows, rng = collected(), np.random.default_rng(0)
    fill = algorithms.choose(settings("ppo")).fill
    head = rng.normal(0, 1, rows.response_length.sum()).astype(np.float32)
    reward = np.repeat(rows.reward, rows.response_length).astype(np.float64)
    advantage = reward - head
    whitened = (advantage - advantage.mean()) / np.sqrt(advantage.var(ddof=1) + 1e-8)
    np.testing.assert_allclose(fill(rows, head), np.stack([head, whitened, reward], axis=1), atol=2e-6)


@pytest.mark.parametrize("name", ["reval", "tbrm", "regression", "ppo"])
def test_where_the_baseline_is_auto_a_group_normalized_design_is_the_distance_from_the_groups_mean(name):
    config = settings(update={"objective": name, "reward_design": "group_normalized"})
    np.testing.assert_allclose(algorithms.choose(config).shape_reward(collected()), by_loop("reval", RIGHT), atol=1e-6)


# --- Positive and negative samples ---


@pytest.mark.parametrize(("name", "is_kept"), [("psr", RIGHT == 1), ("nsr", RIGHT == 0)])
def test_one_class_is_left_out_and_no_weight_of_zero_would_do(name, is_kept):
    """Left out, a class is in no denominator: the loss is larger than with its rewards at 0 by the share of its tokens."""
    tiny = tiny_programs.tiny(**config_lib.to_tree(settings(name, update={"updates_per_round": 1})))
    algorithm, rows = tiny.algorithm, collected()
    rows = rows._replace(reward=algorithm.shape_reward(rows))
    assert not np.any(rows.reward[~is_kept])
    kept, weight = train.drawn(algorithms.Draw(np.arange(rows.size)), algorithm.may_train(rows))
    assert weight is None
    np.testing.assert_array_equal(kept, np.flatnonzero(is_kept))
    limits = tiny.limits._replace(trajectories=rows.size)
    run = jax.jit(
        lambda params, packed: update.loss_and_gradients(
            tiny.architecture, params, packed, algorithm, tiny.mesh, config=tiny.config
        )[:2],
        compiler_options={"xla_backend_optimization_level": 0},
    )
    packed = [batch.pack(part, tiny.mesh, limits=limits) for part in (replay.gather(rows, kept), rows)]
    assert float(packed[0].num_response_tokens) == rows.response_length[is_kept].sum()
    (loss, gradients), (diluted, other) = (distributed.fetch(run(tiny.params, part)) for part in packed)
    factor = rows.response_length.sum() / rows.response_length[is_kept].sum()
    assert factor > 1.3
    np.testing.assert_allclose(loss, factor * diluted, rtol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, factor * b, atol=1e-5 * largest), gradients, other)


def test_weighted_reinforce_keeps_both_classes():
    config = settings("nsr", update={"positive_weight": 0.1})
    algorithm = algorithms.choose(config)
    assert algorithm.may_train(collected()).all()
    np.testing.assert_allclose(algorithm.shape_reward(collected()), np.where(RIGHT == 1, 0.1, -1.0), rtol=1e-6)


# --- Reductions ---


def program(config: config_lib.Config) -> str:
    """The program of the loss and its gradients, before compilation."""
    tiny = tiny_programs.tiny(**config_lib.to_tree(config))
    rows = batch.pack(tiny_programs.random_trajectories(8), tiny.mesh, limits=tiny.limits)
    algorithm = tiny.algorithm
    run = jax.jit(
        lambda params, rows: update.loss_and_gradients(
            tiny.architecture, params, rows, algorithm, tiny.mesh, config=config
        )
    )
    return run.lower(tiny.params, rows).as_text()


GRPO = {"objective": "grpo", "updates_per_round": 1}
GROUP_MEAN = {"reward_design": "binary", "baseline": "group_mean"}
PAIRS = {
    "the grpo preset and the objective": (settings("grpo"), settings(update=GRPO)),
    "dapo with GRPO's settings": (
        settings("dapo", update={"reward_design": "binary", "clip_dual": 3.0, "updates_per_round": 1}),
        settings("grpo"),
    ),
    "reval by its design and by its baseline": (settings("reval"), settings("reval", update=GROUP_MEAN)),
    "the endogenous weight 0": (settings("reval"), settings("reval", update={"endogenous_weight": 0.0})),
    "replay of exponent 0 and uniform draws": (
        settings("reval"),
        settings("reval", replay={"priority": "recency", "priority_exponent": 0.0, "weight_exponent": 0.0}),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_methods_that_are_one_have_the_same_rewards_draws_and_program(name):
    one, other = (algorithms.choose(config) for config in PAIRS[name])
    assert one.shape_reward(collected()).tobytes() == other.shape_reward(collected()).tobytes()
    np.testing.assert_array_equal(one.may_train(collected()), other.may_train(collected()))
    assert (one.num_updates, one.step_size, one.reads) == (other.num_updates, other.step_size, other.reads)
    rounds = np.arange(24, dtype=np.int32) // 8
    buffer = replay.add(replay.init(24), tiny_programs.random_trajectories(24)._replace(round=rounds))
    for index in range(one.num_updates):
        np.testing.assert_array_equal(one.draw(buffer, 2, index).rows, other.draw(buffer, 2, index).rows)
    if "replay" not in name:  # whose program has a factor of 1
        assert program(PAIRS[name][0]) == program(PAIRS[name][1])


# --- Refusals ---

GRADIENT = {"objective": "policy_gradient"}
REFUSED = {
    "weights of penalised rewards": (
        {"update": {"baseline": "one_sided"}, "rollout": {"truncated": "penalty"}},
        "update.baseline=one_sided with rollout.truncated=penalty",
    ),
    "a priority that nothing reads": (
        {"update": {"updates_per_round": 1}, "replay": {"priority": "residual"}},
        "replay.priority=residual with update.updates_per_round=1",
    ),
    "residuals centred on themselves": (
        {
            "replay": {"priority": "centred_residual"},
            "rollout": {"samples_per_prompt": 1, "prompts_per_round": 8},
        },
        "replay.priority=centred_residual with rollout.samples_per_prompt=1",
    ),
    "the pull of cut groups": (
        {"update": {"draws": "fresh", "updates_per_round": 2, "reference_reset_pull": 0.5}},
        "update.reference_reset_pull=0.5 with update.updates_per_round=2",
    ),
    "adapting from one update": (
        {"update": {"updates_per_round": 1, "max_updates_per_round": 8}},
        "update.max_updates_per_round=8 with update.updates_per_round=1",
    ),
    "a reference that is not kept": (
        {"update": {"objective": "grpo"}, "rollout": {"policy": "reference"}},
        "rollout.policy=reference",
    ),
    "two comparisons": (
        {"update": {"reward_design": "group_normalized", "baseline": "leave_one_out"}},
        "update.reward_design=group_normalized with update.baseline=leave_one_out: both compare",
    ),
    "the mean of one": (
        {"update": {"baseline": "group_mean"}, "rollout": {"samples_per_prompt": 1, "prompts_per_round": 8}},
        "update.baseline=group_mean with rollout.samples_per_prompt=1",
    ),
    "the optimal value of one": (
        {"update": {"baseline": "optimal_value"}, "rollout": {"samples_per_prompt": 1, "prompts_per_round": 8}},
        "update.baseline=optimal_value with rollout.samples_per_prompt=1",
    ),
    "neither right nor wrong": (
        {"update": GRADIENT | {"baseline": "one_sided", "positive_weight": 0.0, "negative_weight": 0.0}},
        "update.positive_weight=0 and update.negative_weight=0 leaves every response out",
    ),
    "one side of signed rewards": (
        {"update": GRADIENT | {"baseline": "one_sided", "reward_design": "signed"}},
        "update.baseline=one_sided with update.reward_design=signed",
    ),
    "passes over replay": ({"update": {"passes": 2}}, "update.passes=2 with update.objective=reval, which draws from"),
    "fresh draws without the fresh batch": (
        {"update": {"draws": "fresh", "fresh_first": False}},
        "update.objective=reval with update.fresh_first=false",
    ),
    "mini-batches that are not equal": (
        {"update": {"draws": "fresh", "updates_per_round": 3}},
        "update.updates_per_round=3 does not divide update.batch_size=8",
    ),
    "priorities of fresh draws": (
        {"update": {"draws": "fresh"}, "replay": {"priority": "residual"}},
        "replay.priority=residual with update.objective=reval, which trains on the fresh batch",
    ),
    "fresh draws that adapt": (
        {"update": {"draws": "fresh", "max_updates_per_round": 4}},
        "update.max_updates_per_round=4 with update.objective=reval, which trains on the fresh batch",
    ),
    "a reset without a reference": (
        {"update": GRADIENT | {"reference_reset_every": 2}},
        "update.objective=policy_gradient with update.reference_reset_every=2: this objective has no reference",
    ),
    "a triggered reset without a reference": (
        {"update": GRADIENT | {"reference_reset_pull": 0.5}},
        "update.objective=policy_gradient with update.reference_reset_pull=0.5: this objective has no reference",
    ),
    "sampling from no reference": (
        {"update": GRADIENT, "rollout": {"policy": "reference"}},
        "update.objective=policy_gradient with rollout.policy=reference: this objective has no reference",
    ),
    "weights of no residual": (
        {"update": GRADIENT | {"draws": "replay"}, "replay": {"priority": "success"}},
        "update.objective=policy_gradient with replay.priority=success: importance weights",
    ),
    "a number of updates by no residual": (
        {"update": GRADIENT | {"draws": "replay", "max_updates_per_round": 4}},
        "update.max_updates_per_round=4 and update.reference_reset_pull=0.0: both read residuals",
    ),
    "a triggered reset by no residual": (
        {"update": GRADIENT | {"endogenous_weight": 0.1, "reference_reset_pull": 0.5}},
        "update.max_updates_per_round=0 and update.reference_reset_pull=0.5: both read residuals",
    ),
    "rover with top_k": (
        {"update": {"objective": "rover"}, "rollout": {"top_k": 5}},
        "update.objective=rover with rollout.top_k=5",
    ),
    "ppo with top_p": ({"update": {"objective": "ppo"}, "rollout": {"top_p": 0.9}}, "update.objective=ppo with"),
    "a ratio that counts twice": (
        {"update": GRADIENT | {"correction": "sequence"}},
        "update.correction=sequence with update.surrogate=clipped, whose ratio is to the sampling policy already",
    ),
    "bounds in the wrong order": (
        {"update": GRADIENT | {"correction": "token_mask", "correction_low": 2.0, "correction_high": 1.5}},
        "update.correction_low=2.0 is not below update.correction_high=1.5",
    ),
    "a surrogate of residuals": (
        {"update": {"surrogate": "reinforce"}},
        "update.surrogate=reinforce with update.objective=reval, which does not read it",
    ),
    "a mean of rover": (
        {"update": {"objective": "rover", "mean": "constant"}},
        "update.mean=constant with update.objective=rover, which does not read it",
    ),
    "a correction of ppo": (
        {"update": {"objective": "ppo", "correction": "token_mask"}},
        "update.correction=token_mask with update.objective=ppo, which does not read it",
    ),
    "an optimizer reset without a reset": (
        {"update": {"reset_optimizer": True}},
        "update.reset_optimizer=true with update.reference_reset_every=0 and update.reference_reset_pull=0",
    ),
    "a replay reset without a reset": (
        {"update": {"reset_replay": True}},
        "update.reset_replay=true with update.reference_reset_every=0 and update.reference_reset_pull=0",
    ),
    "no room to adapt": (
        {"update": {"updates_per_round": 4, "max_updates_per_round": 4}},
        "update.max_updates_per_round=4 is not above update.updates_per_round=4",
    ),
    "adapting without the fresh batch": (
        {"update": {"max_updates_per_round": 4, "fresh_first": False}},
        "update.max_updates_per_round=4 with update.fresh_first=false",
    ),
    "a triggered reset without the fresh batch": (
        {"update": {"reference_reset_pull": 0.5, "fresh_first": False}},
        "update.reference_reset_pull=0.5 with update.fresh_first=false",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_cannot_train_are_refused_by_name(name):
    fields, message = REFUSED[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        algorithms.choose(config_checks.check(tiny_programs.settings(**fields)))
