"""Shapes of a few published models, so that a plan for them needs neither network nor download.

Each is what `huggingface.read_architecture` makes of the id's config.json.
"""

from __future__ import annotations

from reval_jax import model

ARCHITECTURES = {
    "Qwen/Qwen2.5-Math-7B": model.Architecture(
        vocab_size=152064,
        width=3584,
        num_layers=28,
        num_heads=28,
        num_kv_heads=4,
        head_size=128,
        mlp_width=18944,
        rope_theta=10000.0,
        rope_scaling=None,
        norm_eps=1e-6,
        qkv_bias=True,
        qk_norm=False,
        tied_head=False,
        max_positions=4096,
        family="qwen2",
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": model.Architecture(
        vocab_size=151936,
        width=1536,
        num_layers=28,
        num_heads=12,
        num_kv_heads=2,
        head_size=128,
        mlp_width=8960,
        rope_theta=10000.0,
        rope_scaling=None,
        norm_eps=1e-6,
        qkv_bias=True,
        qk_norm=False,
        tied_head=False,
        max_positions=131072,
        family="qwen2",
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": model.Architecture(
        vocab_size=49152,
        width=576,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_size=64,
        mlp_width=1536,
        rope_theta=100000.0,
        rope_scaling=None,
        norm_eps=1e-5,
        qkv_bias=False,
        qk_norm=False,
        tied_head=True,
        max_positions=8192,
        family="llama",
    ),
}
