"""Rotary position embedding: frequencies with their scalings, tables, rotation."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from reval_jax.model import linear
from reval_jax.model.architecture import Architecture, RopeScaling

Tables = tuple[jax.Array, jax.Array]
"""Cosine and sine, f32[..., H/2]."""


def _yarn_ramp(architecture: Architecture, scaling: RopeScaling) -> np.ndarray:
    """Per pair of dimensions: 0 keeps the frequency, 1 divides it by the factor (YaRN, arXiv 2309.00071, sec. 3.2)."""
    size, theta = architecture.head_size, architecture.rope_theta

    def dimension_of(rotations: float) -> float:
        return size * math.log(scaling.original_max_positions / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension_of(scaling.beta_fast), dimension_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    if low == high:
        high += 0.001
    return np.clip((np.arange(size // 2, dtype=np.float32) - low) / (high - low), 0, 1).astype(np.float32)


def inverse_frequencies(architecture: Architecture) -> np.ndarray:
    """RoPE's angular frequencies, f32[H/2], in radians per token, with the architecture's scaling applied.

    The float32 operations are in the order `transformers` uses (modeling_rope_utils), so both round alike.
    """
    size, scaling = architecture.head_size, architecture.rope_scaling
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    frequencies = np.float32(1.0) / np.float32(architecture.rope_theta) ** exponents
    if scaling is None:
        return frequencies
    factor = np.float32(scaling.factor)
    if scaling.kind == "linear":
        return frequencies / factor
    if scaling.kind == "yarn":
        ramp = _yarn_ramp(architecture, scaling)
        return frequencies / factor * ramp + frequencies * (1 - ramp)
    wavelengths = np.float32(2 * math.pi) / frequencies
    low, high = np.float32(scaling.low_freq_factor), np.float32(scaling.high_freq_factor)
    original = np.float32(scaling.original_max_positions)
    blend = (original / wavelengths - low) / (high - low)
    blended = (1 - blend) * frequencies / factor + blend * frequencies
    scaled = np.where(wavelengths > original / low, frequencies / factor, blended)
    return np.where(wavelengths < original / high, frequencies, scaled).astype(np.float32)


def tables(architecture: Architecture, positions: jax.Array) -> Tables:
    """Cosine and sine, f32[..., H/2], of integer `positions` [...]."""
    frequencies = linear.trailing(jnp.asarray(inverse_frequencies(architecture)), positions.ndim + 1)
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    scale = 1.0 if architecture.rope_scaling is None else architecture.rope_scaling.attention_factor
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(heads: jax.Array, tables: Tables) -> jax.Array:
    """RoPE on [..., heads, H] with tables [..., H/2]: dimension i pairs with i + H/2 (the Hugging Face layout)."""
    cosine, sine = (jnp.expand_dims(table, -2) for table in tables)
    first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return rotated.astype(heads.dtype)
