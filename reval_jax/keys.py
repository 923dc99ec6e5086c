"""Random keys by name: every draw is a function of what it is for, never of where or when it is made."""

from __future__ import annotations

import zlib

import jax
import numpy as np


def named_key(seed: int, purpose: str, *numbers: int) -> jax.Array:
    """The typed threefry2x32 key of one purpose, for example `named_key(seed, "rollout", round)`.

    The implementation is named because `rbg`, which a user may have made jax's default, gives other bits under vmap.

    Args:
      seed: `run.seed`.
      purpose: a word; its CRC-32 is folded in, so that equal numbers of two purposes share nothing.
      numbers: indices that tell one draw from the next (round, update, …), each in [0, 2**32).
    """
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), zlib.crc32(purpose.encode()))
    for number in numbers:
        key = jax.random.fold_in(key, number)
    return key


def host_permutation(key: jax.Array, size: int) -> np.ndarray:
    """i64[size]: a uniformly random order of 0 … size − 1, made on the host without compiling anything.

    Raw Philox words under a stable sort, not a library's shuffle: their stream is fixed, a shuffle's algorithm is not.

    Args:
      key: from `named_key`; consumed.
    """
    high, low = np.asarray(jax.random.key_data(key)).tolist()
    return np.argsort(np.random.Philox(key=high << 32 | low).random_raw(size), kind="stable")
