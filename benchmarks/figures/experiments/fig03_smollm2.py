"""Figure 3 on SmolLM2-135M-Instruct: `2+2=`, answers of at most 12 tokens, with the controls, six rounds.

Smaller than `fig03`, since a round of eight updates takes 38 seconds of two cores. No search: every method has the rate of
configs/one_shot_hard.yaml, 2e-6, and those with one update a round a second curve at four times that, since AdamW makes a step
of a rate's size whatever the gradient is. Six rounds of one update do not reach 0.95, so the outcome is the mean score.
Methods with eight updates have one rate only: that one of them is above another says nothing of their best rates.
"""

from __future__ import annotations

from benchmarks.figures import methods, plan
from benchmarks.figures.experiments import fig03
from benchmarks.figures.experiments.fig09_smollm2 import RATE, TASKS
from benchmarks.figures.plan import Contrast, Panel, Variant

GRPO_FASTER = methods.variant("GRPO, rate × 4", methods.grpo(), method=methods.GRPO.name, rate_factor=4)
(REVAL_FASTER,) = (each for each in fig03.FASTER if each.rate_factor == 4)
ONE_UPDATE = (methods.GRPO, methods.REVAL_1)
EIGHT = (methods.REVAL_8, fig03.FRESH_8, fig03.MINI, fig03.PASSES)


def _above(other: Variant, confirms: str) -> Contrast:
    return plan.above(methods.REVAL_8, other, "area", TASKS, confirms, for_reval=True)


FIGURE = fig03.FIGURE._replace(
    name="fig03_smollm2",
    title="ReVal with eight updates a round, GRPO, and controls, on SmolLM2-135M",
    question="The same on a real model: does reuse speed learning, and is it replay?",
    tasks=TASKS,
    variants=plan.at_rate((*EIGHT, *ONE_UPDATE, GRPO_FASTER, REVAL_FASTER), RATE),
    rounds=6,
    searches=False,
    stops_at_95=False,
    contrasts=(
        _above(methods.GRPO, "ReVal with eight updates is above GRPO with one."),
        _above(GRPO_FASTER, "It is above GRPO with one update at four times the rate: it is not the larger steps."),
        _above(REVAL_FASTER, "It is above ReVal with one update at four times the rate."),
        _above(fig03.FRESH_8, "Eight updates with replay are above eight passes over the fresh batch."),
        _above(fig03.MINI, "It is above GRPO with eight mini-batches."),
        _above(fig03.PASSES, "It is above GRPO with eight passes."),
    ),
    panels=(
        Panel("eight updates", tuple(each.name for each in (*EIGHT, methods.GRPO)), x="rounds"),
        Panel(
            "one update",
            (fig03.K8, *(each.name for each in ONE_UPDATE), GRPO_FASTER.name, REVAL_FASTER.name),
            x="rounds",
        ),
        Panel("by updates", (fig03.K8, fig03.PASSES.name, methods.GRPO.name, REVAL_FASTER.name), x="updates"),
    ),
)
