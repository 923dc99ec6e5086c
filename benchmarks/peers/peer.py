"""The work that every trainer is timed on, and the protocol between the parent and a trainer's process.

The process of each trainer imports this module in its own environment, so it depends on Python and NumPy only.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, TextIO

import numpy as np


@dataclasses.dataclass(frozen=True)
class Shape:
    """Shape of a Llama with a tied head, and of the batch of an update. The defaults are SmolLM2-135M's."""

    vocab_size: int = 49152  # rows of the embedding
    width: int = 576  # size of the residual stream
    num_layers: int = 30  # decoder layers
    num_heads: int = 9  # query heads
    num_kv_heads: int = 3  # key/value heads
    head_size: int = 64  # dimensions of a head
    mlp_width: int = 1536  # hidden size of the gated feed-forward
    rope_theta: float = 100000.0  # base of the RoPE wavelengths
    norm_eps: float = 1e-5  # added to the mean square in RMSNorm
    rows: int = 16  # trajectories of the batch
    prompt_tokens: int = 16  # tokens of each prompt
    response_tokens: int = 112  # tokens of each response, over which the loss sums

    @property
    def row_tokens(self) -> int:
        """Tokens of a trajectory; every trajectory fills its row."""
        return self.prompt_tokens + self.response_tokens

    @property
    def batch_tokens(self) -> int:
        """Tokens of the batch, prompts included, by which tokens per second of an update are counted."""
        return self.rows * self.row_tokens

    @property
    def parameters(self) -> int:
        """Number of trained parameters: the tied embedding once, the layers, the final norm."""
        attention = self.width * self.head_size * (2 * self.num_heads + 2 * self.num_kv_heads)
        layer = attention + 3 * self.width * self.mlp_width + 2 * self.width
        return self.vocab_size * self.width + self.num_layers * layer + self.width

    def product_flops(self, rows: int) -> int:
        """FLOPs of the feed-forward product whose rate is measured for every trainer."""
        return 2 * rows * self.width * self.mlp_width


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Numbers and lengths of the sampled responses: all of one length ("fixed"), or of skewed lengths ("lognormal")."""

    slots: int = 64  # responses decoded simultaneously, and number of responses of fixed length
    samples: int = 8  # responses to each prompt
    prompt_tokens: int = 32  # tokens of each prompt
    fixed_tokens: int = 64  # tokens of each response of fixed length
    max_tokens: int = 256  # tokens of the longest response of skewed length; the mean is about a quarter of it
    skewed: int = 256  # number of responses of skewed length


class Requests(NamedTuple):
    """Prompts, and the prescribed lengths of the responses to them."""

    prompts: np.ndarray  # i32[prompts, prompt_tokens]
    lengths: np.ndarray  # i32[prompts, samples]
    max_tokens: int  # longest response that the cache has room for


class Job(NamedTuple):
    """The work of a trainer's process, ready to run."""

    # Each does its work, waits until it is finished, and returns results such as the loss.
    works: Mapping[str, Callable[[], dict[str, float]]]
    product: Callable[
        [], object
    ]  # multiplies f[rows, width] by f[width, mlp_width] in this trainer's library, and waits
    parameters: int  # number of the model's parameters
    packages: tuple[str, ...]  # distributions whose versions identify the trainer
    notes: tuple[str, ...]  # differences from the other trainers


SIZES: dict[str, tuple[Shape, Sampling]] = {
    "smollm2_135m": (Shape(), Sampling()),
    "tiny": (
        Shape(vocab_size=512, width=48, num_layers=2, num_heads=3, num_kv_heads=1, head_size=16, mlp_width=64, rows=4),
        Sampling(slots=8, samples=4, fixed_tokens=8, max_tokens=32, skewed=16),
    ),
}
"""Sizes by name. "tiny" takes seconds instead of minutes; it only shows that every trainer runs."""

LEARNING_RATE = 1e-6
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0


def tokens(shape: Shape) -> np.ndarray:
    """i32[rows, row_tokens]: the same random ids for every trainer, above 3 since some libraries read 0 as padding."""
    return _random_ids(shape, (shape.rows, shape.row_tokens))


def rewards(shape: Shape) -> np.ndarray:
    """f32[rows] of 0 and 1, half of each."""
    return (np.arange(shape.rows) % 2).astype(np.float32)


def requests(shape: Shape, sampling: Sampling) -> dict[str, Requests]:
    """The requests for each kind of lengths; the same for every trainer."""
    fixed = np.full(sampling.slots, sampling.fixed_tokens, np.int32)
    skewed = lognormal_lengths(sampling.skewed, sampling.max_tokens)
    return {
        name: Requests(
            _random_ids(shape, (lengths.size // sampling.samples, sampling.prompt_tokens)),
            lengths.reshape(-1, sampling.samples),
            max_tokens,
        )
        for name, lengths, max_tokens in (
            ("fixed", fixed, sampling.fixed_tokens),
            ("lognormal", skewed, sampling.max_tokens),
        )
    }


def lognormal_lengths(num: int, longest: int) -> np.ndarray:
    """i32[num]: log-normal lengths with a mean of about a quarter of the longest, as in `reval bench update`."""
    rng = np.random.default_rng(0)
    sigma = 0.7
    sampled = rng.lognormal(np.log(longest / 4) - sigma**2 / 2, sigma, num)
    lengths = np.clip(sampled.round().astype(np.int32), 1, longest)
    lengths[0] = longest
    return lengths


def num_tokens(work: str, shape: Shape, sampling: Sampling) -> int:
    """Tokens that count in the tokens per second of a work: those of the batch, or of the responses."""
    return shape.batch_tokens if work == "update" else int(requests(shape, sampling)[work].lengths.sum())


def batches(requests: Requests, slots: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(prompts i32[slots, prompt_tokens], lengths i32[slots]) in order, for a sampler without refilling."""
    prompts, lengths = np.repeat(requests.prompts, requests.lengths.shape[1], axis=0), requests.lengths.reshape(-1)
    return [(prompts[at : at + slots], lengths[at : at + slots]) for at in range(0, lengths.size, slots)]


def num_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def serve(*, update: Callable[[Shape, str], Job], sampler: Callable[[Shape, Sampling, str], Job]) -> None:
    """Prepares the job that the command line names, describes it, then does the work that each line of stdin names.

    The command line is `JOB DTYPE SIZE`. An answer is one line of JSON: the seconds of the work, the CPU seconds of all threads,
    the seconds of the product, and the results of the work.
    """
    answers = private_stdout()
    kind, dtype, size = sys.argv[1:]
    shape, sampling = SIZES[size]
    job = update(shape, dtype) if kind == "update" else sampler(shape, sampling, dtype)

    def answer(record: dict[str, object]) -> None:
        print(json.dumps(record), file=answers, flush=True)

    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in job.packages}
    answer({"parameters": job.parameters, "versions": versions, "notes": job.notes})
    for line in sys.stdin:
        work = job.works[line.strip()]
        start, processor_start = time.perf_counter(), time.process_time()
        results = work()
        seconds, processor_seconds = time.perf_counter() - start, time.process_time() - processor_start
        answer(
            {
                "seconds": seconds,
                "processor_seconds": processor_seconds,
                "product_seconds": fastest(job.product),
                **results,
            }
        )


def private_stdout() -> TextIO:
    """The stream to the parent. Redirects standard output to stderr, so that no library's output is read as an answer."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def fastest(call: Callable[[], object], repeats: int = 8) -> float:
    """Seconds of the fastest of `repeats` calls, after an untimed one."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _random_ids(shape: Shape, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(4, shape.vocab_size, size).astype(np.int32)
