"""Generated data sets: arithmetic, base conversion, countdown, modular arithmetic, sorting, and reasoning-gym's.

`dataset` the rows of a name · `naming` parses names · `tasks` the problems of each task and level · `selection` which of them a
data set has · `gym` the reasoning-gym library.

A name is `procedural:NAME[,level=L][,size=N][,seed=S][,split=train|test][,style=sentence|raw|qa]`, and the rows are a pure
function of it. Train and test never overlap, because a problem's split is a hash of the problem. A gold answer is a number
for the ordinary verifier, or `@NAME:payload` for a checker where several answers are right. Plain Python without jax;
nothing is ever evaluated.
"""

from __future__ import annotations

from reval_jax.procedural import gym, naming, selection, tasks
from reval_jax.procedural.dataset import rows
from reval_jax.procedural.gym import reasoning_gym_score
from reval_jax.procedural.naming import is_procedural, label

__all__ = ["gym", "is_procedural", "label", "naming", "reasoning_gym_score", "rows", "selection", "tasks"]
