"""Is prioritized replay better than uniform replay?

The paper (§4.3) leaves it to future work. At small β a residual is about r/β, so that priority by the residual draws right
responses first; `centred_residual` and `success` tell that apart.

Here: the five priorities of `replay.priority` at four updates a round, ReVal's searched rate of uniform replay for all, since
draws are compared and not methods. Confirmed: mean score above uniform. Refuted: below.
"""

from __future__ import annotations

from benchmarks.figures import methods
from benchmarks.figures.plan import Contrast, Figure, Panel

TASKS = ("hard_1", "hard_2")
PRIORITIES = ("residual", "centred_residual", "success", "recency")
VARIANTS = tuple(
    methods.variant(
        priority.replace("_", " "), methods.reval(4, replay__priority=priority), method=methods.REVAL_4.name
    )
    for priority in PRIORITIES
)

FIGURE = Figure(
    name="prioritized",
    title="Prioritized and uniform replay",
    question="Is prioritized replay better than uniform replay?",
    tasks=TASKS,
    variants=(methods.REVAL_4._replace(name="uniform"), *VARIANTS),
    rounds=60,
    contrasts=tuple(
        Contrast(
            each.name,
            "uniform",
            "area",
            TASKS,
            confirms=f"Priority by {each.name} is above uniform replay.",
            refutes="It is below.",
        )
        for each in VARIANTS
    ),
    panels=(Panel("share of right responses", ("uniform", *(each.name for each in VARIANTS)), x="rounds"),),
    metrics=("replay/reuse_at_eviction", "replay/age_mean", "reval/residual_abs"),
)
