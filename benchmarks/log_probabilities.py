"""Measures how far the sampler's log-probabilities are from the learner's on the real SmolLM2-135M, by dtype and cache.

    python -m benchmarks.log_probabilities         # downloads the demo's model unless it is there; minutes on two cores

Both compute the same policy, the sampler token by token with a cache, the learner in whole rows. Prints quantiles of
|sampler - learner| in nats, for single tokens and for sums over a response, which the loss uses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.testbed import smollm2
from reval_jax import algorithms, batch, keys, mesh, policy, sampler, trajectories, types, weights
from reval_jax import config as config_lib
from reval_jax.tools import demo

QUESTIONS = ("2+2=", "Q: What is 5 times 5?\nA:", "The capital of France is")
SAMPLES, TOKENS = 16, 32
CASES: tuple[tuple[str, sampler.CacheSetting], ...] = (
    ("float32", "compute"),
    ("float32", "int8"),
    ("bfloat16", "compute"),
    ("bfloat16", "int8"),
)
QUANTILES = (0.5, 0.9, 0.99, 1.0)


def main() -> None:
    """Prints a table."""
    smollm2.make()
    loaded = weights.load(str(Path(demo.MODEL)))
    print(f"{'dtype':<10}{'cache':<9}{'of':<11}" + "".join(f"{f'{q:.0%}':>10}" for q in QUANTILES))
    for dtype, cache in CASES:
        gaps = measure(loaded, dtype, cache)
        for name, values in gaps.items():
            cells = "".join(f"{value:>10.1e}" for value in np.quantile(values, QUANTILES))
            print(f"{dtype:<10}{cache:<9}{name:<11}{cells}", flush=True)


def measure(loaded: Any, dtype: str, cache: sampler.CacheSetting) -> dict[str, np.ndarray]:
    """|sampler - learner| of every token, and of the sum over every response."""
    num = len(QUESTIONS) * SAMPLES
    config = config_lib.from_tree(
        {
            "model": {"path": "SmolLM2", "compute_dtype": dtype},
            "task": {"dataset": "questions", "max_prompt_tokens": 32},
            "rollout": {
                "prompts_per_round": len(QUESTIONS),
                "samples_per_prompt": SAMPLES,
                "max_response_tokens": TOKENS,
            },
            "replay": {"capacity": num},
            "update": {"batch_size": num},
        }
    )
    devices = mesh.make(config.mesh)
    params = mesh.put(loaded.params, mesh.replicated(devices))
    engine = sampler.make(
        loaded.architecture,
        mesh.local(devices),
        compute_dtype=dtype,
        max_prompt_tokens=32,
        max_response_tokens=TOKENS,
        decode_slots=num,
        decode_window=16,
        cache=cache,
    )
    order = np.arange(len(QUESTIONS))
    ids = tuple(np.array(loaded.tokenizer(text)["input_ids"], np.int32) for text in QUESTIONS)
    prompts = types.Prompts(order, order, QUESTIONS, ids, ("",) * len(QUESTIONS))
    responses = sampler.generate(
        engine,
        sampler.sync_weights(params, engine),
        prompts,
        keys.named_key(0, "log_probabilities"),
        samples_per_prompt=SAMPLES,
        sampling=sampler.Sampling(stop_ids=loaded.eos_token_ids),
    )
    verdicts = types.Verdicts(np.zeros(num, np.float32), np.ones(num, np.int8), ("",) * num)
    algorithm = algorithms.choose(config)
    sampled = trajectories.join(prompts, responses, verdicts, round=0, policy_version=0, config=config)
    packed = batch.pack(sampled, devices, limits=algorithms.limits(config, algorithm))

    @jax.jit
    def score(params: Any, rows: batch.Batch) -> policy.PolicyScores:
        micro_batch = batch.micro_batch(rows, 0)
        return policy.score(loaded.architecture, params, micro_batch, temperature=1.0, compute_dtype=dtype)

    scores = jax.device_get(score(params, packed))
    gap = np.where(scores.response_mask, scores.log_prob - np.asarray(packed.behaviour_log_prob[0]), 0.0)
    slot = np.asarray(packed.slot[0])
    sums = [gap[row][slot[row] == index].sum() for row in range(gap.shape[0]) for index in np.unique(slot[row])]
    return {"token": np.abs(gap[scores.response_mask]), "response": np.abs([value for value in sums if value])}


if __name__ == "__main__":
    main()
