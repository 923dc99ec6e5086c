"""What distinguishes one algorithm from another, as one record of functions; other modules read only its fields.

`choose` builds the record that `update.objective` names. A name is a built-in, or MODULE:FUNCTION of your own: a function
of the config that returns an `Algorithm`, as the built-ins' do. One contract serves both, because a loss alone is not an
algorithm: which rows it trains on, how rewards are shaped and whether there is a reference belong to it. Three helpers
build the usual records, so that your own part is a few lines:

    value_based(config, residual)     a residual a trajectory; its squares are averaged; fresh batch, then replay draws
    replayed(config, loss)            any loss; fresh batch, then replay draws; reference scores
    on_policy(config, loss)           any loss; mini-batches of the fresh batch; no reference

    def scaled(config):               # my_objectives.py
        def residual(scores, rows, beta):
            return scores.trajectory_log_prob - rows.reference_log_prob - rows.reward / beta

        return algorithms.value_based(config, residual)

    reval train --config configs/NAME.yaml --update.objective my_objectives:scaled --update.objective_path .

docs/examples/own_objective.py is a complete one, with a loss of its own. The function may raise ValueError for settings that
it cannot train with. Its module runs inside the training process, unlike `verifier.function`: it is your code, not a model's
text. It is imported and its loss is traced on a tiny batch of shapes before anything is loaded, so that a wrong name,
signature or result is one message and exit code 2. A run's settings record the function's name and not its text: keep the
file beside the run if you want to resume or repeat it.

A built-in needs its equation in `objective`, a function here that returns its record, its name in `config.BuiltIn` and one case
in `choice.choose`. What another algorithm needs beyond the fields of `record.Algorithm` is one more field there with one reader.
`baselines`, `draws` and `policy_gradient` read the settings that algorithms share: a published name that is a choice of these is
a file in configs/algorithms, and no code.
"""

from __future__ import annotations

from reval_jax.algorithms.choice import choose
from reval_jax.algorithms.policy_gradient import on_policy
from reval_jax.algorithms.record import Algorithm, Draw, Loss, Metrics, PerTrajectory, Residual, ShapeReward, limits
from reval_jax.algorithms.value_based import replayed, value_based

__all__ = [
    "Algorithm",
    "Draw",
    "Loss",
    "Metrics",
    "PerTrajectory",
    "Residual",
    "ShapeReward",
    "choose",
    "limits",
    "on_policy",
    "replayed",
    "value_based",
]
