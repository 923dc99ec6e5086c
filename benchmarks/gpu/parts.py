"""The parts of the GPU benchmark: what each does, its time limit and its function, and the process that runs one.

    python -m benchmarks.gpu.parts NAME [--small]

prints one JSON object a line: a case as soon as it is measured, and last how the part ended. Everything else that the part prints
goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

Emit = Callable[[dict[str, Any]], None]
"""Prints a case."""


class SkippedError(Exception):
    """A part cannot run here; the message says what is missing."""


class Part(NamedTuple):
    """One part, which runs in a process of its own."""

    function: str  # MODULE:FUNCTION of `benchmarks.gpu`, called with (is_small, emit)
    limit: float  # seconds that it may take, whatever the others did; more, if the parts before it left some
    describes: str


PARTS = {
    "numerics": Part("correctness:numerics", 60, "attention, score head and forward pass against float64 and the CPU"),
    "decode": Part("speed:decode", 40, "one decode step, 256 slots, 1k context: time, kernels, share of the roofline"),
    "transformers_generate": Part(
        "transformers_peer:generate", 35, "generation of such a size by transformers on torch"
    ),
    "update": Part("speed:update", 65, "the update at 1.5B: remat dots and full, fixed and log-normal lengths"),
    "resume": Part("resume:resume", 60, "a run killed and resumed against one never stopped, byte for byte"),
    "repeat": Part("correctness:repeat", 30, "whether an update repeats bit for bit, and what that costs"),
    "demo": Part("demo_run:demo", 120, "the demo from a cold cache: seconds to the first round and to the end"),
    "transformers_update": Part("transformers_peer:update", 15, "the same update by transformers on torch"),
    "sampler": Part("speed:generate", 20, "generation: 64 to 512 slots; at 256 also log-normal lengths and int8 cache"),
    "invariance": Part("correctness:invariance", 10, "a response's bits, whatever the window and the other responses"),
    "scores": Part("speed:scores", 10, "the score head, 8,192 tokens x 151,936 x 1,536, against full logits"),
}
"""Name → part, the most decisive first. Together the limits leave 15 s of 8 minutes for the machine's description; the last parts
count on time that those before them leave."""


def command(name: str, *, is_small: bool) -> list[str]:
    """The command that runs a part."""
    return [sys.executable, "-m", "benchmarks.gpu.parts", name, *(["--small"] if is_small else [])]


def describe() -> dict[str, Any]:
    """The machine, for the results: versions, device, its memory and driver."""
    from reval_jax import timing
    from reval_jax.tools import doctor

    return timing.machine() | {each.name: each.result for each in doctor.accelerator()}


def main(name: str, *, is_small: bool) -> None:
    """Runs a part, or describes the machine (`machine`), and prints how it ended."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # also what C libraries print

    def emit(line: dict[str, Any]) -> None:
        print(json.dumps(line), file=lines, flush=True)

    try:
        if name == "machine":
            emit({"case": describe()})
        else:
            module, _, function = PARTS[name].function.partition(":")
            run = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)
            run(is_small, lambda case: emit({"case": case}))
        emit({"end": "done"})
    except SkippedError as reason:
        emit({"end": "skipped", "reason": str(reason)})
    except Exception as error:  # reported, so that the other parts run
        traceback.print_exc()
        emit({"end": "failed", "reason": f"{type(error).__name__}: {str(error)[:1000]}"})


if __name__ == "__main__":
    main(sys.argv[1], is_small="--small" in sys.argv[2:])
