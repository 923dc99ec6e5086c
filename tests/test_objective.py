"""The loss equations against loops in NumPy float64 that share no code with them.

Tolerance: relative 1e-6 of the sum of the terms' sizes. The terms cancel, so a tolerance relative to the result would be too
strict.
"""

from __future__ import annotations

import collections

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis.extra import numpy as st_numpy

from reval_jax import objective

BETA = 0.02
CLIPS = {"clip_low": 0.2, "clip_high": 0.28, "clip_dual": 3.0}
RATIOS = (0.3, 0.79, 0.81, 1.0, 1.27, 1.29, 2.9, 3.1, 7.0)  # both sides of every kink, none on one
ADVANTAGES = (-2.0, -0.4, 0.0, 0.3, 1.7)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def trajectory_numbers(rng: np.random.Generator, size: int = 64) -> dict[str, np.ndarray]:
    """Values and log-probabilities of the sizes that 8K-token responses have, in nats."""
    log_prob = rng.uniform(-4000, -10, size)
    numbers = {
        "soft_value": rng.uniform(10, 40, size),
        "reference_soft_value": rng.uniform(10, 40, size),
        "log_prob": log_prob,
        "reference_log_prob": log_prob + rng.normal(0, 3, size),
        "reward": rng.integers(0, 2, size),
    }
    return {name: np.asarray(value, np.float32) for name, value in numbers.items()}


def without(numbers: dict[str, np.ndarray], *names: str) -> dict[str, np.ndarray]:
    return {name: value for name, value in numbers.items() if name not in names}


RESIDUALS = {
    "reval": (objective.reval_residual, (), lambda v, u, p, q, r: (v, -u, p, -q, -r / BETA)),
    "tbrm": (objective.tbrm_residual, ("reference_soft_value",), lambda v, p, q, r: (v, p, -q, -r / BETA)),
    "regression": (
        objective.regression_residual,
        ("soft_value", "reference_soft_value"),
        lambda p, q, r: (p, -q, -r / BETA),
    ),
}


# --- residuals


@pytest.mark.parametrize("name", RESIDUALS)
def test_residual_equals_the_float64_sum_of_its_terms(name: str, rng: np.random.Generator):
    residual_of, unused, terms_of = RESIDUALS[name]
    numbers = without(trajectory_numbers(rng), *unused)
    residual = jax.jit(residual_of)(*numbers.values(), beta=BETA)
    chex.assert_type(residual, jnp.float32)
    for b in range(64):
        terms = terms_of(*(float(value[b]) for value in numbers.values()))
        assert abs(float(residual[b]) - sum(terms)) <= 1e-6 * sum(map(abs, terms))


@pytest.mark.parametrize("name", RESIDUALS)
def test_only_the_policys_numbers_of_a_residual_have_a_gradient(name: str, rng: np.random.Generator):
    residual_of, unused, _ = RESIDUALS[name]
    numbers = without(trajectory_numbers(rng), *unused)
    gradients = jax.grad(lambda numbers: jnp.sum(residual_of(**numbers, beta=BETA)))(numbers)
    for argument, gradient in gradients.items():
        expected = 1.0 if argument in ("soft_value", "log_prob") else 0.0
        np.testing.assert_array_equal(gradient, np.full(64, expected, np.float32), err_msg=argument)


@pytest.mark.parametrize("name", RESIDUALS)
def test_permuting_trajectories_permutes_residuals(name: str, rng: np.random.Generator):
    residual_of, unused, _ = RESIDUALS[name]
    numbers = without(trajectory_numbers(rng), *unused)
    order = rng.permutation(64)
    permuted = residual_of(**{key: value[order] for key, value in numbers.items()}, beta=BETA)
    np.testing.assert_array_equal(permuted, residual_of(**numbers, beta=BETA)[order])


@pytest.mark.parametrize("name", RESIDUALS)
def test_a_residual_refuses_to_broadcast(name: str, rng: np.random.Generator):
    residual_of, unused, _ = RESIDUALS[name]
    numbers = without(trajectory_numbers(rng), *unused)
    numbers["reward"] = numbers["reward"][:, None]
    with pytest.raises(ValueError, match=r"reward \[64, 1\].*same shape"):
        residual_of(**numbers, beta=BETA)


@pytest.mark.parametrize("dtype", [jnp.bool_, jnp.int32, jnp.bfloat16])
def test_any_dtype_of_reward_gives_the_float32_residual(dtype: jnp.dtype, rng: np.random.Generator):
    numbers = trajectory_numbers(rng)
    expected = objective.reval_residual(**numbers, beta=BETA)
    numbers["reward"] = jnp.asarray(numbers["reward"]).astype(dtype)
    np.testing.assert_array_equal(objective.reval_residual(**numbers, beta=jnp.float32(BETA)), expected)


# --- the Bellman loss


def test_bellman_loss_is_the_mean_of_squares(rng: np.random.Generator):
    residual = rng.normal(0, 500, 1024).astype(np.float32)
    total = 0.0
    for value in residual:
        total += float(value) ** 2
    np.testing.assert_allclose(objective.bellman_loss(residual), total / 1024, rtol=1e-6)
    gradient = jax.grad(objective.bellman_loss)(residual)
    np.testing.assert_allclose(gradient, 2.0 * residual.astype(np.float64) / 1024, rtol=1e-6)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 3e38])
def test_an_empty_slot_reaches_neither_bellman_loss_nor_gradient(garbage: float, rng: np.random.Generator):
    real = rng.normal(0, 50, 5).astype(np.float32)
    padded = np.insert(real, [0, 2, 5], np.float32(garbage))
    is_real = np.insert(np.ones(5, bool), [0, 2, 5], False)
    loss, gradient = jax.jit(jax.value_and_grad(objective.bellman_loss))(padded, is_real=is_real)
    expected_loss, expected_gradient = jax.value_and_grad(objective.bellman_loss)(real)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    np.testing.assert_allclose(gradient[is_real], expected_gradient, rtol=1e-6)
    np.testing.assert_array_equal(gradient[~is_real], 0.0)


def test_a_residual_that_is_not_finite_in_a_real_slot_shows_in_the_loss():
    assert not np.isfinite(objective.bellman_loss(jnp.array([1.0, jnp.nan]), is_real=jnp.array([True, True])))


@pytest.mark.parametrize("num_trajectories", [None, 0, 8])
def test_a_batch_of_empty_slots_costs_nothing(num_trajectories: int | None):
    def loss_of(residual: jax.Array) -> jax.Array:
        return objective.bellman_loss(residual, is_real=jnp.zeros(4, bool), num_trajectories=num_trajectories)

    loss, gradient = jax.value_and_grad(loss_of)(jnp.full(4, jnp.nan))
    assert float(loss) == 0.0
    np.testing.assert_array_equal(gradient, np.zeros(4, np.float32))


@hypothesis.given(cuts=st.lists(st.integers(0, 12), max_size=4))
@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
def test_unequal_micro_batches_add_up_to_the_bellman_loss_of_the_batch(cuts: list[int]):
    loss_and_gradient = jax.jit(jax.value_and_grad(objective.bellman_loss))
    residual = np.random.default_rng(1).normal(0, 500, 12).astype(np.float32)
    whole, whole_gradient = jax.value_and_grad(objective.bellman_loss)(residual)
    loss, gradients = 0.0, []
    for part in np.split(residual, sorted(cuts)):
        slots = np.append(part, np.full(12 - part.size, np.nan, np.float32))
        value, gradient = loss_and_gradient(slots, is_real=np.arange(12) < part.size, num_trajectories=12)
        loss += float(value)
        gradients.append(np.asarray(gradient)[: part.size])
    np.testing.assert_allclose(loss, whole, rtol=1e-6)
    np.testing.assert_allclose(np.concatenate(gradients), whole_gradient, rtol=1e-6)


def test_is_real_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"is_real \[4\].*same shape"):
        objective.bellman_loss(jnp.ones(3), is_real=jnp.ones(4, bool))


# --- GRPO


def scalar_grpo(log_prob: float, behaviour: float, advantage: float, low: float, high: float, dual: float) -> float:
    """One token's loss, branch by branch instead of by max and min."""
    log_ratio = log_prob - behaviour
    ratio = np.exp(20.0 if log_ratio > 20.0 else -20.0 if log_ratio < -20.0 else log_ratio)
    if advantage >= 0.0:  # above 1 + high a gain no longer counts
        return -advantage * (1.0 + high if ratio > 1.0 + high else ratio)
    if ratio < 1.0 - low:
        return -advantage * (1.0 - low)
    return -advantage * (dual if ratio > dual else ratio)


def loop_grpo(
    log_prob: np.ndarray, behaviour: np.ndarray, advantage: np.ndarray, mask: np.ndarray, clips: dict[str, float]
) -> float:
    total, count = 0.0, 0
    for b, t in np.ndindex(mask.shape):
        if mask[b, t]:
            a = advantage[b] if advantage.ndim == 1 else advantage[b, t]
            total += scalar_grpo(float(log_prob[b, t]), float(behaviour[b, t]), float(a), *clips.values())
            count += 1
    return total / max(count, 1)


def grpo_batch(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Every ratio at every advantage, one response each, with garbage on masked-out tokens and one empty slot."""
    advantage = np.repeat(np.float32(ADVANTAGES), len(RATIOS))
    num_rows, num_tokens = advantage.size, 4
    behaviour = rng.uniform(-5, -0.1, (num_rows, num_tokens)).astype(np.float32)
    log_prob = behaviour + np.log(np.tile(RATIOS, len(ADVANTAGES)))[:, None].astype(np.float32)
    mask = np.arange(num_tokens) < rng.integers(1, num_tokens + 1, num_rows)[:, None]
    mask[-1] = False
    log_prob[~mask] = np.resize([np.nan, np.inf, -np.inf, 1e30], (~mask).sum())
    behaviour[~mask] = np.resize([-np.inf, 0.0, np.nan], (~mask).sum())
    advantage[-1] = np.nan
    return log_prob, behaviour, advantage, mask


@pytest.mark.parametrize("dual", [3.0, 10.0, np.inf])
def test_grpo_loss_equals_the_scalar_loop_in_every_piece(dual: float, rng: np.random.Generator):
    clips = CLIPS | {"clip_dual": dual}
    batch = grpo_batch(rng)
    np.testing.assert_allclose(jax.jit(objective.grpo_loss)(*batch, **clips), loop_grpo(*batch, clips), rtol=1e-6)


def test_grpo_gradient_equals_finite_differences_of_the_scalar_loop_and_is_zero_where_masked(rng: np.random.Generator):
    log_prob, behaviour, advantage, mask = grpo_batch(rng)
    gradient = np.asarray(jax.grad(objective.grpo_loss)(log_prob, behaviour, advantage, mask, **CLIPS))
    np.testing.assert_array_equal(gradient[~mask], 0.0)
    step = 1e-6
    for b, t in np.argwhere(mask):
        point, fixed = float(log_prob[b, t]), (float(behaviour[b, t]), float(advantage[b]), *CLIPS.values())
        slope = (scalar_grpo(point + step, *fixed) - scalar_grpo(point - step, *fixed)) / (2 * step)
        np.testing.assert_allclose(gradient[b, t], slope / mask.sum(), rtol=1e-5, atol=1e-9)


def test_the_constants_of_grpo_have_no_gradient(rng: np.random.Generator):
    log_prob, behaviour, advantage, mask = grpo_batch(rng)
    _, behaviour_gradient, advantage_gradient = jax.grad(objective.grpo_loss, argnums=(0, 1, 2))(
        log_prob, behaviour, advantage, mask, **CLIPS
    )
    np.testing.assert_array_equal(behaviour_gradient, np.zeros_like(behaviour))
    np.testing.assert_array_equal(advantage_gradient, np.zeros_like(advantage))


@pytest.mark.parametrize("log_ratio", [-1000.0, -25.0, 25.0, 1000.0])
@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_a_runaway_ratio_stays_finite_in_loss_and_gradient(log_ratio: float, advantage: float):
    arguments = (jnp.array([[log_ratio]]), jnp.zeros((1, 1)), jnp.array([advantage]), jnp.ones((1, 1), bool))
    loss, gradient = jax.value_and_grad(objective.grpo_loss)(*arguments, **CLIPS)
    np.testing.assert_allclose(loss, scalar_grpo(log_ratio, 0.0, advantage, *CLIPS.values()), rtol=1e-6)
    assert float(gradient[0, 0]) == 0.0


def test_an_advantage_per_token_of_equal_columns_equals_one_per_trajectory(rng: np.random.Generator):
    log_prob, behaviour, advantage, mask = grpo_batch(rng)
    per_token = np.repeat(advantage[:, None], mask.shape[1], axis=1)
    assert objective.grpo_loss(log_prob, behaviour, per_token, mask, **CLIPS) == objective.grpo_loss(
        log_prob, behaviour, advantage, mask, **CLIPS
    )


def test_an_advantage_per_token_is_used_token_by_token(rng: np.random.Generator):
    log_prob, behaviour, _, mask = grpo_batch(rng)
    per_token = rng.normal(size=mask.shape).astype(np.float32)
    loss = objective.grpo_loss(log_prob, behaviour, per_token, mask, **CLIPS)
    expected = loop_grpo(log_prob, behaviour, per_token, mask, CLIPS)
    np.testing.assert_allclose(loss, expected, rtol=1e-6, atol=1e-6)


def test_padding_columns_change_nothing_in_grpo(rng: np.random.Generator):
    batch = grpo_batch(rng)
    log_prob, behaviour, advantage, mask = batch
    wide = [np.pad(array, ((0, 0), (0, 3)), constant_values=np.nan) for array in (log_prob, behaviour)]
    padded = objective.grpo_loss(*wide, advantage, np.pad(mask, ((0, 0), (0, 3))), **CLIPS)
    np.testing.assert_allclose(padded, objective.grpo_loss(*batch, **CLIPS), rtol=1e-6)


def test_unequal_micro_batches_add_up_to_the_grpo_loss_of_the_batch(rng: np.random.Generator):
    batch = grpo_batch(rng)
    num_tokens = int(batch[3].sum())
    loss_and_gradient = jax.jit(jax.value_and_grad(objective.grpo_loss))
    whole, whole_gradient = loss_and_gradient(*batch, **CLIPS)
    loss, gradients = 0.0, []
    for start, stop in ((0, 1), (1, 20), (20, 44), (44, 45)):  # the last part is one empty slot
        part = [array[start:stop] for array in batch]
        value, gradient = loss_and_gradient(*part, **CLIPS, num_tokens=num_tokens)
        loss += float(value)
        gradients.append(gradient)
    np.testing.assert_allclose(loss, whole, rtol=1e-6)
    np.testing.assert_allclose(np.concatenate(gradients), whole_gradient, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("num_tokens", [None, 0, 100])
def test_a_batch_without_response_tokens_costs_nothing(num_tokens: int | None):
    nothing = (jnp.full((2, 3), jnp.nan), jnp.full((2, 3), -jnp.inf), jnp.full(2, jnp.nan), jnp.zeros((2, 3), bool))
    loss, gradient = jax.jit(jax.value_and_grad(objective.grpo_loss))(*nothing, **CLIPS, num_tokens=num_tokens)
    assert float(loss) == 0.0
    np.testing.assert_array_equal(gradient, np.zeros((2, 3), np.float32))


def test_grpo_refuses_shapes_that_do_not_fit():
    tokens, mask = jnp.zeros((2, 3)), jnp.ones((2, 3), bool)
    with pytest.raises(ValueError, match=r"behaviour_log_prob \[2\].*same shape"):
        objective.grpo_loss(tokens, jnp.zeros(2), jnp.zeros(2), mask, **CLIPS)
    with pytest.raises(ValueError, match=r"got \[3\] with log_prob \[2, 3\]"):
        objective.grpo_loss(tokens, tokens, jnp.zeros(3), mask, **CLIPS)


# --- groups


def loop_groups(reward: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(r - mean of the group, GRPO's advantage), group by group in float64."""
    members = collections.defaultdict(list)
    for value, label in zip(reward, group, strict=True):
        members[int(label)].append(float(value))
    centred, advantage = [], []
    for value, label in zip(reward, group, strict=True):
        values = members[int(label)]
        mean = sum(values) / len(values)
        centred.append(float(value) - mean)
        if len(values) == 1:
            advantage.append(float(value))
        else:
            variance = sum((other - mean) ** 2 for other in values) / (len(values) - 1)
            advantage.append((float(value) - mean) / (variance**0.5 + 1e-6))
    return np.array(centred), np.array(advantage)


LABELS = st.sampled_from([-(2**31), -7, -1, 0, 3, 1000, 2**31 - 1])
REWARDS = st.sampled_from([-1.0, 0.0, 0.125, 0.3, 1.0, 2.5])


@hypothesis.given(data=st.data(), size=st.sampled_from([1, 12]))
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
def test_group_functions_equal_the_loop_over_groups_for_any_labels(data: st.DataObject, size: int):
    reward = data.draw(st_numpy.arrays(np.float32, size, elements=REWARDS.map(np.float32)))
    group = data.draw(st_numpy.arrays(np.int32, size, elements=LABELS))
    centred, advantage = loop_groups(reward, group)
    np.testing.assert_allclose(objective.group_normalized_reward(reward, group), centred, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(objective.group_advantage(reward, group), advantage, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("value", [0.1, 0.3, 1.0, -7.7, 1e-30, 3e7])
@pytest.mark.parametrize("size", [2, 3, 7, 8, 100])
def test_equal_rewards_give_exactly_zero(value: float, size: int):
    reward, group = jnp.full(2 * size, value), jnp.arange(2 * size) % 2
    for function in (objective.group_normalized_reward, objective.group_advantage):
        np.testing.assert_array_equal(jax.jit(function)(reward, group), np.zeros(2 * size, np.float32))


def test_a_large_common_reward_does_not_drown_the_differences():
    reward = np.float32([1e6, 1e6 + 1, 1e6 + 3, 1e6 + 4])
    centred, advantage = loop_groups(reward, np.zeros(4, int))
    group = jnp.zeros(4, jnp.int32)
    np.testing.assert_allclose(objective.group_normalized_reward(reward, group), centred, rtol=1e-6)
    np.testing.assert_allclose(objective.group_advantage(reward, group), advantage, rtol=1e-6)


def test_a_group_of_one_is_zero_normalized_and_its_own_advantage():
    reward, group = jnp.array([0.0, 1.0, 0.7]), jnp.array([5, -5, 0])
    np.testing.assert_array_equal(objective.group_normalized_reward(reward, group), np.zeros(3, np.float32))
    np.testing.assert_array_equal(objective.group_advantage(reward, group), reward)


@pytest.mark.parametrize("function", [objective.group_normalized_reward, objective.group_advantage])
def test_groups_follow_a_permutation_and_do_not_see_each_other(function, rng: np.random.Generator):
    reward, group = rng.integers(0, 2, 32).astype(np.float32), np.repeat(np.arange(4), 8).astype(np.int32)
    expected = np.asarray(function(reward, group))
    order = rng.permutation(32)
    np.testing.assert_allclose(function(reward[order], group[order]), expected[order], rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(function(reward[:8], group[:8]), expected[:8])
    poisoned = np.where(group == 3, np.float32(np.nan), reward)
    np.testing.assert_array_equal(np.asarray(function(poisoned, group))[:24], expected[:24])


@pytest.mark.parametrize("function", [objective.group_normalized_reward, objective.group_advantage])
def test_shaped_rewards_are_constants_and_compile_once_for_any_labels(function):
    compiled = jax.jit(chex.assert_max_traces(function, n=1))
    for group in ([0, 0, 0, 0], [0, 1, 2, 3], [9, -9, 9, 9]):
        compiled(jnp.array([0.0, 1.0, 1.0, 0.0]), jnp.array(group))
    gradient = jax.grad(lambda reward: jnp.sum(function(reward, jnp.zeros(4, jnp.int32)) ** 2))(jnp.zeros(4))
    np.testing.assert_array_equal(gradient, np.zeros(4, np.float32))


def test_group_labels_that_are_not_integers_are_refused():
    with pytest.raises(ValueError, match=r"int\[B\], but got float32\[2\]"):
        objective.group_advantage(jnp.zeros(2), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"group \[3\].*same shape"):
        objective.group_normalized_reward(jnp.zeros(2), jnp.zeros(3, jnp.int32))
