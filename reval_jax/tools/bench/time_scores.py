"""Times the fused LM head against full logits: forward and backward, compile time, temporary memory."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from reval_jax import config as config_lib
from reval_jax import mesh, model, scores, timing, types

Scores = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def full_logits(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The results of `scores.token_scores`, computed from a [N, V] array of logits with jax's own gradient."""
    logits = scores.head_product(hidden, head.astype(hidden.dtype))
    logsumexp = jax.nn.logsumexp(logits, axis=-1)
    return jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0] - logsumexp, logsumexp


def with_gradients(function: Scores) -> Any:
    """The jitted forward and backward pass of a loss that depends on both results."""

    def loss(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> jax.Array:
        log_prob, logsumexp = function(hidden, head, targets)
        return 0.5 * log_prob.sum() + 0.25 * logsumexp.sum()

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def run(
    *,
    tokens: Sequence[int],
    shapes: Sequence[tuple[int, int]],
    dtypes: Sequence[str],
    repeats: int,
    most_bytes: int,
    on_case: Callable[[types.Json], None],
) -> types.Json:
    """All cases of the grid, and a description of the machine.

    Args:
      tokens: numbers of scored tokens.
      shapes: (vocabulary, width) pairs.
      most_bytes: full logits that need more, arguments included, are compiled for their memory analysis but not run.
      on_case: called with each finished case.
    """
    cases = []
    for vocabulary, width in shapes:
        for num_tokens in tokens:
            for dtype in dtypes:
                case = measure(num_tokens, vocabulary, width, dtype, repeats=repeats, most_bytes=most_bytes)
                on_case(case)
                cases.append(case)
    return {"machine": timing.machine(), "cases": cases}


def measure(num_tokens: int, vocabulary: int, width: int, dtype: str, *, repeats: int, most_bytes: int) -> types.Json:
    """Times one case: seconds are medians of forward plus backward; ratios are fused / full logits.

    The fused head takes chunks of as many tokens as in an update on this platform.
    """
    chunk_bytes = model.kernels.chunk_bytes(mesh.make(config_lib.Mesh()))
    chunk = scores.chunk_size(num_tokens, vocabulary, None, chunk_bytes=chunk_bytes)
    fused = functools.partial(scores.token_scores, chunk_tokens=chunk)
    shapes = (
        jax.ShapeDtypeStruct((num_tokens, width), dtype),
        jax.ShapeDtypeStruct((width, vocabulary), dtype),
        jax.ShapeDtypeStruct((num_tokens,), jnp.int32),
    )
    case: types.Json = {
        "tokens": num_tokens,
        "vocabulary": vocabulary,
        "width": width,
        "dtype": dtype,
        "chunk_tokens": chunk,
    }
    programs = {}
    for name, function in (("fused", fused), ("full_logits", full_logits)):
        start = time.perf_counter()
        compiled = with_gradients(function).lower(*shapes).compile()
        case[f"{name}_compile_s"] = time.perf_counter() - start
        memory = compiled.memory_analysis()
        case[f"{name}_temporary_bytes"] = memory.temp_size_in_bytes
        needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
        if name == "fused" or needed <= most_bytes:
            programs[name] = compiled
    case["temporary_bytes_ratio"] = case["fused_temporary_bytes"] / max(1, case["full_logits_temporary_bytes"])
    arrays = _operands(*shapes)
    seconds = timing.medians(
        timing.interleaved(
            {name: functools.partial(program, *arrays) for name, program in programs.items()}, repeats=repeats
        )
    )
    case |= {f"{name}_s": value for name, value in seconds.items()}
    if "full_logits" in seconds:
        case["time_ratio"] = seconds["fused"] / seconds["full_logits"]
    return case


def _operands(hidden: Any, head: Any, targets: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0, impl="threefry2x32"), 3)
    return (
        jax.random.normal(keys[0], hidden.shape, hidden.dtype),
        jax.random.normal(keys[1], head.shape, head.dtype) * 0.02,
        jax.random.randint(keys[2], targets.shape, 0, head.shape[1], jnp.int32),
    )


def summary(case: types.Json) -> str:
    """Text of one case."""
    size = f"{case['tokens']:>6} x {case['vocabulary']:>6} x {case['width']:>4} {case['dtype']:<8}"
    memory = f"{case['fused_temporary_bytes'] / 2**20:8.0f} MiB, {case['temporary_bytes_ratio']:.3f} of full logits'"
    if "time_ratio" not in case:
        return f"{size} {case['fused_s']:7.2f} s (full logits would not fit)  temporaries {memory}"
    return f"{size} {case['fused_s']:7.2f} s, {case['time_ratio']:.2f} x full logits' time  temporaries {memory}"
