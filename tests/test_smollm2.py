"""The sampler and the learner agree on the real model, token by token."""

from __future__ import annotations

import jax
import numpy as np
import programs
import pytest

from reval_jax import batch, collect, keys, mesh, policy, sampler, types, weights

PROMPTS = ("2+2=", "1+1=", "Q: What is 5 times 5?\nA: 5 times 5 is")


@pytest.mark.slow
def test_sampling_log_probabilities_are_the_learners_in_float32(smollm2):
    loaded = weights.load(str(smollm2))
    config = programs.settings(
        rollout={"prompts_per_round": 3, "samples_per_prompt": 16, "max_response_tokens": 12, "decode_slots": 48},
        update={"batch_size": 48},
        replay={"capacity": 48},
    )
    devices = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), mesh.AXES)
    params = mesh.put(loaded.params, mesh.replicated(devices))
    engine = sampler.make(
        loaded.architecture,
        devices,
        compute_dtype="float32",
        max_response_tokens=12,
        decode_slots=48,
        stop_ids=loaded.eos_token_ids,
    )
    asked = programs.prompts(*(tuple(loaded.tokenizer(text)["input_ids"]) for text in PROMPTS))
    rollout = sampler.generate(
        engine,
        sampler.hand_over(params, devices, engine),
        asked,
        keys.named_key(0, "test"),
        samples_per_prompt=16,
        sampling=sampler.Sampling(),
    )
    verdicts = types.Verdicts(np.zeros(48, np.float32), np.ones(48, np.int8))
    trajectories = collect.trajectories(asked, rollout, verdicts, round=0, policy_version=0, settings=config.update)
    packed = batch.pack(trajectories, devices, config=config)
    scores = jax.jit(
        lambda params, rows: policy.score(
            loaded.architecture,
            params,
            batch.micro_batch(rows, 0),
            temperature=1.0,
            compute_dtype="float32",
        )
    )(params, packed)
    gap = np.abs(np.asarray(scores.log_prob - packed.behaviour_log_prob[0]))[np.asarray(scores.response_mask)]
    assert gap.size == rollout.length.sum()
    assert (gap <= 1e-4).mean() >= 0.999
    assert gap.max() <= 1e-3
