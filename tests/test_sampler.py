"""Responses are exact: their distribution, their recorded log-probabilities, and their independence of the schedule."""

from __future__ import annotations

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies
from support import hf_checkpoints, tiny_programs
from support.tiny_sampler import LONG_PROMPTS, PROMPTS, STOPS, engine_of, generate

from reval_jax import keys, model, sampler
from reval_jax.sampler import sampling_op, scheduler, steps


def assert_same(actual, expected):
    for name, one, other in zip(actual._fields, actual, expected, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)


def responses_of(rollout):
    cuts = np.cumsum(rollout.length)[:-1]
    return np.split(rollout.tokens, cuts), np.split(rollout.log_prob, cuts)


@pytest.mark.parametrize("family", ["llama", *(pytest.param(f, marks=pytest.mark.slow) for f in ("qwen2", "qwen3"))])
def test_recorded_log_probabilities_are_the_full_forwards(family):
    tiny = tiny_programs.tiny(family=family)
    temperature = 0.8
    rollout = generate(tiny, sampling=sampler.Sampling(temperature, stop_ids=(2,)))
    for index, (tokens, log_prob) in enumerate(zip(*responses_of(rollout), strict=True)):
        prompt = PROMPTS.tokens[rollout.prompt[index]]
        logits = (
            tiny_programs.full_logits(tiny.architecture, tiny.params, np.concatenate([prompt, tokens])) / temperature
        )
        expected = tiny_programs.log_softmax(logits[len(prompt) - 1 : -1])[np.arange(len(tokens)), tokens]
        np.testing.assert_allclose(log_prob, expected, atol=1e-4)


@pytest.mark.parametrize("tensor", [1, 2])
def test_recorded_mean_log_probabilities_are_those_of_the_state_that_each_token_was_sampled_from(tensor):
    tiny = tiny_programs.tiny(tensor=tensor)
    temperature = 0.8
    recording = sampler.Sampling(temperature, stop_ids=STOPS, records_mean_log_prob=True)
    rollout = generate(tiny, slots=4, sampling=recording)
    means = np.split(rollout.mean_log_prob, np.cumsum(rollout.length)[:-1])
    for index, (tokens, mean_log_prob) in enumerate(zip(responses_of(rollout)[0], means, strict=True)):
        prompt = PROMPTS.tokens[rollout.prompt[index]]
        logits = tiny_programs.full_logits(tiny.architecture, tiny.params, np.concatenate([prompt, tokens]))
        expected = tiny_programs.log_softmax(logits[len(prompt) - 1 : -1] / temperature).mean(axis=1)
        np.testing.assert_allclose(mean_log_prob, expected, atol=1e-4)


def test_recording_mean_log_probabilities_changes_nothing_else():
    tiny, recording = tiny_programs.tiny(), sampler.Sampling(0.8, stop_ids=STOPS, records_mean_log_prob=True)
    rollout = generate(tiny, slots=4, sampling=recording)
    plain = generate(tiny, slots=4, sampling=recording._replace(records_mean_log_prob=False))
    assert plain.mean_log_prob is None
    assert_same(plain, rollout._replace(mean_log_prob=None))


def test_in_bfloat16_the_samplers_copy_computes_the_same_as_the_learners_parameters():
    tiny = tiny_programs.tiny(model={"compute_dtype": "bfloat16"})
    copy = sampler.sync_weights(tiny.params, engine_of(tiny, layers="stacked"))
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
    rollout = generate(tiny_programs.tiny(), samples=3, slots=4)
    np.testing.assert_array_equal(rollout.prompt, np.repeat(np.arange(4), 3))
    np.testing.assert_array_equal(rollout.sample, np.tile(np.arange(3), 4))
    assert rollout.tokens.size == rollout.length.sum()


def test_the_stop_token_is_the_last_action_and_only_a_cut_response_lacks_it():
    stop_ids = tuple(range(0, 320, 20))
    rollout = generate(tiny_programs.tiny(), samples=8, sampling=sampler.Sampling(stop_ids=stop_ids), slots=8)
    assert 0 < rollout.is_truncated.sum() < rollout.is_truncated.size
    for tokens, is_truncated in zip(responses_of(rollout)[0], rollout.is_truncated, strict=True):
        is_stop = np.isin(tokens, stop_ids)
        assert not is_stop[:-1].any()
        assert is_stop[-1] == (not is_truncated)
        assert len(tokens) == 8 or not is_truncated


@pytest.mark.slow
@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(data=strategies.data())
def test_no_response_depends_on_the_schedule_bit_for_bit(data):
    """Any order of admission, filled slots and window give the same responses, with the same parameters, slots and devices."""
    tiny = tiny_programs.tiny()
    expected = generate(tiny, samples=4, slots=6, sampling=sampler.Sampling(stop_ids=STOPS))
    requests = data.draw(strategies.permutations([(prompt, sample) for prompt in range(4) for sample in range(4)]))
    engine = engine_of(tiny, slots=6, window=data.draw(strategies.sampled_from((1, 3, 8))))
    rng = np.random.default_rng(data.draw(strategies.integers(0, 2**32)))

    def choose(free):
        if len(free) == engine.decode_slots:
            return rng.permutation(free)[: rng.integers(1, len(free) + 1)]
        return rng.permutation(free)[: rng.integers(0, len(free) + 1)]

    job = scheduler.Job(
        engine,
        sampler.sync_weights(tiny.params, engine),
        PROMPTS,
        requests,
        keys.named_key(0, "test"),
        steps.sampling_params(1.0, 0, 1.0),
        steps.padded_stop_ids(STOPS),
        np.full((4, 4), 8),
    )
    actual = {}
    for chunks in scheduler.run(job, should_stop=lambda: False, choose_slots=choose):
        for chunk in chunks:
            actual.setdefault((chunk.prompt, chunk.sample), []).append(chunk)
    assert len(actual) == 16
    for index, (tokens, log_prob) in enumerate(zip(*responses_of(expected), strict=True)):
        parts = actual[int(expected.prompt[index]), int(expected.sample[index])]
        np.testing.assert_array_equal(np.concatenate([part.tokens for part in parts]), tokens)
        np.testing.assert_array_equal(np.concatenate([part.log_prob for part in parts]), log_prob)


def test_an_interrupted_round_continues_from_its_finished_responses_bit_for_bit():
    tiny = tiny_programs.tiny()
    settings = {"samples": 6, "slots": 4, "sampling": sampler.Sampling(stop_ids=STOPS)}
    expected = generate(tiny, **settings)
    finished_before = {}

    def keep(responses):
        finished_before.update({(response.prompt, response.sample): response for response in responses})

    with pytest.raises(sampler.Interrupted):
        generate(tiny, **settings, on_finished=keep, should_stop=lambda: len(finished_before) > 6)
    assert 6 < len(finished_before) < 24
    assert_same(generate(tiny, **settings, finished=finished_before), expected)
    assert_same(generate(tiny, **settings, finished={}), expected)


def test_tokens_on_the_host_are_passed_on_before_a_failure_in_the_next_window(monkeypatch):
    tiny = tiny_programs.tiny()
    engine = engine_of(tiny, slots=4)
    programs = steps.compiled(engine)
    calls = []

    def fails_later(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return programs.window(*arguments)

    monkeypatch.setattr(steps, "compiled", lambda engine: programs._replace(window=fails_later))
    job = scheduler.Job(
        engine,
        sampler.sync_weights(tiny.params, engine),
        PROMPTS,
        [(prompt, 0) for prompt in range(4)],
        keys.named_key(0, "test"),
        steps.sampling_params(1.0, 0, 1.0),
        steps.padded_stop_ids(()),
        np.full((4, 1), 8),
    )
    chunks = []
    with pytest.raises(RuntimeError, match="out of memory"):
        chunks.extend(chunk for window in scheduler.run(job, should_stop=lambda: False) for chunk in window)
    assert sorted(chunk.prompt for chunk in chunks) == [0, 1, 2, 3]
    assert all(len(chunk.tokens) == engine.decode_window for chunk in chunks)


@pytest.mark.slow
def test_draws_depend_on_neither_slots_nor_other_responses():
    tiny = tiny_programs.tiny()
    whole = generate(tiny, samples=4, slots=16)
    for slots in (3, 8):
        np.testing.assert_array_equal(generate(tiny, samples=4, slots=slots).tokens, whole.tokens)
    alone = generate(tiny, samples=4, prompts=tiny_programs.prompts((8, 9, 10, 11, 12, 13, 14), first_cursor=1))
    is_second = whole.prompt == 1
    np.testing.assert_array_equal(
        np.concatenate([part for part, use in zip(responses_of(whole)[0], is_second, strict=True) if use]), alone.tokens
    )


def test_a_response_cut_at_its_own_limit_is_a_prefix_of_the_longer_one():
    tiny = tiny_programs.tiny()
    limits = np.random.default_rng(0).integers(1, 9, (4, 3))
    whole, cut = generate(tiny, slots=4), generate(tiny, slots=4, max_tokens=limits)
    for short, all_of_it, limit in zip(responses_of(cut)[0], responses_of(whole)[0], limits.reshape(-1), strict=True):
        np.testing.assert_array_equal(short, all_of_it[:limit])


def test_stacked_and_unrolled_layers_sample_the_same():
    tiny = tiny_programs.tiny()
    assert engine_of(tiny).kernels.layout is model.cpu.UNROLLED  # on CPU
    unrolled, stacked = generate(tiny), generate(tiny, layers="stacked")
    np.testing.assert_array_equal(stacked.tokens, unrolled.tokens)
    np.testing.assert_allclose(stacked.log_prob, unrolled.log_prob, atol=1e-5)


@pytest.mark.parametrize("layers", ["stacked", "auto"])
def test_attention_per_row_and_batched_sample_the_same(layers):
    """Prompts end before and after a block boundary, which responses cross; there are fewer slots than responses."""
    tiny = tiny_programs.tiny()
    long = {"prompts": LONG_PROMPTS, "prompt_tokens": 256, "limit": 16, "layers": layers}
    assert engine_of(tiny, prompt_tokens=256).kernels.attend_cached is model.cpu.per_row  # on CPU
    assert engine_of(tiny).kernels.attend_cached is model.cache.batched  # for a single block
    per_row, batched = (generate(tiny, attention=name, **long) for name in ("per_row", "batched"))
    np.testing.assert_array_equal(per_row.tokens, batched.tokens)
    np.testing.assert_allclose(per_row.log_prob, batched.log_prob, atol=1e-5)


def first_divergences(rollouts):
    """(prompt, sample, position, both tokens) of each response that is not the same in both."""
    for index, (one, other) in enumerate(zip(*(responses_of(rollout)[0] for rollout in rollouts), strict=True)):
        length = min(len(one), len(other))
        differ = np.flatnonzero(one[:length] != other[:length])
        if differ.size:
            place = differ[0]
            yield rollouts[0].prompt[index], rollouts[0].sample[index], place, (one[place], other[place])


def boundary_gap(noise, logits, tokens):
    """Distance of a row of logits from sampling the second token instead of the first, by two-level Gumbel-max in float64."""
    log_probs = tiny_programs.log_softmax(logits)
    groups = np.arange(logits.size) // sampling_op.GROUP
    masses = np.array([np.log(np.exp(log_probs[groups == group]).sum()) for group in range(groups[-1] + 1)])
    by_group, by_token = (
        masses + noise[: masses.size],
        log_probs + noise[masses.size :][np.arange(logits.size) % sampling_op.GROUP],
    )
    if groups[tokens[0]] != groups[tokens[1]]:
        return by_group[groups[tokens[0]]] - by_group[groups[tokens[1]]]
    return by_token[tokens[0]] - by_token[tokens[1]]


def test_every_first_divergence_is_within_rounding_of_a_boundary(monkeypatch):
    """Uses the same random bits with other slots and in another dtype, whose rounding is large enough for draws to differ."""
    architecture = hf_checkpoints.tiny_architecture(vocab_size=1001)
    real_sample_token, logits_by_key = sampling_op.sample_token, []

    def sample_token(row_keys, logits, sampling, **static):
        def record(words, rows):
            logits_by_key[-1].update(
                {tuple(word): row for word, row in zip(words.tolist(), np.asarray(rows, np.float64), strict=True)}
            )

        jax.debug.callback(record, jax.random.key_data(row_keys), logits)
        return real_sample_token(row_keys, logits, sampling, **static)

    monkeypatch.setattr(sampling_op, "sample_token", sample_token)
    rollouts = []
    for dtype, slots in (("float32", 16), ("bfloat16", 8)):
        tiny = tiny_programs.tiny(architecture=architecture, model={"compute_dtype": dtype})
        logits_by_key.append({})
        rollouts.append(generate(tiny, samples=64, slots=slots, limit=16, sampling=sampler.Sampling()))
        jax.effects_barrier()
    actual = list(first_divergences(rollouts))
    assert len(actual) >= 3
    for prompt, sample, place, tokens in actual:
        key = keys.named_key(0, "test")
        for number in (prompt, sample, place):
            key = jax.random.fold_in(key, int(number))
        one, other = (logits[tuple(jax.random.key_data(key).tolist())].astype(np.float64) for logits in logits_by_key)
        error = np.abs(tiny_programs.log_softmax(one) - tiny_programs.log_softmax(other)).max()
        noise = np.asarray(jax.random.gumbel(key, (-(-one.size // sampling_op.GROUP) + sampling_op.GROUP,)), np.float64)
        assert 0 < error < 0.1
        assert -1e-5 <= boundary_gap(noise, one, tokens) <= 2 * error + 1e-5
        assert -1e-5 <= boundary_gap(noise, other, tokens[::-1]) <= 2 * error + 1e-5


def test_another_key_gives_other_responses_and_the_same_key_the_same():
    tiny = tiny_programs.tiny()
    first, again = generate(tiny), generate(tiny)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(generate(tiny, key=keys.named_key(1, "test")).tokens, first.tokens)


def test_samples_of_one_prompt_differ():
    tokens, _ = responses_of(generate(tiny_programs.tiny(), samples=8))
    assert len({tuple(part) for part in tokens[:8]}) > 4


@pytest.mark.slow
def test_responses_on_eight_devices_are_those_of_one():
    one = generate(tiny_programs.tiny(), samples=4, slots=16)
    many = generate(tiny_programs.tiny(data=2, fsdp=2, tensor=2), samples=4, slots=16)
    np.testing.assert_array_equal(many.tokens, one.tokens)
    np.testing.assert_allclose(many.log_prob, one.log_prob, atol=1e-4)


@pytest.mark.slow
def test_responses_of_several_blocks_on_eight_devices_are_those_of_one():
    long = {
        "prompts": LONG_PROMPTS,
        "prompt_tokens": 256,
        "limit": 16,
        "slots": 16,
        "samples": 4,
        "attention": "per_row",
    }
    one, many = (
        generate(tiny, **long) for tiny in (tiny_programs.tiny(), tiny_programs.tiny(data=2, fsdp=2, tensor=2))
    )
    np.testing.assert_array_equal(many.tokens, one.tokens)
    np.testing.assert_allclose(many.log_prob, one.log_prob, atol=1e-4)


def test_an_int8_cache_draws_nearly_the_same():
    tiny = tiny_programs.tiny()
    exact, rounded = generate(tiny, samples=8), generate(tiny, samples=8, cache="int8")
    # First tokens depend on the prompts only; where both are equal, their log-probabilities differ slightly.
    first = np.cumsum(exact.length) - exact.length, np.cumsum(rounded.length) - rounded.length
    is_same = exact.tokens[first[0]] == rounded.tokens[first[1]]
    gap = np.abs(exact.log_prob[first[0]] - rounded.log_prob[first[1]])[is_same]
    assert is_same.mean() > 0.8
    assert 0 < gap.max() < 0.05
