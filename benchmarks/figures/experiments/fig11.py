"""Figure 11: is the regression of Eq. 8 unstable, and is it V(s₁) that mends it?

The paper (App. E, Fig. 11): the loss of Eq. 8 with reward less its group's mean is unstable at β = 0.02 and 0.002 and stable
only at 0.2, with gradient norms around 1e4, "which may be related to some anomalous values of log π/π_ref"; ReVal is stable.

Here: without log Z the targets (r − r̄)/β are infeasible, so wrong answers are pushed down without end; V(s₁) − V_ref can
absorb log Z. If that is it, any log Z mends it, and ReVal with ∇V stopped, whose loss is Eq. 8's, does not. If outliers are it,
Huber's loss does. All arms have ReVal's searched rate, times 2: a search of their own would have left out the rates at which
they collapse. ReVal and the regression are played at the rate itself as well. Confirmed: ReVal ends above the regression and
above itself with ∇V stopped. Refuted: ∇V stopped is as good, or Huber mends all. Responses of some 20 tokens; the paper's have
hundreds to thousands, so that "nothing seen" refutes little.
"""

from __future__ import annotations

from typing import Any

from benchmarks.figures import methods, plan
from benchmarks.figures.plan import Contrast, Figure, Panel, Variant

TASKS = ("long_8",)
BETA = 0.02


def arms(rate_factor: float) -> tuple[Variant, ...]:
    """The six arms, ReVal first, at so many times ReVal's rate."""
    return tuple(
        methods.variant(
            f"{name}, rate × {rate_factor:g}",
            methods.reval(2, **others),
            method=methods.REVAL_2.name,
            rate_factor=rate_factor,
        )
        for name, others in (
            ("ReVal", {}),
            ("ReVal, ∇V stopped", {"update__stop_value_gradient": True}),
            ("regression", {"update__objective": "regression"}),
            ("regression, Huber", {"update__objective": "benchmarks.figures.objectives:regression_huber"}),
            ("regression, log Z", _optimal_value(BETA)),
            ("OAPL", _optimal_value(1.0)),
        )
    )


def _optimal_value(beta: float) -> dict[str, Any]:
    """Reward less β₁·log mean exp(r/β₁) of its group: log Z itself where β₁ is the loss's β; OAPL's β₁ is 1."""
    return {
        "update__objective": "regression",
        "update__reward_design": "binary",
        "update__baseline": "optimal_value",
        "update__optimal_value_beta": beta,
    }


def _above(first: Variant, second: Variant, tasks: tuple[str, ...], confirms: str) -> Contrast:
    is_reval = first.settings["update.objective"] == "reval"
    return plan.above(first, second, "final", tasks, confirms, refutes="It ends below.", for_reval=is_reval)


def contrasts(six: tuple[Variant, ...], tasks: tuple[str, ...]) -> tuple[Contrast, ...]:
    """What the arms are expected to differ by: five, whose p may reach 0.05 by eight clusters."""
    reval, stopped, regression, huber, log_z, oapl = six
    return (
        _above(reval, regression, tasks, "ReVal ends above the regression of Eq. 8."),
        _above(reval, stopped, tasks, "It is ∇V: with ∇V stopped, ReVal ends below."),
        _above(log_z, regression, tasks, "The batch's own log Z mends the regression."),
        _above(oapl, regression, tasks, "OAPL's optimal value mends it."),
        _above(huber, regression, tasks, "Huber's loss mends it: outliers of log π/π_ref are it."),
    )


FACTOR = 2
SIX = arms(FACTOR)
GENTLE = tuple(
    methods.variant(each.name.replace(f"× {FACTOR}", "× 1"), dict(each.settings), method=each.method)
    for each in (SIX[0], SIX[2])
)
STRONG_BETA = tuple(
    methods.variant(
        f"{each.name}, β 0.2", {**each.settings, "update.beta": 0.2}, method=each.method, rate_factor=FACTOR
    )
    for each in (SIX[0], SIX[2])
)

FIGURE = Figure(
    name="fig11",
    title="Eq. 8 and what may mend it, longer responses",
    question="Is the regression unstable, and is it only V(s₁) that mends it?",
    tasks=TASKS,
    variants=(GENTLE[0], *SIX, GENTLE[1], *STRONG_BETA),
    rounds=80,
    contrasts=(
        *(each for each in contrasts(SIX, TASKS) if each.first != SIX[-1].name),
        _above(GENTLE[0], GENTLE[1], TASKS, "At the rate itself, too, ReVal ends above the regression."),
        _above(STRONG_BETA[1], SIX[2], TASKS, "With β 0.2 the regression ends above that with 0.02."),
    ),
    panels=(
        Panel(f"ReVal's rate × {FACTOR}", tuple(each.name for each in SIX), x="rounds"),
        Panel("rate and β", tuple(each.name for each in (*GENTLE, *STRONG_BETA)), x="rounds"),
        Panel("gradient norm", tuple(each.name for each in SIX), "actor/grad_norm", "rounds"),
    ),
    metrics=("actor/grad_norm", "actor/kl_ref", "reval/log_ratio", "reval/residual_abs"),
    stops_at_95=False,
    tuning="long_8",
)
