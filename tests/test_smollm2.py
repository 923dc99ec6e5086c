"""The sampler and the learner agree on the real model, token by token."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_programs

from reval_jax import batch, keys, mesh, model, policy, sampler, types, weights
from reval_jax import trajectories as trajectories_lib
from reval_jax.model import cache as cache_lib
from reval_jax.sampler import sampling_op

PROMPTS = ("2+2=", "1+1=", "Q: What is 5 times 5?\nA: 5 times 5 is")


@pytest.mark.slow
def test_sampling_log_probabilities_are_the_learners_in_float32(smollm2):
    loaded = weights.load(str(smollm2))
    config = tiny_programs.settings(
        rollout={"prompts_per_round": 3, "samples_per_prompt": 16, "max_response_tokens": 12, "decode_slots": 48},
        update={"batch_size": 48},
        replay={"capacity": 48},
    )
    devices = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), mesh.AXES)
    params = mesh.put(loaded.params, mesh.replicated(devices))
    engine = sampler.make(
        loaded.architecture,
        mesh.local(devices),
        compute_dtype="float32",
        max_prompt_tokens=32,
        max_response_tokens=12,
        decode_slots=32,
        decode_window=5,
    )
    requests = tiny_programs.prompts(*(tuple(loaded.tokenizer(text)["input_ids"]) for text in PROMPTS))
    responses = sampler.generate(
        engine,
        sampler.sync_weights(params, engine),
        requests,
        keys.named_key(0, "test"),
        samples_per_prompt=16,
        sampling=sampler.Sampling(stop_ids=loaded.eos_token_ids),
    )
    verdicts = types.Verdicts(np.zeros(48, np.float32), np.ones(48, np.int8), ("",) * 48)
    trajectories = trajectories_lib.join(
        requests,
        responses,
        verdicts,
        round=0,
        policy_version=0,
        config=config,
    )
    packed = batch.pack(trajectories, devices, limits=tiny_programs.limits(config))
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
    assert gap.size == sum(len(response.tokens) for response in responses)
    assert (gap <= 1e-4).mean() >= 0.999
    assert gap.max() <= 1e-3


@pytest.mark.slow
def test_other_slots_change_logits_by_rounding_and_only_draws_within_it(smollm2, capsys):
    """Teacher-forced decoding with 48 and with 16 slots: the difference of logits, and the share of draws that differ."""
    loaded = weights.load(str(smollm2))
    tokens = jnp.asarray(
        [(loaded.tokenizer(text)["input_ids"] * 8)[:24] for text in PROMPTS * 16], jnp.int32
    )  # 48 rows

    @jax.jit
    def last_logits(params, rows):
        cache = model.prefill(
            loaded.architecture,
            params,
            jnp.pad(rows, ((0, 0), (0, cache_lib.BLOCK - rows.shape[1]))),
            compute_dtype="float32",
            cache_dtype="float32",
        )
        positions = jnp.full(rows.shape[0], rows.shape[1] - 1)
        hidden, _ = model.decode(loaded.architecture, params, cache, rows[:, -1], positions, compute_dtype="float32")
        return hidden @ model.head(loaded.architecture, params, compute_dtype="float32")

    # At temperature 3 the distribution is flat enough for draws to fall near boundaries.
    together = last_logits(loaded.params, tokens) / 3
    apart = jnp.concatenate([last_logits(loaded.params, tokens[first : first + 16]) / 3 for first in (0, 16, 32)])
    error = float(jnp.abs(together - apart).max())
    assert 3 * error <= 5e-4

    def two_level(key, logits):
        params = sampling_op.SamplingParams(np.float32(1), np.int32(0), np.float32(1))
        return sampling_op.sample_token(jax.random.split(key, logits.shape[0]), logits, params).token

    def gumbel_max(key, logits):
        return jax.random.categorical(key, logits)

    def inverse_cdf(key, logits):
        mass = jnp.cumsum(jax.nn.softmax(logits), axis=1)
        return jnp.sum(mass < jax.random.uniform(key, (logits.shape[0], 1)) * mass[:, -1:], axis=1)

    num_keys, rates = 40, {}
    for draw in (two_level, gumbel_max, inverse_cdf):
        both = jax.jit(lambda key, one, other, draw=draw: jnp.sum(draw(key, one) != draw(key, other)))
        differing = sum(int(both(keys.named_key(0, "divergence", index), together, apart)) for index in range(num_keys))
        rates[draw.__name__] = differing / (num_keys * len(tokens))
    with capsys.disabled():
        print(f"\nlogits differ by up to {error:.1e}; draws that differ, of {num_keys * len(tokens)}: {rates}")
    # Draws differ only if two candidates are within the error of each other, with a probability of a few times the error.
    assert rates["two_level"] <= 20 * error
    assert rates["gumbel_max"] <= 20 * error
