"""Random keys by name: every draw depends on its purpose and indices, never on the place or time of the computation."""

from __future__ import annotations

import zlib

import jax
import numpy as np


def named_key(seed: int, purpose: str, *numbers: int) -> jax.Array:
    """The typed threefry2x32 key for one purpose, for example `named_key(seed, "rollout", round)`.

    The implementation is fixed, because a user may have set jax's default to `rbg`, whose bits change under vmap.

    Args:
      seed: `run.seed`.
      purpose: a word; its CRC-32 is folded in, so that two purposes with equal numbers get different keys.
      numbers: indices that distinguish draws (round, update, …), each in [0, 2**32).
    """
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), zlib.crc32(purpose.encode()))
    for number in numbers:
        key = jax.random.fold_in(key, number)
    return key


def host_words(key: jax.Array, size: int) -> np.ndarray:
    """u64[size]: independent random words, on the host; compiles nothing.

    Raw Philox words, whose stream is fixed; a library may change the algorithm of its shuffle or its floats.

    Args:
      key: from `named_key`; consumed.
    """
    high, low = np.asarray(jax.random.key_data(key)).tolist()
    return np.random.Philox(key=high << 32 | low).random_raw(size)


def host_permutation(key: jax.Array, size: int) -> np.ndarray:
    """i64[size]: a uniformly random permutation of 0 … size − 1, on the host; compiles nothing.

    Args:
      key: from `named_key`; consumed.
    """
    return np.argsort(host_words(key, size), kind="stable")
