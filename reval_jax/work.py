"""FLOPs of the matrix products of an update and of a decode step, counted where they are multiplied.

A product of [m, k] and [k, n] is 2 m k n FLOPs. The embedding lookup is no product; the head is one, tied or not, and multiplies
only the positions whose logits are read. Norms, softmax, RoPE and the optimizer are not counted, nor is padding.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from reval_jax import model, types


class UpdateWork(NamedTuple):
    """FLOPs of one update's products, of all devices together."""

    weights: float  # products with weights: forward, and the gradients of inputs and of weights
    attention: float  # products of queries, keys and values, forward and backward, over the pairs that the mask admits
    recomputed: float  # products done a second time: by `model.remat`, and the head's logits in its backward pass

    @property
    def total(self) -> float:
        """FLOPs of everything that is multiplied."""
        return sum(self)


def layer_elements(architecture: model.Architecture) -> int:
    """Elements of the matrices of one layer that multiply each of its tokens."""
    return _attention_elements(architecture) + 3 * architecture.width * architecture.mlp_width


def _attention_elements(architecture: model.Architecture) -> int:
    heads = 2 * (architecture.num_heads + architecture.num_kv_heads)  # query and output; key and value
    return heads * architecture.head_size * architecture.width


def head_elements(architecture: model.Architecture) -> int:
    """Elements of the head, which multiplies each position whose logits are read."""
    return architecture.width * architecture.vocab_size


def weights(architecture: model.Architecture, *, tokens: float, scored: float) -> float:
    """FLOPs of an update's products with weights: `UpdateWork.weights`.

    6 (layers · elements of a layer · tokens + elements of the head · scored): 2 forward, 2 for the gradient of the input, 2 for
    the gradient of the weight.

    Args:
      tokens: of the trajectories, prompts included.
      scored: of them, the positions whose logits are read: the response tokens.
    """
    return 6 * (architecture.num_layers * layer_elements(architecture) * tokens + head_elements(architecture) * scored)


def update(architecture: model.Architecture, *, tokens: float, scored: float, pairs: float, remat: str) -> UpdateWork:
    """The work of an update.

    attention = 12 · layers · query heads · head size · pairs: 4 forward (scores and weighted values), 8 backward.
    recomputed = 2 · elements of the head · scored, and by `remat`: nothing for "none"; attention's scores for "dots"; these and
    all of a layer's forward products with weights but the last, whose result no gradient needs, for "attention"; for "full" these
    and all of attention's forward products. (cuDNN's and splash's kernels compute the scores again under every policy.)

    Args:
      tokens, scored: as in `weights`.
      pairs: (query, key) pairs of the same trajectory with the key not after the query, summed over trajectories.
      remat: `model.remat`.
    """
    layers = architecture.num_layers
    attention = 4 * layers * architecture.num_heads * architecture.head_size * pairs
    recomputed = 2.0 * head_elements(architecture) * scored
    if remat in ("attention", "full"):
        last = architecture.width * architecture.mlp_width
        recomputed += 2 * layers * (layer_elements(architecture) - last) * tokens
    recomputed += {"none": 0.0, "dots": 0.5, "attention": 0.5, "full": 1.0}[remat] * attention
    return UpdateWork(weights(architecture, tokens=tokens, scored=scored), 3 * attention, recomputed)


def update_on(architecture: model.Architecture, trajectories: types.Trajectories, *, remat: str) -> UpdateWork:
    """The work of an update on these trajectories."""
    length = trajectories.length.astype(np.float64)
    return update(
        architecture,
        tokens=float(length.sum()),
        scored=float(trajectories.response_length.sum()),
        pairs=float((length * (length + 1) / 2).sum()),
        remat=remat,
    )


def decode_step(architecture: model.Architecture, *, rows: int, positions: float) -> float:
    """FLOPs of the products of one decode step: every weight but the embedding, and attention over the cache.

    Args:
      rows: tokens decoded at once.
      positions: of the cache that each row attends to, on average.
    """
    per_layer = layer_elements(architecture) + 2 * architecture.num_heads * architecture.head_size * positions
    return 2 * rows * (architecture.num_layers * per_layer + head_elements(architecture))
