"""Figure 10: does TBRM drift without reward, and for good?

The paper (App. C, Fig. 10): with a reward of 0, KL between TBRM's policy and the reference does not converge to 0 (Proposition
1), while ReVal's loss is 0 at the reference (Proposition 2).

Here: a reward function that is always 0. V = 0 with π = π_ref is a global minimum of TBRM's loss too, so that KL may return
once V(s₁) has fallen to 0: then the drift is a transient. Confirmed: TBRM's KL is above 0.1 nats after 100 rounds, ReVal's and
the regression's is 0. Refuted: TBRM's is below. Weight decay is off, since it would move any policy, except in one variant:
Adam makes of however small a gradient a step of the learning rate's size, so that "0" is a property of the loss, and perhaps
not of training.
"""

from __future__ import annotations

from typing import Any

from benchmarks.figures import methods
from benchmarks.figures.plan import Contrast, Figure, Panel, Variant

TASKS = ("medium_1", "many")
SLOW, FAST = 6e-5, 2.4e-4


def _unrewarded(name: str, settings: dict[str, Any], rate: float, *, decay: float = 0.0) -> Variant:
    without = {
        "verifier.function": "benchmarks.figures.rewards:zero",
        "optimizer.learning_rate": rate,
        "optimizer.weight_decay": decay,
        # A group's mean of a group of one does not exist, and with no reward it would change nothing.
        "update.reward_design": "binary",
        "update.updates_per_round": 1,
    }
    return methods.variant(name, settings | without)


TBRM_SLOW = _unrewarded("TBRM", methods.tbrm(0.02), SLOW)
TBRM_FAST = _unrewarded("TBRM, rate × 4", methods.tbrm(0.02), FAST)
REVAL = _unrewarded("ReVal, rate × 4", methods.reval(1), FAST)
REGRESSION = _unrewarded("regression, rate × 4", methods.reval(1, update__objective="regression"), FAST)
DECAYED = _unrewarded("ReVal, rate × 4, weight decay 0.01", methods.reval(1), FAST, decay=0.01)


def _stays(variant: Variant) -> Contrast:
    return Contrast(
        variant.name,
        0.0,
        "kl_ref",
        TASKS,
        confirms="TBRM's KL is above 0.1 nats after 100 rounds without reward.",
        refutes="It has returned below 0.1 nats: the drift is a transient.",
        margin=0.1,
    )


def _none(variant: Variant, margin: float) -> Contrast:
    return Contrast(
        variant.name,
        0.0,
        "kl_ref",
        TASKS,
        confirms=f"KL is 0 within {margin:g} nats.",
        refutes="It drifts too.",
        expects="equal",
        margin=margin,
        for_reval=variant is not REGRESSION,
    )


FIGURE = Figure(
    name="fig10",
    title="Training without reward",
    question="Does TBRM drift without reward, and for good?",
    tasks=TASKS,
    variants=(TBRM_SLOW, TBRM_FAST, REVAL, REGRESSION, DECAYED),
    rounds=100,
    contrasts=(
        _stays(TBRM_SLOW),
        _stays(TBRM_FAST),
        _none(REVAL, 0.001),
        _none(REGRESSION, 0.001),
        _none(DECAYED, 0.1),
    ),
    panels=tuple(
        Panel(title, tuple(each.name for each in (TBRM_SLOW, TBRM_FAST, REVAL, REGRESSION, DECAYED)), y, "rounds")
        for title, y in (
            ("KL to the reference, nats", "actor/kl_ref"),
            ("V(s₁) less the reference's, nats", "reval/value_gap"),
        )
    ),
    metrics=("actor/kl_ref", "reval/value_gap", "reval/residual_mean", "actor/grad_norm"),
    stops_at_95=False,
    searches=False,
)
