"""Times the whole update: tokens per second at fixed and skewed lengths, MFU, and the time that stored scores save."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from reval_jax import algorithms, batch, mesh, model, reference, replay, timing, types, update, work
from reval_jax import config as config_lib


class Workload(NamedTuple):
    """Number and lengths of the trained trajectories."""

    rows: int  # trajectories of the fixed-length batch; the skewed batch has four times as many
    tokens: int  # tokens of the longest trajectory
    prompt_tokens: int  # tokens of the prompt, part of `tokens`


class Bench(NamedTuple):
    """The compiled programs and arrays of one dtype and remat policy. Each update continues from the previous state."""

    config: config_lib.Config
    architecture: model.Architecture
    mesh: jax.sharding.Mesh
    step: jax.stages.Wrapped  # update.make_step
    score: reference.Scorer
    limits: batch.Limits
    state: list[update.TrainState]  # one item, since each update consumes (donates) the state
    reference: reference.Reference


def make_config(workload: Workload, *, dtype: str, remat: str, micro_batch_tokens: int) -> config_lib.Config:
    """ReVal with the paper's optimizer settings and a batch large enough for the skewed lengths."""
    size = 4 * workload.rows
    return config_lib.from_tree(
        {
            "model": {"path": "random", "compute_dtype": dtype, "remat": remat},
            "task": {"dataset": "random", "max_prompt_tokens": workload.prompt_tokens},
            "rollout": {
                "prompts_per_round": size,
                "samples_per_prompt": 1,
                "max_response_tokens": workload.tokens - workload.prompt_tokens,
            },
            "replay": {"capacity": size},
            "update": {"batch_size": size, "micro_batch_tokens": micro_batch_tokens},
        }
    )


def make(architecture: model.Architecture, config: config_lib.Config) -> Bench:
    """A bench with random parameters, sharded over fsdp on all devices."""
    devices = mesh.make(config.mesh)
    placement = jax.tree.map(lambda leaf: leaf.sharding, update.abstract_params(architecture, devices))
    params = jax.jit(model.init_params, static_argnums=0, out_shardings=placement)(
        architecture, jax.random.key(0, impl="threefry2x32")
    )
    optimizer, algorithm = update.make_optimizer(config.optimizer), algorithms.choose(config)
    return Bench(
        config,
        architecture,
        devices,
        update.make_step(architecture, devices, algorithm=algorithm, config=config),
        reference.make_scorer(architecture, devices, config=config),
        algorithms.limits(config, algorithm),
        [update.init(params, optimizer, devices)],
        reference.init(params, config=config),
    )


def fixed_lengths(workload: Workload) -> np.ndarray:
    """i64[rows]: every trajectory has the maximum length."""
    return np.full(workload.rows, workload.tokens)


def lognormal_lengths(workload: Workload) -> np.ndarray:
    """i64[4 * rows]: log-normal lengths with a mean of a quarter of the longest, as in reasoning tasks; deterministic."""
    rng = np.random.default_rng(0)
    sigma = 0.7
    sampled = rng.lognormal(np.log(workload.tokens / 4) - sigma**2 / 2, sigma, 4 * workload.rows)
    lengths = np.clip(sampled.round().astype(int), workload.prompt_tokens + 1, workload.tokens)
    lengths[0] = workload.tokens
    return lengths


def trajectories(lengths: np.ndarray, workload: Workload, vocabulary: int) -> types.Trajectories:
    """Trajectories of random tokens, scored by a reference with a uniform distribution over tokens."""
    rng = np.random.default_rng(1)
    num, response = lengths.size, (lengths - workload.prompt_tokens).astype(np.int32)
    per_token = np.float32(np.log(vocabulary))
    reward = rng.integers(0, 2, num).astype(np.float32)
    zeros = np.zeros(num, np.int32)
    return replay.completed(
        {
            "tokens": rng.integers(0, vocabulary, int(lengths.sum())).astype(np.int32),
            "log_prob": np.full(int(response.sum()), -per_token, np.float32),
            "prompt_length": np.full(num, workload.prompt_tokens, np.int32),
            "response_length": response,
            "is_truncated": np.zeros(num, bool),
            "raw_reward": reward,
            "reward": reward,
            "verdict": (1 - reward).astype(np.int8),
            "cursor": np.arange(num, dtype=np.int64),
            "sample": zeros,
            "round": zeros,
            "policy_version": zeros,
            "use_count": zeros,
            "reference_log_prob": -per_token * response.astype(np.float32),
            "reference_value": np.full(num, per_token, np.float32),
            "reference_version": zeros,
        }
    )


def update_call(
    bench: Bench, trajectories: types.Trajectories, packer: batch.Packer = batch.first_fit
) -> Callable[[], Any]:
    """A function that packs these trajectories and updates on them."""

    def call() -> Any:
        arrangement = batch.arrange(trajectories, bench.mesh, limits=bench.limits, packer=packer)
        packed = batch.pack(trajectories, bench.mesh, limits=bench.limits, arrangement=arrangement)
        bench.state[0], metrics, _ = bench.step(bench.state[0], packed)
        return bench.state[0], metrics

    return call


def score_call(bench: Bench, trajectories: types.Trajectories) -> Callable[[], Any]:
    """A function that moves the reference to the devices, packs these trajectories and scores them."""

    def call() -> Any:
        return reference.score(
            bench.score, reference.load(bench.reference), trajectories, bench.mesh, limits=bench.limits
        )

    return call


def run(
    architecture: model.Architecture,
    workload: Workload,
    *,
    dtypes: tuple[str, ...],
    remats: tuple[str, ...],
    micro_batch_tokens: int,
    repeats: int,
    on_case: Callable[[types.Json], None],
) -> types.Json:
    """All cases, and a description of the machine; times are medians of interleaved calls."""
    cases = []
    for dtype in dtypes:
        for remat in remats:
            config = make_config(workload, dtype=dtype, remat=remat, micro_batch_tokens=micro_batch_tokens)
            case = measure(make(architecture, config), workload, repeats=repeats)
            on_case(case)
            cases.append(case)
    return {"machine": timing.machine(), "shape": workload._asdict(), "cases": cases}


def measure(bench: Bench, workload: Workload, *, repeats: int) -> types.Json:
    """Times one dtype and remat policy.

    MFU = FLOPs of the products with weights / (seconds · devices · peak), by `work.update`: attention and what is computed a
    second time are given beside it and count as no use of the device. The peak is the device's published rate, or, where none is
    known, the rate of `timing.matmul`, the fastest of the calls between the updates. A case in which all products together would
    be above the peak has null for MFU and a message in "refused".
    """
    architecture, remat = bench.architecture, bench.config.model.remat
    dtype, vocabulary = bench.config.model.compute_dtype, architecture.vocab_size
    fixed = trajectories(fixed_lengths(workload), workload, vocabulary)
    skewed = trajectories(lognormal_lengths(workload), workload, vocabulary)
    update_fixed, score_fixed = update_call(bench, fixed), score_call(bench, fixed)
    start = time.perf_counter()
    jax.block_until_ready(update_fixed())
    first = time.perf_counter() - start
    product = timing.matmul(dtype)
    every = timing.interleaved(
        {
            "fixed": update_fixed,
            "fixed_scored_again": lambda: (score_fixed(), update_fixed()),
            "reference": score_fixed,
            "lognormal": update_call(bench, skewed),
            "lognormal_unpacked": update_call(bench, skewed, batch.one_per_row),
            "matmul": product.call,
        },
        repeats=repeats,
    )
    measured_rate = product.rate(min(every.pop("matmul")))
    seconds = timing.medians(every)
    rates = {
        kind: num_tokens / seconds[kind]
        for kind, num_tokens in (
            ("fixed", int(fixed.length.sum())),
            ("lognormal", int(skewed.length.sum())),
            ("lognormal_unpacked", int(skewed.length.sum())),
        )
    }
    works = {
        kind: work.update_on(architecture, trained, remat=remat)
        for kind, trained in (("fixed", fixed), ("lognormal", skewed))
    }
    return {
        "dtype": dtype,
        "remat": remat,
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(bench.state[0].params)),
        "first_call_s": first,
        "seconds": seconds,
        "tokens_per_s": rates,
        **use(works, seconds, timing.peak_of(dtype, measured_rate), measured_rate),
        "packed_over_unpacked": seconds["lognormal_unpacked"] / seconds["lognormal"],
        "stored_scores_save": (seconds["fixed_scored_again"] - seconds["fixed"]) / seconds["reference"],
        "replayed_over_scored_again": seconds["fixed_scored_again"] / seconds["fixed"],
    }


def use(
    works: dict[str, work.UpdateWork], seconds: dict[str, float], peak: timing.Peak, measured_rate: float
) -> types.Json:
    """MFU and its denominators, and the work beside it as shares of the same peak."""
    of_devices = peak.flops * jax.device_count()
    is_possible = all(each.total <= of_devices * seconds[kind] for kind, each in works.items())

    def shares(field: str) -> dict[str, float | None]:
        return {
            kind: getattr(each, field) / (of_devices * seconds[kind]) if is_possible else None
            for kind, each in works.items()
        }

    return {
        "matmul_peak_flops": measured_rate,
        "peak": peak._asdict(),
        "flops": {kind: each._asdict() for kind, each in works.items()},
        "mfu": shares("weights"),
        "attention_share": shares("attention"),
        "recomputed_share": shares("recomputed"),
        "refused": None if is_possible else timing.impossible("the products of an update", peak.source),
    }


def summary(case: types.Json) -> str:
    """Text of one case."""
    rate, peak = case["tokens_per_s"], case["peak"]
    use = {
        kind: case["refused"]
        or f"MFU {case['mfu'][kind]:.2f} (and attention {case['attention_share'][kind]:.2f}, recomputed "
        f"{case['recomputed_share'][kind]:.2f})"
        for kind in ("fixed", "lognormal")
    }
    published = (
        f"of the published {peak['flops'] / 1e12:.0f} TFLOP/s" if peak["source"] == "published" else "MFU's peak"
    )
    return (
        f"{case['dtype']}, remat {case['remat']} (first update {case['first_call_s']:.0f} s; products measured at "
        f"{case['matmul_peak_flops'] / 1e12:.3g} TFLOP/s, {published})\n"
        f"  fixed lengths       {rate['fixed']:8.1f} tokens/s, {use['fixed']}\n"
        f"  log-normal lengths  {rate['lognormal']:8.1f} tokens/s, {use['lognormal']}; "
        f"unpacked {rate['lognormal_unpacked']:.1f}: packing is {case['packed_over_unpacked']:.2f} times as fast\n"
        f"  stored reference scores save {case['stored_scores_save']:.2f} of a reference pass; an update that scores again "
        f"takes {case['replayed_over_scored_again']:.2f} times as long"
    )
