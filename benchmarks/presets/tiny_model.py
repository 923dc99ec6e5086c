"""A Llama of 0.4 million parameters that answers sums, wrongly as often as it was taught to; made in a minute on two cores."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.testbed import supervised
from reval_jax import model, weights

CHARACTERS = "0123456789+-="
WRONG = 0.6
"""Share of the taught answers that are a random number instead of the right one."""
STEPS, BATCH, LENGTH = 600, 256, 10


def make(directory: Path, *, seed: int = 0, log: Callable[[str], None] = print) -> Path:
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
    params = supervised.teach(
        architecture,
        _draw,
        steps=STEPS,
        batch=BATCH,
        length=LENGTH,
        seed=seed,
        log=log,
        characters=CHARACTERS,
        largest_norm=math.inf,
    )
    weights.export(directory, architecture, params, tokenizer, eos_token_ids=(tokenizer.eos_token_id,), dtype="float32")
    return directory


def _draw(generator: np.random.Generator, count: int, progress: float) -> list[supervised.Example]:
    """Examples of `a+b=` and `a-b=`, the same all the time."""
    del progress
    examples = []
    for _ in range(count):
        one, other = sorted(generator.integers(0, 10, 2).tolist(), reverse=True)
        sign = "+-"[generator.integers(2)]
        right = one + other if sign == "+" else one - other
        if sign == "+" and generator.integers(2):
            one, other = other, one
        answer = right if generator.random() >= WRONG else int(generator.integers(0, 19))
        examples.append(supervised.Example(f"{one}{sign}{other}=", str(answer)))
    return examples
