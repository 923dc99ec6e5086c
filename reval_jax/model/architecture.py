"""The shape and constants of a decoder."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

FamilyName = Literal["llama", "qwen2", "qwen3"]
"""Each has a record in `weights.families`."""

MAX_LAYERS = 10_000
"""More is a damaged file, whose list of tensors alone would fill the memory."""


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How RoPE frequencies are stretched beyond the pre-training length, as `transformers` defines each kind.

    "linear" divides all frequencies by `factor`; "llama3" divides the low ones and blends the middle (Llama 3.1);
    "yarn" (arXiv 2309.00071) ramps by dimension and scales cosine and sine by `attention_factor`.
    """

    kind: Literal["linear", "llama3", "yarn"]  # which of the three
    factor: float  # ratio of the stretched to the original context length
    original_max_positions: int = 0  # tokens of context before stretching (llama3, yarn)
    low_freq_factor: float = 1.0  # llama3: wavelengths above original_max_positions / this are divided by factor
    high_freq_factor: float = 4.0  # llama3: wavelengths below original_max_positions / this are kept
    beta_fast: float = 32.0  # yarn: dimensions with at least this many rotations in the original context are kept
    beta_slow: float = 1.0  # yarn: dimensions with at most this many rotations are divided by factor
    attention_factor: float = 1.0  # yarn: multiplies cosine and sine
    truncate: bool = True  # yarn: round the ramp's ends outward to whole dimensions


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The shape and constants of one decoder; hashable, so it can be a static argument of `jax.jit`."""

    vocab_size: int  # rows of the embedding, tokens; padding rows of the published weights included
    width: int  # size of the residual stream, D
    num_layers: int  # decoder layers, L
    num_heads: int  # query heads, N
    num_kv_heads: int  # key/value heads, K; divides num_heads
    head_size: int  # numbers per head, H; even, because RoPE rotates pairs
    mlp_width: int  # hidden size of the gated feed-forward, F
    rope_theta: float  # base of the RoPE frequencies: dimension pair i turns by theta^(-2i/H) radians per token
    rope_scaling: RopeScaling | None  # None: unscaled RoPE
    norm_eps: float  # added to the mean square in RMSNorm
    qkv_bias: bool  # biases on query, key and value (Qwen2)
    qk_norm: bool  # RMSNorm over each query and key head before RoPE (Qwen3)
    tied_head: bool  # the output head is the transposed embedding
    max_positions: int  # published context length, tokens
    family: FamilyName  # the Hugging Face model_type
    has_value_head: bool = False  # parameters also hold the learner's value head, which no published model has

    def __post_init__(self) -> None:
        for field in (
            "vocab_size",
            "width",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_size",
            "mlp_width",
            "max_positions",
        ):
            if getattr(self, field) < 1:
                raise ValueError(
                    f"Architecture.{field}={getattr(self, field)}, but a model needs at least 1. Correct it."
                )
        if self.num_layers > MAX_LAYERS:
            raise ValueError(f"num_layers={self.num_layers}, but no model has more than {MAX_LAYERS}. Correct it.")
        if not 0 < self.norm_eps < 1:  # also refuses NaN
            raise ValueError(
                f"norm_eps={self.norm_eps} (rms_norm_eps), but RMSNorm needs a small positive number. Correct it."
            )
        if not (math.isfinite(self.rope_theta) and self.rope_theta > 0):
            raise ValueError(f"rope_theta={self.rope_theta}, but RoPE needs a positive number. Correct it.")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}, so query heads"
                " cannot share key/value heads evenly. Use a num_kv_heads that divides num_heads."
            )
        if self.head_size % 2:
            raise ValueError(f"head_size={self.head_size} is odd, but RoPE rotates pairs. Use an even head_size.")

    def without_value_head(self) -> Architecture:
        """The same decoder as a policy alone: what samples, and what the reference is."""
        return dataclasses.replace(self, has_value_head=False)
