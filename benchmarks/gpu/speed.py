"""Speed of the score head, the update, a decode step and generation, by the functions of `reval bench`."""

from __future__ import annotations

import collections
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks.gpu.parts import Emit
from reval_jax import config as config_lib
from reval_jax import distributed, keys, mesh, model, sampler, timing, weights, work
from reval_jax.tools.bench import time_sampler, time_scores, time_update

MODEL = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
DTYPE = "bfloat16"


def architecture(is_small: bool) -> model.Architecture:
    """The 1.5B model's, or one of its family with a hundred thousand parameters."""
    found = weights.find_architecture(MODEL)[0]
    if not is_small:
        return found
    return dataclasses.replace(
        found, vocab_size=512, width=64, num_layers=2, num_heads=4, num_kv_heads=2, head_size=16, mlp_width=128
    )


def scores(is_small: bool, emit: Emit) -> None:
    """The score head against full logits."""
    distributed.start()
    tokens, vocabulary, width = (64, 512, 64) if is_small else (8192, 151936, 1536)
    time_scores.run(
        tokens=(tokens,),
        shapes=((vocabulary, width),),
        dtypes=(DTYPE,),
        repeats=5,
        most_bytes=_free_bytes(),
        on_case=emit,
    )


def _free_bytes() -> int:
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("bytes_limit", 4 * 2**30))


def update(is_small: bool, emit: Emit) -> None:
    """The update, with the remat policies that a user chooses between, on fixed and on log-normal lengths."""
    distributed.start()
    workload = time_update.Workload(2, 64, 8) if is_small else time_update.Workload(16, 2048, 256)
    rate = timing.measured_peak(DTYPE)
    for remat in ("dots", "full"):
        emit(_update(architecture(is_small), workload, remat, rate, repeats=1 if is_small else 2))


def _update(
    of: model.Architecture, workload: time_update.Workload, remat: str, rate: float, *, repeats: int
) -> dict[str, Any]:
    """Median seconds of an update, tokens/s and shares of the card's rate.

    Args:
      rate: measured FLOP/s of products.
    """
    config = time_update.make_config(workload, dtype=DTYPE, remat=remat, micro_batch_tokens=4 * workload.tokens)
    bench = time_update.make(of, config)
    trained = {
        kind: time_update.trajectories(lengths(workload), workload, of.vocab_size)
        for kind, lengths in (("fixed", time_update.fixed_lengths), ("lognormal", time_update.lognormal_lengths))
    }
    calls = {kind: time_update.update_call(bench, rows) for kind, rows in trained.items()}
    start = time.perf_counter()
    jax.block_until_ready(calls["fixed"]())
    first = time.perf_counter() - start
    seconds = timing.medians(timing.interleaved(calls, repeats=repeats))
    works = {kind: work.update_on(of, rows, remat=remat) for kind, rows in trained.items()}
    return {
        "dtype": DTYPE,
        "remat": remat,
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(bench.state[0].params)),
        "first_call_s": first,
        "seconds": seconds,
        "tokens_per_s": {kind: int(rows.length.sum()) / seconds[kind] for kind, rows in trained.items()},
        **time_update.use(works, seconds, timing.peak_of(DTYPE, rate), rate),
    }


def _params(of: model.Architecture) -> model.Params:
    init = jax.jit(model.init_params, static_argnums=0, out_shardings=mesh.replicated(mesh.make(config_lib.Mesh())))
    return init(of, jax.random.key(0, impl="threefry2x32"))


def decode(is_small: bool, emit: Emit) -> None:
    """One decode step by itself: its time, the least that the rates allow, and its kernels by the profiler."""
    distributed.start()
    of = architecture(is_small)
    params = _params(of)
    slots, window = (16, 4) if is_small else (256, 32)
    workload = time_sampler.Workload(1, 1, 16, 32) if is_small else time_sampler.Workload(1, 1, 512, 1024)
    positions = workload.prompt_tokens + workload.response_tokens // 2
    peak, rates, measured = timing.device_peak(DTYPE), timing.published(), _memory_rate()
    for cache, is_deterministic in (("compute", True), ("int8", True), ("compute", False)):
        engine = time_sampler.make_engine(
            workload,
            of,
            dtype=DTYPE,
            slots=slots,
            window=window,
            lengths="fixed",
            cache=cache,
            deterministic=is_deterministic,
        )
        copy = sampler.sync_weights(params, engine)
        call = time_sampler.window_call(engine, copy, positions - window // 2)
        seconds = min(timing.interleaved({"window": call}, repeats=3 if is_small else 5)["window"]) / window
        floor = time_sampler.step_floor(engine, copy, positions, peak.flops, rates.memory if rates else measured)
        emit(
            {
                "kv_cache": cache,
                "deterministic": is_deterministic,
                "attention": engine.kernels.attend_cached.__name__,
                "slots": slots,
                "positions": positions,
                "window": window,
                "seconds": seconds,
                "tokens_per_s": slots / seconds,
                "floor_s": floor,
                "measured_memory_bytes_per_s": measured,
                "kernels": _kernels(call, window),
            }
        )


def _memory_rate() -> float:
    """Bytes/s of the device's memory, measured; its array is freed."""
    memory = timing.memory()
    return memory.rate(min(timing.interleaved({"memory": memory.call}, repeats=3)["memory"]))


def _kernels(call: Callable[[], Any], steps: int) -> dict[str, Any] | None:
    """What ran on the device during one call, by the profiler, for each of its steps; None where it records no GPU."""
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            jax.block_until_ready(call())
        (file,) = Path(directory).rglob("*.xplane.pb")
        counts: collections.Counter[str] = collections.Counter()
        total: collections.Counter[str] = collections.Counter()
        planes = [each for each in jax.profiler.ProfileData.from_file(str(file)).planes if "GPU" in each.name]
        for plane in planes:
            for line in plane.lines:
                for event in line.events if line.name.startswith("Stream") else ():
                    counts[event.name] += 1
                    total[event.name] += event.duration_ns
    if not counts:
        return None
    return {
        "a_step": sum(counts.values()) / steps,
        "copies_to_host_a_step": sum(count for name, count in counts.items() if "D2H" in name) / steps,
        "busy_ms_a_step": sum(total.values()) / 1e6 / steps,
        "longest": [
            {"name": name[:120], "ms_a_step": duration / 1e6 / steps, "a_step": counts[name] / steps}
            for name, duration in total.most_common(12)
        ],
    }


def generate(is_small: bool, emit: Emit) -> None:
    """Generation: slots, lengths and caches, the most telling first."""
    distributed.start()
    of = architecture(is_small)
    params = _params(of)
    unit = 1 if is_small else 16
    peak, rates, measured = timing.device_peak(DTYPE), timing.published(), _memory_rate()
    cases = [
        (16, "fixed", "compute"),
        (16, "lognormal", "compute"),
        (16, "fixed", "int8"),
        (32, "fixed", "compute"),
        (4, "fixed", "compute"),
    ]
    for number, lengths, cache in cases:
        slots = unit * number
        prompt, response = (8, 8) if is_small else (256, 256)
        workload = time_sampler.Workload(max(1, slots // 8), 8, prompt, response)
        window = 4 if is_small else 64
        engine = time_sampler.make_engine(
            workload, of, dtype=DTYPE, slots=slots, window=window, lengths=lengths, cache=cache
        )
        copy = sampler.sync_weights(params, engine)
        first, seconds, tokens = _generated(engine, copy, workload, lengths)
        bandwidth = rates.memory if rates else measured
        floor = time_sampler.step_floor(engine, copy, prompt + response / 2, peak.flops, bandwidth)
        emit(
            {
                "lengths": lengths,
                "dtype": DTYPE,
                "kv_cache": cache,
                "attention": engine.kernels.attend_cached.__name__,
                "slots": slots,
                "window": window,
                "tokens": tokens,
                "seconds": seconds,
                "tokens_per_s": tokens / seconds,
                "roofline_tokens_per_s": slots / floor,
                "peak": peak._asdict() | {"memory": bandwidth},
                "measured_memory_bytes_per_s": measured,
                "first_call_s": first,
            }
        )


def _generated(
    engine: sampler.Engine, params: model.Params, workload: time_sampler.Workload, lengths: str
) -> tuple[float, float, int]:
    """Seconds of a first run, which compiles, and of a second; and the tokens of one."""
    limits = time_sampler.response_lengths(workload, lengths)
    prompts = time_sampler.random_prompts(workload, len(limits), engine.architecture.vocab_size)
    seconds = []
    for number in range(2):
        start = time.perf_counter()
        sampler.generate(
            engine,
            params,
            prompts,
            keys.named_key(0, "benchmark", number),
            samples_per_prompt=workload.samples,
            sampling=sampler.Sampling(),
            max_tokens=limits,
        )
        seconds.append(time.perf_counter() - start)
    return seconds[0], seconds[1], int(limits.sum())
