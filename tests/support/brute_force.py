"""What the kernels compute, by plain NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def nearest_indices(pixels: NDArray[np.uint8], palette: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Index of the nearest palette colour of each pixel; ties go to the lowest index."""
    squared = (pixels[..., np.newaxis, :].astype(np.int64) - palette.astype(np.int64)) ** 2
    return squared.sum(axis=-1).argmin(axis=-1)
