"""The experiments of docs/evidence.md: settings that can train, verdicts that can be reached, and what they cost."""

from __future__ import annotations

import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.figures import methods, objectives, outcomes, page, plan, rewards
from benchmarks.figures.experiments import FIGURES
from benchmarks.figures.journal import RECORDS
from reval_jax import algorithms, batch, config_checks, policy, replay
from reval_jax import config as config_lib

SIZES = {"many": (64, 1), "many_groups": (8, 8), "long_8": (8, 8)}
"""Prompts and responses of a round of the test bed's tasks; one prompt with 64 responses otherwise."""


def tree_of(task, variant):
    """The settings of a cell on a test bed of this shape."""
    prompts, samples = SIZES.get(task, (1, 64))
    tree = config_lib.to_tree(config_lib.load("configs/one_shot_hard.yaml"))
    tree["rollout"] |= {"prompts_per_round": prompts, "samples_per_prompt": samples}
    for name, value in variant.settings.items():
        section, field = name.split(".")
        assert field in tree[section], f"no setting has the name {name}"
        tree[section][field] = value
    return tree


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES)
def test_every_cell_has_settings_that_can_train(figure):
    sizes = {SIZES.get(task, (1, 64)): task for task in (*figure.tasks, figure.tuning)}
    for task in sizes.values():
        for variant in figure.variants:
            algorithms.choose(config_checks.check(config_lib.from_tree(tree_of(task, variant))))


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES)
def test_every_name_is_that_of_a_variant_a_task_or_a_metric(figure):
    names = [variant.name for variant in figure.variants]
    assert len(set(names)) == len(names)
    for contrast in figure.contrasts:
        assert contrast.first in names
        assert not isinstance(contrast.second, str) or contrast.second in names
        assert set(contrast.tasks) | set(contrast.other_tasks) <= set(figure.tasks)
        assert len(contrast.other_tasks) in (0, len(contrast.tasks))
        assert contrast.confirms
        assert contrast.refutes
        assert contrast.margin >= 0
        assert contrast.expects != "equal" or contrast.margin > 0
        assert contrast.outcome != "kl_ref" or "actor/kl_ref" in figure.metrics
    for panel in figure.panels:
        assert set(panel.variants) <= set(names)
        assert len(panel.variants) <= 6
        assert panel.y in ("score", "held_out", *figure.metrics)
    shown = {name for panel in figure.panels for name in panel.variants}
    assert shown == set(names)


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES)
def test_every_contrast_can_be_decided(figure):
    """The least p of a sign-flip test over its clusters survives Holm's adjustment in first place."""
    for contrast in figure.contrasts:
        clusters = len(contrast.tasks) * len(figure.seeds)
        least = outcomes.sign_flip(np.ones(clusters))
        assert least * len(figure.contrasts) <= outcomes.ALPHA


def test_a_method_is_searched_with_the_same_settings_in_every_figure():
    settings = {}
    for figure in FIGURES.values():
        for method, variant in plan.searched(figure).items():
            assert settings.setdefault((method, figure.tuning), variant.settings) == variant.settings
            assert variant.rate_factor == 1


def test_a_figure_without_a_search_names_its_rates():
    for figure in FIGURES.values():
        if not figure.searches:
            assert all("optimizer.learning_rate" in variant.settings for variant in figure.variants)


def test_the_same_seeds_are_neither_tuned_on_nor_fewer_than_eight():
    for figure in FIGURES.values():
        assert not set(figure.seeds) & set(plan.TUNING_SEEDS)
        assert len(figure.seeds) == 8


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES)
def test_a_committed_record_has_no_runs_but_its_figures_own_and_each_once(figure):
    path = RECORDS / f"{figure.name}.json"
    if not path.exists():
        pytest.skip("not played yet")
    record = json.loads(path.read_text(encoding="utf-8"))
    played = [(run["task"], run["variant"], run["seed"]) for run in record["runs"]]
    names = [variant.name for variant in figure.variants]
    assert set(played) <= set(itertools.product(figure.tasks, names, figure.seeds))
    assert len(set(played)) == len(played)


def test_costs_count_tasks_variants_and_seeds_and_what_is_shared_once():
    fig02, fig03 = FIGURES["fig02"], FIGURES["fig03"]
    assert plan.cost(fig02)[:2] == (9 * 8, 10)
    assert plan.cost(fig03)[:2] == (3 * 11 * 8, 8 * 10)
    # GRPO on one prompt of each difficulty, and its search.
    assert plan.total([fig02, fig03])[:2] == (9 * 8 + 3 * 11 * 8 - 3 * 8, 80)
    assert plan.cost(FIGURES["fig10"]).search_runs == 0


def test_hubers_regression_is_the_regression_where_residuals_are_small_and_bounded_beyond():
    tree = config_lib.to_tree(config_lib.load("configs/one_shot_hard.yaml"))
    config = config_lib.from_tree(tree)
    own, built_in = objectives.regression_huber(config), _algorithm(tree, "regression")
    scores, rows = _one_row(log_ratio=-3.0, reward=0.5)
    assert own.loss(scores, rows)[0] == pytest.approx(built_in.loss(scores, rows)[0])
    beta = config.update.beta
    scores, rows = _one_row(log_ratio=200.0, reward=0.0)
    assert own.loss(scores, rows)[0] == pytest.approx(2 * 200 / beta - 1 / beta**2)
    assert own.loss(scores, rows)[1]["huber/line_fraction"] == 1


def test_the_rounds_mean_is_subtracted_once():
    tree = config_lib.to_tree(config_lib.load("configs/one_shot_hard.yaml"))
    tree["update"] |= {"reward_design": "binary"}
    config = config_lib.from_tree(tree)
    trajectories = replay.empty()._replace(reward=np.array([1, 0, 0, 1], np.float32))
    shaped = objectives.reval_batch_mean(config).shape_reward(trajectories)
    assert shaped.tolist() == [0.5, -0.5, -0.5, 0.5]
    scores, rows = _one_row(log_ratio=-3.0, reward=0.5)
    loss = objectives.reval_batch_mean(config).loss(scores, rows)[0]
    assert loss == pytest.approx(_algorithm(tree, "reval").loss(scores, rows)[0])


def test_the_reward_of_figure_10_is_zero():
    assert rewards.zero("12", "12") == 0


def test_remax_compares_with_the_greedy_response():
    assert "greedy_reward" in _algorithm(tree_of("many", methods.variant("ReMax", methods.remax())), None).reads


def _algorithm(tree, objective):
    update = tree["update"] | ({"objective": objective} if objective else {})
    return algorithms.choose(config_lib.from_tree(tree | {"update": update}))


def _one_row(*, log_ratio, reward):
    """PolicyScores and a Batch of one trajectory, as far as a residual reads them."""

    def slot(value):
        return jnp.full((1, 1), value, jnp.float32)

    scores = policy.PolicyScores(
        log_prob=slot(0.0),
        trajectory_log_prob=slot(log_ratio),
        soft_value=slot(1.5),
        response_mask=jnp.ones((1, 1), bool),
        soft_values=slot(0.0),
    )
    shape = batch.Shape(micro_batches=1, rows=1, tokens=2, responses=1, slots=1, token_values=0)
    rows = batch.abstract_micro_batch(shape)._replace(
        response_length=jnp.ones((1, 1), jnp.int32),
        reward=slot(reward),
        reference_log_prob=slot(0.0),
        reference_value=slot(1.0),
        num_trajectories=jnp.float32(1),
    )
    return scores, rows


def test_the_protocol_has_the_contrasts_and_costs_of_the_plans():
    text = (page.DOCS / "evidence_protocol.md").read_text(encoding="utf-8")
    tables = {"contrasts": page.contrasts(), "costs": page.costs()}
    assert all(f"<!-- {name} -->" in text for name in tables)
    assert page.with_tables(text, tables) == text, "run python -m benchmarks.figures.page"
