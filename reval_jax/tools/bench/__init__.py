"""Speed of the compiled LM head, update and sampler: `reval bench scores`, `update` and `sampler`.

Every comparison runs in one process, with interleaved calls, and reports medians: on a shared machine only ratios within one
run are meaningful.
"""

from __future__ import annotations

from reval_jax.tools.bench import time_sampler, time_scores, time_update

__all__ = ["time_sampler", "time_scores", "time_update"]
