"""Responses are exact: what is drawn, what is recorded of it, and what it does not depend on."""

from __future__ import annotations

import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies
from support import hf_checkpoints, responses, tiny_programs

from reval_jax import config as config_lib
from reval_jax import keys, mesh, model, sampler, weights
from reval_jax.sampler import sampling_op, scheduler
from reval_jax.sampler import steps as sampler_programs
from reval_jax.tools.plan import compilation as plan_programs
from reval_jax.tools.plan import topology

PROMPTS = tiny_programs.prompts((5, 6, 7), (8, 9, 10, 11, 12, 13, 14), (15, 16), (17, 18, 19, 20, 21))
LONG_PROMPTS = tiny_programs.prompts(*(tuple(range(5, 5 + size)) for size in (3, 125, 140, 250)))  # over several blocks
ATTENTION = {"batched": model.cache.batched, "per_row": model.cpu.per_row}  # over the cache
STOPS = tuple(range(0, 320, 40))  # some of the vocabulary, so that responses end at many lengths


def engine_of(tiny, *, slots=8, limit=8, window=3, cache="compute", prompt_tokens=16, layers="auto", attention="auto"):
    engine = sampler.make(
        tiny.architecture,
        mesh.local(tiny.mesh),
        compute_dtype=tiny.config.model.compute_dtype,
        max_prompt_tokens=prompt_tokens,
        max_response_tokens=limit,
        decode_slots=slots,
        decode_window=window,
        cache=cache,
    )
    kernels = engine.kernels
    if layers == "stacked":  # as on TPU and GPU
        plain = model.kernels.PLAIN
        kernels = kernels._replace(linear=plain.linear, mlp_axes=plain.mlp_axes, layout=plain.layout)
    if attention != "auto":
        kernels = kernels._replace(attend_cached=ATTENTION[attention])
    return dataclasses.replace(engine, kernels=kernels)


def generate(
    tiny,
    *,
    prompts=PROMPTS,
    samples=3,
    sampling=None,
    key=None,
    finished=None,
    should_stop=None,
    on_finished=None,
    max_tokens=None,
    **engine,
):
    built = engine_of(tiny, **engine)
    params = sampler.sync_weights(tiny.params, built)
    sampled = sampler.generate(
        built,
        params,
        prompts,
        keys.named_key(0, "test") if key is None else key,
        samples_per_prompt=samples,
        sampling=sampling or sampler.Sampling(stop_ids=(2,)),
        max_tokens=max_tokens,
        finished=finished,
        hooks=sampler.Hooks(on_finished=on_finished, should_stop=should_stop or (lambda: False)),
    )
    return responses.flat(sampled)


def assert_same(found, expected):
    for name, one, other in zip(found._fields, found, expected, strict=True):
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


def test_in_bfloat16_the_samplers_copy_computes_what_the_learners_parameters_do():
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
    """Any order of admission, any slots filled or left empty, any window, with the same parameters, slots and devices."""
    tiny = tiny_programs.tiny()
    expected = generate(tiny, samples=4, slots=6, sampling=sampler.Sampling(stop_ids=STOPS))
    requests = data.draw(strategies.permutations([(prompt, sample) for prompt in range(4) for sample in range(4)]))
    engine = engine_of(tiny, slots=6, window=data.draw(strategies.sampled_from((1, 3, 8))))
    rng = np.random.default_rng(data.draw(strategies.integers(0, 2**32)))

    def choose(free):
        if len(free) == engine.decode_slots:
            return rng.permutation(free)[: rng.integers(1, len(free) + 1)]
        return rng.permutation(free)[: rng.integers(0, len(free) + 1)]

    windows = scheduler.run(
        engine,
        sampler.sync_weights(tiny.params, engine),
        PROMPTS,
        requests,
        keys.named_key(0, "test"),
        sampler_programs.sampling_params(1.0, 0, 1.0),
        stop_ids=sampler_programs.padded_stop_ids(STOPS),
        max_tokens=np.full((4, 4), 8),
        should_stop=lambda: False,
        choose_slots=choose,
    )
    found = {}
    for made in windows:
        for new in made:
            found.setdefault((new.prompt, new.sample), []).append(new)
    assert len(found) == 16
    for index, (tokens, log_prob) in enumerate(zip(*responses_of(expected), strict=True)):
        parts = found[int(expected.prompt[index]), int(expected.sample[index])]
        np.testing.assert_array_equal(np.concatenate([part.tokens for part in parts]), tokens)
        np.testing.assert_array_equal(np.concatenate([part.log_prob for part in parts]), log_prob)


def test_a_cut_round_goes_on_from_its_finished_responses_bit_for_bit():
    tiny = tiny_programs.tiny()
    settings = {"samples": 6, "slots": 4, "sampling": sampler.Sampling(stop_ids=STOPS)}
    expected = generate(tiny, **settings)
    kept = {}

    def keep(responses):
        kept.update({(response.prompt, response.sample): response for response in responses})

    with pytest.raises(sampler.Interrupted):
        generate(tiny, **settings, on_finished=keep, should_stop=lambda: len(kept) > 6)
    assert 6 < len(kept) < 24
    assert_same(generate(tiny, **settings, finished=kept), expected)
    assert_same(generate(tiny, **settings, finished={}), expected)


@pytest.mark.slow
def test_draws_depend_on_neither_slots_nor_company():
    tiny = tiny_programs.tiny()
    whole = generate(tiny, samples=4, slots=16)
    for slots in (3, 8):
        np.testing.assert_array_equal(generate(tiny, samples=4, slots=slots).tokens, whole.tokens)
    alone = generate(tiny, samples=4, prompts=tiny_programs.prompts((8, 9, 10, 11, 12, 13, 14), first_cursor=1))
    mine = whole.prompt == 1
    np.testing.assert_array_equal(
        np.concatenate([part for part, use in zip(responses_of(whole)[0], mine, strict=True) if use]), alone.tokens
    )


def test_each_response_is_cut_at_its_own_limit_and_is_the_longer_ones_beginning():
    tiny = tiny_programs.tiny()
    limits = np.random.default_rng(0).integers(1, 9, (4, 3))
    whole, cut = generate(tiny, slots=4), generate(tiny, slots=4, max_tokens=limits)
    for mine, all_of_it, limit in zip(responses_of(cut)[0], responses_of(whole)[0], limits.reshape(-1), strict=True):
        np.testing.assert_array_equal(mine, all_of_it[:limit])


def test_stacked_layers_sample_what_unrolled_layers_do():
    tiny = tiny_programs.tiny()
    assert engine_of(tiny).kernels.layout is model.cpu.UNROLLED  # on CPU
    unrolled, stacked = generate(tiny), generate(tiny, layers="stacked")
    np.testing.assert_array_equal(stacked.tokens, unrolled.tokens)
    np.testing.assert_allclose(stacked.log_prob, unrolled.log_prob, atol=1e-5)


@pytest.mark.parametrize("layers", ["stacked", "auto"])
def test_attention_per_row_samples_what_all_rows_together_do(layers):
    """Prompts on both sides of a block's end, over which responses go on; fewer slots than responses."""
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
    """How far one row of logits is from drawing the second token in place of the first, by two-level Gumbel-max in float64."""
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


def test_every_first_divergence_lies_within_rounding_of_a_boundary(monkeypatch):
    """The same random bits on other slots and in another dtype, whose rounding is large enough to see draws differ."""
    architecture = hf_checkpoints.tiny_architecture(vocab_size=1001)
    real_sample_token, seen = sampling_op.sample_token, []

    def sample_token(row_keys, logits, sampling, *, axis=None):
        def record(words, rows):
            seen[-1].update(
                {tuple(word): row for word, row in zip(words.tolist(), np.asarray(rows, np.float64), strict=True)}
            )

        jax.debug.callback(record, jax.random.key_data(row_keys), logits)
        return real_sample_token(row_keys, logits, sampling, axis=axis)

    monkeypatch.setattr(sampling_op, "sample_token", sample_token)
    rollouts = []
    for dtype, slots in (("float32", 16), ("bfloat16", 8)):
        tiny = tiny_programs.tiny(architecture=architecture, model={"compute_dtype": dtype})
        seen.append({})
        rollouts.append(generate(tiny, samples=64, slots=slots, limit=16, sampling=sampler.Sampling()))
        jax.effects_barrier()
    found = list(first_divergences(rollouts))
    assert len(found) >= 3
    for prompt, sample, place, tokens in found:
        key = keys.named_key(0, "test")
        for number in (prompt, sample, place):
            key = jax.random.fold_in(key, int(number))
        one, other = (logits[tuple(jax.random.key_data(key).tolist())].astype(np.float64) for logits in seen)
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


def test_fifty_rounds_of_other_prompts_and_settings_compile_nothing_after_the_first():
    tiny = tiny_programs.tiny()
    engine = engine_of(tiny)
    params = sampler.sync_weights(tiny.params, engine)
    rng = np.random.default_rng(0)

    def play(round, sampling, max_tokens=None):
        asked = tiny_programs.prompts(*(tuple(rng.integers(4, 300, rng.integers(1, 17))) for _ in range(3)))
        key = keys.named_key(0, "rounds", round)
        return sampler.generate(
            engine, params, asked, key, samples_per_prompt=2, sampling=sampling, max_tokens=max_tokens
        )

    play(0, sampler.Sampling())
    before, live = sampler.num_programs(engine), None
    for round in range(1, 50):
        top_k, stops = int(rng.integers(0, 9)), tuple(rng.integers(0, 320, rng.integers(0, 16)).tolist())
        max_tokens = int(rng.integers(1, 9))
        made = play(round, sampler.Sampling(rng.uniform(0.3, 2), top_k, rng.uniform(0.2, 1), stops), max_tokens)
        assert max(len(response.tokens) for response in made) <= max_tokens
        if round == 1:
            live = len(jax.live_arrays())
    assert sampler.num_programs(engine) == before
    assert len(jax.live_arrays()) <= live


def test_a_prompt_is_prefilled_once_for_all_its_samples(monkeypatch):
    prefilled = []
    real = sampler_programs.of

    def counting(engine):
        found = real(engine)
        return found._replace(
            prefill=lambda params, tokens: (prefilled.append(tokens), found.prefill(params, tokens))[1]
        )

    monkeypatch.setattr(sampler_programs, "of", counting)
    long = tiny_programs.prompts(*(tuple(range(4, 4 + length)) for length in (100, 90, 3, 5)))
    generate(tiny_programs.tiny(), prompts=long, samples=12, slots=4, prompt_tokens=112)
    # Four prompts in 48 responses: each long one alone at its own width, the short ones together.
    assert [tokens.shape for tokens in prefilled] == [(1, 112), (1, 96), (8, 16)]


def test_one_prefill_costs_what_its_samples_cost_together():
    """FLOPs as the compiler counts them: prefill is of one prompt, whatever the number of samples, and makes no logits."""
    tiny = tiny_programs.tiny(architecture=hf_checkpoints.tiny_architecture(vocab_size=50_000))
    engine = engine_of(tiny, prompt_tokens=1024)
    flops = sampler.lower_prefill(engine, 1024).compile().cost_analysis()["flops"]
    arch = tiny.architecture
    layer = 2 * arch.width * arch.head_size * (arch.num_heads + arch.num_kv_heads) + 3 * arch.width * arch.mlp_width
    products = 2 * 1024 * arch.num_layers * layer
    scores = 4 * 1024**2 * arch.num_layers * arch.num_heads * arch.head_size
    assert products < flops < products + 2 * scores
    assert flops < 2 * 1024 * arch.width * arch.vocab_size


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"slots": 6}, "multiple of 4, for example 8"),
        ({"slots": 4}, "two or more for each. Use a multiple of 4, for example 8"),
    ],
)
def test_slots_that_do_not_divide_over_the_devices_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        engine_of(tiny_programs.tiny(data=2, fsdp=2), **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt_tokens": 6}, "prompt 1 has 7 tokens; the sampler was made for 1 to 6"),
        ({"max_tokens": 9}, "max_tokens=9"),
        ({"sampling": sampler.Sampling(stop_ids=tuple(range(17)))}, "17 token ids"),
    ],
)
def test_what_the_engine_was_not_made_for_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        generate(tiny_programs.tiny(), **changes)


def test_an_int8_cache_draws_nearly_the_same():
    tiny = tiny_programs.tiny()
    exact, rounded = generate(tiny, samples=8), generate(tiny, samples=8, cache="int8")
    # First tokens are drawn from prompts alone; where both drew the same, their log-probabilities differ, and little.
    first = np.cumsum(exact.length) - exact.length, np.cumsum(rounded.length) - rounded.length
    is_same = exact.tokens[first[0]] == rounded.tokens[first[1]]
    gap = np.abs(exact.log_prob[first[0]] - rounded.log_prob[first[1]])[is_same]
    assert is_same.mean() > 0.8
    assert 0 < gap.max() < 0.05


def test_an_engine_can_be_told_apart_by_each_of_its_settings():
    engine = engine_of(tiny_programs.tiny())
    assert sampler_programs.of(engine) is sampler_programs.of(dataclasses.replace(engine))
    assert sampler_programs.of(engine) is not sampler_programs.of(dataclasses.replace(engine, decode_window=5))


# --- on many devices -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", ["stacked", "auto"])
@pytest.mark.parametrize("attention", ["batched", "per_row"])
def test_a_window_on_many_devices_sends_sums_and_gathers_nothing(layers, attention):
    tiny = tiny_programs.tiny(data=2, fsdp=2, tensor=2)
    engine = engine_of(tiny, slots=16, prompt_tokens=200, layers=layers, attention=attention)
    text = sampler.lower_window(engine).compile().as_text()
    assert set(plan_programs.count_collectives(text)) == {"all-reduce"}


@pytest.mark.slow
@pytest.mark.parametrize("slice_name", ["v5e:2x2", "v5p:2x2x1"])
def test_prefill_and_decode_of_the_7b_models_layers_compile_for_a_tpu(v5e, slice_name):
    """Two of its layers, in its widths and with its vocabulary, split over the four chips of a host."""
    del v5e  # skips where there is no compiler
    seven = dataclasses.replace(weights.published.ARCHITECTURES["Qwen/Qwen2.5-Math-7B"], num_layers=2)
    pod = plan_programs.open_pod(topology.named(slice_name))
    engine = sampler.make(
        seven,
        mesh.local(mesh.make(config_lib.Mesh(tensor=4), pod.devices)),
        compute_dtype="bfloat16",
        max_prompt_tokens=1024,
        max_response_tokens=8192,
        decode_slots=16,
        decode_window=16,
    )
    assert engine.kernels == model.kernels.PLAIN._replace(attend=model.attention.splash.attend)
    for lowered in (sampler.lower_prefill(engine, 1024), sampler.lower_window(engine)):
        found = plan_programs.measure(lambda lowered=lowered: lowered.compile(plan_programs.LEAST_EFFORT))
        assert isinstance(found, plan_programs.Measured)
        assert set(found.collectives) <= {"all-reduce"}
    # The slots' cache is written in place.
    assert found.aliased >= 2 * 2 * 16 * 9216 * seven.head_size * 2
