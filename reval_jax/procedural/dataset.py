"""Questions that are made, not downloaded: arithmetic, base conversion, countdown, modular arithmetic, sorting.

A data set is named `procedural:NAME[,level=L][,size=N][,seed=S][,split=train|test][,style=sentence|raw|qa]`, and its rows
are a pure function of that name. Train and test never overlap: a problem's split is a hash of the problem. Answers are
plain numbers for the ordinary verifier, or `@NAME:payload` where many answers are right and a checker decides. Plain
Python: no jax, and nothing is ever evaluated.
"""

from __future__ import annotations

from reval_jax.procedural import drawing, gym, naming
from reval_jax.procedural.gym import reasoning_gym_score as reasoning_gym_score
from reval_jax.procedural.naming import is_procedural as is_procedural
from reval_jax.procedural.naming import label as label


def rows(dataset: str) -> list[tuple[str, str]]:
    """Question and gold answer of every row of a procedural data set.

    Raises:
      ValueError: the name is not one that is known, or asks for more questions than there are.
    """
    name = naming.parse(dataset)
    return gym.rows(name) if name.task == naming.GYM else drawing.rows(name)
