"""google-tunix: `python -m benchmarks.peers.tunix_peer JOB DTYPE SIZE` (started by the parent).

The update trains tunix's Llama 3 with `rl.trainer.Trainer`, configured like the actor of tunix's PPO learner. PPO's is the
cheapest of tunix's policy losses, since `grpo` also computes the entropy over the vocabulary in every update. With bfloat16,
parameters, activations and Adam's moments are all bfloat16, as tunix's own loaders choose; ours and torch's parameters stay
float32. The sampler is `generate.sampler.Sampler` with the same model, and a cache of the same dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.generate import sampler as tunix_sampler
from tunix.models.llama3 import model as llama3
from tunix.rl import algo_core, common, trainer
from tunix.rl.ppo import ppo_learner
from tunix.sft import peft_trainer

import reval_jax  # noqa: F401  Sets the XLA flag that jaxlib 0.10.2 needs on CPU, and warns if it is too late.
from benchmarks.peers import jax_product, peer

PACKAGES = ("google-tunix", "jax", "jaxlib", "flax", "optax")
PAD, END = 0, 1  # token ids that the batch does not contain
NO_TOKEN = -1  # ends no response


def make_update(shape: peer.Shape, dtype: str) -> peer.Job:
    """The policy update of tunix's PPO learner."""
    policy = random_model(shape, jnp.dtype(dtype))
    actor = make_actor(policy)
    example = train_example(shape)

    def one_update() -> dict[str, float]:
        actor.train([example])
        jax.block_until_ready(nnx.state(policy))
        return {"loss": float(actor.last_loss)}

    return peer.Job(
        {"update": one_update},
        jax_product.make(shape, dtype, rows=shape.batch_tokens),
        num_parameters(policy),
        PACKAGES,
        (
            "the policy update of tunix's PPO learner; tunix's GRPO update also computes an entropy over the vocabulary",
            "with bfloat16, parameters and Adam's moments are bfloat16 too",
        ),
    )


def make_sampler(shape: peer.Shape, sampling: peer.Sampling, dtype: str) -> peer.Job:
    """The sampler of tunix in batches; it does not refill rows, so each batch takes as many steps as its longest response."""
    policy = random_model(shape, jnp.dtype(dtype))
    works = {
        name: one_rollout(make_decoder(policy, shape, requests), peer.batches(requests, sampling.slots))
        for name, requests in peer.requests(shape, sampling).items()
    }
    return peer.Job(
        works,
        jax_product.make(shape, dtype, rows=sampling.slots),
        num_parameters(policy),
        PACKAGES,
        (
            f"generates in batches of {sampling.slots}, each until its longest response ends",
            "with bfloat16, parameters and cache are bfloat16",
        ),
    )


class TokenIds:
    """The interface of a tokenizer for tunix's sampler; prompts are token ids already, and responses stay token ids."""

    def encode(self, ids: list[int]) -> list[int]:
        """The ids, unchanged."""
        return ids

    def decode(self, ids: list[int]) -> str:
        """An empty text, so that detokenization is not timed."""
        return ""

    def bos_id(self) -> int:
        """0, which tunix does not prepend."""
        return 0

    def eos_id(self) -> int:
        """NO_TOKEN, so that no response ends early."""
        return NO_TOKEN

    def pad_id(self) -> int:
        """The id with which tunix pads prompts."""
        return PAD


def make_decoder(policy: llama3.Llama3, shape: peer.Shape, requests: peer.Requests) -> tunix_sampler.Sampler:
    """The sampler of tunix, with the smallest cache that holds the longest prompt and response."""
    cache = tunix_sampler.CacheConfig(
        cache_size=requests.prompts.shape[1] + requests.max_tokens,
        num_layers=shape.num_layers,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_size,
    )
    return tunix_sampler.Sampler(policy, TokenIds(), cache)


def one_rollout(
    decoder: tunix_sampler.Sampler, batches: list[tuple[np.ndarray, np.ndarray]]
) -> Callable[[], dict[str, float]]:
    """A function that samples all batches, one after the other. With top_p=1 tunix samples without sorting the logits."""
    seeds = iter(range(1 << 30))

    def rollout() -> dict[str, float]:
        num_tokens = 0
        for prompts, lengths in batches:
            generated = decoder(
                prompts.tolist(),
                max_generation_steps=int(lengths.max()),
                max_prompt_length=prompts.shape[1],
                eos_tokens=[NO_TOKEN],
                temperature=1.0,
                top_p=1.0,
                seed=next(seeds),
            )
            num_tokens += sum(min(len(row), int(length)) for row, length in zip(generated.tokens, lengths, strict=True))
        return {"tokens": num_tokens}

    return rollout


def num_parameters(policy: llama3.Llama3) -> int:
    """Number of the model's parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(policy, nnx.Param)))


def random_model(shape: peer.Shape, dtype: jnp.dtype) -> llama3.Llama3:
    """A Llama 3 of tunix with this shape and random matrices (tunix would initialize the feed-forward with zeros)."""
    config = llama3.ModelConfig(
        num_layers=shape.num_layers,
        vocab_size=shape.vocab_size,
        embed_dim=shape.width,
        hidden_dim=shape.mlp_width,
        num_heads=shape.num_heads,
        head_dim=shape.head_size,
        num_kv_heads=shape.num_kv_heads,
        rope_theta=int(shape.rope_theta),
        norm_eps=shape.norm_eps,
        weight_tying=True,
        remat_config=llama3.RematConfig.NONE,
    )
    policy = llama3.Llama3(config, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)

    def random(leaf: jax.Array) -> jax.Array:
        if leaf.ndim == 1:
            return jnp.ones(leaf.shape, dtype)
        return jnp.asarray(0.02 * rng.standard_normal(leaf.shape, np.float32), dtype)

    nnx.update(policy, jax.tree.map(random, nnx.state(policy)))
    return policy


class Actor(trainer.Trainer):
    """The trainer of tunix, which also stores the loss of the last update."""

    last_loss: jax.Array

    def _post_process_train_step(self, aux: dict[str, jax.Array]) -> None:
        self.last_loss = aux["loss"]


def policy_loss(
    policy: llama3.Llama3, train_example: common.TrainExample, algo_config: Any, pad_id: int, eos_id: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The policy loss of tunix, and its metrics with the loss added."""
    loss, metrics = algo_core.ppo_policy_loss_fn(policy, train_example, algo_config, pad_id, eos_id)
    return loss, metrics | {"loss": loss}


def make_actor(policy: llama3.Llama3) -> Actor:
    """The trainer of tunix with the loss and inputs of PPOLearner's actor, global-norm clipping and AdamW."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(peer.MAX_GRAD_NORM),
        optax.adamw(peer.LEARNING_RATE, weight_decay=peer.WEIGHT_DECAY),
    )
    training = peft_trainer.TrainingConfig(eval_every_n_steps=10**9)
    actor = Actor(policy, optimizer, training, custom_checkpoint_metadata_fn=dict)
    actor.is_managed_externally = True  # as in a learner: keeps the trainer open between calls
    settings = ppo_learner.PPOConfig()
    return actor.with_loss_fn(policy_loss, has_aux=True).with_gen_model_input_fn(
        lambda example: {"train_example": example, "algo_config": settings, "pad_id": PAD, "eos_id": END}
    )


def train_example(shape: peer.Shape) -> common.TrainExample:
    """The batch: prompts, responses, and as the advantage of every token the reward minus the mean reward."""
    ids, reward = jnp.asarray(peer.tokens(shape)), peer.rewards(shape)
    prompts, responses = ids[:, : shape.prompt_tokens], ids[:, shape.prompt_tokens :]
    advantages = jnp.broadcast_to(jnp.asarray(reward - reward.mean())[:, None], responses.shape)
    return common.TrainExample(
        prompt_ids=prompts,
        prompt_mask=jnp.ones_like(prompts),
        completion_ids=responses,
        completion_mask=jnp.ones_like(responses),
        advantages=advantages,
        ref_per_token_logps=None,
        old_per_token_logps=jnp.full(responses.shape, -np.log(shape.vocab_size), jnp.float32),
    )


if __name__ == "__main__":
    peer.serve(update=make_update, sampler=make_sampler)
