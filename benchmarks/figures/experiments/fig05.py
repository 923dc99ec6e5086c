"""Figures 5 and 6: with one response a prompt, does reuse help, and does ReVal beat ReMax?

The paper (§5.4): with N = 1 ReVal ends above GRPO (by 4.8 on AIME and 4.6 on GPQA, Fig. 5), and with eight updates needs 470
generation rounds on average where GRPO needs 580 (Fig. 6: 1.23 times fewer). GRPO's advantage of a group of one is the reward
itself, a weak baseline; ReMax, which the paper builds on and which is made for N = 1, is not compared.

Here: 64 prompts of a distribution, one response each, held-out questions. ReMax's greedy response is a generation too, so it
has 32 prompts a round (and, as a generous control, 64). A control has the mean reward of the round as ReVal's baseline.
Confirmed: more held-out accuracy at equal generations with eight updates than with one, than GRPO and than ReMax. Refuted:
ReMax is as good, or the mean of the round is: then V(s₁) is only a baseline. The axis is rounds of 64 generations: the record's
tokens leave greedy responses out.
"""

from __future__ import annotations

import math

from benchmarks.figures import methods
from benchmarks.figures.plan import Contrast, Figure, Panel

TASKS = ("many",)
K8 = methods.BINARY_8.name
REMAX = methods.variant("ReMax, 64 + 64", methods.remax(), method="ReMax")
HALF = methods.variant(
    "ReMax, 32 + 32",
    methods.remax() | {"rollout.prompts_per_round": 32, "update.batch_size": 32},
    method="ReMax",
)
MEAN = methods.variant(
    "ReVal less the round's mean, K = 8",
    methods.reval(8, "binary", update__objective="benchmarks.figures.objectives:reval_batch_mean"),
)


def _better(name: str, confirms: str, refutes: str) -> Contrast:
    return Contrast(K8, name, "held_out", TASKS, confirms=confirms, refutes=refutes, for_reval=True)


FIGURE = Figure(
    name="fig05",
    title="One response a prompt",
    question="With N = 1, does reuse help, and does ReVal beat ReMax?",
    tasks=TASKS,
    variants=(methods.GRPO, methods.BINARY_1, methods.BINARY_2, methods.BINARY_8, MEAN, REMAX, HALF),
    rounds=60,
    contrasts=(
        _better(methods.BINARY_1.name, "Eight updates a round end above one.", "They end below."),
        _better("GRPO", "ReVal with eight updates ends above GRPO.", "It ends below."),
        _better(HALF.name, "ReVal ends above ReMax of equal generations.", "It ends below."),
        _better(MEAN.name, "V(s₁) is worth more than the mean of the round.", "It is worth less."),
        Contrast(
            K8,
            "GRPO",
            "catch_up",
            TASKS,
            confirms="In training ReVal is where GRPO ends 1.23 times sooner (the paper, on benchmarks).",
            refutes="It needs more than 1/1.23 of the rounds.",
            expects="less",
            margin=math.log(580 / 470),
            for_reval=True,
        ),
    ),
    panels=(
        Panel(
            "held-out accuracy",
            ("GRPO", methods.BINARY_1.name, methods.BINARY_2.name, K8, HALF.name),
            "held_out",
            "rounds",
        ),
        Panel("baselines", (K8, MEAN.name, REMAX.name, HALF.name), "held_out", "rounds"),
        Panel("fresh responses", ("GRPO", methods.BINARY_1.name, methods.BINARY_2.name, K8, HALF.name), x="rounds"),
    ),
    metrics=("actor/kl_ref", "actor/grad_norm", "reval/value_gap", "actor/entropy"),
    stops_at_95=False,
    tuning="many",
)
