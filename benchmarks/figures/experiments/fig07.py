"""Figure 7: do resets of the reference end a saturation?

The paper (§5.5.2, Fig. 7): without resets the score saturates at about 200 of 650 steps; resets every 200 steps are best of 50,
200, 400 and none; at 400 an improvement follows the reset. The reason given is the growing log-ratio.

Here: group-mean reward as there, 80 rounds, resets every 6, 25 and 50 (the paper's shares of 650), and every 25 with Adam's
moments reset too, at β = 0.5, where the solution of a question with p = 0.3 has p* of about 0.7, so that the reference binds;
and at β = 0.02, where it does not (p* = 1). Confirmed: at β = 0.5 resets every 25 end at least 0.05 above none, and none rises
by less than 0.02 per ten rounds in its last third. Refuted: no gain at 0.5, or the same gain at 0.02 or through the optimizer
alone: then it is not the reference.
"""

from __future__ import annotations

from typing import Any

from benchmarks.figures import methods
from benchmarks.figures.plan import Contrast, Figure, Panel, Variant

TASKS = ("many_groups",)


def _resets(beta: float, every: int, *, optimizer: bool = False) -> Variant:
    settings: dict[str, Any] = {"update.beta": beta, "update.reference_reset_every": every}
    if optimizer:
        settings["update.reset_optimizer"] = True
    name = f"β {beta:g}, " + (f"every {every}" if every else "never") + (", Adam's moments too" if optimizer else "")
    method = methods.REVAL_2.name + ("" if beta == methods.BETA else f", β {beta:g}")
    return methods.variant(name, methods.reval(2) | settings, method=method)


NEVER, OFTEN, MODERATE, RARE = (_resets(0.5, every) for every in (0, 6, 25, 50))
OPTIMIZER = _resets(0.5, 25, optimizer=True)
LOOSE_NEVER, LOOSE_MODERATE = _resets(0.02, 0), _resets(0.02, 25)

FIGURE = Figure(
    name="fig07",
    title="Resets of the reference",
    question="Do resets end a saturation, and only where the reference binds?",
    tasks=TASKS,
    variants=(NEVER, OFTEN, MODERATE, RARE, OPTIMIZER, LOOSE_NEVER, LOOSE_MODERATE),
    rounds=80,
    contrasts=(
        Contrast(
            MODERATE.name,
            NEVER.name,
            "held_out",
            TASKS,
            confirms="Where the reference binds, resets end at least 0.05 higher.",
            refutes="They gain less than 0.05.",
            margin=0.05,
        ),
        Contrast(
            MODERATE.name,
            OFTEN.name,
            "held_out",
            TASKS,
            confirms="Moderate resets are better than frequent ones.",
            refutes="Frequent ones are better.",
        ),
        Contrast(
            NEVER.name,
            0.0,
            "slope",
            TASKS,
            confirms="Without resets the score of the last third rises by less than 0.02 per ten rounds: it saturates.",
            refutes="It still rises or falls by more.",
            expects="equal",
            margin=0.02,
        ),
        Contrast(
            LOOSE_MODERATE.name,
            LOOSE_NEVER.name,
            "held_out",
            TASKS,
            confirms="Where the reference does not bind, resets change less than 0.05.",
            refutes="They change more: it is not the reference.",
            expects="equal",
            margin=0.05,
        ),
        Contrast(
            OPTIMIZER.name,
            MODERATE.name,
            "held_out",
            TASKS,
            confirms="Adam's moments make less than 0.05 of difference.",
            refutes="They make more.",
            expects="equal",
            margin=0.05,
        ),
    ),
    panels=(
        Panel("β 0.5", tuple(each.name for each in (NEVER, OFTEN, MODERATE, RARE, OPTIMIZER)), "held_out", "rounds"),
        Panel("β 0.02", (LOOSE_NEVER.name, LOOSE_MODERATE.name), "held_out", "rounds"),
        Panel(
            "KL to the reference, nats",
            tuple(each.name for each in (NEVER, OFTEN, MODERATE, RARE, LOOSE_NEVER, LOOSE_MODERATE)),
            "actor/kl_ref",
            "rounds",
        ),
    ),
    metrics=("actor/kl_ref", "actor/grad_norm", "reval/log_ratio"),
    stops_at_95=False,
    tuning="many_groups",
)
