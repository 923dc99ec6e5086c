"""Responses are exact: what is drawn, what is recorded of it, and what it does not depend on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest
import scipy.stats

from reval_jax import keys, model, sampler

PROMPTS = programs.prompts((5, 6, 7), (8, 9, 10, 11, 12, 13, 14), (15, 16), (17, 18, 19, 20, 21))


def engine_of(tiny, *, slots=8, limit=8, stop_ids=(2,)):
    return sampler.make(
        tiny.architecture,
        tiny.mesh,
        compute_dtype=tiny.config.model.compute_dtype,
        max_response_tokens=limit,
        decode_slots=slots,
        stop_ids=stop_ids,
    )


def generate(tiny, *, prompts=PROMPTS, samples=3, sampling=sampler.Sampling(), key=None, **engine):  # noqa: B008
    built = engine_of(tiny, **engine)
    params = sampler.hand_over(tiny.params, tiny.mesh, built)
    key = keys.named_key(0, "test") if key is None else key
    return sampler.generate(built, params, prompts, key, samples_per_prompt=samples, sampling=sampling)


def responses_of(rollout):
    cuts = np.cumsum(rollout.length)[:-1]
    return np.split(rollout.tokens, cuts), np.split(rollout.log_prob, cuts)


@pytest.mark.parametrize("family", ["llama", *(pytest.param(f, marks=pytest.mark.slow) for f in ("qwen2", "qwen3"))])
def test_recorded_log_probabilities_are_the_full_forwards(family):
    tiny = programs.tiny(family=family)
    temperature = 0.8
    rollout = generate(tiny, sampling=sampler.Sampling(temperature=temperature))
    for index, (tokens, log_prob) in enumerate(zip(*responses_of(rollout), strict=True)):
        prompt = PROMPTS.tokens[rollout.prompt[index]]
        logits = programs.full_logits(tiny.architecture, tiny.params, np.concatenate([prompt, tokens])) / temperature
        expected = programs.log_softmax(logits[len(prompt) - 1 : -1])[np.arange(len(tokens)), tokens]
        np.testing.assert_allclose(log_prob, expected, atol=1e-4)


def test_in_bfloat16_the_samplers_copy_computes_what_the_learners_parameters_do():
    tiny = programs.tiny(model={"compute_dtype": "bfloat16"})
    copy = sampler.hand_over(tiny.params, tiny.mesh, engine_of(tiny))
    tokens = jnp.asarray(np.arange(40, 56)[None], jnp.int32)

    @jax.jit
    def hidden(params):
        return model.hidden_states(
            tiny.architecture,
            params,
            tokens,
            jnp.arange(16, dtype=jnp.int32)[None],
            jnp.ones_like(tokens),
            compute_dtype="bfloat16",
        )

    np.testing.assert_array_equal(hidden(copy), hidden(tiny.params))


def test_a_rollout_is_in_prompt_and_sample_order():
    rollout = generate(programs.tiny(), samples=3, slots=4)
    np.testing.assert_array_equal(rollout.prompt, np.repeat(np.arange(4), 3))
    np.testing.assert_array_equal(rollout.sample, np.tile(np.arange(3), 4))
    assert rollout.tokens.size == rollout.length.sum()


def test_the_stop_token_is_the_last_action_and_only_a_cut_response_lacks_it():
    # A third of the vocabulary ends a response, so that both kinds are seen.
    stop_ids = tuple(range(0, 320, 12))
    rollout = generate(programs.tiny(), samples=8, stop_ids=stop_ids, slots=8)
    assert 0 < rollout.is_truncated.sum() < rollout.is_truncated.size
    for tokens, is_truncated in zip(responses_of(rollout)[0], rollout.is_truncated, strict=True):
        is_stop = np.isin(tokens, stop_ids)
        assert not is_stop[:-1].any()
        assert is_stop[-1] == (not is_truncated)
        assert len(tokens) == 8 or not is_truncated


@pytest.mark.slow
def test_draws_depend_on_neither_slots_nor_company():
    tiny = programs.tiny()
    whole = generate(tiny, samples=4, slots=16)
    for slots in (3, 8):
        np.testing.assert_array_equal(generate(tiny, samples=4, slots=slots).tokens, whole.tokens)
    alone = generate(tiny, samples=4, prompts=programs.prompts((8, 9, 10, 11, 12, 13, 14), first_cursor=1))
    mine = whole.prompt == 1
    np.testing.assert_array_equal(
        np.concatenate([part for part, use in zip(responses_of(whole)[0], mine, strict=True) if use]), alone.tokens
    )


def test_another_key_gives_other_responses_and_the_same_key_the_same():
    tiny = programs.tiny()
    first, again = generate(tiny), generate(tiny)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(generate(tiny, key=keys.named_key(1, "test")).tokens, first.tokens)


def test_samples_of_one_prompt_differ():
    tokens, _ = responses_of(generate(programs.tiny(), samples=8))
    assert len({tuple(part) for part in tokens[:8]}) > 4


@pytest.mark.slow
def test_responses_on_eight_devices_are_those_of_one():
    one = generate(programs.tiny(), samples=4, slots=16)
    many = generate(programs.tiny(data=2, fsdp=2, tensor=2), samples=4, slots=16)
    np.testing.assert_array_equal(many.tokens, one.tokens)
    np.testing.assert_allclose(many.log_prob, one.log_prob, atol=1e-4)


def test_settings_of_a_draw_compile_nothing():
    tiny = programs.tiny()
    generate(tiny)
    before = sampler._decode._cache_size()
    for sampling in (sampler.Sampling(0.5), sampler.Sampling(1.0, 5), sampler.Sampling(1.0, 0, 0.5)):
        generate(tiny, sampling=sampling, key=keys.named_key(3, "other"))
    assert sampler._decode._cache_size() == before


def test_a_prompt_is_prefilled_once_for_all_its_samples(monkeypatch):
    prefilled = []
    original = sampler._prefill
    monkeypatch.setattr(
        sampler,
        "_prefill",
        lambda params, tokens, lengths, **kw: (prefilled.append(tokens.shape), original(params, tokens, lengths, **kw))[
            1
        ],
    )
    generate(programs.tiny(), samples=12, slots=4)  # three decode programs a prompt
    assert prefilled == [(1, 16)] * 4


def test_slots_that_do_not_divide_over_the_devices_are_refused():
    with pytest.raises(ValueError, match="multiple of 4"):
        engine_of(programs.tiny(data=2, fsdp=2), slots=6)


# --- one draw --------------------------------------------------------------------------------------------------------


def draws(logits, n, sampling, seed=0):
    """n tokens from the same row of logits, and their log-probabilities."""
    row_keys = jax.random.split(keys.named_key(seed, "draws"), n)
    return jax.jit(
        lambda k: sampler.draw(k, jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (n, len(logits))), sampling)
    )(row_keys)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_softmax(temperature):
    logits = np.array([2.0, 1.0, 0.0, -1.0, 0.5, 1.0])
    tokens, log_prob = draws(logits, 20_000, sampler.Sampling(temperature=temperature))
    expected = programs.log_softmax(logits / temperature)
    counts = np.bincount(tokens, minlength=6)
    assert scipy.stats.chisquare(counts, 20_000 * np.exp(expected) / np.exp(expected).sum()).pvalue > 1e-3
    np.testing.assert_allclose(log_prob, expected[tokens], atol=1e-6)


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (sampler.Sampling(top_k=1), {0}),
        (sampler.Sampling(top_k=3), {0, 1, 5}),
        (sampler.Sampling(top_k=2), {0, 1}),  # tokens 1 and 5 tie: the lower id stays
        (sampler.Sampling(top_p=0.01), {0}),
        (sampler.Sampling(top_p=0.51), {0, 1}),  # token 0 holds 0.497
        (sampler.Sampling(top_k=3, top_p=0.99), {0, 1, 5}),
    ],
)
def test_truncation_keeps_exactly_the_tokens_it_says_and_the_whole_distributions_log_probability(sampling, kept):
    logits = np.array([2.0, 1.0, 0.0, -1.0, 0.5, 1.0])
    tokens, log_prob = draws(logits, 2_000, sampling)
    assert set(np.asarray(tokens).tolist()) == kept
    np.testing.assert_allclose(log_prob, programs.log_softmax(logits)[tokens], atol=1e-6)


def test_a_one_hot_row_always_gives_its_token():
    logits = np.full(50, -1e30)
    logits[31] = 0
    tokens, log_prob = draws(logits, 100, sampler.Sampling())
    assert set(np.asarray(tokens).tolist()) == {31}
    assert not np.any(log_prob)
