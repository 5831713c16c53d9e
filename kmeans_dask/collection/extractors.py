"""Feature extraction from the images of one block: one row of features per image.

To add a kind of features, write a function like `hog`, return it from `extractor_of`, list it in `extract`, and add its
name to the kinds in ``config/sections.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmeans_dask.errors import UserError

Extractor = Callable[[NDArray[np.uint8]], NDArray[Any]]
"""(rows, height, width, channels) uint8 -> (rows, n_features) of any numeric dtype."""

_CELLS = 7
"""Cells of a HOG along each side; with 9 orientations each and blocks of 2 x 2 cells, that makes 1,296 features."""

_LEVELS = 16
"""Bins per channel of a colour histogram."""


def extractor_of(kind: str) -> Extractor:
    """Return the function that extracts features.

    Parameters
    ----------
    kind
        ``pixels``, ``hog``, ``colour-histogram`` or ``package.module:function``.

    Returns
    -------
    callable

    Raises
    ------
    UserError
        scikit-image is not installed, or the user's function cannot be imported.
    """
    if kind == "pixels":
        return pixels
    if kind in ("hog", "colour-histogram"):
        if find_spec("skimage") is None:
            raise UserError(f"features.kind={kind} needs scikit-image: pip install 'kmeans-dask[features]'")
        return hog if kind == "hog" else colour_histogram
    return _user_function(kind)


def extract(kind: str, images: NDArray[np.uint8]) -> NDArray[Any]:
    """Extract one row of features from each image.

    Parameters
    ----------
    kind
        As for `extractor_of`.
    images : (rows, height, width, channels) uint8

    Returns
    -------
    (rows, n_features)
        uint8 for pixels, otherwise float32.

    Raises
    ------
    UserError
        As for `extractor_of`; or the user's function failed, or did not return one row of finite features per image.
    """
    function = extractor_of(kind)
    if kind in ("pixels", "hog", "colour-histogram"):
        return function(images)
    try:
        rows = np.asarray(function(images), np.float32)
    except Exception as error:  # a user's function may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"features.kind={kind} failed on images of shape {images.shape}: {reason}") from error
    if rows.ndim != 2 or len(rows) != len(images) or rows.shape[1] == 0:
        raise UserError(
            f"features.kind={kind} returned shape {rows.shape} for images of shape {images.shape}; "
            f"it must return one row of features per image: ({len(images)}, n_features)"
        )
    return check_finite(rows, f"features.kind={kind}")


def check_finite(rows: NDArray[np.float32], origin: str) -> NDArray[np.float32]:
    """Return rows unchanged; raise a `UserError` that names their origin if one contains NaN or infinity."""
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise UserError(f"{origin}: {len(bad):,} of {len(rows):,} rows contain NaN or infinity; give finite numbers")
    return rows


def pixels(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Flatten images: (rows, height * width * channels) uint8."""
    return images.reshape(len(images), -1)


def hog(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Compute histograms of oriented gradients (Dalal and Triggs 2005), with scikit-image.

    Parameters
    ----------
    images : (rows, height, width, channels) uint8
        At least 2 x 2 pixels. Cells are at least 2 pixels wide and high, so small images have fewer of them.

    Returns
    -------
    (rows, n_features) float32
        9 orientations per cell, normalized in blocks of 2 x 2 cells (L2-Hys); for each pixel, the channel with the
        largest gradient counts.

    Raises
    ------
    UserError
        The images are smaller than 2 x 2 pixels.
    """
    from skimage.feature import hog as hog_of_image  # the import takes 0.5 s

    height, width = images.shape[1:3]
    cell = max(2, height // _CELLS), max(2, width // _CELLS)
    block = min(2, height // cell[0]), min(2, width // cell[1])
    if 0 in block:
        raise UserError(
            f"features.kind=hog needs images of at least 2 x 2 pixels, not {height} x {width}; increase ingest.size"
        )
    rows = [
        hog_of_image(image, orientations=9, pixels_per_cell=cell, cells_per_block=block, channel_axis=-1)
        for image in images
    ]
    return np.array(rows, np.float32)


def colour_histogram(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Compute a histogram of each channel, with scikit-image.

    Parameters
    ----------
    images : (rows, height, width, channels) uint8

    Returns
    -------
    (rows, channels * 16) float32
        Fraction of the pixels in each of 16 bins of 16 levels, one channel after the other.
    """
    from skimage.exposure import histogram

    counts = [histogram(image, source_range="dtype", channel_axis=-1)[0] for image in images]
    n_pixels = images.shape[1] * images.shape[2]
    bins = np.reshape(counts, (len(images), -1, _LEVELS, 256 // _LEVELS)).sum(axis=3)
    return (bins / n_pixels).astype(np.float32).reshape(len(images), -1)


def _user_function(name: str) -> Extractor:
    module_name, _, function_name = name.partition(":")
    try:
        module = import_module(module_name)
    except Exception as error:  # importing runs the user's code, which may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"features.kind={name}: cannot import {module_name} ({reason}); install it, or put its folder on PYTHONPATH"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"features.kind={name}: {module_name} has no function {function_name}")
    return function
