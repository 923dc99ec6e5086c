"""Figure 8 on SmolLM2-135M-Instruct: `2+2=`, answers of at most 12 tokens, every β at the rate of `fig09_smollm2`."""

from __future__ import annotations

from benchmarks.figures import plan
from benchmarks.figures.experiments import fig08
from benchmarks.figures.experiments.fig09_smollm2 import RATE, TASKS

FIGURE = fig08.FIGURE._replace(
    name="fig08_smollm2",
    title="β from 2 to 0.002, on SmolLM2-135M",
    question="The same on a real model: does β do anything but set the end?",
    tasks=TASKS,
    variants=plan.at_rate(fig08.FIGURE.variants, RATE),
    searches=False,
    contrasts=tuple(each._replace(tasks=TASKS) for each in fig08.FIGURE.contrasts),
)
