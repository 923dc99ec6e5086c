"""Figure 3: does reuse speed learning, and is it replay or the number of updates?

The paper (§5.2, Fig. 3): ReVal reaches a score of 95 in fewer generation steps the more updates a round has (1, 2, 4, 8); with
eight, 3.6 (hard), 4.1 (medium) and 5.2 times (easy) sooner than GRPO, on average 4.3 times. It compares one update of GRPO with
eight of ReVal, at one learning rate.

Here: the same, each method at its own searched rate, and the controls without which replay cannot be told from more updates:
ReVal with one update at 2, 4 and 8 times its rate; ReVal with eight updates and a buffer of the fresh batch alone (eight
passes, no replay); GRPO with eight mini-batches; GRPO with eight passes. Confirmed: GRPO needs more than twice the rounds of
ReVal with eight updates (lower end of the ratio above 2), and more than the eight passes over the fresh batch do. Refuted: a
control is within 1.2 times of it: then the gain is the number or the size of updates. `log_updates` asks the reverse: what a
round of two updates saves in updates.
"""

from __future__ import annotations

import math

from benchmarks.figures import methods
from benchmarks.figures.plan import Contrast, Figure, Panel

TASKS = ("hard_1", "medium_1", "easy_1")
K8 = methods.REVAL_8.name
FRESH_8 = methods.variant("ReVal, 8 passes, no replay", methods.reval(8, replay__capacity=methods.FRESH))
FASTER = tuple(
    methods.variant(f"ReVal, K = 1, rate × {factor}", methods.reval(1), method=methods.REVAL_1.name, rate_factor=factor)
    for factor in (2, 4, 8)
)
MINI = methods.variant("GRPO, 8 mini-batches", methods.grpo(mini_batches=8))
PASSES = methods.variant("GRPO, 8 passes", methods.grpo(passes=8))


def _control(name: str) -> Contrast:
    return Contrast(
        name,
        K8,
        "log_t95",
        TASKS,
        confirms="This control needs more than 1.2 times ReVal's rounds: it does not explain the gain.",
        refutes="It is within 1.2 times of ReVal's rounds: it has the same gain.",
        margin=math.log(1.2),
        for_reval=True,
    )


FIGURE = Figure(
    name="fig03",
    title="ReVal with 1 to 8 updates a round, GRPO, and controls",
    question="Does reuse speed learning, and is it replay?",
    tasks=TASKS,
    variants=(
        methods.GRPO,
        methods.REVAL_1,
        methods.REVAL_2,
        methods.REVAL_4,
        methods.REVAL_8,
        *FASTER,
        FRESH_8,
        MINI,
        PASSES,
    ),
    rounds=60,
    contrasts=(
        Contrast(
            "GRPO",
            K8,
            "log_t95",
            TASKS,
            confirms="ReVal with eight updates is more than twice as fast in rounds as GRPO with one (the paper: 4.3 times).",
            refutes="It is less than twice as fast.",
            margin=math.log(2),
            for_reval=True,
        ),
        *(_control(each.name) for each in (methods.REVAL_1, *FASTER, FRESH_8, MINI, PASSES)),
        Contrast(
            FRESH_8.name,
            K8,
            "log_t95",
            TASKS,
            confirms="Eight updates with replay are faster than eight passes over the fresh batch.",
            refutes="They are slower.",
            for_reval=True,
        ),
        Contrast(
            K8,
            methods.REVAL_2.name,
            "log_updates",
            TASKS,
            confirms="Two updates a round need fewer updates in all than eight: reuse trades updates for responses.",
            refutes="They need more.",
        ),
    ),
    panels=(
        Panel("reuse", ("GRPO", *(each.name for each in (methods.REVAL_1, methods.REVAL_2, methods.REVAL_4)), K8)),
        Panel("controls: updates", (K8, FRESH_8.name, MINI.name, PASSES.name, "GRPO")),
        Panel("controls: learning rate", (K8, methods.REVAL_1.name, *(each.name for each in FASTER))),
        Panel("by updates", ("GRPO", methods.REVAL_1.name, methods.REVAL_2.name, K8, PASSES.name), x="updates"),
    ),
    metrics=("actor/kl_ref", "actor/grad_norm", "reval/fresh/residual_abs", "actor/pg_clipfrac"),
)
