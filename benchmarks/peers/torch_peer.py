"""transformers on torch: `python -m benchmarks.peers.torch_peer JOB DTYPE SIZE` (started by the parent).

The update follows TRL: logits at the response's positions only, log-probabilities of response tokens as in TRL's
`selective_log_softmax`, REINFORCE with the batch's mean reward as baseline, global-norm clipping, torch's AdamW. With bfloat16,
the update uses torch's autocast over float32 parameters; the sampler, `model.generate`, has a model with bfloat16 parameters.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import transformers

from benchmarks.peers import peer

PACKAGES = ("torch", "transformers")


def make_update(shape: peer.Shape, dtype: str) -> peer.Job:
    """A policy-gradient update."""
    model = random_model(shape).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peer.LEARNING_RATE, weight_decay=peer.WEIGHT_DECAY, fused=True)
    ids = torch.from_numpy(peer.tokens(shape)).long()
    rewards = torch.from_numpy(peer.rewards(shape))
    advantages = (rewards - rewards.mean())[:, None]

    def one_update() -> dict[str, float]:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            log_prob = response_log_prob(model, ids, shape.response_tokens)
            loss = -(advantages * log_prob).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), peer.MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"loss": loss.item()}

    return peer.Job(
        {"update": one_update},
        product(shape, dtype, rows=shape.batch_tokens),
        sum(parameter.numel() for parameter in model.parameters()),
        PACKAGES,
        notes(model),
    )


def make_sampler(shape: peer.Shape, sampling: peer.Sampling, dtype: str) -> peer.Job:
    """`model.generate` in batches: a finished response keeps its row until the longest of its batch is finished."""
    model = random_model(shape).to(getattr(torch, dtype)).eval()
    return peer.Job(
        {
            name: one_rollout(model, peer.batches(requests, sampling.slots))
            for name, requests in peer.requests(shape, sampling).items()
        },
        product(shape, dtype, rows=sampling.slots),
        sum(parameter.numel() for parameter in model.parameters()),
        PACKAGES,
        (*notes(model), f"generates in batches of {sampling.slots}, each until its longest response ends"),
    )


class PrescribedLengths(transformers.StoppingCriteria):
    """Ends each response at its prescribed length, since random weights sample no end-of-sequence token."""

    eos_token_id = None  # `generate` pads finished rows only if a stopping criterion has this attribute.

    def __init__(self, lengths: torch.Tensor) -> None:
        self.lengths = lengths  # i64[rows], prompt included

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        """bool[rows]: whether each row has ended."""
        return input_ids.shape[1] >= self.lengths


def one_rollout(
    model: transformers.PreTrainedModel, batches: list[tuple[np.ndarray, np.ndarray]]
) -> Callable[[], dict[str, float]]:
    """A function that samples all batches, one after the other, at temperature 1 without top-k or top-p."""

    def rollout() -> dict[str, float]:
        num_tokens = 0
        for prompts, lengths in batches:
            ids = torch.from_numpy(prompts).long()
            stop = PrescribedLengths(torch.from_numpy(prompts.shape[1] + lengths))
            generated = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                use_cache=True,
                pad_token_id=0,
                max_new_tokens=int(lengths.max()),
                stopping_criteria=transformers.StoppingCriteriaList([stop]),
            )
            num_tokens += int(np.minimum(generated.shape[1] - ids.shape[1], lengths).sum())
        return {"tokens": num_tokens}

    return rollout


def random_model(shape: peer.Shape) -> transformers.PreTrainedModel:
    """A Llama of transformers with this shape and random weights, on all cores; no token ends a response."""
    torch.set_num_threads(peer.num_cores())
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(model_config(shape))
    model.generation_config.eos_token_id = None
    return model


def notes(model: transformers.PreTrainedModel) -> tuple[str, ...]:
    """The implementation of attention, and the number of threads."""
    return (f"attention: {model.config._attn_implementation}", f"threads: {torch.get_num_threads()}")


def product(shape: peer.Shape, dtype: str, *, rows: int) -> Callable[[], object]:
    """A function that computes one feed-forward product of `rows` rows."""
    left = torch.randn(rows, shape.width, dtype=getattr(torch, dtype))
    right = torch.randn(shape.width, shape.mlp_width, dtype=getattr(torch, dtype))
    return lambda: torch.matmul(left, right)


def model_config(shape: peer.Shape) -> transformers.LlamaConfig:
    """The shape as a configuration of transformers' Llama."""
    return transformers.LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_size,
        intermediate_size=shape.mlp_width,
        rms_norm_eps=shape.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        use_cache=False,
    )


def response_log_prob(model: transformers.PreTrainedModel, ids: torch.Tensor, num_response: int) -> torch.Tensor:
    """Log-probability of each response token, [rows, num_response], as TRL's trainers compute it.

    In float32, TRL's `selective_log_softmax` subtracts a logsumexp row by row, which saves memory; in bfloat16 it computes
    log_softmax row by row (trl/trainer/utils.py).
    """
    logits = model(input_ids=ids, logits_to_keep=num_response + 1).logits[:, :-1]
    targets = ids[:, -num_response:]
    if logits.dtype == torch.float32:
        chosen = logits.gather(-1, targets[..., None])[..., 0]
        return chosen - torch.stack([row.logsumexp(-1) for row in logits])
    rows = zip(logits, targets, strict=True)
    return torch.stack([row.log_softmax(-1).gather(-1, target[:, None])[:, 0] for row, target in rows])


if __name__ == "__main__":
    peer.serve(update=make_update, sampler=make_sampler)
