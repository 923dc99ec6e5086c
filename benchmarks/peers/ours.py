"""Our update and sampler, as jobs of `peer`: `python -m benchmarks.peers.ours JOB DTYPE SIZE` (started by the parent)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.peers import jax_product, peer
from reval_jax import algorithms, batch, keys, model, sampler, types, update
from reval_jax import config as config_lib
from reval_jax import mesh as mesh_lib
from reval_jax.tools.bench import time_update

PACKAGES = ("jax", "jaxlib", "flax", "optax")
DECODE_WINDOW = (
    4  # decode steps per device call; a finished response waits on average two steps for its slot to be refilled
)


def make_update(shape: peer.Shape, dtype: str) -> peer.Job:
    """ReVal's loss with stored reference scores, global-norm clipping, AdamW, no rematerialisation."""
    config, architecture = settings(shape, dtype), architecture_of(shape)
    mesh = mesh_lib.make(config.mesh)
    optimizer = update.make_optimizer(config.optimizer)
    params = random_params(architecture, mesh)
    algorithm = algorithms.choose(config)
    limits = algorithms.limits(config, algorithm)
    step = update.make_step(architecture, mesh, algorithm=algorithm, config=config)
    state = update.init(params, optimizer, mesh)
    rows = trajectories(shape)

    def one_update() -> dict[str, float]:
        nonlocal state
        state, metrics, _ = step(state, batch.pack(rows, mesh, limits=limits))
        jax.block_until_ready(state)
        return {"loss": float(metrics["actor/loss"])}

    return peer.Job(
        {"update": one_update},
        jax_product.make(shape, dtype, rows=shape.batch_tokens),
        sum(leaf.size for leaf in jax.tree.leaves(params)),
        PACKAGES,
        ("the time of an update includes packing its trajectories",),
    )


def make_sampler(shape: peer.Shape, sampling: peer.Sampling, dtype: str) -> peer.Job:
    """Our sampler, with its own copy of the learner's parameters."""
    architecture, mesh = architecture_of(shape), mesh_lib.make(config_lib.Mesh())
    params = random_params(architecture, mesh)
    requests = peer.requests(shape, sampling)
    engines = {
        name: sampler.make(
            architecture,
            mesh_lib.local(mesh),
            compute_dtype=dtype,
            max_prompt_tokens=sampling.prompt_tokens,
            max_response_tokens=each.max_tokens,
            decode_slots=sampling.slots,
            decode_window=DECODE_WINDOW,
        )
        for name, each in requests.items()
    }
    # One copy serves both engines, which differ only in the size of their caches.
    copy = sampler.sync_weights(params, engines["fixed"])
    return peer.Job(
        {name: one_rollout(engines[name], copy, each) for name, each in requests.items()},
        jax_product.make(shape, dtype, rows=sampling.slots),
        sum(leaf.size for leaf in jax.tree.leaves(params)),
        PACKAGES,
        (f"{sampling.slots} slots, refilled every {DECODE_WINDOW} decode steps; log-probabilities recorded",),
    )


def one_rollout(engine: sampler.Engine, params: Any, requests: peer.Requests) -> Callable[[], dict[str, float]]:
    """A function that samples all responses, with new random numbers in each call."""
    num = len(requests.prompts)
    empty = ("",) * num
    prompts = types.Prompts(np.arange(num), np.arange(num), empty, tuple(requests.prompts), empty)
    calls = iter(range(1 << 30))

    def rollout() -> dict[str, float]:
        responses = sampler.generate(
            engine,
            params,
            prompts,
            keys.named_key(0, "sample", next(calls)),
            samples_per_prompt=requests.lengths.shape[1],
            sampling=sampler.Sampling(),
            max_tokens=requests.lengths,
        )
        return {"tokens": sum(len(response.tokens) for response in responses)}

    return rollout


def random_params(architecture: model.Architecture, mesh: jax.sharding.Mesh) -> Any:
    """Random parameters, sharded as the learner's."""
    placement = jax.tree.map(lambda leaf: leaf.sharding, update.abstract_params(architecture, mesh))
    return jax.jit(model.init_params, static_argnums=0, out_shardings=placement)(
        architecture, jax.random.key(0, impl="threefry2x32")
    )


def settings(shape: peer.Shape, dtype: str) -> config_lib.Config:
    """Settings of a ReVal update with one micro-batch."""
    return config_lib.from_tree(
        {
            "model": {"path": "random", "compute_dtype": dtype, "remat": "none"},
            "task": {"dataset": "random.jsonl", "template": "raw", "max_prompt_tokens": shape.prompt_tokens},
            "rollout": {
                "prompts_per_round": shape.rows // 4,
                "samples_per_prompt": 4,
                "max_response_tokens": shape.response_tokens,
            },
            "replay": {"capacity": shape.rows},
            "update": {"objective": "reval", "batch_size": shape.rows, "micro_batch_tokens": shape.batch_tokens},
            "optimizer": {
                "learning_rate": peer.LEARNING_RATE,
                "weight_decay": peer.WEIGHT_DECAY,
                "max_grad_norm": peer.MAX_GRAD_NORM,
            },
        }
    )


def architecture_of(shape: peer.Shape) -> model.Architecture:
    """The shape as an architecture of our decoder."""
    return model.Architecture(
        vocab_size=shape.vocab_size,
        width=shape.width,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_size=shape.head_size,
        mlp_width=shape.mlp_width,
        rope_theta=shape.rope_theta,
        rope_scaling=None,
        norm_eps=shape.norm_eps,
        qkv_bias=False,
        qk_norm=False,
        tied_head=True,
        max_positions=8192,
        family="llama",
    )


def trajectories(shape: peer.Shape) -> types.Trajectories:
    """The trajectories of the batch, scored by a reference with a uniform distribution over tokens."""
    workload = time_update.Workload(shape.rows, shape.prompt_tokens + shape.response_tokens, shape.prompt_tokens)
    reward = peer.rewards(shape)
    rows = time_update.trajectories(time_update.fixed_lengths(workload), workload, shape.vocab_size)
    return rows._replace(tokens=peer.tokens(shape).reshape(-1), raw_reward=reward, reward=reward)


if __name__ == "__main__":
    peer.serve(update=make_update, sampler=make_sampler)
