"""Memory planning: compiles a run's programs for a named TPU slice, or hosts with GPUs, and adds up the memory of each phase.

`plan` examines one config, or searches for its fastest variant that fits. It compiles from shapes alone: it reads no weights
and needs no TPU and no GPU, only the compiler: libtpu, or the wheels of jax's CUDA plugin.
"""

from __future__ import annotations

from reval_jax.tools.plan import advice, compilation, estimate, gpu_topology, machines, memory, search, topology
from reval_jax.tools.plan.planning import as_json, examine, plan, summary

__all__ = [
    "advice",
    "as_json",
    "compilation",
    "estimate",
    "examine",
    "gpu_topology",
    "machines",
    "memory",
    "plan",
    "search",
    "summary",
    "topology",
]
