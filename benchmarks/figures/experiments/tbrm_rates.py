"""Is TBRM worse at a learning rate of its own?

The paper (§5.3, Table 1): TBRM is below ReVal on average (42.3 against 45.6, and 36.9 against 39.6), all at 1e-6; TBRM's
authors use 2 to 2.5e-6.

Here: TBRM with β 0.002, 0.02 and 0.2 and ReVal with 0/1 reward, all with one update on the fresh batch, each at its own
searched rate (the curves of the search are shown). TBRM is ReVal with β·V_ref(s₁) less reward: a constant baseline, so that it
should be best where β·V_ref(s₁) is near the success rate, and worst where it is far above. Confirmed: ReVal's mean score is
above TBRM's at each β. Refuted: it is below.
"""

from __future__ import annotations

from benchmarks.figures import methods
from benchmarks.figures.plan import Contrast, Figure, Panel

TASKS = ("hard_1", "medium_1", "easy_1")
TBRM = tuple(methods.variant(f"TBRM, β {beta:g}", methods.tbrm(beta)) for beta in (0.002, 0.02, 0.2))

FIGURE = Figure(
    name="tbrm_rates",
    title="TBRM at its own learning rate",
    question="Is TBRM worse at a learning rate of its own?",
    tasks=TASKS,
    variants=(methods.BINARY_1, *TBRM),
    rounds=60,
    contrasts=tuple(
        Contrast(
            methods.BINARY_1.name,
            each.name,
            "area",
            TASKS,
            confirms=f"ReVal is above {each.name}.",
            refutes="It is below.",
            for_reval=True,
        )
        for each in TBRM
    ),
    panels=(Panel("share of right responses", (methods.BINARY_1.name, *(each.name for each in TBRM)), x="rounds"),),
    metrics=("actor/kl_ref", "reval/value_gap", "reval/residual_mean", "actor/grad_norm"),
)
