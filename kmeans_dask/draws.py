"""Random numbers that belong to rows or files, whatever chunk or batch they lie in."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def row_uniforms(start: int, stop: int, seed: int, round_number: int) -> NDArray[np.float64]:
    """Uniform numbers that belong to rows, not to chunks.

    Parameters
    ----------
    start, stop
        Global row numbers.
    seed, round_number
        Key of the counter-based generator Philox 4x64-10 (Salmon et al. 2011).

    Returns
    -------
    (stop - start,) float64
        In [0, 1); the number of a row depends on the row, the seed and the round alone.
    """
    generator = np.random.Philox(key=np.array([seed, round_number], np.uint64))
    generator.advance(start // 4)  # one step of the counter gives four numbers
    return np.random.Generator(generator).random(stop - start + start % 4)[start % 4 :]


def path_number(path: str) -> int:
    """Return a number below 2^64 that is the same for the same path: the seed of its draws."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big")
