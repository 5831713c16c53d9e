"""Small images of items for the page: which ones fit, reading them from the collection, and packing them into sheets.

The lists of the page take turns in claiming images, so that with many clusters all lists get shorter and none is empty.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kmeans_dask.collection.collection import Collection
from kmeans_dask.storage.zarr_groups import read_block

TILE_BYTES = 8 * 2**20
"""Limit of all tiles together; base 64 makes them a third larger in the page."""

_TRIAL_TILES = 256
"""Number of tiles packed to estimate the bytes per tile."""

_MAX_GAP = 64
"""Items further apart than this number of rows are read separately."""

RowReader = Callable[[Path, int, int], NDArray[Any]]
"""(folder of the collection, start, stop) -> rows from start to stop."""


def read_rows(
    collection: Collection, rows: NDArray[np.int64], read: RowReader = read_block
) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
    """Read scattered rows of a collection in blocks of neighbours.

    Parameters
    ----------
    collection
        Opened collection.
    rows : (m,) int64
        Rows in any order.
    read
        Function that reads a range of rows; by default it reads their images.

    Yields
    ------
    positions : (b,) int64
        Positions of the block's items in `rows`.
    block : (b, ...)
        Images (b, height, width, channels) uint8, or whatever `read` returns.
    """
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    apart = (np.diff(ascending) > _MAX_GAP) | (np.diff(ascending // collection.chunk_rows) > 0)
    for positions in np.split(order, np.flatnonzero(apart) + 1):
        if len(positions):
            first, last = int(rows[positions[0]]), int(rows[positions[-1]])
            yield positions, read(collection.folder, first, last + 1)[rows[positions] - first]


def evenly_spaced_rows(collection: Collection, n: int) -> NDArray[np.int64]:
    """Choose evenly spaced readable items, which represents all labels and both splits.

    Parameters
    ----------
    collection
        Opened collection.
    n
        Maximum number of items.

    Returns
    -------
    (m,) int64
        Rows in ascending order.
    """
    readable = np.flatnonzero(collection.items["status"].to_numpy() == "ok")
    return readable[np.unique(np.linspace(0, max(len(readable) - 1, 0), min(n, len(readable))).astype(int))]


def take_turns(queues: Sequence[Sequence[int]], limit: int) -> list[int]:
    """Take the first row of every queue, then the second and so on, up to a number of distinct rows.

    Parameters
    ----------
    queues
        Rows, the most important ones first; None is ignored.
    limit
        Maximum number of rows.

    Returns
    -------
    list of int
        Rows in the order of the queues, the last queue first.
    """
    claimed: dict[int, None] = {}
    for row in chain.from_iterable(zip_longest(*queues)):
        if len(claimed) >= limit:
            break
        if row is not None:
            claimed[row] = None
    # keep the tiles of a cluster together, so that its view decodes only one or two sheets
    return [row for row in dict.fromkeys(chain.from_iterable(reversed(queues))) if row in claimed]


def max_tiles(collection: Collection) -> int:
    """Estimate how many tiles fit `TILE_BYTES`, from the size of some of them."""
    trial = evenly_spaced_rows(collection, _TRIAL_TILES)
    if len(trial) == 0:
        return 0
    n_bytes = sum(len(sheet) for sheet in pack(read_tiles(collection, trial.tolist())).images)
    return max(1, TILE_BYTES * len(trial) // n_bytes)


def read_tiles(collection: Collection, rows: Sequence[int]) -> NDArray[np.uint8]:
    """Read items as tiles.

    Parameters
    ----------
    collection
        Opened collection.
    rows
        n rows in any order.

    Returns
    -------
    (n, height, width, channels) uint8
        Tiles made by `make_tiles`.
    """
    height, width, channels = collection.images.shape[1:]
    tiles = np.zeros((len(rows), *make_tiles(np.zeros((1, height, width, channels), np.uint8)).shape[1:]), np.uint8)
    for positions, images in read_rows(collection, np.array(rows, np.int64)):
        tiles[positions] = make_tiles(images)
    return tiles


TILE_SIDE = 64
"""Maximum length of a tile's longer side in pixels; smaller images keep their size."""

ACROSS = 32
"""Tiles per row of a sheet, and maximum rows per sheet: a browser decodes 2,048 x 2,048 pixels in 0.05 s."""

_LOSSLESS_SIDE = 32
"""Grey tiles up to this size are stored losslessly, at 150 bytes each for MNIST; lossy ones would be as large."""

_BLOCK = 16
"""Lossy WebP encodes blocks of 16 x 16 pixels: tiles are aligned to them so that they do not bleed into each other."""

_QUALITY = 80
"""Quality of lossy tiles, 0-100."""


class TileSheets(NamedTuple):
    """Tiles of one size, packed into sheets of up to 32 x 32: tile i is in sheet ``i // 1024``, row by row."""

    width: int
    """Width of a tile in pixels."""
    height: int
    """Height of a tile in pixels."""
    pitch: tuple[int, int]
    """Horizontal and vertical distance between the origins of neighbouring tiles, in pixels."""
    n: int
    """Number of tiles."""
    images: list[bytes]
    """WebP file of each sheet."""

    @property
    def layout(self) -> dict[str, Any]:
        """What the page needs to locate a tile."""
        return {"width": self.width, "height": self.height, "pitch": self.pitch, "across": ACROSS, "count": self.n}


def make_tiles(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Shrink images that are larger than `TILE_SIDE`.

    Parameters
    ----------
    images : (n, height, width, channels) uint8
        1 or 3 channels.

    Returns
    -------
    (n, h, w, channels) uint8
        Images of the same aspect ratio; h and w are at most `TILE_SIDE`.
    """
    n, height, width, channels = images.shape
    if max(height, width) <= TILE_SIDE or n == 0:
        return images
    factor = TILE_SIDE / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = [np.asarray(_pillow_image(image).resize(size, Image.Resampling.BOX)) for image in images]
    return np.stack(small).reshape(n, size[1], size[0], channels)


def pack(tiles: NDArray[np.uint8]) -> TileSheets:
    """Pack tiles into sheets.

    Parameters
    ----------
    tiles : (n, height, width, channels) uint8
        1 or 3 channels.

    Returns
    -------
    TileSheets
    """
    n, height, width, channels = tiles.shape
    lossless = channels == 1 and max(height, width) <= _LOSSLESS_SIDE
    down, right = (0, 0) if lossless else (-height % _BLOCK, -width % _BLOCK)
    sheets = []
    for start in range(0, n, ACROSS * ACROSS):
        part = np.pad(tiles[start : start + ACROSS * ACROSS], ((0, 0), (0, down), (0, right), (0, 0)), mode="edge")
        rows = -(-len(part) // ACROSS)
        sheet = np.zeros((rows * ACROSS, *part.shape[1:]), np.uint8)
        sheet[: len(part)] = part
        # (row, column, y, x) -> (row, y, column, x)
        grid = sheet.reshape(rows, ACROSS, *part.shape[1:]).swapaxes(1, 2)
        image = grid.reshape(rows * part.shape[1], ACROSS * part.shape[2], channels)
        sheets.append(encode_webp(image, lossless=lossless))
    return TileSheets(width, height, (width + right, height + down), n, sheets)


def encode_webp(pixels: NDArray[np.uint8], *, lossless: bool, quality: int = _QUALITY) -> bytes:
    """Encode an image as WebP.

    Parameters
    ----------
    pixels : (height, width, channels) uint8
        1 or 3 channels.
    lossless
        Encode losslessly instead of at `quality`.
    quality
        Quality of lossy encoding, 0-100.

    Returns
    -------
    bytes
    """
    buffer = io.BytesIO()
    options: dict[str, Any] = {"lossless": True, "quality": 50} if lossless else {"quality": quality}
    # method 2 takes a third of the time of the default, for files 5 % larger
    _pillow_image(pixels).save(buffer, format="WEBP", method=2, **options)
    return buffer.getvalue()


def shrink(image: NDArray[np.uint8], side: int, *, smooth: bool) -> NDArray[np.uint8]:
    """Shrink an image to a maximum size.

    Parameters
    ----------
    image : (height, width, channels) uint8
    side
        Maximum length of the longer side in pixels.
    smooth
        Interpolate; otherwise the nearest pixel is used, which introduces no new colours.

    Returns
    -------
    (h, w, channels) uint8
    """
    shrunk = _pillow_image(image)
    shrunk.thumbnail((side, side), Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)
    return np.asarray(shrunk).reshape(shrunk.height, shrunk.width, -1)


def data_uri(webp: bytes) -> str:
    """Return a WebP file as a data URI."""
    return "data:image/webp;base64," + base64.b64encode(webp).decode("ascii")


def _pillow_image(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
