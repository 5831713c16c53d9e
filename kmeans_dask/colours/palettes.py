"""Palettes: the K colours that represent the pixels of one or more images best."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from kmeans_dask.colours.dither import Dither
from kmeans_dask.colours.remap import PALETTE_SIZE, PreparedImage, prepare_image, remap
from kmeans_dask.colours.seeding import Init
from kmeans_dask.colours.spaces import Space, from_space, to_space
from kmeans_dask.colours.table import ColourTable, nearest
from kmeans_dask.colours.weighted_kmeans import Algorithm, fit_centres, grey_optimum
from kmeans_dask.errors import UserError

Palettes = dict[int, NDArray[np.uint8]]
"""K -> (k, 3) uint8 palette shared by all images."""

MAX_COLOURS = 65_536
"""Above this a fit takes minutes, and the result hardly differs from the photo."""


def quantize_image(
    image: Image.Image | NDArray[np.uint8],
    k: int,
    *,
    init: Init = "k-means++",
    sample: float = 1.0,
    space: Space = "rgb",
    rare: float = 0.0,
    dither: Dither = "none",
    seed: int = 0,
) -> Image.Image:
    """Reduce an image to at most K colours, found by K-Means on its pixels.

    Parameters
    ----------
    image
        Pillow image of any mode, rotated according to its EXIF orientation; of an animation, the current frame is
        used. Or an array (height, width, 3) or (height, width) uint8.
    k
        Number of colours, 1-65,536.
    init, sample, space, rare
        Settings of the palette fit; see `fit_palette`.
    dither
        ``none``: every pixel gets the nearest colour. ``floyd-steinberg`` or ``ordered``: see `dither.dithered`.
    seed
        Seed of all random draws.

    Returns
    -------
    PIL.Image.Image
        Mode P, or RGB or RGBA above 256 colours. It has exactly `k` colours; an image with fewer colours is returned
        unchanged. Fully transparent pixels stay transparent and get an additional palette entry; with 256 colours,
        that entry replaces one of them.

    Raises
    ------
    UserError
        `k`, `sample` or `rare` is out of range.
    ValueError
        The array has another dtype or shape.
    """
    prepared = prepare_image(ImageOps.exif_transpose(image) if isinstance(image, Image.Image) else image)
    limit = colour_limit(prepared, k)
    palette = fit_palette(prepared.table, limit, init=init, sample=sample, space=space, rare=rare, seed=seed)
    return remap(prepared, palette, space=space, dither=dither)[0]


def colour_limit(image: PreparedImage, k: int) -> int:
    """Return K, or 255 if K is 256 and the image also needs a transparent palette entry."""
    return k - 1 if k == PALETTE_SIZE and image.opaque is not None else k


def fit_palette(
    table: ColourTable,
    k: int,
    *,
    init: Init = "k-means++",
    algorithm: Algorithm = "kmeans",
    sample: float = 1.0,
    space: Space = "rgb",
    rare: float = 0.0,
    seed: int | Sequence[int] = 0,
) -> NDArray[np.uint8]:
    """Fit a palette to a colour table: K-Means weighted by the counts, rounded to bytes.

    Parameters
    ----------
    table
        Colour table of an image, or the merged table of several.
    k
        Number of colours, 1-65,536.
    init
        Initial centres: ``k-means++`` (with local search), ``k-means||``, ``random``, or ``variance``
        (deterministic); see `seeding.initial_centres`.
    algorithm
        ``kmeans``: passes over all colours; for grey tables in RGB the global optimum, regardless of `init`.
        ``minibatch``: random batches of pixels.
    sample
        Fraction of the pixels that the palette is fitted on, in (0, 1]; each pixel is kept with this probability.
    space
        Colour space of the distances. ``rgb``: bytes. ``oklab``: OKLab, closer to perceived differences.
    rare
        Protection of rare colours, 0-1; see `protect_rare`.
    seed
        Seed of all random draws; the same seed gives the same palette.

    Returns
    -------
    (min(k, len(table)), 3) uint8
        Distinct colours, each of them the nearest palette colour of at least one colour in the table; sorted by
        `sort_by_luma`. A table of at most `k` colours is returned as its own palette.

    Raises
    ------
    UserError
        `k`, `sample` or `rare` is out of range.
    """
    if not 1 <= k <= MAX_COLOURS:
        raise UserError(f"k={k}: a palette must have 1-{MAX_COLOURS:,} colours")
    if not 0 < sample <= 1:
        raise UserError(f"sample={sample}: the fraction of pixels must be > 0 and <= 1; 1 uses all of them")
    if not 0 <= rare <= 1:
        raise UserError(f"rare={rare}: the protection of rare colours must be 0 (none) to 1")
    if len(table) <= k:
        return sort_by_luma(table.colours)
    rng = np.random.default_rng([*([seed] if isinstance(seed, int) else seed), k])
    sampled = protect_rare(table if sample == 1 else sample_pixels(table, sample, rng), rare)
    if algorithm == "kmeans" and space == "rgb" and len(sampled) > k and sampled.is_grey:
        palette = grey_optimum(sampled, k)
        return palette if sample == 1 else complete(palette, table, k, space)
    if len(sampled) <= k:
        palette = sampled.colours
    else:
        palette = from_space(fit_centres(sampled, k, init=init, algorithm=algorithm, space=space, rng=rng), space)
    return complete(palette, table, k, space)


def sample_pixels(table: ColourTable, sample: float, rng: np.random.Generator) -> ColourTable:
    """Keep each pixel with probability `sample`: one binomial draw per colour.

    Parameters
    ----------
    table
        Table whose counts are numbers of pixels.
    sample
        Probability in (0, 1].
    rng
        Random generator.

    Returns
    -------
    ColourTable
        Table of the pixels kept; the whole table if none was kept.
    """
    counts = rng.binomial(table.counts.astype(np.int64, copy=False), sample)
    kept = counts > 0
    return ColourTable(table.colours[kept], counts[kept]) if kept.any() else table


def protect_rare(table: ColourTable, strength: float) -> ColourTable:
    """Raise the weight of rare colours in a fit.

    The RGB cube is divided into 32^3 cells, and the weights of all colours in a cell of n pixels are multiplied by
    n^(-strength). With strength 1 all occupied cells have equal weight, however few pixels they contain; with 0 all
    pixels do.

    Parameters
    ----------
    table
        Table whose counts are pixels or weights.
    strength
        Between 0 and 1.

    Returns
    -------
    ColourTable
        The same colours with float64 weights; the table itself if `strength` is 0.
    """
    if strength == 0:
        return table
    red, green, blue = (table.colours >> 3).astype(np.int64).T
    cell = (red << 5 | green) << 5 | blue
    pixels = np.bincount(cell, table.counts, minlength=1 << 15)[cell]
    return ColourTable(table.colours, table.counts * pixels**-strength)


def complete(palette: NDArray[np.uint8], table: ColourTable, k: int, space: Space) -> NDArray[np.uint8]:
    """Sort a palette, and replace unused colours until all K are in use.

    Rounding to bytes can merge two centres (ties go to the first, so the second is unused), and a sample can have
    fewer than K colours. They are replaced by the table colours with the largest contribution to the error. Every
    round lowers the error, so the loop ends.

    Parameters
    ----------
    palette : (n, 3) uint8
        At most `k` colours.
    table
        At least `k` colours.
    k
        Number of colours to return.
    space
        Colour space of the distances.

    Returns
    -------
    (k, 3) uint8
        Sorted by `sort_by_luma`.
    """
    points = to_space(table.colours, space)
    while True:
        palette = sort_by_luma(palette)
        labels, squared = nearest(points, np.ascontiguousarray(to_space(palette, space).T))
        used = np.bincount(labels, minlength=len(palette)) > 0
        missing = k - int(used.sum())
        if missing == 0:
            return palette[used]
        worst = np.argsort(-(squared * table.counts), kind="stable")[:missing]
        palette = np.concatenate([palette[used], table.colours[worst]])


def sort_by_luma(palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Sort (k, 3) uint8 colours by luma (0.299 R + 0.587 G + 0.114 B), then by red, green, blue."""
    red, green, blue = palette.astype(np.int32).T
    return palette[np.lexsort((blue, green, red, 299 * red + 587 * green + 114 * blue))]


def path_seed(path: str) -> int:
    """Derive a 64-bit seed from the path of an item."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big")
