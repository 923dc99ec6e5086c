"""Statements of the paper and of algebra about the objectives, tested on a policy small enough to enumerate.

The world: two prompts, an alphabet of three tokens of which token 0 ends the response, and a limit of two tokens. A
prompt has seven responses, of one token or two, and all of them are in the batch, so expectations are sums and nothing
is sampled. The policy is a table of logits, one row per state. Gradients are checked against their formulas in float64.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reval_jax import objective, scores

NUM_PROMPTS, ALPHABET, LIMIT, END = 2, 3, 2, 0
RESPONSES = [(END,)] + [(first, second) for first, second in itertools.product((1, 2), range(ALPHABET))]
NUM_STATES = NUM_PROMPTS * (1 + ALPHABET)
BETA = 0.5


def state_index(prompt: int, prefix: tuple[int, ...]) -> int:
    return prompt * (1 + ALPHABET) + (1 + prefix[0] if prefix else 0)


class World:
    """Trajectories as arrays: [B] prompts, [B, T] states, actions and mask; every response to every prompt once."""

    def __init__(self) -> None:
        pairs = list(itertools.product(range(NUM_PROMPTS), RESPONSES))
        self.size = len(pairs)
        self.prompt = np.array([prompt for prompt, _ in pairs], np.int32)
        self.state = np.zeros((self.size, LIMIT), np.int32)
        self.action = np.zeros((self.size, LIMIT), np.int32)
        self.mask = np.zeros((self.size, LIMIT), bool)
        for b, (prompt, response) in enumerate(pairs):
            for t, action in enumerate(response):
                self.state[b, t], self.action[b, t] = state_index(prompt, response[:t]), action
                self.mask[b, t] = True

    def token_log_prob(self, logits: jax.Array) -> jax.Array:
        """f32[B, T], through the package's own head: one-hot states times the table of logits."""
        states = jax.nn.one_hot(self.state.reshape(-1), NUM_STATES, dtype=jnp.float32)
        log_prob, _ = scores.token_scores(states, logits, self.action.reshape(-1))
        return jnp.where(self.mask, log_prob.reshape(self.mask.shape), 0.0)

    def log_prob(self, logits: jax.Array) -> jax.Array:
        return jnp.sum(self.token_log_prob(logits), axis=1)

    def soft_value(self, logits: jax.Array) -> jax.Array:
        first = jax.nn.one_hot(self.state[:, 0], NUM_STATES, dtype=jnp.float32)
        return scores.token_scores(first, logits, self.action[:, 0])[1]

    # The same in float64, by loops.

    def exact_softmax(self, logits: np.ndarray, state: int) -> np.ndarray:
        weights = np.exp(logits[state].astype(np.float64) - logits[state].max())
        return weights / weights.sum()

    def exact_log_prob(self, logits: np.ndarray) -> np.ndarray:
        total = np.zeros(self.size)
        for b, t in np.argwhere(self.mask):
            total[b] += np.log(self.exact_softmax(logits, self.state[b, t])[self.action[b, t]])
        return total

    def exact_soft_value(self, logits: np.ndarray) -> np.ndarray:
        return np.array([exact_logsumexp(logits[self.state[b, 0]]) for b in range(self.size)])

    def log_prob_jacobian(self, logits: np.ndarray) -> np.ndarray:
        """f64[B, states, actions], d log pi(tau) / d logits = sum over steps of one-hot minus softmax."""
        jacobian = np.zeros((self.size, *logits.shape))
        for b, t in np.argwhere(self.mask):
            jacobian[b, self.state[b, t]] -= self.exact_softmax(logits, self.state[b, t])
            jacobian[b, self.state[b, t], self.action[b, t]] += 1.0
        return jacobian

    def soft_value_jacobian(self, logits: np.ndarray) -> np.ndarray:
        """f64[B, states, actions], dV(s1) / d logits = softmax of the first state."""
        jacobian = np.zeros((self.size, *logits.shape))
        for b in range(self.size):
            jacobian[b, self.state[b, 0]] = self.exact_softmax(logits, self.state[b, 0])
        return jacobian


def exact_logsumexp(values: np.ndarray) -> float:
    values = values.astype(np.float64)
    return float(values.max() + np.log(np.exp(values - values.max()).sum()))


def table(seed: int, level: float = 30.0) -> np.ndarray:
    """A random policy, with logits as far from 0 as a language model's are."""
    return np.random.default_rng(seed).normal(level, 1.0, (NUM_STATES, ALPHABET)).astype(np.float32)


def near(reference: np.ndarray, seed: int) -> np.ndarray:
    return (reference + np.random.default_rng(seed).normal(0, 0.5, reference.shape)).astype(np.float32)


def reval_of(logits: jax.Array, reference: np.ndarray, reward: np.ndarray, beta: float = BETA) -> jax.Array:
    return objective.reval_residual(
        WORLD.soft_value(logits),
        WORLD.soft_value(reference),
        WORLD.log_prob(logits),
        WORLD.log_prob(reference),
        reward,
        beta=beta,
    )


def exact_reval(logits: np.ndarray, reference: np.ndarray, reward: np.ndarray, beta: float = BETA) -> np.ndarray:
    value_gap = WORLD.exact_soft_value(logits) - WORLD.exact_soft_value(reference)
    return value_gap + WORLD.exact_log_prob(logits) - WORLD.exact_log_prob(reference) - reward.astype(np.float64) / beta


WORLD = World()
REFERENCE = table(0)
POLICY = near(REFERENCE, 1)
BINARY = np.float32([0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 0, 0, 0, 1])
GRADED = np.random.default_rng(2).uniform(-1, 1, WORLD.size).astype(np.float32)


# --- the residual's forms


def test_reval_residual_equals_its_form_in_the_first_logit():
    """V + log pi(a1) = logit(a1), so the values and the first log-probabilities become one difference of logits."""
    token_log_ratio = np.asarray(WORLD.token_log_prob(POLICY) - WORLD.token_log_prob(REFERENCE))
    rest = token_log_ratio[:, 1:].sum(axis=1)
    first = (WORLD.state[:, 0], WORLD.action[:, 0])
    cheaper = (POLICY[first] - REFERENCE[first]) + rest - GRADED / BETA
    np.testing.assert_allclose(reval_of(POLICY, REFERENCE, GRADED), cheaper, rtol=0, atol=3e-5)


def test_reval_residual_equals_float64_on_the_enumerated_world():
    size = np.abs(WORLD.exact_soft_value(POLICY)).max() + np.abs(WORLD.exact_log_prob(POLICY)).max()
    error = np.abs(reval_of(POLICY, REFERENCE, GRADED) - exact_reval(POLICY, REFERENCE, GRADED))
    assert error.max() <= 1e-6 * size


def bellman_sum(reward_shaping, logits: np.ndarray, reference: np.ndarray, reward: np.ndarray) -> np.ndarray:
    """Sum over steps of Q - T Q in float64, with V(s_{H+1}) = 0; `reward_shaping` gives R's last term."""
    totals = np.zeros(WORLD.size)
    for b in range(WORLD.size):
        length = int(WORLD.mask[b].sum())
        for t in range(length):
            state, action = WORLD.state[b, t], WORLD.action[b, t]
            after = None if t + 1 == length else WORLD.state[b, t + 1]
            value_after = 0.0 if after is None else exact_logsumexp(logits[after])
            step_reward = float(reward[b]) / BETA if after is None else 0.0
            reference_log_prob = float(reference[state, action]) - exact_logsumexp(reference[state])
            target = step_reward + reference_log_prob + reward_shaping(state, after) + value_after
            totals[b] += float(logits[state, action]) - target
    return totals


def displayed_shaping(state: int, after: int | None) -> float:
    return exact_logsumexp(REFERENCE[state]) - (0.0 if after is None else exact_logsumexp(REFERENCE[after]))


def test_the_displayed_bellman_operator_telescopes_to_equation_2():
    summed = bellman_sum(displayed_shaping, POLICY, REFERENCE, GRADED)
    np.testing.assert_allclose(summed, exact_reval(POLICY, REFERENCE, GRADED), rtol=0, atol=1e-12)


def test_the_printed_reward_shaping_is_not_calibrated_where_the_displayed_operator_is():
    """Section 4.2 prints V_theta(s_h) - V_ref(s_h), which is 0 at the reference but does not cancel V_ref(s1)."""
    nothing = np.zeros(WORLD.size)
    np.testing.assert_allclose(bellman_sum(displayed_shaping, REFERENCE, REFERENCE, nothing), 0.0, rtol=0, atol=1e-12)
    printed = bellman_sum(lambda state, after: 0.0, REFERENCE, REFERENCE, nothing)
    np.testing.assert_allclose(printed, WORLD.exact_soft_value(REFERENCE), rtol=1e-12)


def test_tbrm_is_reval_with_the_references_value_taken_off_the_reward():
    log_probs = WORLD.log_prob(POLICY), WORLD.log_prob(REFERENCE)
    tbrm = objective.tbrm_residual(WORLD.soft_value(POLICY), *log_probs, GRADED, beta=BETA)
    shifted = GRADED - BETA * np.asarray(WORLD.soft_value(REFERENCE))
    np.testing.assert_allclose(tbrm, reval_of(POLICY, REFERENCE, shifted), rtol=0, atol=3e-5)


def test_regression_is_reval_where_the_values_agree():
    log_probs = WORLD.log_prob(POLICY), WORLD.log_prob(REFERENCE)
    value = WORLD.soft_value(REFERENCE)
    np.testing.assert_array_equal(
        objective.regression_residual(*log_probs, GRADED, beta=BETA),
        objective.reval_residual(value, value, *log_probs, GRADED, beta=BETA),
    )


# --- at the reference


def test_at_the_reference_without_reward_the_residual_is_bitwise_zero_and_so_is_its_gradient():
    nothing = np.zeros(WORLD.size, np.float32)
    np.testing.assert_array_equal(jax.jit(reval_of)(REFERENCE, REFERENCE, nothing), nothing)
    gradient = jax.grad(lambda logits: objective.bellman_loss(reval_of(logits, REFERENCE, nothing)))(REFERENCE)
    np.testing.assert_array_equal(gradient, np.zeros_like(REFERENCE))


def test_at_the_reference_without_reward_tbrms_residual_is_the_references_value():
    value, log_prob = WORLD.soft_value(REFERENCE), WORLD.log_prob(REFERENCE)
    residual = objective.tbrm_residual(value, log_prob, log_prob, np.zeros(WORLD.size, np.float32), beta=BETA)
    np.testing.assert_array_equal(residual, value)
    assert np.all(np.asarray(residual) > 20.0)


@pytest.mark.parametrize("beta", [0.5, 0.02, 0.002])
def test_with_group_mean_reward_the_residuals_of_a_group_sum_to_zero_at_the_reference(beta: float):
    reward = objective.group_normalized_reward(BINARY, WORLD.prompt)
    residual = np.asarray(reval_of(REFERENCE, REFERENCE, reward, beta=beta), np.float64)
    for prompt in range(NUM_PROMPTS):
        group = residual[WORLD.prompt == prompt]
        assert abs(group.sum()) <= 1e-6 * np.abs(group).sum()
        assert np.abs(group).sum() > 1.0


def test_with_binary_reward_only_correct_trajectories_have_a_gradient_at_the_reference():
    jacobian = jax.jacrev(lambda logits: jnp.square(reval_of(logits, REFERENCE, BINARY)))(REFERENCE)
    size = np.abs(np.asarray(jacobian)).max(axis=(1, 2))
    np.testing.assert_array_equal(size[BINARY == 0.0], 0.0)
    assert np.all(size[BINARY == 1.0] > 0.1)


def test_the_first_step_with_group_mean_reward_is_two_over_beta_times_the_policy_gradient():
    """Descent moves along + (2 / beta) E[(r - mean) grad log pi]: the term in grad V cancels within each group."""
    reward = objective.group_normalized_reward(BINARY, WORLD.prompt)
    gradient = jax.grad(lambda logits: objective.bellman_loss(reval_of(logits, REFERENCE, reward)))(REFERENCE)
    centred = np.asarray(reward, np.float64)[:, None, None]
    policy_gradient = np.mean(centred * WORLD.log_prob_jacobian(REFERENCE), axis=0)
    assert np.abs(policy_gradient).max() > 0.01
    np.testing.assert_allclose(-gradient, (2.0 / BETA) * policy_gradient, rtol=0, atol=1e-6)


# --- gradient


@pytest.mark.parametrize("reward", [BINARY, GRADED], ids=["binary", "graded"])
def test_the_gradient_is_twice_the_mean_of_residual_times_the_gradients_of_value_and_log_prob(reward: np.ndarray):
    gradient = jax.grad(lambda logits: objective.bellman_loss(reval_of(logits, REFERENCE, reward)))(POLICY)
    residual = exact_reval(POLICY, REFERENCE, reward)[:, None, None]
    expected = 2.0 * np.mean(residual * (WORLD.soft_value_jacobian(POLICY) + WORLD.log_prob_jacobian(POLICY)), axis=0)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_gradient_equals_finite_differences_of_the_float64_loss():
    gradient = jax.grad(lambda logits: objective.bellman_loss(reval_of(logits, REFERENCE, GRADED)))(POLICY)
    step = 1e-5
    for index in np.ndindex(POLICY.shape):
        ends = []
        for sign in (1.0, -1.0):
            moved = POLICY.astype(np.float64)
            moved[index] += sign * step
            ends.append(np.mean(exact_reval(moved, REFERENCE, GRADED) ** 2))
        np.testing.assert_allclose(gradient[index], (ends[0] - ends[1]) / (2 * step), rtol=0, atol=2e-5)


# --- the minimizer


def exact_minimizer(prompt: int, reward: np.ndarray, beta: float) -> tuple[np.ndarray, float]:
    """(pi_ref e^(r / beta) / Z over a prompt's trajectories, log Z), in float64."""
    chosen = WORLD.prompt == prompt
    log_weight = WORLD.exact_log_prob(REFERENCE)[chosen] + reward[chosen].astype(np.float64) / beta
    log_z = exact_logsumexp(log_weight)
    return np.exp(log_weight - log_z), log_z


@pytest.mark.parametrize("reward", [BINARY, GRADED], ids=["binary", "graded"])
@pytest.mark.parametrize("counts", ["even", "uneven"])
def test_gradient_descent_reaches_the_tilted_reference_and_the_log_partition_function(reward: np.ndarray, counts: str):
    """Holds for every distribution of trajectories with full support: the data need not come from the policy."""
    times = np.ones(WORLD.size, int) if counts == "even" else 1 + np.arange(WORLD.size) % 4
    rows = np.repeat(np.arange(WORLD.size), times)

    def loss_of(logits: jax.Array) -> jax.Array:
        return objective.bellman_loss(reval_of(logits, REFERENCE, reward)[rows])

    gradient_of = jax.grad(loss_of)
    trained = jax.jit(
        lambda logits: jax.lax.fori_loop(0, 6000, lambda _, logits: logits - 0.5 * gradient_of(logits), logits)
    )(REFERENCE)

    probability = np.exp(WORLD.exact_log_prob(np.asarray(trained)))
    value_gap = WORLD.exact_soft_value(np.asarray(trained)) - WORLD.exact_soft_value(REFERENCE)
    for prompt in range(NUM_PROMPTS):
        expected, log_z = exact_minimizer(prompt, reward, BETA)
        np.testing.assert_allclose(probability[WORLD.prompt == prompt], expected, rtol=0, atol=1e-4)
        np.testing.assert_allclose(value_gap[WORLD.prompt == prompt], log_z, rtol=0, atol=1e-4)
    assert float(loss_of(trained)) < 1e-7 < 1e-2 < float(loss_of(REFERENCE))


# --- GRPO


@pytest.mark.parametrize("advantage_of", [objective.group_advantage, objective.group_normalized_reward])
def test_at_ratio_one_the_gradient_of_grpo_is_the_token_mean_policy_gradient(advantage_of):
    advantage = advantage_of(BINARY, WORLD.prompt)

    def loss_of(logits: jax.Array) -> jax.Array:
        behaviour = WORLD.token_log_prob(POLICY)
        clips = {"clip_low": 0.2, "clip_high": 0.28, "clip_dual": 3.0}
        return objective.grpo_loss(WORLD.token_log_prob(logits), behaviour, advantage, WORLD.mask, **clips)

    loss, gradient = jax.value_and_grad(loss_of)(POLICY)
    weight = np.asarray(advantage, np.float64)
    num_tokens = WORLD.mask.sum()
    policy_gradient = np.sum(weight[:, None, None] * WORLD.log_prob_jacobian(POLICY), axis=0) / num_tokens
    assert np.abs(policy_gradient).max() > 0.01
    np.testing.assert_allclose(-gradient, policy_gradient, rtol=0, atol=1e-6)
    np.testing.assert_allclose(loss, -(weight * WORLD.mask.sum(axis=1)).sum() / num_tokens, rtol=0, atol=1e-6)


# --- batches


def test_unequal_micro_batches_add_up_to_the_gradient_of_the_whole_batch():
    whole = jax.grad(lambda logits: objective.bellman_loss(reval_of(logits, REFERENCE, GRADED)))(POLICY)
    total = np.zeros_like(POLICY)
    for start, stop in ((0, 1), (1, 6), (6, 14)):

        def part_of(logits: jax.Array, start: int = start, stop: int = stop) -> jax.Array:
            residual = reval_of(logits, REFERENCE, GRADED)[start:stop]
            return objective.bellman_loss(residual, num_trajectories=WORLD.size)

        total += np.asarray(jax.grad(part_of)(POLICY))
    np.testing.assert_allclose(total, whole, rtol=0, atol=1e-6 * np.abs(whole).max())
