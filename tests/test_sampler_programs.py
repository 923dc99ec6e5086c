"""The sampler's compiled programs: their number, FLOPs, refusals and collectives."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from support import hf_checkpoints, tiny_programs
from support.tiny_sampler import engine_of, generate

from reval_jax import config as config_lib
from reval_jax import keys, mesh, model, sampler, weights
from reval_jax.sampler import steps
from reval_jax.tools.plan import compilation, topology


def test_fifty_rounds_of_other_prompts_and_settings_compile_nothing_after_the_first():
    tiny = tiny_programs.tiny()
    engine = engine_of(tiny)
    params = sampler.sync_weights(tiny.params, engine)
    rng = np.random.default_rng(0)

    def play(round, sampling, max_tokens=None):
        requests = tiny_programs.prompts(*(tuple(rng.integers(4, 300, rng.integers(1, 17))) for _ in range(3)))
        key = keys.named_key(0, "rounds", round)
        return sampler.generate(
            engine, params, requests, key, samples_per_prompt=2, sampling=sampling, max_tokens=max_tokens
        )

    play(0, sampler.Sampling())
    before, live = sampler.num_programs(engine), None
    for round in range(1, 50):
        top_k, stops = int(rng.integers(0, 9)), tuple(rng.integers(0, 320, rng.integers(0, 16)).tolist())
        max_tokens = int(rng.integers(1, 9))
        responses = play(round, sampler.Sampling(rng.uniform(0.3, 2), top_k, rng.uniform(0.2, 1), stops), max_tokens)
        assert max(len(response.tokens) for response in responses) <= max_tokens
        if round == 1:
            live = len(jax.live_arrays())
    assert sampler.num_programs(engine) == before
    assert len(jax.live_arrays()) <= live


def test_engines_whose_limits_need_the_same_cache_share_their_programs():
    """As an evaluation and a run do, whose longest prompts differ."""
    tiny = tiny_programs.tiny()
    one, other, longer = (engine_of(tiny, prompt_tokens=tokens) for tokens in (9, 16, 256))
    assert (one.max_prompt_tokens, other.max_prompt_tokens) == (9, 16)
    assert steps.compiled(one) is steps.compiled(other)
    assert steps.compiled(one) is not steps.compiled(longer)


def test_a_prompt_is_prefilled_once_for_all_its_samples(monkeypatch):
    prefilled = []
    real = steps.compiled

    def counting(engine):
        compiled = real(engine)
        return compiled._replace(
            prefill=lambda params, tokens: (prefilled.append(tokens), compiled.prefill(params, tokens))[1]
        )

    monkeypatch.setattr(steps, "compiled", counting)
    long = tiny_programs.prompts(*(tuple(range(4, 4 + length)) for length in (100, 90, 3, 5)))
    generate(tiny_programs.tiny(), prompts=long, samples=12, slots=4, prompt_tokens=112)
    # Four prompts in 48 responses: each long one alone at its own width, the short ones together.
    assert [tokens.shape for tokens in prefilled] == [(1, 112), (1, 96), (8, 16)]


def test_one_prefill_costs_what_its_samples_cost_together():
    """FLOPs as the compiler counts them: prefill computes each prompt once for all samples, and no logits."""
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
    ("changes", "message"),
    [
        ({"slots": 6}, "multiple of 4, for example 8"),
        ({"slots": 4}, "two or more for each. Use a multiple of 4, for example 8"),
    ],
)
def test_slots_that_do_not_divide_over_the_devices_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        engine_of(tiny_programs.tiny(data=2, fsdp=2), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_tokens": 6}, "prompt 1 has 7 tokens; the sampler takes 1 to 6"),
        ({"max_tokens": 9}, "max_tokens=9"),
        ({"sampling": sampler.Sampling(stop_ids=tuple(range(17)))}, "17 token ids"),
    ],
)
def test_requests_that_exceed_the_engine_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        generate(tiny_programs.tiny(), **changes)


def test_engines_that_differ_in_one_setting_have_separate_programs():
    engine = engine_of(tiny_programs.tiny())
    assert steps.compiled(engine) is steps.compiled(dataclasses.replace(engine))
    assert steps.compiled(engine) is not steps.compiled(dataclasses.replace(engine, decode_window=5))


@pytest.mark.parametrize("layers", ["stacked", "auto"])
@pytest.mark.parametrize("attention", ["batched", "per_row"])
def test_a_window_on_many_devices_communicates_only_sums(layers, attention):
    tiny = tiny_programs.tiny(data=2, fsdp=2, tensor=2)
    engine = engine_of(tiny, slots=16, prompt_tokens=200, layers=layers, attention=attention)
    text = sampler.lower_window(engine).compile().as_text()
    assert set(compilation.count_collectives(text)) == {"all-reduce"}


@pytest.mark.slow
@pytest.mark.parametrize("slice_name", ["v5e:2x2", "v5p:2x2x1"])
def test_prefill_and_decode_of_the_7b_models_layers_compile_for_a_tpu(v5e, slice_name):
    """Two layers of the 7B model, with its widths and vocabulary, split over the four chips of a host."""
    del v5e  # skips where there is no compiler
    seven = dataclasses.replace(weights.published.architecture("Qwen/Qwen2.5-Math-7B"), num_layers=2)
    pod = compilation.open_pod(topology.named(slice_name))
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
        result = compilation.measure(lambda lowered=lowered: compilation.compile_quickly(lowered))
        assert isinstance(result, compilation.ProgramMemory)
        assert set(result.collectives) <= {"all-reduce"}
    # The slots' cache is written in place.
    assert result.aliased >= 2 * 2 * 16 * 9216 * seven.head_size * 2


class _Lowered:
    """A lowered program on a jaxlib that refuses compiler options with this message."""

    def __init__(self, message):
        self.message = message

    def compile(self, options=None):
        if options:
            raise jax.errors.JaxRuntimeError(self.message)
        return "compiled"


def test_a_jaxlib_without_the_option_compiles_at_the_default_effort_and_no_other_error_is_hidden():
    assert compilation.compile_quickly(_Lowered("INVALID_ARGUMENT: No such compile option: 'x'")) == "compiled"
    with pytest.raises(jax.errors.JaxRuntimeError, match="out of memory"):
        compilation.compile_quickly(_Lowered("out of memory"))
