"""Writes loss and gradients of a tiny policy, sharded over all devices of all processes, and the parameters after SGD.

python tests/support/sharded_loss.py FILE.npz TENSOR
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import numpy as np
import optax

from reval_jax import batch, config, distributed, mesh, update
from support import tiny_programs


def main(file: str, tensor: int) -> None:
    distributed.start()
    devices = mesh.make(config.Mesh(data=2, tensor=tensor))
    tiny = tiny_programs.on_mesh(devices)
    rows = batch.pack(tiny_programs.random_trajectories(8), devices, limits=tiny.limits)
    algorithm = tiny.algorithm
    run = jax.jit(
        lambda params, rows: update.loss_and_gradients(
            tiny.architecture, params, rows, algorithm, devices, config=tiny.config
        )
    )
    value, gradients, *_ = run(tiny.params, rows)
    sgd = optax.sgd(0.1)
    moved = jax.jit(lambda p, g: optax.apply_updates(p, sgd.update(g, sgd.init(p))[0]))(tiny.params, gradients)
    arrays = {"loss": np.asarray(distributed.fetch(value))}
    for name, tree in (("gradient", gradients), ("moved", moved)):
        leaves, _ = jax.tree_util.tree_flatten_with_path(distributed.fetch(tree))
        arrays |= {name + jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    if jax.process_index() == 0:
        np.savez(file, **arrays)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
