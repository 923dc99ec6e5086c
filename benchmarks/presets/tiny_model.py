"""A Llama of 0.4 million parameters that answers sums, wrongly as often as it was taught to; made in a minute on two cores."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import transformers

from benchmarks.testbed import supervised
from reval_jax import model, weights

CHARACTERS = "0123456789+-="
WRONG = 0.6
"""Share of the taught answers that are a random number instead of the right one."""
STEPS, BATCH, LENGTH = 600, 256, 10


def make(directory: Path, *, seed: int = 0) -> Path:
    """Teaches the model by supervised learning and writes it as a Hugging Face directory, unless it is there already."""
    if directory.exists():
        return directory
    tokenizer = supervised.tokenizer(CHARACTERS)
    architecture = model.Architecture(
        vocab_size=len(tokenizer),
        width=128,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_size=32,
        mlp_width=384,
        rope_theta=10000.0,
        rope_scaling=None,
        norm_eps=1e-6,
        qkv_bias=False,
        qk_norm=False,
        tied_head=True,
        max_positions=64,
        family="llama",
    )
    params = _taught(architecture, tokenizer, seed)
    weights.export(directory, architecture, params, tokenizer, eos_token_ids=(tokenizer.eos_token_id,), dtype="float32")
    return directory


def _examples(
    tokenizer: transformers.PreTrainedTokenizerBase, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens i32[BATCH, LENGTH] of `a+b=c<eos>` and `a-b=c<eos>`, and which of them are answers."""
    tokens, is_answer = np.zeros((BATCH, LENGTH), np.int32), np.zeros((BATCH, LENGTH), np.bool_)
    for row in range(BATCH):
        one, other = sorted(rng.integers(0, 10, 2).tolist(), reverse=True)
        sign = "+-"[rng.integers(2)]
        right = one + other if sign == "+" else one - other
        if sign == "+" and rng.integers(2):
            one, other = other, one
        answer = right if rng.random() >= WRONG else int(rng.integers(0, 19))
        prompt, response = (tokenizer(text)["input_ids"] for text in (f"{one}{sign}{other}=", str(answer)))
        whole = [*prompt, *response, tokenizer.eos_token_id]
        tokens[row, : len(whole)] = whole
        is_answer[row, len(prompt) : len(whole)] = True
    return tokens, is_answer


def _taught(
    architecture: model.Architecture, tokenizer: transformers.PreTrainedTokenizerBase, seed: int
) -> model.Params:
    optimizer = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 3e-3, STEPS // 12, STEPS))
    positions = jnp.broadcast_to(jnp.arange(LENGTH, dtype=jnp.int32), (BATCH, LENGTH))

    def loss(params: model.Params, tokens: jax.Array, is_answer: jax.Array) -> jax.Array:
        hidden = model.hidden_states(
            architecture, params, tokens, positions, jnp.ones_like(tokens), compute_dtype=jnp.float32
        )
        logits = hidden[:, :-1] @ model.head(architecture, params, compute_dtype=jnp.float32)
        errors = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return jnp.sum(errors * is_answer[:, 1:]) / jnp.sum(is_answer)

    @jax.jit
    def step(
        params: model.Params, state: optax.OptState, tokens: jax.Array, is_answer: jax.Array
    ) -> tuple[model.Params, optax.OptState]:
        updates, state = optimizer.update(jax.grad(loss)(params, tokens, is_answer), state, params)
        return optax.apply_updates(params, updates), state

    params = model.init_params(architecture, jax.random.key(seed))
    state, rng = optimizer.init(params), np.random.default_rng(seed)
    for _ in range(STEPS):
        params, state = step(params, state, *_examples(tokenizer, rng))
    return jax.device_get(params)
