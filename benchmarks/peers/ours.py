"""Our update on the shape of `peer`: `python -m benchmarks.peers.ours DTYPE SHAPE` (started by the parent)."""

from __future__ import annotations

import jax

from benchmarks.peers import peer
from reval_jax import batch, model, types, update
from reval_jax import config as config_lib
from reval_jax import mesh as mesh_lib
from reval_jax.bench import update as update_bench


def main() -> None:
    """Serves updates: ReVal's loss with stored reference scores, AdamW behind a global-norm clip, no rematerialisation."""
    answers = peer.private_stdout()
    shape, dtype = peer.arguments()
    config, architecture = settings(shape, dtype), architecture_of(shape)
    mesh = mesh_lib.make(config.mesh)
    optimizer = update.make_optimizer(config.optimizer)
    placement = jax.tree.map(lambda leaf: leaf.sharding, update.abstract_params(architecture, mesh))
    params = jax.jit(model.init_params, static_argnums=0, out_shardings=placement)(
        architecture, jax.random.key(0, impl="threefry2x32")
    )
    step = update.make_step(architecture, optimizer, mesh, config=config)
    state = update.init(params, optimizer, mesh)
    rows = trajectories(shape)

    def one_update() -> float:
        nonlocal state
        state, metrics = step(state, batch.pack(rows, mesh, config=config))
        jax.block_until_ready(state)
        return float(metrics["actor/loss"])

    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    del params  # Donated with the first update.
    peer.serve(
        answers,
        one_update,
        parameters=num_parameters,
        packages=("jax", "jaxlib", "flax", "optax"),
        notes=("trajectories are packed anew for every update, within its time",),
    )


def settings(shape: peer.Shape, dtype: str) -> config_lib.Config:
    """A ReVal update of the whole batch as one micro-batch."""
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
    """The shape as our decoder's."""
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
    """The batch as the replay buffer hands it over, scored by a reference close to the random policy."""
    of_update = update_bench.Shape(shape.rows, shape.prompt_tokens + shape.response_tokens, shape.prompt_tokens)
    reward = peer.rewards(shape)
    rows = update_bench.trajectories(update_bench.fixed_lengths(of_update), of_update, shape.vocab_size)
    return rows._replace(tokens=peer.tokens(shape).reshape(-1), raw_reward=reward, reward=reward)


if __name__ == "__main__":
    main()
