"""Random numbers that belong to rows, whatever chunk they lie in."""

from __future__ import annotations

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
