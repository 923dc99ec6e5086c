"""A policy-gradient update with transformers on torch: `python -m benchmarks.peers.torch_peer DTYPE SHAPE`.

The update is TRL's: logits at the response's positions only, the log-probability of each response token as TRL's
`selective_log_softmax` takes it, REINFORCE with the group's mean as baseline, torch's AdamW behind a global-norm clip.
bfloat16 is torch's autocast over float32 parameters.
"""

from __future__ import annotations

import torch
import transformers

from benchmarks.peers import peer


def main() -> None:
    """Serves updates."""
    answers = peer.private_stdout()
    shape, dtype = peer.arguments()
    torch.set_num_threads(peer.num_cores())
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(model_config(shape)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peer.LEARNING_RATE, weight_decay=peer.WEIGHT_DECAY, fused=True)
    ids = torch.from_numpy(peer.tokens(shape)).long()
    rewards = torch.from_numpy(peer.rewards(shape))
    advantages = (rewards - rewards.mean())[:, None]

    def one_update() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            log_prob = response_log_prob(model, ids, shape.response_tokens)
            loss = -(advantages * log_prob).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), peer.MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    peer.serve(
        answers,
        one_update,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        packages=("torch", "transformers"),
        notes=(f"attention: {model.config._attn_implementation}", f"threads: {torch.get_num_threads()}"),
    )


def model_config(shape: peer.Shape) -> transformers.LlamaConfig:
    """The shape as transformers' Llama."""
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

    In float32, `selective_log_softmax` subtracts a logsumexp taken row by row, which saves memory; in bfloat16 it takes
    a log_softmax row by row (trl/trainer/utils.py).
    """
    logits = model(input_ids=ids, logits_to_keep=num_response + 1).logits[:, :-1]
    targets = ids[:, -num_response:]
    if logits.dtype == torch.float32:
        chosen = logits.gather(-1, targets[..., None])[..., 0]
        return chosen - torch.stack([row.logsumexp(-1) for row in logits])
    rows = zip(logits, targets, strict=True)
    return torch.stack([row.log_softmax(-1).gather(-1, target[:, None])[:, 0] for row, target in rows])


if __name__ == "__main__":
    main()
