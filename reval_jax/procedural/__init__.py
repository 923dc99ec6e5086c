"""Questions that are made, not downloaded: arithmetic, base conversion, countdown, modular arithmetic, sorting.

A data set is named `procedural:NAME[,level=L][,size=N][,seed=S][,split=train|test][,style=sentence|raw|qa]`, and its rows
are a pure function of that name. Train and test never overlap: a problem's split is a hash of the problem. Answers are
plain numbers for the ordinary verifier, or `@NAME:payload` where many answers are right and a checker decides. Plain
Python: no jax, and nothing is ever evaluated.
"""

from __future__ import annotations

from reval_jax.procedural import drawing, gym, naming, tasks
from reval_jax.procedural.dataset import rows
from reval_jax.procedural.gym import reasoning_gym_score
from reval_jax.procedural.naming import is_procedural, label

__all__ = ["drawing", "gym", "is_procedural", "label", "naming", "reasoning_gym_score", "rows", "tasks"]
