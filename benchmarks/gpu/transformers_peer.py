"""Generation and an update by transformers on torch, with the sizes of the parts `decode` and `update`.

The update is autocast bfloat16 over float32 parameters, scaled dot-product attention, fused AdamW and ReVal's loss without a
reference; `generate` keeps a dynamic cache and bfloat16 weights.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.gpu.parts import Emit, SkippedError


def generate(is_small: bool, emit: Emit) -> None:
    """Responses to prompts that together have as many positions as those of `decode`; skipped as `_start` says."""
    torch, device = _start(is_small)
    emit(_generate(torch, device, _config(is_small), *((4, 8, 8) if is_small else (256, 768, 128))))


def update(is_small: bool, emit: Emit) -> None:
    """The update of fixed lengths, without and with gradient checkpoints; skipped as `_start` says."""
    torch, device = _start(is_small)
    sizes = (2, 64, 2) if is_small else (16, 2048, 4)
    for has_checkpoints in (False, True):
        emit(_update(torch, device, _config(is_small), *sizes, has_checkpoints=has_checkpoints))


def _start(is_small: bool) -> tuple[Any, str]:
    """The module torch, and the device that it uses.

    Raises:
      SkippedError: without torch, transformers or, unless small, a GPU that torch can use.
    """
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise SkippedError(f"{' and '.join(missing)} not installed")
    import torch

    if not is_small and not torch.cuda.is_available():
        raise SkippedError(f"torch {torch.__version__} sees no GPU")
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.manual_seed(0)
    return torch, "cuda" if torch.cuda.is_available() else "cpu"


def _config(is_small: bool) -> Any:
    from transformers import Qwen2Config

    width, layers, mlp, vocabulary = (64, 2, 128, 512) if is_small else (1536, 28, 8960, 151936)
    heads, kv_heads = (4, 2) if is_small else (12, 2)
    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=131072,
        tie_word_embeddings=False,
    )


def _model(torch: Any, device: str, config: Any, dtype: Any) -> Any:
    from transformers import Qwen2ForCausalLM

    with torch.device(device):
        return Qwen2ForCausalLM._from_config(config, dtype=dtype, attn_implementation="sdpa")


def _median_seconds(torch: Any, call: Callable[[], Any], repeats: int) -> float:
    """Of `repeats` calls after an untimed one."""
    seconds = []
    for _ in range(1 + repeats):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def _update(
    torch: Any, device: str, config: Any, rows: int, tokens: int, micro_rows: int, *, has_checkpoints: bool
) -> dict[str, Any]:
    if device == "cuda":
        torch.cuda.empty_cache()
    trained = _model(torch, device, config, torch.float32).train()
    if has_checkpoints:
        trained.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-6, fused=True)
    ids = torch.randint(0, config.vocab_size, (rows, tokens), device=device)

    def update() -> None:
        for first in range(0, rows, micro_rows):
            chosen = ids[first : first + micro_rows]
            with torch.autocast(device, torch.bfloat16):
                hidden = trained.model(chosen).last_hidden_state
                logits = trained.lm_head(hidden[:, :-1]).float()
            value = logits.logsumexp(-1)
            log_prob = logits.gather(-1, chosen[:, 1:, None])[..., 0] - value
            ((value[:, 0] + log_prob.sum(1) - 1.0) ** 2).sum().div(rows).backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    name = {"peer": "transformers update", "gradient_checkpointing": has_checkpoints}
    try:
        seconds = _median_seconds(torch, update, 1 if device == "cpu" else 2)
    except torch.OutOfMemoryError as error:
        return name | {"out_of_memory": str(error).splitlines()[0]}
    return name | {"rows": rows, "tokens": tokens, "seconds": seconds, "tokens_per_s": rows * tokens / seconds}


def _generate(torch: Any, device: str, config: Any, rows: int, prompt: int, response: int) -> dict[str, Any]:
    if device == "cuda":
        torch.cuda.empty_cache()
    sampled = _model(torch, device, config, torch.bfloat16).eval()
    ids = torch.randint(0, config.vocab_size, (rows, prompt), device=device)
    settings = {
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "max_new_tokens": response,
        "min_new_tokens": response,
        "pad_token_id": 0,
        "use_cache": True,
    }
    with torch.no_grad():
        seconds = _median_seconds(
            torch, lambda: sampled.generate(ids, attention_mask=torch.ones_like(ids), **settings), 1
        )
    return {
        "peer": "transformers generate",
        "rows": rows,
        "prompt_tokens": prompt,
        "response_tokens": response,
        "seconds": seconds,
        "tokens_per_s": rows * response / seconds,
    }
