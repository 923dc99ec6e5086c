"""The methods that figures compare, as settings; a method is an objective with a reward and a number of updates of a round.

Each names everything that tells methods apart, so that nothing depends on the test bed's defaults. What they share, the model,
the sizes of a round, AdamW with the gradient clipped at 1, is the test bed's. β is 0.02 wherever a figure does not ask for it:
the β of configs/one_shot_hard.yaml, at which answers of a few tokens are not regularised (docs/evidence_protocol.md).
"""

from __future__ import annotations

from typing import Any

from benchmarks.figures.plan import Variant

CAPACITY = 320
"""Rows of the replay buffer: five rounds of 64, as the paper's 5,120 are of 1,024."""
FRESH = 64
"""Responses of a round."""
BETA = 0.02
NEVER_RESETS = {"update.reference_reset_every": 0}


def reval(updates: int = 2, reward: str = "group_normalized", **others: Any) -> dict[str, Any]:
    """ReVal: the fresh batch, then `updates` − 1 draws from replay.

    Args:
      reward: `update.reward_design`.
      others: further settings, with "__" for the dot, and in place of those above.
    """
    settings = {
        "update.objective": "reval",
        "update.beta": BETA,
        "update.reward_design": reward,
        "update.draws": "replay",
        "update.updates_per_round": updates,
        "replay.capacity": CAPACITY,
        **NEVER_RESETS,
    }
    return settings | _dotted(others)


def tbrm(beta: float, **others: Any) -> dict[str, Any]:
    """TBRM as its authors run it: 0/1 reward, one update on the fresh batch."""
    settings = {
        "update.objective": "tbrm",
        "update.beta": beta,
        "update.reward_design": "binary",
        "update.draws": "fresh",
        "update.updates_per_round": 1,
        **NEVER_RESETS,
    }
    return settings | _dotted(others)


def grpo(mini_batches: int = 1, passes: int = 1, **others: Any) -> dict[str, Any]:
    """GRPO as the paper runs it, with more updates of a round either way: more mini-batches, or more passes."""
    settings = {
        "update.objective": "policy_gradient",
        "update.reward_design": "binary",
        "update.baseline": "group_standardized",
        "update.surrogate": "clipped",
        "update.mean": "token",
        "update.draws": "fresh",
        "update.updates_per_round": mini_batches,
        "update.passes": passes,
        **NEVER_RESETS,
    }
    return settings | _dotted(others)


def remax() -> dict[str, Any]:
    """ReMax: REINFORCE with the reward of the prompt's greedy response as baseline."""
    return grpo(update__baseline="greedy", update__surrogate="reinforce", update__mean="constant")


def variant(name: str, settings: dict[str, Any], *, method: str = "", rate_factor: float = 1.0) -> Variant:
    """A variant whose method has its own name, unless another is given."""
    return Variant(name, settings, method or name, rate_factor)


def _dotted(settings: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in settings.items()}


GRPO = variant("GRPO", grpo())
REVAL_1, REVAL_2, REVAL_4, REVAL_8 = (variant(f"ReVal, K = {k}", reval(k)) for k in (1, 2, 4, 8))
BINARY_1, BINARY_2, BINARY_4, BINARY_8 = (variant(f"ReVal 0/1, K = {k}", reval(k, "binary")) for k in (1, 2, 4, 8))
