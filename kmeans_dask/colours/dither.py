# To add a dithering method, name it in `Dither` and in `config.sections.Quantize.dither`, compute its palette indices
# in `dithered`, and state the memory it needs in `DITHER_BYTES`.
"""Dithering: errors of neighbouring pixels cancel out, so that areas keep their mean colour; raises the MSE."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kmeans_dask.colours.table import jit_fast, nearest

Dither = Literal["none", "floyd-steinberg", "ordered"]

DITHER_BYTES: dict[Dither, int] = {"none": 0, "floyd-steinberg": 20, "ordered": 34}
"""Memory that dithering needs, in bytes per pixel; the memory plan of a job reads this table, which has no default."""


def dithered(
    pixels: NDArray[np.uint8], opaque: NDArray[np.bool_] | None, palette: NDArray[np.uint8], method: Dither
) -> NDArray[np.int32]:
    """Choose palette colours so that areas keep their mean colour.

    Parameters
    ----------
    pixels : (height, width, 1 or 3) uint8
        Grey or RGB.
    opaque : (height, width) bool, optional
        Mask of opaque pixels; the others neither receive nor pass on error. None: all are opaque.
    palette : (k, 3) uint8
    method
        ``floyd-steinberg``: error diffusion to the unvisited neighbours, alternating the direction of rows
        (Floyd and Steinberg 1976). ``ordered``: a fixed 8 x 8 threshold pattern (Bayer 1973), scaled to the mean
        distance between neighbouring palette colours.

    Returns
    -------
    (height, width) int32
        Palette index of each pixel: the colour nearest in RGB to the pixel plus its error or threshold.
    """
    height, width = pixels.shape[:2]
    rgb = np.ascontiguousarray(np.broadcast_to(pixels, (height, width, 3)), np.float32)
    colours = palette.astype(np.float32)
    if method == "ordered":
        rgb += _pattern(height, width)[..., np.newaxis] * _step(colours)
        return nearest(np.ascontiguousarray(rgb.reshape(-1, 3).T), colours)[0].reshape(height, width)
    labels = np.zeros((height, width), np.int32)
    _diffuse(rgb, np.ones((height, width), np.bool_) if opaque is None else opaque, colours, labels)
    return labels


def _pattern(height: int, width: int) -> NDArray[np.float32]:
    """Tile Bayer's 8 x 8 thresholds over an image: (height, width) float32 between -0.5 and 0.5."""
    bayer = np.zeros((1, 1))
    for _ in range(3):
        bayer = np.block([[4 * bayer, 4 * bayer + 2], [4 * bayer + 3, 4 * bayer + 1]])
    tile = ((bayer + 0.5) / 64 - 0.5).astype(np.float32)
    return np.tile(tile, (-(-height // 8), -(-width // 8)))[:height, :width]


def _step(palette: NDArray[np.float32]) -> np.float32:
    """Mean distance per channel from a palette colour to its nearest neighbour; 0 for a single colour."""
    if len(palette) == 1:
        return np.float32(0)
    distances = [
        nearest(np.ascontiguousarray(palette[i : i + 1].T), np.delete(palette, i, axis=0))[1][0]
        for i in range(len(palette))
    ]
    return np.sqrt(np.array(distances) / 3).mean(dtype=np.float32)


@jit_fast
def _diffuse(rgb, opaque, palette, labels):  # type: ignore[no-untyped-def]
    """Floyd-Steinberg in place: adds the diffused error to `rgb`, writes `labels`."""
    height, width = labels.shape
    for y in range(height):
        forward = y % 2 == 0
        step = 1 if forward else -1
        for i in range(width):
            x = i if forward else width - 1 - i
            if not opaque[y, x]:
                continue
            # clip to bytes: errors that no palette colour can compensate would accumulate
            red = min(max(rgb[y, x, 0], np.float32(0)), np.float32(255))
            green = min(max(rgb[y, x, 1], np.float32(0)), np.float32(255))
            blue = min(max(rgb[y, x, 2], np.float32(0)), np.float32(255))
            best, label = np.float32(3e38), 0
            for j in range(len(palette)):
                dr, dg, db = red - palette[j, 0], green - palette[j, 1], blue - palette[j, 2]
                distance = dr * dr + dg * dg + db * db
                if distance < best:
                    best, label = distance, j
            labels[y, x] = label
            errors = (red - palette[label, 0], green - palette[label, 1], blue - palette[label, 2])
            for channel in range(3):
                sixteenth = errors[channel] / np.float32(16)
                if 0 <= x + step < width:
                    rgb[y, x + step, channel] += 7 * sixteenth
                    if y + 1 < height:
                        rgb[y + 1, x + step, channel] += sixteenth
                if y + 1 < height:
                    rgb[y + 1, x, channel] += 5 * sixteenth
                    if 0 <= x - step < width:
                        rgb[y + 1, x - step, channel] += 3 * sixteenth
