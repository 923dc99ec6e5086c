"""How fast the compiled loss and update are here: `reval bench scores` and `reval bench update`.

Every comparison is made in one process, its sides in turns, and reported as medians: on a shared machine only ratios of one
run mean anything.
"""

from __future__ import annotations

from reval_jax.bench import scores, update

__all__ = ["scores", "update"]
