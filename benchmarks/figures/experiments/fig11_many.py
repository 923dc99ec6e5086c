"""Figure 11 on many prompts: 8 prompts × 8 responses of a distribution, where V(s₁) is a function and not one number.

Claim, arms and reasons are those of `fig11`. `many` has one response a prompt, which has no group mean, hence 8 × 8.
"""

from __future__ import annotations

from benchmarks.figures.experiments import fig11
from benchmarks.figures.plan import Figure, Panel

TASKS = ("many",)
SIX = fig11.arms({"rollout.prompts_per_round": 8, "rollout.samples_per_prompt": 8}, rate_factor=4)
# Searched at its own sizes, 8 × 8, and not as in other figures on `many`.
SIX = tuple(each._replace(method="ReVal, K = 2, 8 × 8") for each in SIX)

FIGURE = Figure(
    name="fig11_many",
    title="Eq. 8 and what may mend it, many prompts",
    question="The same with many prompts",
    tasks=TASKS,
    variants=SIX,
    rounds=60,
    contrasts=fig11.contrasts(SIX, TASKS),
    panels=(
        Panel("ReVal's rate × 4", tuple(each.name for each in SIX), x="rounds"),
        Panel("gradient norm", tuple(each.name for each in SIX), "actor/grad_norm", "rounds"),
    ),
    metrics=("actor/grad_norm", "actor/kl_ref", "reval/log_ratio", "reval/residual_abs"),
    stops_at_95=False,
    tuning="many",
)
