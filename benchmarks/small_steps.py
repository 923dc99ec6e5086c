"""Measures how much of small updates a forward pass in bfloat16 sees, on the weights of SmolLM2-135M.

    python -m benchmarks.small_steps    # downloads the demo's model unless it is there; a minute

Weights are kept and updated in float32, and rounded to bfloat16, 8 significant bits, for matrix products. A step of 1e-6 is far
below the distance of two such numbers: 1.2e-4 at a weight of 0.02. Here every weight moves a number of steps of one size in a
direction of its own, as AdamW moves those whose gradients keep their sign. Printed is how far the rounded weights have moved in
that direction, as a share of how far the weights have. It depends on where between two bfloat16 numbers the weights begin; the
share of those that begin exactly in the middle, which the least movement rounds to the other one, is printed as "ties".
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.testbed import smollm2
from reval_jax import weights
from reval_jax.tools import demo

RATES = (1e-6, 2e-6)
STEPS = (1, 4, 16, 64, 256)


def main() -> None:
    """Prints a table: how the weights were stored, ties, the learning rate, and the share that is seen after some steps."""
    smollm2.make()
    loaded = weights.load(str(Path(demo.MODEL)))
    values = np.concatenate([np.asarray(leaf, np.float32).ravel() for leaf in jax.tree.leaves(loaded.params)])
    print(f"{'weights':<28}{'ties':>8}{'rate':>8}" + "".join(f"{f'{steps} steps':>12}" for steps in STEPS))
    for name, begin in starts(values).items():
        for rate in RATES:
            cells = "".join(f"{seen(begin, rate, steps):>12.3f}" for steps in STEPS)
            print(f"{name:<28}{ties(begin):>8.3f}{rate:>8.0e}{cells}", flush=True)


def starts(values: np.ndarray) -> dict[str, np.ndarray]:
    """The same weights as three kinds of files have them.

    Args:
      values: [N] float32, of a Q4_1 file: 16 levels in every block of 32 weights.
    """
    stored = rounded(values)
    noise = np.random.default_rng(0).uniform(-1, 1, values.size).astype(np.float32)
    half = np.ldexp(np.float32(1), np.frexp(stored)[1] - 9)  # of the distance to the next bfloat16 number
    anywhere = stored + noise * half
    return {"stored in bfloat16": stored, "de-quantized from Q4_1": values, "float32, anywhere between": anywhere}


def seen(begin: np.ndarray, rate: float, steps: int) -> float:
    """The mean movement of the rounded weights in the steps' direction, as a share of that of the weights.

    Args:
      begin: [N] float32.
      rate: of one step.
    """
    direction = np.random.default_rng(1).choice(np.array([-1, 1], np.float32), begin.size)
    distance = np.float32(steps * rate)
    moved = rounded(begin + distance * direction) - rounded(begin)
    return float(np.mean(moved * direction, dtype=np.float64) / distance)


def ties(begin: np.ndarray) -> float:
    """The share of weights exactly between two bfloat16 numbers, the lower half of whose 32 bits is 0x8000."""
    return float(np.mean(begin.view(np.uint32) & 0xFFFF == 0x8000))


def rounded(values: np.ndarray) -> np.ndarray:
    """The nearest bfloat16 numbers, as float32."""
    return values.astype(jnp.bfloat16).astype(np.float32)


if __name__ == "__main__":
    main()
