"""Options of XLA's compiler for GPUs, by kind of program: what makes its results repeat, and float32 compile quickly.

`kernels.compiler_options` chooses. They are given with a program (`jax.jit(…, compiler_options=…)`), not as flags of the process,
so that other code in the process is compiled as before. jax 0.10.2 and 0.12.0.1 know all of them (tests/test_compiler.py).

XLA finds the fastest kernel of a product or a fusion by timing candidates while it compiles, so two processes may choose
different ones, whose results round differently. Without timing the choice follows from shapes and the card, and nothing has to
be kept with a run. Products then go to cuBLAS, which chooses by rules of its own; Triton would get a fixed tile.
"""

from __future__ import annotations

from typing import Any

Options = dict[str, Any]

CUBLAS: Options = {"xla_gpu_enable_triton_gemm": False}
"""Products by cuBLAS. A float32 product at full precision uses no tensor core in Triton: its candidates are long chains of
scalar instructions, dozens a product, which take seconds each to compile. cuBLAS' kernels are compiled already. The precision is
the same, IEEE float32: XLA asks cuBLAS for TF32 only below `Precision.HIGHEST`."""

UNTIMED: Options = CUBLAS | {"xla_gpu_autotune_level": 0}
"""For programs without a gradient. No sum of theirs uses atomics: they repeat if their kernels are chosen without timing."""

DETERMINISTIC: Options = UNTIMED | {"xla_gpu_exclude_nondeterministic_ops": True}
"""For programs with a gradient: cuDNN's attention adds the gradients of its blocks in a fixed order too, and XLA those of a
scatter."""

UNCAPTURED: Options = {"xla_gpu_enable_command_buffer": ""}
"""For a program that gets other arrays at each call, as admission does: XLA captures a program's kernels in a CUDA graph, and
updates the graph, while the GPU waits, whenever an argument has moved."""
