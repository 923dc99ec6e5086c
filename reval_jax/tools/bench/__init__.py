"""How fast the compiled loss, update and sampler are here: `reval bench scores`, `update` and `sampler`.

Every comparison is made in one process, its sides in turns, and reported as medians: on a shared machine only ratios of one
run mean anything.
"""

from __future__ import annotations

from reval_jax.tools.bench import sampler, scores, update

__all__ = ["sampler", "scores", "update"]
