"""The sampler of a tiny model for tests: its engine, and responses to a few prompts."""

from __future__ import annotations

import dataclasses
import functools

from reval_jax import keys, mesh, model, sampler
from reval_jax.model.attention import decode_triton
from support import responses, tiny_programs

PROMPTS = tiny_programs.prompts((5, 6, 7), (8, 9, 10, 11, 12, 13, 14), (15, 16), (17, 18, 19, 20, 21))
LONG_PROMPTS = tiny_programs.prompts(*(tuple(range(5, 5 + size)) for size in (3, 125, 140, 250)))  # over several blocks
ATTENTION = {"batched": model.cache.batched, "per_row": model.cpu.per_row}  # over the cache
# The decode kernel as plain JAX. One object: engines with the same kernels share programs.
INTERPRETED = functools.partial(decode_triton.attend, interpret=True)
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
    if layers == "gpu":
        is_split = tiny.architecture.num_kv_heads % engine.mesh.shape["tensor"] == 0
        kernels = model.kernels.gpu_sampler(model.attention.xla.attend, fuses_heads=is_split)
        kernels = kernels._replace(attend_cached=INTERPRETED)
    if layers == "stacked":  # as on TPU
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
