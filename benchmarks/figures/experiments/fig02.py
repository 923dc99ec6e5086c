"""Figure 2: is on-policy GRPO slower on harder prompts?

The paper (§3, Fig. 2): GRPO on a single prompt needs substantially more steps on a hard one (avg@1024 0.10) than on a medium
(0.40) or an easy one (0.68) to reach the same score. One prompt of each difficulty, no repetition.

Here: nine prompts, three of each difficulty, so that difficulty is not one prompt. Confirmed: log T95 is larger on hard than on
medium, and on medium than on easy prompts. Refuted: it is not; or prompts of one difficulty differ as much as difficulties do
(`outcomes.between_share` below one half), in which case the page says so whatever the contrasts are.
"""

from __future__ import annotations

from benchmarks.figures import methods
from benchmarks.figures.plan import Contrast, Figure, Panel

HARD, MEDIUM, EASY = (
    tuple(f"{difficulty}_{index}" for index in (1, 2, 3)) for difficulty in ("hard", "medium", "easy")
)


def _slower(harder: tuple[str, ...], easier: tuple[str, ...], names: str) -> Contrast:
    return Contrast(
        "GRPO",
        "GRPO",
        "log_t95",
        harder,
        confirms=f"GRPO needs more rounds on {names}.",
        refutes="It needs fewer.",
        other_tasks=easier,
    )


FIGURE = Figure(
    name="fig02",
    title="GRPO on prompts of three difficulties",
    question="Is on-policy GRPO slower on harder prompts?",
    tasks=HARD + MEDIUM + EASY,
    variants=(methods.GRPO,),
    rounds=60,
    contrasts=(
        _slower(HARD, MEDIUM, "hard than on medium prompts"),
        _slower(MEDIUM, EASY, "medium than on easy prompts"),
    ),
    panels=(Panel("share of right responses", ("GRPO",), x="rounds"),),
    metrics=("actor/entropy", "actor/grad_norm"),
)
