"""Configurations of some published models, shipped with the package, so that `reval plan` can read them without a network.

`configs/` contains each model's config.json, named after its hub id with "--" for the slash.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from reval_jax import model
from reval_jax.weights import huggingface

_CONFIGS = resources.files(__package__) / "configs"


def names() -> tuple[str, ...]:
    """The hub ids of the models."""
    files = (entry.name for entry in _CONFIGS.iterdir() if entry.name.endswith(".json"))
    return tuple(sorted(name.removesuffix(".json").replace("--", "/") for name in files))


def architecture(hub_id: str) -> model.Architecture:
    """The architecture of one of `names()`, from its config.json."""
    file = _CONFIGS / f"{hub_id.replace('/', '--')}.json"
    return huggingface.parse_config(json.loads(file.read_text(encoding="utf-8")), Path(file.name))
