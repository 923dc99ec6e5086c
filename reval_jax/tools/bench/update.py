"""The whole update: tokens a second at fixed and at skewed lengths, MFU, and what stored reference scores save."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from reval_jax import algorithms, batch, mesh, model, reference, timing, types, update
from reval_jax import config as config_lib


class Shape(NamedTuple):
    """The batch that is trained on."""

    rows: int  # rows of the fixed batch; the skewed one has four times as many trajectories
    tokens: int  # tokens of the longest trajectory
    prompt_tokens: int  # of them, the prompt's


class Bench(NamedTuple):
    """One dtype and remat policy, ready to be timed. Updates go on from each other's state, as in a run."""

    config: config_lib.Config
    architecture: model.Architecture
    mesh: jax.sharding.Mesh
    step: jax.stages.Wrapped  # update.make_step
    score: reference.Scorer
    limits: batch.Limits
    state: list[update.TrainState]  # one item: the state is donated to each update
    frozen: reference.Reference


def settings(shape: Shape, *, dtype: str, remat: str, micro_batch_tokens: int) -> config_lib.Config:
    """ReVal with the paper's optimizer settings, its batch large enough for the skewed lengths."""
    size = 4 * shape.rows
    return config_lib.from_tree(
        {
            "model": {"path": "random", "compute_dtype": dtype, "remat": remat},
            "task": {"dataset": "random", "max_prompt_tokens": shape.prompt_tokens},
            "rollout": {
                "prompts_per_round": size,
                "samples_per_prompt": 1,
                "max_response_tokens": shape.tokens - shape.prompt_tokens,
            },
            "replay": {"capacity": size},
            "update": {"batch_size": size, "micro_batch_tokens": micro_batch_tokens},
        }
    )


def make(architecture: model.Architecture, config: config_lib.Config) -> Bench:
    """Random parameters on all of this program's devices, spread over fsdp."""
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
        update.make_step(architecture, optimizer, devices, loss=algorithm.loss, config=config),
        reference.make_scorer(architecture, devices, config=config),
        batch.limits(config, step_size=algorithm.step_size),
        [update.init(params, optimizer, devices)],
        reference.init(params, config=config),
    )


def fixed_lengths(shape: Shape) -> np.ndarray:
    """Every trajectory as long as the longest."""
    return np.full(shape.rows, shape.tokens)


def lognormal_lengths(shape: Shape) -> np.ndarray:
    """Log-normal lengths whose mean is a quarter of the longest, as responses are in reasoning tasks; the same every time."""
    rng = np.random.default_rng(0)
    sigma = 0.7
    drawn = rng.lognormal(np.log(shape.tokens / 4) - sigma**2 / 2, sigma, 4 * shape.rows)
    lengths = np.clip(drawn.round().astype(int), shape.prompt_tokens + 1, shape.tokens)
    lengths[0] = shape.tokens
    return lengths


def trajectories(lengths: np.ndarray, shape: Shape, vocabulary: int) -> types.Trajectories:
    """Random tokens in trajectories of these lengths, scored by a reference that gave each token the same chance."""
    rng = np.random.default_rng(1)
    num, response = lengths.size, (lengths - shape.prompt_tokens).astype(np.int32)
    per_token = np.float32(np.log(vocabulary))
    reward = rng.integers(0, 2, num).astype(np.float32)
    zeros = np.zeros(num, np.int32)
    return types.Trajectories(
        tokens=rng.integers(0, vocabulary, int(lengths.sum())).astype(np.int32),
        log_prob=np.full(int(response.sum()), -per_token, np.float32),
        prompt_length=np.full(num, shape.prompt_tokens, np.int32),
        response_length=response,
        is_truncated=np.zeros(num, bool),
        raw_reward=reward,
        reward=reward,
        verdict=(1 - reward).astype(np.int8),
        cursor=np.arange(num, dtype=np.int64),
        sample=zeros,
        round=zeros,
        policy_version=zeros,
        use_count=zeros,
        reference_log_prob=-per_token * response.astype(np.float32),
        reference_value=np.full(num, per_token, np.float32),
        reference_version=zeros,
    )


def updating(bench: Bench, rows: types.Trajectories, packer: batch.Packer = batch.first_fit) -> Callable[[], Any]:
    """One update on these trajectories, packing included."""

    def call() -> Any:
        arrangement = batch.arrange(rows, bench.mesh, limits=bench.limits, packer=packer)
        packed = batch.pack(rows, bench.mesh, limits=bench.limits, arrangement=arrangement)
        bench.state[0], metrics = bench.step(bench.state[0], packed)
        return bench.state[0], metrics

    return call


def scoring(bench: Bench, rows: types.Trajectories) -> Callable[[], Any]:
    """The reference's forward pass alone, packing and its way to the devices included."""

    def call() -> Any:
        return reference.score(bench.score, reference.load(bench.frozen), rows, bench.mesh, limits=bench.limits)

    return call


def run(
    architecture: model.Architecture,
    shape: Shape,
    *,
    dtypes: tuple[str, ...],
    remats: tuple[str, ...],
    micro_batch_tokens: int,
    repeats: int,
    on_case: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Every case, and the machine; medians, the sides of a case in turns."""
    cases = []
    for dtype in dtypes:
        for remat in remats:
            config = settings(shape, dtype=dtype, remat=remat, micro_batch_tokens=micro_batch_tokens)
            case = measure(make(architecture, config), shape, repeats=repeats)
            on_case(case)
            cases.append(case)
    return {"machine": timing.machine(), "shape": shape._asdict(), "cases": cases}


def measure(bench: Bench, shape: Shape, *, repeats: int) -> dict[str, Any]:
    """One dtype and remat policy.

    MFU = 6 · parameters · tokens / (seconds · devices · peak), the peak being a product of two square matrices of the same
    dtype on one device, timed between the updates; attention's own products are left out of the work.
    """
    dtype, vocabulary = bench.config.model.compute_dtype, bench.architecture.vocab_size
    fixed = trajectories(fixed_lengths(shape), shape, vocabulary)
    skewed = trajectories(lognormal_lengths(shape), shape, vocabulary)
    update_fixed, score_fixed = updating(bench, fixed), scoring(bench, fixed)
    start = time.perf_counter()
    jax.block_until_ready(update_fixed())
    first = time.perf_counter() - start
    seconds = timing.medians(
        timing.in_turns(
            {
                "fixed": update_fixed,
                "fixed_scored_again": lambda: (score_fixed(), update_fixed()),
                "reference": score_fixed,
                "lognormal": updating(bench, skewed),
                "lognormal_unpacked": updating(bench, skewed, batch.one_per_row),
                "matmul": timing.matmul(dtype),
            },
            repeats=repeats,
        )
    )
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(bench.state[0].params))
    peak = timing.matmul_rate(seconds["matmul"])
    num_fixed, num_skewed = int(fixed.length.sum()), int(skewed.length.sum())
    work = 6 * num_parameters
    return {
        "dtype": dtype,
        "remat": bench.config.model.remat,
        "num_parameters": num_parameters,
        "first_call_s": first,
        "matmul_peak_flops": peak,
        "seconds": {name: value for name, value in seconds.items() if name != "matmul"},
        "tokens_per_s": {
            "fixed": num_fixed / seconds["fixed"],
            "lognormal": num_skewed / seconds["lognormal"],
            "lognormal_unpacked": num_skewed / seconds["lognormal_unpacked"],
        },
        "mfu": {
            "fixed": work * num_fixed / (seconds["fixed"] * peak * jax.device_count()),
            "lognormal": work * num_skewed / (seconds["lognormal"] * peak * jax.device_count()),
        },
        "packed_over_unpacked": seconds["lognormal_unpacked"] / seconds["lognormal"],
        "stored_scores_save": (seconds["fixed_scored_again"] - seconds["fixed"]) / seconds["reference"],
        "replayed_over_scored_again": seconds["fixed_scored_again"] / seconds["fixed"],
    }


def sentence(case: dict[str, Any]) -> str:
    """A case as lines for a person."""
    rate, mfu = case["tokens_per_s"], case["mfu"]
    return (
        f"{case['dtype']}, remat {case['remat']} (first update {case['first_call_s']:.0f} s, matmul peak "
        f"{case['matmul_peak_flops'] / 1e9:.0f} GFLOP/s)\n"
        f"  fixed lengths       {rate['fixed']:8.1f} tokens/s, MFU {mfu['fixed']:.2f}\n"
        f"  log-normal lengths  {rate['lognormal']:8.1f} tokens/s, MFU {mfu['lognormal']:.2f}; "
        f"unpacked {rate['lognormal_unpacked']:.1f}: packing makes it {case['packed_over_unpacked']:.2f} times as fast\n"
        f"  stored reference scores save {case['stored_scores_save']:.2f} of a reference pass; an update that scores again "
        f"takes {case['replayed_over_scored_again']:.2f} times as long"
    )
