"""Does the age of replayed responses hurt?

The paper (§4.3) keeps five rounds and does not vary it; prioritized or other sampling is left open. A larger buffer gives older
responses at the same number of updates.

Here: buffers of 1, 2, 5 and 20 rounds (ages up to 0, 1, 4 and 19) with four updates a round, three of them replay draws, 0/1
reward on both tasks so that they are comparable. Confirmed (no harm): 20 rounds are within 0.05 of 2 rounds in mean score.
Refuted: they differ by more. As long as the log-ratio of a response varies by less than some 3 nats, no harm is expected.
"""

from __future__ import annotations

from benchmarks.figures import methods
from benchmarks.figures.plan import Contrast, Figure, Panel

TASKS = ("hard_1", "many")
SIZES = {rounds: rounds * methods.FRESH for rounds in (5, 1, 2, 20)}
# The method's search has five rounds, as everywhere else.
VARIANTS = {
    rounds: methods.variant(
        f"{rounds} round{'s' * (rounds > 1)} in the buffer",
        methods.reval(4, "binary", replay__capacity=size),
        method=methods.BINARY_4.name,
    )
    for rounds, size in SIZES.items()
}


def _no_harm(older: int, newer: int) -> Contrast:
    return Contrast(
        VARIANTS[older].name,
        VARIANTS[newer].name,
        "area",
        TASKS,
        confirms=f"{older} rounds in the buffer are within 0.05 of {newer}.",
        refutes="They are not.",
        expects="equal",
        margin=0.05,
    )


FIGURE = Figure(
    name="age",
    title="Age of replayed responses",
    question="Does the age of replayed responses hurt?",
    tasks=TASKS,
    variants=tuple(VARIANTS.values()),
    rounds=60,
    contrasts=(
        _no_harm(20, 2),
        _no_harm(20, 5),
        Contrast(
            VARIANTS[5].name,
            VARIANTS[1].name,
            "area",
            TASKS,
            confirms="Five rounds are above the fresh batch alone.",
            refutes="They are below.",
        ),
    ),
    panels=(
        Panel("share of right responses", tuple(VARIANTS[rounds].name for rounds in (1, 2, 5, 20)), x="rounds"),
        Panel("age, rounds", tuple(VARIANTS[rounds].name for rounds in (1, 2, 5, 20)), "replay/age_mean", "rounds"),
    ),
    metrics=("replay/age_mean", "replay/reuse_at_eviction", "reval/log_ratio", "reval/residual_abs"),
)
