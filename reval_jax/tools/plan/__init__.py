"""Will it fit, before you have the machine: the run's real programs compiled for a named TPU slice, and their memory added up.

`plan` answers for one config, or with a search for the fastest variant of it that fits. Only shapes are compiled: no weights
are read and no TPU is needed, but libtpu is, for its compiler.
"""

from __future__ import annotations

from reval_jax.tools.plan import advice, compilation, estimate, memory, search, topology
from reval_jax.tools.plan.planning import as_json, examine, plan, sentences

__all__ = [
    "advice",
    "as_json",
    "compilation",
    "estimate",
    "examine",
    "memory",
    "plan",
    "search",
    "sentences",
    "topology",
]
