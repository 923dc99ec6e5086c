"""Figure 8: what does β do?

The paper (§5.5.1, §5.5.3, Fig. 8): a smaller β gives a larger KL to the reference; a large one suppresses the reward, so that
the gradient vanishes and convergence stalls; a small one makes gradients excessive and may end in collapse.

Here: what is left of that under AdamW with the gradient clipped, which removes the loss's scale. β then changes the direction
only, and sets the end: p*(β) = p·exp(1/β) / (p·exp(1/β) + 1 − p) for 0/1 reward. On a prompt with p = 0.1: 0.155 at β = 2, 0.45
at 0.5, 0.94 at 0.2, 1 below 0.1. Confirmed: the score ends within 0.05 of p*(β), the first three rounds' updates give the same
score at every β, KL rises as β falls. Refuted: early curves differ (the gradient's size matters), the end is elsewhere, or β =
0.002 ends below 0.02 (collapse).
"""

from __future__ import annotations

from benchmarks.figures import methods
from benchmarks.figures.plan import Contrast, Figure, Panel, Plateau, Variant

TASKS = ("hard_1",)


def _beta(beta: float, reward: str) -> Variant:
    label = "0/1" if reward == "binary" else "group mean"
    # One rate for every β, searched at 0.02: rates of their own would hide what β does to the size of a step.
    return methods.variant(
        f"{label}, β {beta:g}",
        methods.reval(2, reward, update__beta=beta),
        method=methods.BINARY_2.name if reward == "binary" else methods.REVAL_2.name,
    )


BINARY = {beta: _beta(beta, "binary") for beta in (0.02, 2.0, 0.5, 0.2, 0.05, 0.002)}
MEAN = {beta: _beta(beta, "group_normalized") for beta in (0.02, 0.5, 0.2, 0.002)}


def _plateau(beta: float) -> Contrast:
    return Contrast(
        BINARY[beta].name,
        Plateau(beta),
        "final",
        TASKS,
        confirms=f"With β {beta:g} the score ends within 0.05 of p*(β).",
        refutes="It ends elsewhere: β does not set the end, or 60 rounds do not reach it.",
        expects="equal",
        margin=0.05,
    )


FIGURE = Figure(
    name="fig08",
    title="β from 2 to 0.002",
    question="Is β a regulariser, and does it do anything but set the end?",
    tasks=TASKS,
    variants=(*BINARY.values(), *MEAN.values()),
    rounds=60,
    contrasts=(
        *(_plateau(beta) for beta in (2.0, 0.5, 0.2)),
        Contrast(
            BINARY[0.5].name,
            BINARY[0.002].name,
            "early",
            TASKS,
            confirms="After the updates of one to three rounds, the score at β 0.5 and at 0.002 is the same within 0.05.",
            refutes="It differs: β acts through the size of a step.",
            expects="equal",
            margin=0.05,
        ),
        Contrast(
            BINARY[0.002].name,
            BINARY[0.5].name,
            "kl_ref",
            TASKS,
            confirms="KL to the reference is larger at the smaller β.",
            refutes="It is smaller.",
        ),
        Contrast(
            BINARY[0.002].name,
            BINARY[0.02].name,
            "final",
            TASKS,
            confirms="β 0.002 ends more than 0.05 below 0.02, as collapse would.",
            refutes="It does not: with the gradient clipped, a small β alone is no danger here.",
            expects="less",
            margin=0.05,
        ),
    ),
    panels=(
        Panel("0/1 reward", tuple(each.name for each in BINARY.values()), x="rounds"),
        Panel("group-mean reward", tuple(each.name for each in MEAN.values()), x="rounds"),
        Panel(
            "KL to the reference, nats (0/1)", tuple(each.name for each in BINARY.values()), "actor/kl_ref", "rounds"
        ),
    ),
    metrics=("actor/kl_ref", "actor/grad_norm", "reval/value_gap"),
    stops_at_95=False,
)
