"""RoPE settings of a Hugging Face configuration to (theta, RopeScaling) and back, as `transformers` reads them."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from reval_jax import model, types

_KEYS = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
        "mscale_all_dim", "truncate",
    },
}  # fmt: skip


def from_config(
    config: types.Json, max_positions: int, file: Path, *, default_theta: float = 10000.0
) -> tuple[float, model.RopeScaling | None]:
    """(theta, scaling) from the old form (rope_theta, rope_scaling) or the new one (rope_parameters).

    Args:
      max_positions: the original context length if the configuration has none, tokens.
      file: names the configuration in messages.
      default_theta: theta if the configuration has none.
    """
    forms = [value for key in ("rope_scaling", "rope_parameters") if (value := config.get(key))]
    for form in forms:
        if not isinstance(form, dict):
            raise ValueError(f"{file}: the RoPE settings are {form!r}, but an object was expected. Correct the file.")
    # A form without a theta has the one beside it, or the other form's.
    inside = [theta for form in reversed(forms) if (theta := form.get("rope_theta")) is not None]
    given = config.get("rope_theta", (inside or [default_theta])[0])
    read = [_normal(form, given) for form in forms] or [_normal({}, given)]
    if read[0] != read[-1]:
        raise ValueError(
            f"{file}: rope_scaling={forms[0]!r} and rope_parameters={forms[-1]!r} contradict each other. Keep one."
        )
    kind, theta_given, settings = read[0]
    theta = _number(theta_given, "rope_theta", file)
    if not isinstance(kind, str) or kind not in _KEYS:
        raise ValueError(
            f"{file}: RoPE scaling {kind!r} is not implemented ('dynamic' and 'longrope' depend on the length of the"
            f" batch, so cached decoding would differ from the full forward pass); {', '.join(_KEYS)} are. Use one of"
            " them."
        )
    unknown = sorted(settings.keys() - _KEYS[kind])
    if unknown:
        raise ValueError(
            f"{file}: RoPE scaling {kind!r} has the key {unknown[0]!r}, which is not implemented and may change the"
            " mathematics. Remove it if it does not."
        )
    if kind == "default":
        return theta, None
    return theta, _scaling(kind, settings, max_positions, file)


def _normal(form: types.Json, theta: object) -> tuple[object, object, types.Json]:
    """Kind, theta and other settings of one form; `theta` where it has none."""
    settings = {key: value for key, value in form.items() if value is not None}
    older_kind = settings.pop("type", "default")
    kind = settings.pop("rope_type", older_kind)
    theta = settings.pop("rope_theta", theta)
    if settings.get("partial_rotary_factor") == 1:
        del settings["partial_rotary_factor"]
    if kind == "default" and settings.get("factor") == 1:
        del settings["factor"]
    return kind, theta, settings


def _scaling(kind: str, settings: types.Json, max_positions: int, file: Path) -> model.RopeScaling:
    numbers = {key: _number(value, key, file) for key, value in settings.items() if key != "truncate"}
    truncate = settings.get("truncate", True)
    if not isinstance(truncate, bool):
        raise ValueError(f"{file}: truncate={truncate!r}, but it is true or false. Correct the file.")
    required = {"linear": ["factor"], "llama3": ["factor", "low_freq_factor", "high_freq_factor"], "yarn": ["factor"]}[
        kind
    ]
    missing = [key for key in required if key not in numbers]
    if missing:
        raise ValueError(f"{file}: RoPE scaling {kind!r} requires {missing[0]!r}, which is missing. Add it.")
    factor = numbers["factor"]
    original = int(numbers.get("original_max_position_embeddings", max_positions))
    if kind == "linear":
        return model.RopeScaling("linear", factor)
    if kind == "llama3":
        low, high = numbers["low_freq_factor"], numbers["high_freq_factor"]
        return model.RopeScaling("llama3", factor, original, low_freq_factor=low, high_freq_factor=high)
    return model.RopeScaling(
        "yarn",
        factor,
        original,
        beta_fast=numbers.get("beta_fast") or 32.0,
        beta_slow=numbers.get("beta_slow") or 1.0,
        attention_factor=_yarn_attention_factor(factor, numbers),
        truncate=truncate,
    )


def _yarn_attention_factor(factor: float, numbers: dict[str, float]) -> float:
    """attention_factor if set, else 0.1 ln(factor) + 1; a ratio of two such terms if mscale and mscale_all_dim are set."""
    if "attention_factor" in numbers:
        return numbers["attention_factor"]

    def term(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if numbers.get("mscale") and numbers.get("mscale_all_dim"):
        return term(numbers["mscale"]) / term(numbers["mscale_all_dim"])
    return term(1.0)


def _number(value: object, key: str, file: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= sys.float_info.max:
        raise ValueError(f"{file}: {key}={value!r}, but RoPE needs a positive number there. Correct the file.")
    return float(value)


def to_config(scaling: model.RopeScaling | None) -> types.Json | None:
    """The value of `rope_scaling` for config.json."""
    if scaling is None:
        return None
    settings: types.Json = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
        settings["original_max_position_embeddings"] = scaling.original_max_positions
    if scaling.kind == "llama3":
        settings |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if scaling.kind == "yarn":
        settings |= {"attention_factor": scaling.attention_factor, "truncate": scaling.truncate}
        settings |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
    return settings
