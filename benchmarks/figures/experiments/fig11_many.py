"""Figure 11 on many prompts: 8 prompts × 8 responses of a distribution, where V(s₁) is a function and not one number.

Claim, arms and reasons are those of `fig11`; the answers are short.
"""

from __future__ import annotations

from benchmarks.figures.experiments import fig11
from benchmarks.figures.plan import Figure, Panel

TASKS = ("many_groups",)
# First the arm at the rate itself, with whose settings the rate is searched.
SIX = fig11.arms(4)
VARIANTS = (fig11.GENTLE[0], *SIX)

FIGURE = Figure(
    name="fig11_many",
    title="Eq. 8 and what may mend it, many prompts",
    question="Is the regression unstable, and is it only V(s₁) that mends it, on many prompts?",
    tasks=TASKS,
    variants=VARIANTS,
    rounds=60,
    contrasts=fig11.contrasts(SIX, TASKS),
    panels=(
        Panel("ReVal's rate × 4", tuple(each.name for each in SIX), x="rounds"),
        Panel("rate", (VARIANTS[0].name, VARIANTS[1].name), x="rounds"),
        Panel("gradient norm", tuple(each.name for each in SIX), "actor/grad_norm", "rounds"),
    ),
    metrics=("actor/grad_norm", "actor/kl_ref", "reval/log_ratio", "reval/residual_abs"),
    stops_at_95=False,
    tuning="many_groups",
)
