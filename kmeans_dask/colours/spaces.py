"""Colour spaces for distances: sRGB bytes, and OKLab, whose distances are closer to perceived differences."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Space = Literal["rgb", "oklab"]

_SCALE = np.float32(255)
"""OKLab coordinates are scaled by 255 to the range of bytes: white is (255, 0, 0)."""

# Björn Ottosson, "A perceptual color space for image processing", 2020: linear sRGB -> cone responses -> Lab
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
"""Linear light of each sRGB byte (IEC 61966-2-1)."""


def to_space(colours: NDArray[np.uint8], space: Space) -> NDArray[np.float32]:
    """Convert sRGB colours to coordinates of a colour space.

    Parameters
    ----------
    colours : (m, 3) uint8
        sRGB.
    space
        ``rgb``: the bytes themselves. ``oklab``: L, a and b times 255.

    Returns
    -------
    (3, m) float32
        One contiguous row per coordinate, the layout the kernels expect.
    """
    if space == "rgb":
        return np.ascontiguousarray(colours.T, np.float32)
    # einsum, not BLAS: its rounding does not depend on the number of colours
    cones = np.cbrt(np.einsum("ij,jm->im", _TO_CONES, _LINEAR[colours.T]))
    return np.einsum("ij,jm->im", _TO_LAB, cones).astype(np.float32) * _SCALE


def from_space(centres: NDArray[np.float32], space: Space) -> NDArray[np.uint8]:
    """Convert centres to sRGB and round them to bytes.

    Parameters
    ----------
    centres : (k, 3) float32
        Coordinates as returned by `to_space`, transposed.
    space
        Colour space of the centres.

    Returns
    -------
    (k, 3) uint8
        sRGB, clipped to its gamut.
    """
    if space == "rgb":
        return np.clip(np.rint(centres), 0, 255).astype(np.uint8)
    light = np.einsum("ij,kj->ki", _FROM_CONES, np.einsum("ij,kj->ki", _FROM_LAB, centres / _SCALE) ** 3)
    light = np.clip(light, 0, 1)
    levels = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(255 * levels).astype(np.uint8)
