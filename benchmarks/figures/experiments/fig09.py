"""Figure 9: which reward design, and why?

The paper (§5.5.4, Fig. 9): with 0/1 reward wrong answers are only nudged toward the reference; reward less the group's mean is
best, and ±1 can even degrade.

Here: 0/1, ±1 and group mean, each with the gradient through V(s₁) (Eq. 2) and without (Eq. 4), since a decomposition of the
first gradient (docs/evidence_protocol.md) says that the order is that of its cosine with the group-mean policy gradient, and
that ∇V is what spoils ±1 on a hard prompt but hardly on a medium one. Confirmed: group mean above 0/1 above ±1, and ±1 mended
by stopping ∇V. Refuted: another order; or ±1 is below 0/1 on a medium prompt, where the cosines (0.89 against 0.63) say above:
then the mechanism is wrong.
"""

from __future__ import annotations

from benchmarks.figures import methods, plan
from benchmarks.figures.plan import Contrast, Figure, Panel, Variant

TASKS = ("hard_1", "medium_1", "easy_1")


def _stopped(label: str, reward: str) -> Variant:
    return methods.variant(f"{label}, ∇V stopped", methods.reval(2, reward, update__stop_value_gradient=True))


BINARY = methods.BINARY_2._replace(name="0/1")
MEAN = methods.REVAL_2._replace(name="group mean")
SIGNED = methods.variant("±1", methods.reval(2, "signed"))
BINARY_STOPPED, SIGNED_STOPPED, MEAN_STOPPED = (
    _stopped(label, reward)
    for label, reward in (("0/1", "binary"), ("±1", "signed"), ("group mean", "group_normalized"))
)


def _above(first: Variant, second: Variant, tasks: tuple[str, ...], confirms: str) -> Contrast:
    return plan.above(first, second, "area", tasks, confirms)


FIGURE = Figure(
    name="fig09",
    title="Reward designs, with and without the gradient of V(s₁)",
    question="Which reward design learns best, and is it the gradient of V(s₁) that decides?",
    tasks=TASKS,
    variants=(BINARY, SIGNED, MEAN, BINARY_STOPPED, SIGNED_STOPPED, MEAN_STOPPED),
    rounds=40,
    contrasts=(
        _above(MEAN, BINARY, TASKS, "Group-mean reward is above 0/1."),
        _above(BINARY, SIGNED, TASKS, "0/1 reward is above ±1."),
        _above(SIGNED_STOPPED, SIGNED, TASKS, "Stopping ∇V mends ±1."),
        _above(SIGNED, BINARY, ("medium_1",), "On a medium prompt ±1 is above 0/1, as the cosines say."),
        _above(BINARY_STOPPED, BINARY, TASKS, "Stopping ∇V mends 0/1."),
        Contrast(
            MEAN_STOPPED.name,
            MEAN.name,
            "area",
            TASKS,
            confirms="With group-mean reward ∇V makes less than 0.03 of difference.",
            refutes="It makes more.",
            expects="equal",
            margin=0.03,
        ),
    ),
    panels=(
        Panel("Eq. 2", (MEAN.name, BINARY.name, SIGNED.name), x="rounds"),
        Panel("∇V stopped", (MEAN_STOPPED.name, BINARY_STOPPED.name, SIGNED_STOPPED.name), x="rounds"),
        Panel("value gap, nats", tuple(each.name for each in (MEAN, BINARY, SIGNED)), "reval/value_gap", "rounds"),
    ),
    metrics=("actor/kl_ref", "reval/value_gap", "actor/grad_norm"),
)
