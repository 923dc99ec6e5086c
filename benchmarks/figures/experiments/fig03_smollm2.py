"""Figure 3 on SmolLM2-135M-Instruct: `2+2=`, answers of at most 12 tokens, with all controls; searched on `1+1=`.

Of the comparisons of `fig03` those with one update at larger rates are drawn and not decided: eight pairs decide six.
"""

from __future__ import annotations

from benchmarks.figures import plan
from benchmarks.figures.experiments import fig03
from benchmarks.figures.experiments.fig09_smollm2 import TASKS

FIGURE = fig03.FIGURE._replace(
    name="fig03_smollm2",
    title="ReVal with 1 to 8 updates a round, GRPO, and controls, on SmolLM2-135M",
    question="The same on a real model: does reuse speed learning, and is it replay?",
    tasks=TASKS,
    tuning="smollm2_medium",
    learning_rates=plan.SMOLLM2_RATES,
    contrasts=tuple(
        each._replace(tasks=TASKS)
        for each in fig03.FIGURE.contrasts
        if each.first not in [variant.name for variant in fig03.FASTER]
        and not each.confirms.startswith("Eight updates with replay are faster")
    ),
)
