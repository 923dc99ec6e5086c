"""The rows of a procedural data set."""

from __future__ import annotations

from reval_jax.procedural import gym, naming, selection


def rows(dataset: str) -> list[tuple[str, str]]:
    """Question and gold answer of every row of a procedural data set.

    Raises:
      ValueError: the name is not valid, or its size exceeds the number of questions.
    """
    name = naming.parse(dataset)
    return gym.rows(name) if name.task == naming.GYM else selection.rows(name)
