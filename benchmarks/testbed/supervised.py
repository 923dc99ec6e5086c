"""Supervised learning of a small Llama over single characters: a plain optax loop."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers

from reval_jax import model

PAD, EOS = "<pad>", "<eos>"
CHARACTERS = string.digits + "+-*=,.;:<>()? abcd"
"""The vocabulary beside PAD and EOS: 30 symbols in all."""

VERSION = 2
PEAK_RATE = 3e-3  # learning rate after warm-up
LARGEST_NORM = 1.0  # of the gradient; without it, other machines' rounding ends at another model


class Example(NamedTuple):
    """A question and the answer that is taught; only the answer's tokens and the end are learned."""

    question: str
    answer: str


def tokenizer(characters: str = CHARACTERS) -> transformers.PreTrainedTokenizerBase:
    """One token per character, behind PAD and EOS."""
    vocabulary = {token: index for index, token in enumerate([PAD, EOS, *characters])}
    built = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    built.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    built.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=built, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False
    )


def arrays(examples: Sequence[Example], length: int, characters: str = CHARACTERS) -> tuple[np.ndarray, np.ndarray]:
    """Tokens i32[n, length] of questions with their answers and the end token, and bool[n, length], which are answers."""
    ids = {character: index for index, character in enumerate(characters, start=2)}
    tokens, is_answer = np.zeros((len(examples), length), np.int32), np.zeros((len(examples), length), np.bool_)
    for row, (question, answer) in enumerate(examples):
        whole = [*(ids[character] for character in question + answer), 1]
        tokens[row, : len(whole)] = whole
        is_answer[row, len(question) : len(whole)] = True
    return tokens, is_answer


def teach(
    architecture: model.Architecture,
    draw: Callable[[np.random.Generator, int, float], Sequence[Example]],
    *,
    steps: int,
    batch: int,
    length: int,
    seed: int,
    log: Callable[[str], None],
    characters: str = CHARACTERS,
    largest_norm: float = LARGEST_NORM,
) -> model.Params:
    """The parameters after `steps` of AdamW on what `draw(generator, batch, share of the steps done)` returns.

    Args:
      length: tokens of the longest example, its end token included.
      characters: of the tokenizer.
      largest_norm: to which the gradient is clipped.
    """
    schedule = optax.warmup_cosine_decay_schedule(0.0, PEAK_RATE, steps // 12, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(largest_norm), optax.adamw(schedule))

    @jax.jit
    def step(
        params: model.Params, state: optax.OptState, tokens: jax.Array, is_answer: jax.Array
    ) -> tuple[model.Params, optax.OptState, jax.Array]:
        def loss(params: model.Params) -> jax.Array:
            errors = -_log_probs(architecture, params, tokens)
            return jnp.sum(errors * is_answer[:, 1:]) / jnp.sum(is_answer)

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    params = model.init_params(architecture, jax.random.key(seed))
    state, generator = optimizer.init(params), np.random.default_rng(seed)
    for index in range(steps):
        examples = draw(generator, batch, index / steps)
        params, state, value = step(params, state, *arrays(examples, length, characters))
        if (index + 1) % max(1, steps // 10) == 0:
            log(f"  step {index + 1} of {steps}: {float(value):.3f} nats per token")
    return jax.device_get(params)


def probabilities(architecture: model.Architecture, params: model.Params, examples: Sequence[Example]) -> np.ndarray:
    """The probability of each example's answer and end, f64[n]."""
    length = max(len(question) + len(answer) for question, answer in examples) + 1
    tokens, is_answer = arrays(examples, length)
    log_probs = jax.jit(lambda params, tokens: _log_probs(architecture, params, tokens))(params, tokens)
    return np.exp((np.asarray(log_probs, np.float64) * is_answer[:, 1:]).sum(axis=1))


def _log_probs(architecture: model.Architecture, params: model.Params, tokens: jax.Array) -> jax.Array:
    """f32[n, length - 1]: of each token but the first, given those before it."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    hidden = model.hidden_states(
        architecture, params, tokens, positions, jnp.ones_like(tokens), compute_dtype=jnp.float32
    )
    logits = hidden[:, :-1] @ model.head(architecture, params, compute_dtype=jnp.float32)
    return -optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
