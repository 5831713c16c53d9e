"""The two spaces that colours are measured in: sRGB bytes, and OKLab, where distances are nearer to what people see."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Space = Literal["rgb", "oklab"]

_SCALE = np.float32(255)
"""OKLab is given 255 times as large as published: white is (255, 0, 0), as large as the bytes."""

# Björn Ottosson, A perceptual color space for image processing, 2020: linear sRGB -> cones -> Lab
_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_FROM_LAB, _FROM_CONES = np.linalg.inv(_TO_LAB), np.linalg.inv(_TO_CONES)

_LEVELS = np.arange(256) / 255
_LINEAR = np.where(_LEVELS <= 0.04045, _LEVELS / 12.92, ((_LEVELS + 0.055) / 1.055) ** 2.4)
"""Light of every byte (IEC 61966-2-1)."""


def to_space(colours: NDArray[np.uint8], space: Space) -> NDArray[np.float32]:
    """Give colours their coordinates in a space.

    Parameters
    ----------
    colours : (m, 3) uint8
        sRGB.
    space
        ``rgb``: the bytes. ``oklab``: L, a, b, times 255.

    Returns
    -------
    (3, m) float32
        One contiguous row a coordinate, as the kernels read them.
    """
    if space == "rgb":
        return np.ascontiguousarray(colours.T, np.float32)
    # einsum, not BLAS: it rounds alike whatever the number of colours
    cones = np.cbrt(np.einsum("ij,jm->im", _TO_CONES, _LINEAR[colours.T]))
    return np.einsum("ij,jm->im", _TO_LAB, cones).astype(np.float32) * _SCALE


def from_space(centres: NDArray[np.float32], space: Space) -> NDArray[np.uint8]:
    """Round centres to the nearest bytes.

    Parameters
    ----------
    centres : (k, 3) float32
        In the coordinates of `to_space`.
    space
        Of the centres.

    Returns
    -------
    (k, 3) uint8
        sRGB; what lies outside of it is cut to its limits.
    """
    if space == "rgb":
        return np.clip(np.rint(centres), 0, 255).astype(np.uint8)
    light = np.einsum("ij,kj->ki", _FROM_CONES, np.einsum("ij,kj->ki", _FROM_LAB, centres / _SCALE) ** 3)
    light = np.clip(light, 0, 1)
    levels = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(255 * levels).astype(np.uint8)
