"""Figure 9 on SmolLM2-135M-Instruct: `2+2=`, answers of at most 12 tokens, one learning rate.

No search: every design has the rate of configs/one_shot_hard.yaml, 2e-6, of which docs/learning_curves.md shows that ReVal learns
there. Expected from the cosines of this model's own first gradients on this prompt (docs/evidence_protocol.md) and from a pilot
with one seed: group mean above 0/1 above ±1, and ±1 mended by stopping ∇V.
"""

from __future__ import annotations

from benchmarks.figures import plan
from benchmarks.figures.experiments import fig09
from benchmarks.figures.plan import Contrast, Variant

TASKS = ("smollm2_hard",)
RATE = 2e-6


def _above(first: Variant, second: Variant, confirms: str) -> Contrast:
    return plan.above(first, second, "final", TASKS, confirms)


FIGURE = fig09.FIGURE._replace(
    name="fig09_smollm2",
    title="Reward designs, with and without the gradient of V(s₁), on SmolLM2-135M",
    question="The same on a real model: is it the gradient of V(s₁) that decides?",
    tasks=TASKS,
    variants=plan.at_rate(fig09.FIGURE.variants, RATE),
    rounds=12,
    searches=False,
    stops_at_95=False,
    contrasts=(
        _above(fig09.MEAN, fig09.BINARY, "Group-mean reward is above 0/1."),
        _above(fig09.BINARY, fig09.SIGNED, "0/1 reward is above ±1."),
        _above(fig09.SIGNED_STOPPED, fig09.SIGNED, "Stopping ∇V mends ±1."),
        _above(fig09.BINARY_STOPPED, fig09.BINARY, "Stopping ∇V mends 0/1."),
        Contrast(
            "group mean, ∇V stopped",
            "group mean",
            "final",
            TASKS,
            confirms="With group-mean reward ∇V makes less than 0.1 of difference.",
            refutes="It makes more.",
            expects="equal",
            margin=0.1,
        ),
    ),
)
