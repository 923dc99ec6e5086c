"""Is an adaptive number of updates better than the best fixed one?

Not in the paper, which fixes K. `update.max_updates_per_round` adapts it by whether replayed rows are memorized
(docs/objectives.md).

Here: 2 to 8 adaptive updates against 2, 4 and 8 fixed ones. Since the best fixed number is not known before, the claim is to be
faster than each of them. Confirmed: fewer rounds to 0.95 than 2, 4 and 8. Refuted: more than any of them. Beside it: fewer
updates to 0.95 than with 8.
"""

from __future__ import annotations

from benchmarks.figures import methods
from benchmarks.figures.plan import Contrast, Figure, Panel

TASKS = ("hard_1", "medium_1", "easy_1")
ADAPTIVE = methods.variant("ReVal, K = 2 … 8, adaptive", methods.reval(2, update__max_updates_per_round=8))
FIXED = (methods.REVAL_2, methods.REVAL_4, methods.REVAL_8)

FIGURE = Figure(
    name="adaptive",
    title="Adaptive and fixed numbers of updates",
    question="Is an adaptive number of updates better than the best fixed one?",
    tasks=TASKS,
    variants=(ADAPTIVE, *FIXED),
    rounds=60,
    contrasts=(
        *(
            Contrast(
                ADAPTIVE.name,
                each.name,
                "log_t95",
                TASKS,
                confirms=f"Adaptive needs fewer rounds than {each.name}.",
                refutes="It needs more.",
                expects="less",
            )
            for each in FIXED
        ),
        Contrast(
            ADAPTIVE.name,
            methods.REVAL_8.name,
            "log_updates",
            TASKS,
            confirms="Adaptive needs fewer updates than eight fixed ones a round.",
            refutes="It needs more.",
            expects="less",
        ),
    ),
    panels=(
        Panel("by rounds", (ADAPTIVE.name, *(each.name for each in FIXED)), x="rounds"),
        Panel("by updates", (ADAPTIVE.name, *(each.name for each in FIXED)), x="updates"),
    ),
    metrics=("reuse/next_updates", "reval/fresh/residual_abs"),
)
