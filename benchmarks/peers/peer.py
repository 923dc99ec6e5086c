"""What every trainer is timed on, and how it is asked for one update at a time.

Imported by each trainer's process in that trainer's own environment, so it needs nothing but Python and NumPy.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from typing import TextIO

import numpy as np


@dataclasses.dataclass(frozen=True)
class Shape:
    """A Llama with a tied head, and one batch; SmolLM2-135M's and the paper's layout of prompt and response."""

    vocab_size: int = 49152  # rows of the embedding
    width: int = 576  # size of the residual stream
    num_layers: int = 30  # decoder layers
    num_heads: int = 9  # query heads
    num_kv_heads: int = 3  # key/value heads
    head_size: int = 64  # numbers a head
    mlp_width: int = 1536  # hidden size of the gated feed-forward
    rope_theta: float = 100000.0  # base of the RoPE wavelengths
    norm_eps: float = 1e-5  # added to the mean square in RMSNorm
    rows: int = 16  # trajectories of the batch
    prompt_tokens: int = 16  # tokens of each prompt
    response_tokens: int = 112  # tokens of each response: what the loss is over

    @property
    def row_tokens(self) -> int:
        """Tokens of a trajectory: every row is full."""
        return self.prompt_tokens + self.response_tokens

    @property
    def batch_tokens(self) -> int:
        """Tokens of the batch, prompts included: what tokens per second are counted in."""
        return self.rows * self.row_tokens

    @property
    def parameters(self) -> int:
        """Numbers to train: the tied embedding once, the layers, the final norm."""
        attention = self.width * self.head_size * (2 * self.num_heads + 2 * self.num_kv_heads)
        layer = attention + 3 * self.width * self.mlp_width + 2 * self.width
        return self.vocab_size * self.width + self.num_layers * layer + self.width


TINY = Shape(vocab_size=512, width=48, num_layers=2, num_heads=3, num_kv_heads=1, head_size=16, mlp_width=64, rows=4)
"""Seconds instead of minutes: shows that every trainer runs, and says nothing about speed."""

LEARNING_RATE = 1e-6
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0


def tokens(shape: Shape) -> np.ndarray:
    """The batch, i32[rows, row_tokens]: the same random ids for every trainer; none is 0, which some take for padding."""
    rng = np.random.default_rng(0)
    return rng.integers(4, shape.vocab_size, (shape.rows, shape.row_tokens)).astype(np.int32)


def rewards(shape: Shape) -> np.ndarray:
    """f32[rows] of 0 and 1, half of each."""
    return (np.arange(shape.rows) % 2).astype(np.float32)


def num_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def arguments() -> tuple[Shape, str]:
    """The shape and the dtype this process was started for: `DTYPE SHAPE-AS-JSON`."""
    return Shape(**json.loads(sys.argv[2])), sys.argv[1]


def private_stdout() -> TextIO:
    """The stream to the parent; whatever a library prints from now on goes to stderr, so as not to be taken for an answer."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def serve(
    answers: TextIO, update: Callable[[], float], *, parameters: int, packages: Iterable[str], notes: Iterable[str]
) -> None:
    """Says what this trainer is, then makes one update for each line on stdin and answers its time and loss.

    Args:
      answers: from `private_stdout`.
      update: makes one update, waits for its end, and returns the loss.
      parameters: numbers it trains.
      packages: distributions whose versions identify the trainer.
      notes: in what it differs from the others, one sentence each.
    """

    def answer(record: dict[str, object]) -> None:
        print(json.dumps(record), file=answers, flush=True)

    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
    answer({"parameters": parameters, "versions": versions, "notes": list(notes)})
    for _ in sys.stdin:
        start, processor_start = time.perf_counter(), time.process_time()
        loss = update()
        seconds, processor_seconds = time.perf_counter() - start, time.process_time() - processor_start
        answer({"seconds": seconds, "processor_seconds": processor_seconds, "loss": loss})
