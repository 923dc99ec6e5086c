"""The jitted step: its loss and gradients against NumPy and finite differences, its split, its mesh, its refusals."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import hf_checkpoints, tiny_programs

from reval_jax import algorithms, batch, distributed, mesh, model, update

OBJECTIVES = (
    "reval",
    pytest.param("tbrm", marks=pytest.mark.slow),
    pytest.param("regression", marks=pytest.mark.slow),
    "grpo",
)


def loss_and_gradients(tiny, trajectories):
    """Loss, host gradients and metrics of one batch."""
    packed = batch.pack(trajectories, tiny.mesh, limits=tiny.limits)
    algorithm = tiny.algorithm
    run = jax.jit(
        lambda params, rows: update.loss_and_gradients(
            tiny.architecture, params, rows, algorithm, tiny.mesh, config=tiny.config
        )
    )
    value, gradients, metrics, _ = run(tiny.params, packed)
    return float(value), distributed.fetch(gradients), {name: float(metric) for name, metric in metrics.items()}


def stepper(tiny):
    """The jitted step and the state it begins with."""
    optimizer = update.make_optimizer(tiny.config.optimizer)
    return update.make_step(tiny.architecture, tiny.mesh, algorithm=tiny.algorithm, config=tiny.config), update.init(
        tiny.params, optimizer, tiny.mesh
    )


def scores_by_hand(tiny, trajectories, row):
    """log pi per response token and V(s1) of one trajectory, float64."""
    tokens, prompt, response = tiny_programs.tokens_of(trajectories, row)
    logits = tiny_programs.full_logits(tiny.architecture, tiny.params, tokens)[prompt - 1 : prompt + response - 1]
    return tiny_programs.log_softmax(logits)[np.arange(response), tokens[prompt:]], np.log(np.exp(logits[0]).sum())


def loss_by_hand(tiny, trajectories, objective, beta=0.1):
    """The batch's loss from one unpadded sequence at a time."""
    t, residuals, surrogate = trajectories, [], 0.0
    starts = np.cumsum(t.response_length) - t.response_length
    for row in range(t.size):
        log_prob, value = scores_by_hand(tiny, t, row)
        ratio = log_prob.sum() - t.reference_log_prob[row]
        if objective == "reval":
            residuals.append(value - t.reference_value[row] + ratio - t.reward[row] / beta)
        elif objective == "tbrm":
            residuals.append(value + ratio - t.reward[row] / beta)
        elif objective == "regression":
            residuals.append(ratio - t.reward[row] / beta)
        else:
            for token, new in enumerate(log_prob):
                change, advantage = np.exp(np.clip(new - t.log_prob[starts[row] + token], -20, 20)), t.reward[row]
                worst = max(-advantage * change, -advantage * np.clip(change, 0.8, 1.28))
                surrogate += min(worst, -3 * advantage) if advantage < 0 else worst
    return surrogate / t.response_length.sum() if objective == "grpo" else np.mean(np.square(residuals))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_equals_a_loop_over_trajectories(objective):
    tiny = tiny_programs.tiny(update={"objective": objective, "batch_size": 8, "updates_per_round": 1})
    trajectories = tiny_programs.random_trajectories(8)
    if objective == "grpo":
        trajectories = trajectories._replace(reward=np.linspace(-1.5, 1.5, 8).astype(np.float32))
    value, _, _ = loss_and_gradients(tiny, trajectories)
    np.testing.assert_allclose(value, loss_by_hand(tiny, trajectories, objective), rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_equal_finite_differences(objective):
    tiny = tiny_programs.tiny(update={"objective": objective, "batch_size": 8, "updates_per_round": 1})
    trajectories = tiny_programs.random_trajectories(8, seed=3)
    # Ratios near 1 keep GRPO away from its clips, where a difference quotient means nothing.
    flat = np.concatenate([scores_by_hand(tiny, trajectories, row)[0] for row in range(8)])
    trajectories = trajectories._replace(
        log_prob=(flat + 0.05).astype(np.float32), reward=np.linspace(-1, 2, 8).astype(np.float32)
    )
    _, gradients, _ = loss_and_gradients(tiny, trajectories)
    rng = np.random.default_rng(0)
    params = jax.device_get(tiny.params)
    direction = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), params)

    def at(step):
        moved = jax.tree.map(lambda leaf, along: leaf + np.float32(step) * along, params, direction)
        return loss_by_hand(tiny._replace(params=moved), trajectories, objective)

    slope = (at(1e-3) - at(-1e-3)) / 2e-3
    expected = sum(
        float(np.vdot(g, d)) for g, d in zip(jax.tree.leaves(gradients), jax.tree.leaves(direction), strict=True)
    )
    np.testing.assert_allclose(slope, expected, rtol=3e-3)


def assert_gradients_agree(one, other):
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(one))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest, rtol=0), one, other)


def as_on_gpu(monkeypatch):
    """From now on the programs are those for a GPU, run on a CPU, whose compiler does not take its options."""
    monkeypatch.setattr(model.kernels, "platform_of", lambda mesh: "gpu")
    monkeypatch.setattr(model.kernels, "compiler_options", lambda *settings, **kinds: None)


@pytest.mark.parametrize(
    "axes", [{}, pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, marks=pytest.mark.slow)], ids=["1", "8"]
)
def test_the_update_for_gpus_has_the_same_loss_and_gradients(axes, monkeypatch):
    trajectories = tiny_programs.random_trajectories(8)
    tiny = tiny_programs.tiny(**axes, update={"micro_batch_tokens": 48})
    value, gradients, metrics = loss_and_gradients(tiny, trajectories)
    as_on_gpu(monkeypatch)
    result, result_gradients, result_metrics = loss_and_gradients(tiny, trajectories)
    np.testing.assert_allclose(result, value, rtol=1e-6)
    assert_gradients_agree(result_gradients, gradients)
    assert result_metrics == pytest.approx(metrics, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("objective", ["reval", pytest.param("grpo", marks=pytest.mark.slow)])
def test_the_split_into_micro_batches_changes_rounding_only(objective):
    trajectories = tiny_programs.random_trajectories(8)
    results = [
        loss_and_gradients(
            tiny_programs.tiny(update={"objective": objective, "micro_batch_tokens": tokens, "updates_per_round": 1}),
            trajectories,
        )
        for tokens in (4096, 48, 16)
    ]
    for value, gradients, metrics in results[1:]:
        np.testing.assert_allclose(value, results[0][0], rtol=1e-5)
        assert_gradients_agree(gradients, results[0][1])
        assert metrics == pytest.approx(results[0][2], rel=1e-4, abs=1e-5)


def assert_same(axes, trajectories, **overrides):
    """The loss to 1e-6, gradients before clipping to 1e-5 of the largest, and one SGD step, as on one device."""
    single, sharded = tiny_programs.tiny(**overrides), tiny_programs.tiny(**axes, **overrides)
    value, gradients, _ = loss_and_gradients(single, trajectories)
    sharded_value, sharded_gradients, _ = loss_and_gradients(sharded, trajectories)
    np.testing.assert_allclose(sharded_value, value, rtol=1e-6)
    assert_gradients_agree(sharded_gradients, gradients)
    step = optax.sgd(0.1)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients))
    moved = [
        optax.apply_updates(params, step.update(gradient, step.init(params))[0])
        for params, gradient in (
            (jax.device_get(single.params), gradients),
            (distributed.fetch(sharded.params), sharded_gradients),
        )
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6 * largest + 1e-7, rtol=0), *moved)


@pytest.mark.parametrize(
    "axes",
    [
        pytest.param({"data": 2, "fsdp": 4}, marks=pytest.mark.slow),
        {"data": 2, "fsdp": 2, "tensor": 2},
        pytest.param({"data": 8}, marks=pytest.mark.slow),
        pytest.param({"fsdp": 2, "tensor": 4}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_one_device_equals_eight(axes):
    assert_same(axes, tiny_programs.random_trajectories(8))


@pytest.mark.slow
@pytest.mark.parametrize(
    "heads",
    [
        {"num_heads": 9, "num_kv_heads": 3},  # tensor divides neither
        {"num_heads": 8, "num_kv_heads": 2},  # each device's query heads share one key/value head
        {"num_heads": 12, "num_kv_heads": 2, "family": "qwen3"},  # norms and biases on a part of the heads
        {"num_heads": 12, "num_kv_heads": 6, "family": "qwen2"},  # a device's query heads read two key/value heads
    ],
    ids=str,
)
def test_heads_that_do_not_divide_give_the_same_gradients(heads):
    architecture = hf_checkpoints.tiny_architecture(**heads)
    assert_same({"fsdp": 2, "tensor": 4}, tiny_programs.random_trajectories(8), architecture=architecture)


@pytest.mark.slow
def test_a_width_and_a_vocabulary_that_do_not_divide_give_the_same_gradients():
    architecture = hf_checkpoints.tiny_architecture(vocab_size=hf_checkpoints.VOCABULARY + 3, width=36)
    assert_same({"fsdp": 8}, tiny_programs.random_trajectories(8), architecture=architecture)
    assert_same({"data": 2, "tensor": 4}, tiny_programs.random_trajectories(8), architecture=architecture)


@pytest.mark.parametrize("remat", ["none", pytest.param("full", marks=pytest.mark.slow)])
def test_weights_are_gathered_and_gradients_scattered_in_the_loop_and_nothing_crosses_data_there(remat):
    """Reads the compiled program, because every micro-batch repeats the collectives inside the loop."""
    tiny = tiny_programs.tiny(data=2, fsdp=2, tensor=2, model={"remat": remat})
    rows = batch.pack(tiny_programs.random_trajectories(8), tiny.mesh, limits=tiny.limits)
    algorithm = tiny.algorithm
    run = jax.jit(
        lambda params, rows: update.loss_and_gradients(
            tiny.architecture, params, rows, algorithm, tiny.mesh, config=tiny.config
        )
    )
    inside, outside = tiny_programs.collectives(run.lower(tiny.params, rows).compile().as_text())
    # Device (d, f, t) has number 4d + 2f + t: a group over data holds two that differ by 4.
    over_data = {kind for kind, groups in inside if "0,4" in groups}
    assert not over_data
    assert ("reduce-scatter", "{{0,2},{1,3},{4,6},{5,7}}") in inside
    assert ("all-gather", "{{0,2},{1,3},{4,6},{5,7}}") in inside
    assert {kind for kind, groups in outside if "0,4" in groups or "0,2,4,6" in groups} == {"all-reduce"}


def test_the_residual_is_zero_at_the_reference_without_reward():
    tiny = tiny_programs.tiny()
    trajectories = tiny_programs.random_trajectories(8)
    scores = [scores_by_hand(tiny, trajectories, row) for row in range(8)]
    trajectories = trajectories._replace(
        reward=np.zeros(8, np.float32),
        reference_log_prob=np.array([log_prob.sum() for log_prob, _ in scores], np.float32),
        reference_value=np.array([value for _, value in scores], np.float32),
    )
    value, _, metrics = loss_and_gradients(tiny, trajectories)
    assert value < 1e-8
    assert metrics["reval/residual_abs"] < 1e-4


@pytest.mark.slow
def test_the_gradient_of_the_value_can_be_left_out():
    trajectories = tiny_programs.random_trajectories(8)
    _, whole, _ = loss_and_gradients(tiny_programs.tiny(), trajectories)
    value, stopped, _ = loss_and_gradients(tiny_programs.tiny(update={"stop_value_gradient": True}), trajectories)
    assert (
        max(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(stopped), strict=True)) > 1e-3
    )
    np.testing.assert_allclose(value, loss_by_hand(tiny_programs.tiny(), trajectories, "reval"), rtol=2e-5)


def test_a_step_is_adamw_behind_a_global_norm_clip():
    tiny = tiny_programs.tiny(optimizer={"learning_rate": 1e-2, "weight_decay": 0.1, "max_grad_norm": 0.5})
    trajectories = tiny_programs.random_trajectories(8)
    _, gradients, _ = loss_and_gradients(tiny, trajectories)
    params = jax.device_get(tiny.params)
    step, state = stepper(tiny)
    with jax.numpy_dtype_promotion("standard"):
        state, metrics, _ = step(state, batch.pack(trajectories, tiny.mesh, limits=tiny.limits))
    norm = np.sqrt(sum(np.square(leaf, dtype=np.float64).sum() for leaf in jax.tree.leaves(gradients)))
    assert float(metrics["actor/grad_norm"]) == pytest.approx(norm, rel=1e-5)

    def by_hand(param, gradient):
        clipped = gradient.astype(np.float64) * min(1.0, 0.5 / norm)
        # The first step of Adam: both moments' bias corrections cancel their decay.
        return param - 1e-2 * (clipped / (np.abs(clipped) + 1e-8) + 0.1 * param)

    expected = jax.tree.map(by_hand, params, gradients)
    # Entries whose clipped gradient is near Adam's epsilon amplify rounding of the gradient.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), distributed.fetch(state.params), expected)
    assert int(state.num_updates) == 1


def test_warm_up_climbs_linearly_and_the_first_update_moves():
    rate = update.learning_rate(tiny_programs.settings(optimizer={"learning_rate": 0.4, "warmup_updates": 4}).optimizer)
    assert [float(rate(jnp.int32(count))) for count in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


@pytest.mark.parametrize("form", ["own", "gpu"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_update_that_is_not_finite_leaves_everything_bitwise_and_is_counted(bad, form, monkeypatch):
    if form == "gpu":
        as_on_gpu(monkeypatch)
    tiny = tiny_programs.tiny()
    trajectories = tiny_programs.random_trajectories(8)
    step, state = stepper(tiny)
    poisoned = trajectories._replace(reward=np.where(np.arange(8) == 3, bad, trajectories.reward).astype(np.float32))
    with jax.numpy_dtype_promotion("standard"):
        state, _, _ = step(state, batch.pack(trajectories, tiny.mesh, limits=tiny.limits))
        before = jax.device_get((state.params, state.opt_state))
        for count in (1, 2):
            state, _, _ = step(state, batch.pack(poisoned, tiny.mesh, limits=tiny.limits))
            assert (int(state.num_skipped), int(state.skipped_in_a_row), int(state.num_updates)) == (count, count, 1)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get((state.params, state.opt_state)), before)
        state, _, _ = step(state, batch.pack(trajectories, tiny.mesh, limits=tiny.limits))
    assert (int(state.num_skipped), int(state.skipped_in_a_row), int(state.num_updates)) == (2, 0, 2)


def test_the_step_donates_its_state_and_compiles_once_for_a_row_length():
    tiny = tiny_programs.tiny()
    step, state = stepper(tiny)
    with jax.numpy_dtype_promotion("standard"):
        for num in (8, 5, 8):
            old, state = (
                state,
                step(
                    state,
                    batch.pack(tiny_programs.random_trajectories(num, max_prompt=5), tiny.mesh, limits=tiny.limits),
                )[0],
            )
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves((old.params, old.opt_state)))
    assert step._cache_size() == 1


@pytest.mark.slow
def test_a_step_on_eight_devices_moves_as_one_device_does():
    trajectories = tiny_programs.random_trajectories(8)
    moved = []
    for axes in ({}, {"data": 2, "fsdp": 2, "tensor": 2}):
        tiny = tiny_programs.tiny(**axes, optimizer={"learning_rate": 1e-3})
        step, state = stepper(tiny)
        with jax.numpy_dtype_promotion("standard"):
            state, _, _ = step(state, batch.pack(trajectories, tiny.mesh, limits=tiny.limits))
        moved.append(distributed.fetch(state.params))
    # Adam's first step is lr·sign(g), so the sign of an entry whose gradient is only rounding is arbitrary.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), *moved)


def test_the_donated_state_is_updated_in_place():
    tiny = tiny_programs.tiny(data=2, fsdp=4)
    step, state = stepper(tiny)
    with jax.numpy_dtype_promotion("standard"):
        rows = batch.pack(tiny_programs.random_trajectories(8), tiny.mesh, limits=tiny.limits)
        memory = step.lower(state, rows).compile().memory_analysis()
    state_bytes = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    assert memory.alias_size_in_bytes >= state_bytes


def test_the_update_takes_no_reference_parameters():
    """A replayed update runs no reference forward pass: its program has no argument for the reference's parameters."""
    tiny = tiny_programs.tiny()
    step, state = stepper(tiny)
    with jax.numpy_dtype_promotion("standard"):
        rows = batch.pack(tiny_programs.random_trajectories(8), tiny.mesh, limits=tiny.limits)
        text = step.lower(state, rows).compile().as_text()
    entry = text[text.index("\nENTRY ") :]
    weights = [leaf.shape for leaf in jax.tree.leaves(tiny.params)]
    matrices = [shape for shape in weights if len(shape) >= 2]
    arguments = [tuple(map(int, sizes.split(","))) for sizes in re.findall(r"= f32\[([\d,]+)\]\S* parameter\(", entry)]
    # Parameters and Adam's two moments: three arrays of each shape, not four.
    assert all(arguments.count(shape) == 3 * matrices.count(shape) for shape in set(matrices))


@pytest.mark.slow
def test_the_sharded_update_compiles_for_a_tpu_with_the_splash_kernel(v5e):
    architecture = hf_checkpoints.tiny_architecture(head_size=64, num_heads=4, num_kv_heads=2)
    devices = jax.sharding.Mesh(np.array(v5e).reshape(2, 2, 2), mesh.AXES)
    config = tiny_programs.settings(
        model={"compute_dtype": "bfloat16", "remat": "full"},
        task={"max_prompt_tokens": 64},
        rollout={"max_response_tokens": 192},
        update={"micro_batch_tokens": 256},
    )
    optimizer = update.make_optimizer(config.optimizer)
    state = update.abstract(update.abstract_params(architecture, devices), optimizer, devices)
    rows = batch.abstract(batch.shape_of(256, 4, limits=tiny_programs.limits(config)), devices)
    with jax.numpy_dtype_promotion("standard"):
        step = update.make_step(architecture, devices, algorithm=algorithms.choose(config), config=config)
        compiled = step.lower(state, rows).compile()
    text = compiled.as_text()
    assert 'custom_call_target="tpu_custom_call"' in text
    assert "splash_mha_fwd" in text
    assert " reduce-scatter(" in text
    assert compiled.memory_analysis().alias_size_in_bytes > 0


@pytest.mark.slow
def test_a_batch_that_does_not_divide_over_the_devices_gives_the_same_gradients():
    assert_same({"fsdp": 8}, tiny_programs.random_trajectories(5), update={"batch_size": 5})
