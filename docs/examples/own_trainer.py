"""The equations in another trainer, with only jax, reval_jax.objective and reval_jax.scores.

A policy with one state and six actions is a 1 x D hidden state times a D x V head. ReVal's loss on sampled actions trains it to
the closed-form minimizer: pi = pi_ref exp(r / beta) / Z, and V - V_ref = log Z.

    python docs/examples/own_trainer.py
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from reval_jax import objective, scores

BETA = 0.5
ACTIONS = 6
reward = jnp.array([0.0, 1.0, 0.0, 0.5, 0.0, 0.0])
reference_head = jax.random.normal(jax.random.key(0), (1, ACTIONS))
hidden = jnp.ones((1, 1))


def values(head: jax.Array, actions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns log pi(a) and V of each sampled action."""
    return scores.token_scores(jnp.broadcast_to(hidden, (actions.size, 1)), head, actions)


def loss(head: jax.Array, actions: jax.Array) -> jax.Array:
    """Eq. 2 of the paper on one-token trajectories."""
    log_prob, soft_value = values(head, actions)
    reference_log_prob, reference_value = values(reference_head, actions)
    residual = objective.reval_residual(
        soft_value, reference_value, log_prob, reference_log_prob, reward[actions], beta=BETA
    )
    return objective.bellman_loss(residual)


@jax.jit
def step(head: jax.Array, key: jax.Array) -> jax.Array:
    """One gradient step on actions of the current policy; actions of any other policy would also do, without a ratio."""
    actions = jax.random.categorical(key, (hidden @ head)[0], shape=(64,))
    return head - 0.1 * jax.grad(loss)(head, actions)


head = reference_head
for update in range(600):
    head = step(head, jax.random.fold_in(jax.random.key(1), update))

expected = jax.nn.softmax(reference_head[0] + reward / BETA)
learned = jax.nn.softmax(head[0])
log_z = jax.nn.logsumexp(jax.nn.log_softmax(reference_head[0]) + reward / BETA)
value_gap = jax.nn.logsumexp(head[0]) - jax.nn.logsumexp(reference_head[0])
print("pi        ", learned.round(3))
print("minimizer ", expected.round(3))
print(f"V - V_ref {value_gap:.3f}, log Z {log_z:.3f}")
if not (jnp.allclose(learned, expected, atol=1e-2) and abs(value_gap - log_z) < 1e-2):
    raise SystemExit("the minimizer was not reached")
