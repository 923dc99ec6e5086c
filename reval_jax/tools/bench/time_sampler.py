"""Times generation: tokens per second at fixed and log-normal lengths, time of each part, and the machine's roofline."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reval_jax import batch, keys, mesh, model, sampler, timing, types, work
from reval_jax import config as config_lib
from reval_jax.sampler import sampling_op
from reval_jax.sampler import steps as steps_lib
from reval_jax.tools.bench import time_update

CachedAttention = Literal["auto", "batched", "per_row", "whole", "triton"]
CACHED_ATTENTION: dict[str, tuple[model.cache.Attend, bool]] = {
    "batched": (model.cache.batched, True),
    "per_row": (model.cpu.per_row, True),
    "whole": (model.cache.whole, False),
    "triton": (model.attention.decode_triton.attend, False),
}
"""Implementations of decode attention by name, and whether the keys' positions come last; "auto" keeps the platform's."""


class Workload(NamedTuple):
    """Numbers and lengths of prompts and responses."""

    prompts: int  # prompts per run; twice as many at log-normal lengths
    samples: int  # responses per prompt
    prompt_tokens: int  # tokens of a prompt
    response_tokens: int  # tokens of a response; the mean at log-normal lengths, whose longest is four times that


def make_engine(
    workload: Workload,
    architecture: model.Architecture,
    *,
    dtype: str,
    slots: int,
    window: int,
    lengths: str,
    **engine: Any,
) -> sampler.Engine:
    """The engine for one case, on all of this program's devices."""
    return sampler.make(
        architecture,
        mesh.make_meshes(config_lib.Mesh()).sampler,
        compute_dtype=dtype,
        max_prompt_tokens=workload.prompt_tokens,
        max_response_tokens=workload.response_tokens * (4 if lengths == "lognormal" else 1),
        decode_slots=slots,
        decode_window=window,
        **engine,
    )


def response_lengths(workload: Workload, lengths: str) -> np.ndarray:
    """i32[prompts, samples]: the prescribed length of each response, since random weights give no meaningful lengths."""
    if lengths == "fixed":
        return np.full((workload.prompts, workload.samples), workload.response_tokens, np.int32)
    longest = 4 * workload.response_tokens
    num = 2 * workload.prompts * workload.samples
    sampled = time_update.lognormal_lengths(time_update.Workload(-(-num // 4), longest, 0))[:num]
    return sampled.reshape(2 * workload.prompts, workload.samples).astype(np.int32)


def random_prompts(workload: Workload, num: int, vocabulary: int) -> types.Prompts:
    """Random prompts, all of the same length."""
    tokens = np.random.default_rng(2).integers(0, vocabulary, (num, workload.prompt_tokens)).astype(np.int32)
    order = np.arange(num, dtype=np.int64)
    return types.Prompts(order, order, ("",) * num, tuple(tokens), ("",) * num)


def run(
    architecture: model.Architecture,
    workload: Workload,
    *,
    dtypes: tuple[str, ...],
    slots: tuple[int, ...],
    lengths: tuple[str, ...],
    window: int,
    caches: tuple[sampler.CacheSetting, ...],
    attentions: tuple[CachedAttention, ...],
    repeats: int,
    on_case: Callable[[types.Json], None],
) -> types.Json:
    """All combinations of the arguments, and a description of the machine."""
    cases = []
    learner = mesh.make(config_lib.Mesh())
    params = jax.jit(model.init_params, static_argnums=0, out_shardings=mesh.replicated(learner))(
        architecture, jax.random.key(0, impl="threefry2x32")
    )
    for dtype, cache, attention, num_slots, kind in itertools.product(dtypes, caches, attentions, slots, lengths):
        engine = make_engine(
            workload,
            architecture,
            dtype=dtype,
            slots=num_slots,
            window=window,
            lengths=kind,
            cache=cache,
        )
        engine = dataclasses.replace(engine, kernels=_with_attention(engine.kernels, attention))
        case = measure(engine, sampler.sync_weights(params, engine), workload, kind, repeats=repeats)
        on_case(case)
        cases.append(case)
    return {"machine": timing.machine(), "shape": workload._asdict(), "cases": cases}


def _with_attention(kernels: model.Kernels, attention: CachedAttention) -> model.Kernels:
    """The kernels with the named attention over the cache, and a cache that it can read.

    Raises:
      ValueError: it is a kernel for GPUs and the engine's are another platform's.
    """
    if attention == "auto":
        return kernels
    attend, positions_last = CACHED_ATTENTION[attention]
    if attention == "triton" and kernels.attend_cached is not attend:
        raise ValueError("--attention triton is a kernel for GPUs, and there is none here. Leave it out.")
    if kernels.storage.positions_last != positions_last:
        kernels = kernels._replace(storage=model.cache.PLAIN if positions_last else model.cache.ROWS)
    return kernels._replace(attend_cached=attend)


def _attention_name(kernels: model.Kernels) -> str:
    return next(name for name, (attend, _) in CACHED_ATTENTION.items() if attend is kernels.attend_cached)


def measure(
    engine: sampler.Engine, params: model.Params, workload: Workload, lengths: str, *, repeats: int
) -> types.Json:
    """Times one case: whole runs, then each program alone.

    The roofline is a lower bound of the time of a decode step on this machine: its matrix products (`work.decode_step`) at the
    device's product rate, or its reads of weights and cache at its memory's rate, whichever takes longer. Both rates are the
    published ones, or, where none are known, measured between the runs (`timing.matmul`, `timing.memory`). A run above the
    roofline has null for its share, and a message in "refused".
    """
    limits = response_lengths(workload, lengths)
    prompts = random_prompts(workload, len(limits), engine.architecture.vocab_size)
    windows: list[int] = []

    def sample() -> list[types.Response]:
        windows.append(0)
        key = keys.named_key(0, "bench", len(windows))

        def count(_: list[sampler.Chunk]) -> None:
            windows[-1] += 1

        return sampler.generate(
            engine,
            params,
            prompts,
            key,
            samples_per_prompt=workload.samples,
            sampling=sampler.Sampling(),
            max_tokens=limits,
            hooks=sampler.Hooks(on_chunks=count),
        )

    start = time.perf_counter()
    sample()
    first = time.perf_counter() - start
    product, copy = timing.matmul(engine.compute_dtype), timing.memory()
    every = timing.interleaved({"run": sample, "matmul": product.call, "memory": copy.call}, repeats=repeats)
    seconds = timing.medians(every) | _program_seconds(engine, params, workload, repeats)
    tokens, steps = int(limits.sum()), windows[-1] * engine.decode_window
    num_prefills = -(-len(limits) // engine.prefill_rows(batch.row_length(workload.prompt_tokens)))
    product_rate, memory_rate = product.rate(min(every["matmul"])), copy.rate(min(every["memory"]))
    peak = timing.peak_of(engine.compute_dtype, product_rate)
    published = timing.published()
    bandwidth = published.memory if published else memory_rate
    floor = step_floor(engine, params, workload.prompt_tokens + workload.response_tokens / 2, peak.flops, bandwidth)
    of_roofline = timing.share(tokens * floor / engine.decode_slots, seconds["run"], 1.0)
    is_possible = not math.isnan(of_roofline)
    prefill, decode = num_prefills * seconds["prefill"], windows[-1] * seconds["window"]
    return {
        "lengths": lengths,
        "dtype": engine.compute_dtype,
        "kv_cache": engine.cache,
        "attention": _attention_name(engine.kernels),
        "slots": engine.decode_slots,
        "window": engine.decode_window,
        "tokens": tokens,
        "tokens_per_s": tokens / seconds["run"],
        "slot_use": tokens / (steps * engine.decode_slots),
        "roofline_tokens_per_s": engine.decode_slots / floor,
        "of_roofline": of_roofline if is_possible else None,
        "refused": None if is_possible else timing.impossible("the rate of the run", peak.source),
        "matmul_peak_flops": product_rate,
        "memory_bytes_per_s": memory_rate,
        "peak": peak._asdict() | {"memory": bandwidth},
        "first_call_s": first,
        "compiled_programs": sampler.num_programs(engine),
        "seconds": {
            "run": seconds["run"],
            "prefill": prefill,
            "decode": decode,
            "of_it_sampling": steps * seconds["draw"],
            "host": max(0.0, seconds["run"] - prefill - decode),
            "decode_step": seconds["window"] / engine.decode_window,
        },
    }


def window_call(engine: sampler.Engine, params: model.Params, positions: int) -> Callable[[], Any]:
    """A function that decodes one window with every slot active at position `positions`, none of which reaches its limit."""
    compiled = steps_lib.compiled(engine)
    sampling, stop_ids = steps_lib.sampling_params(1.0, 0, 1.0), steps_lib.padded_stop_ids(())
    case = steps_lib.case(engine, sampling)
    start = np.full(engine.decode_slots, positions, np.int32)
    rows = engine.sharding("rows")
    state = [compiled.fresh()]

    def window() -> Any:
        state[0] = state[0]._replace(
            position=jax.device_put(start, rows),
            limit=jax.device_put(np.full_like(start, 2**30), rows),
            is_active=jax.device_put(np.ones(start.shape, bool), rows),
        )
        state[0], tokens = compiled.window(params, state[0], sampling, stop_ids, case)
        return tokens

    return window


def _program_seconds(
    engine: sampler.Engine, params: model.Params, workload: Workload, repeats: int
) -> dict[str, float]:
    """Seconds of one prefill, of one decode window halfway through the responses, and of sampling one token in all slots."""
    compiled = steps_lib.compiled(engine)
    width = batch.row_length(workload.prompt_tokens)
    tokens = np.zeros((engine.prefill_rows(width), width), np.int32)
    logits = jnp.zeros((engine.decode_slots, engine.architecture.vocab_size), jnp.float32)
    row_keys = jax.random.split(keys.named_key(0, "draws"), engine.decode_slots)
    sampling = steps_lib.sampling_params(1.0, 0, 1.0)
    sample_token = jax.jit(functools.partial(sampling_op.sample_token, case=steps_lib.case(engine, sampling)))
    candidates = {
        "prefill": lambda: compiled.prefill(params, tokens),
        "window": window_call(engine, params, workload.prompt_tokens + workload.response_tokens // 2),
        "draw": lambda: sample_token(row_keys, logits, sampling),
    }
    return timing.medians(timing.interleaved(candidates, repeats=repeats))


def step_floor(engine: sampler.Engine, params: model.Params, positions: float, peak: float, bandwidth: float) -> float:
    """Lower bound of the seconds of one decode step on the devices of one process, from products and from memory traffic."""
    architecture, devices = engine.architecture, engine.mesh.devices.size
    # A separate head means that the embedding table takes part in no product; without one the tied table is the head.
    embedding = architecture.vocab_size * architecture.width if "head" in params else 0
    leaves = jax.tree.leaves(params)
    used = sum(leaf.size for leaf in leaves) - embedding
    weight_bytes = sum(leaf.nbytes for leaf in leaves) * used / (used + embedding)
    cache_per_token = 2 * architecture.num_layers * architecture.num_kv_heads * architecture.head_size
    cache_bytes = engine.decode_slots * positions * cache_per_token * jnp.dtype(engine.cache_dtype).itemsize
    products = work.decode_step(architecture, rows=engine.decode_slots, positions=positions) / (peak * devices)
    return max(products, (weight_bytes * engine.row_shards + cache_bytes) / (bandwidth * devices))


def summary(case: types.Json) -> str:
    """Text of one case."""
    seconds, peak = case["seconds"], case["peak"]
    of_roofline = case["refused"] or f"{case['of_roofline']:.0%} of the roofline's {case['roofline_tokens_per_s']:.0f}"
    parts = ", ".join(f"{name} {seconds[name]:.2f}" for name in ("prefill", "decode", "host"))
    return (
        f"{case['lengths']} lengths, {case['dtype']}, {case['slots']} slots, cache {case['kv_cache']}, attention "
        f"{case['attention']}: "
        f"{case['tokens_per_s']:.1f} tokens/s, {of_roofline}\n"
        f"  {seconds['decode_step'] * 1e3:.3g} ms a decode step, slots in use {case['slot_use']:.0%}; {seconds['run']:.1f} s: "
        f"{parts}, {seconds['of_it_sampling']:.2f} of the decoding is sampling tokens\n"
        f"  products {case['matmul_peak_flops'] / 1e12:.3g} TFLOP/s, memory {case['memory_bytes_per_s'] / 1e9:.1f} GB/s, "
        f"roofline from {peak['source']} rates, "
        f"{case['compiled_programs']} programs, first run {case['first_call_s']:.0f} s"
    )
