"""Figure 8 on SmolLM2-135M-Instruct: `2+2=`, answers of at most 12 tokens, 0/1 reward, every β at the rate of `fig09_smollm2`.

Smaller than `fig08`, since a round takes 12 seconds of two cores: four β, and the twelve rounds of `fig09_smollm2`, whose runs
with 0/1 reward are this figure's β 0.02. Twelve rounds do not reach the end of β 0.2 (0.94) and below, so of the ends only
those of β 2 and 0.5 are asked for; `fig08` has the others.
"""

from __future__ import annotations

from benchmarks.figures import plan
from benchmarks.figures.experiments import fig08
from benchmarks.figures.experiments.fig09_smollm2 import FIGURE as FIG09
from benchmarks.figures.experiments.fig09_smollm2 import RATE, TASKS
from benchmarks.figures.plan import Contrast, Panel, Plateau

BETA_2, BETA_05, BETA_02, BETA_0002 = (fig08.BINARY[beta].name for beta in (2.0, 0.5, 0.02, 0.002))
NAMES = (BETA_02, BETA_2, BETA_05, BETA_0002)

FIGURE = fig08.FIGURE._replace(
    name="fig08_smollm2",
    title="β from 2 to 0.002, on SmolLM2-135M",
    question="The same on a real model: does β do anything but set the end?",
    tasks=TASKS,
    variants=plan.at_rate((each for each in fig08.BINARY.values() if each.name in NAMES), RATE),
    rounds=FIG09.rounds,
    searches=False,
    contrasts=(
        Contrast(
            BETA_2,
            BETA_02,
            "final",
            TASKS,
            confirms="β 2 ends more than 0.2 below β 0.02: a large β suppresses the reward.",
            refutes="It does not.",
            expects="less",
            margin=0.2,
        ),
        *(
            Contrast(
                name,
                Plateau(beta),
                "final",
                TASKS,
                confirms=f"With β {beta:g} the score ends within 0.1 of p*(β).",
                refutes="It ends elsewhere: β does not set the end, or 12 rounds do not reach it.",
                expects="equal",
                margin=0.1,
            )
            for name, beta in ((BETA_2, 2.0), (BETA_05, 0.5))
        ),
        *(each._replace(tasks=TASKS) for each in fig08.FIGURE.contrasts if not isinstance(each.second, Plateau)),
    ),
    panels=(
        Panel("0/1 reward", NAMES, x="rounds"),
        Panel("KL to the reference, nats", NAMES, "actor/kl_ref", "rounds"),
    ),
)
