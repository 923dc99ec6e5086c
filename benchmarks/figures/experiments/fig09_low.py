"""Figure 9 at one small learning rate: **added after the runs of `fig09`**, so it explores, and confirms nothing.

At their searched rates, 5e-4 to 2e-3, the designs learn these prompts in four to fourteen rounds where they learn them, and what
tells them apart is which seeds become unstable. The cosines of the first gradients (docs/evidence_protocol.md) speak of small
steps. Here every design has the rate 1.2e-4, of which the search says that no design collapses. Expected from the cosines: on the
hard prompt group mean and 0/1 with ∇V stopped above 0/1 above ±1; stopping ∇V mends ±1; on the medium prompt ±1 is above 0/1.
"""

from __future__ import annotations

from benchmarks.figures import plan
from benchmarks.figures.experiments import fig09

RATE = 1.2e-4

FIGURE = fig09.FIGURE._replace(
    name="fig09_low",
    is_exploratory=True,
    title="Reward designs at one small learning rate (added later)",
    question="Does the order of the first gradients' cosines show where steps are small?",
    variants=plan.at_rate(fig09.FIGURE.variants, RATE),
    rounds=60,
    searches=False,
)
