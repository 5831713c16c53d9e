"""Palettes: K colours for the pixels of one image or of many."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from kmeans_dask.colours.dither import Dither
from kmeans_dask.colours.remap import PALETTE_COLOURS, Picture, picture_of, remap
from kmeans_dask.colours.seeding import Init
from kmeans_dask.colours.spaces import Space, from_space, to_space
from kmeans_dask.colours.table import ColourTable, nearest
from kmeans_dask.colours.weighted_kmeans import Algorithm, fit_centres, grey_optimum
from kmeans_dask.errors import UserError

Palettes = dict[int, NDArray[np.uint8]]
"""K -> palette of all images."""

MOST_COLOURS = 65_536
"""Beyond it a fit takes minutes, and the result is near to the photo itself."""


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
    """Paint an image in at most K colours, found by K-Means on its pixels.

    Parameters
    ----------
    image
        Any mode of Pillow (the EXIF orientation is applied; of an animation the frame it stands at), or an array
        (height, width, 3) or (height, width) uint8.
    k
        Number of colours, 1-65,536.
    init, sample, space, rare
        How the palette is fitted; see `fit_palette`.
    dither
        ``none``: every pixel gets the nearest colour. ``floyd-steinberg`` or ``ordered``.
    seed
        Seed of every random draw.

    Returns
    -------
    PIL.Image.Image
        Mode P; above 256 colours RGB or RGBA. It has exactly `k` colours, or all colours of the image if there are
        fewer: then it is the same image. Fully transparent pixels stay so: they are one entry beside the colours
        (of 256 colours, one gives way to it).

    Raises
    ------
    UserError
        `k`, `sample` or `rare` is out of range.
    ValueError
        The array has another dtype or shape.
    """
    picture = picture_of(ImageOps.exif_transpose(image) if isinstance(image, Image.Image) else image)
    limit = room_for(picture, k)
    palette = fit_palette(picture.table, limit, init=init, sample=sample, space=space, rare=rare, seed=seed)
    return remap(picture, palette, space=space, dither=dither)[0]


def room_for(picture: Picture, k: int) -> int:
    """Return K, or 255 if K is 256 and the picture needs a transparent entry as well."""
    return k - 1 if k == PALETTE_COLOURS and picture.opaque is not None else k


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
    """Find the palette of a colour table: K-Means weighted by the counts, rounded to bytes.

    Parameters
    ----------
    table
        Colours of one image, or of many merged.
    k
        Number of colours, 1-65,536.
    init
        ``k-means++`` (with local search), ``k-means||``, ``random``, or ``variance``, which draws nothing.
    algorithm
        ``kmeans``: passes over all colours, and for grey tables in RGB the global optimum, whatever `init`.
        ``minibatch``: random batches of pixels.
    sample
        Chance of a pixel to take part in the fit, (0-1].
    space
        ``rgb``: squared distances of bytes. ``oklab``: of OKLab coordinates, nearer to what people see.
    rare
        Protection of rare colours, 0-1; see `protect_rare`.
    seed
        Seed of every random draw; the same seed gives the same palette.

    Returns
    -------
    (min(k, len(table)), 3) uint8
        Distinct colours, each the nearest one of some colour of the table; sorted by luma
        (0.299 R + 0.587 G + 0.114 B), then by red, green, blue. A table of at most `k` colours is its own palette.

    Raises
    ------
    UserError
        `k`, `sample` or `rare` is out of range.
    """
    if not 1 <= k <= MOST_COLOURS:
        raise UserError(f"k={k}: a palette has 1-{MOST_COLOURS:,} colours; give a number in this range")
    if not 0 < sample <= 1:
        raise UserError(f"sample={sample}: a share of the pixels is above 0 and at most 1; 1 takes all")
    if not 0 <= rare <= 1:
        raise UserError(f"rare={rare}: protection of rare colours is between 0 (none) and 1")
    if len(table) <= k:
        return in_order(table.colours)
    rng = np.random.default_rng([*([seed] if isinstance(seed, int) else seed), k])
    part = protect_rare(table if sample == 1 else thin(table, sample, rng), rare)
    if algorithm == "kmeans" and space == "rgb" and len(part) > k and part.is_grey:
        palette = grey_optimum(part, k)
        return palette if sample == 1 else complete(palette, table, k, space)
    if len(part) <= k:
        palette = part.colours
    else:
        palette = from_space(fit_centres(part, k, init=init, algorithm=algorithm, space=space, rng=rng), space)
    return complete(palette, table, k, space)


def thin(table: ColourTable, sample: float, rng: np.random.Generator) -> ColourTable:
    """Keep every pixel with the chance `sample`: a binomial draw for each colour.

    Parameters
    ----------
    table
        With pixels as counts.
    sample
        In (0-1].
    rng
        Source of the draws.

    Returns
    -------
    ColourTable
        The whole table if not one pixel was kept.
    """
    counts = rng.binomial(table.counts.astype(np.int64, copy=False), sample)
    kept = counts > 0
    return ColourTable(table.colours[kept], counts[kept]) if kept.any() else table


def protect_rare(table: ColourTable, strength: float) -> ColourTable:
    """Weight colours so that those of few pixels are heard in a fit.

    The cube of colours has 32^3 cells. All colours of a cell with n pixels count n^(-strength) times as much: with 1
    every region of colours counts alike, however few pixels it has; with 0 every pixel does.

    Parameters
    ----------
    table
    strength
        0-1.

    Returns
    -------
    ColourTable
        Of the same colours; weights float64 unless `strength` is 0.
    """
    if strength == 0:
        return table
    red, green, blue = (table.colours >> 3).astype(np.int64).T
    cell = (red << 5 | green) << 5 | blue
    pixels = np.bincount(cell, table.counts, minlength=1 << 15)[cell]
    return ColourTable(table.colours, table.counts * pixels**-strength)


def complete(palette: NDArray[np.uint8], table: ColourTable, k: int, space: Space) -> NDArray[np.uint8]:
    """Sort a palette, and replace what no colour of the table is nearest to until there are K in use.

    Rounding to bytes can make two centres one (nothing is nearest to the second: ties go to the first), and a sample
    can have fewer than K colours. The colours with the largest share of the error come in; every round lowers the
    error, so there is a last one.

    Parameters
    ----------
    palette : (n, 3) uint8
        At most `k` colours.
    table
        At least `k` colours.
    k
        Colours of the result.
    space
        What distances are measured in.

    Returns
    -------
    (k, 3) uint8
        As `in_order` sorts.
    """
    points = to_space(table.colours, space)
    while True:
        palette = in_order(palette)
        labels, squared = nearest(points, np.ascontiguousarray(to_space(palette, space).T))
        used = np.bincount(labels, minlength=len(palette)) > 0
        missing = k - int(used.sum())
        if missing == 0:
            return palette[used]
        worst = np.argsort(-(squared * table.counts), kind="stable")[:missing]
        palette = np.concatenate([palette[used], table.colours[worst]])


def in_order(palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Sort (k, 3) uint8 colours by luma (0.299 R + 0.587 G + 0.114 B), then by red, green, blue."""
    red, green, blue = palette.astype(np.int32).T
    return palette[np.lexsort((blue, green, red, 299 * red + 587 * green + 114 * blue))]


def path_number(path: str) -> int:
    """Return a number below 2^64 that is the same for the same path: the seed of its draws."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big")
