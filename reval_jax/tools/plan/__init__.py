"""Memory planning: compiles a run's programs for a named TPU slice and adds up the memory of each phase.

`plan` examines one config, or searches for its fastest variant that fits. It compiles from shapes alone: it reads no weights
and needs no TPU, only libtpu's compiler.
"""

from __future__ import annotations

from reval_jax.tools.plan import advice, compilation, estimate, memory, search, topology
from reval_jax.tools.plan.planning import as_json, examine, plan, summary

__all__ = [
    "advice",
    "as_json",
    "compilation",
    "estimate",
    "examine",
    "memory",
    "plan",
    "search",
    "summary",
    "topology",
]
