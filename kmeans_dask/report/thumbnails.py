"""Which items a page has small pictures of, and those pictures, read from all over the collection.

Lists take turns to be given pictures, so that with many clusters all lists become shorter, and none is empty.
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
"""Of all tiles together; a page is 4/3 of it, since bytes are written in base 64."""

_TRIED = 256
"""Tiles that are packed to see how many bytes one takes."""

_GAP = 64
"""Rows apart from which two items are read on their own."""

Reader = Callable[[Path, int, int], NDArray[Any]]
"""Folder of a collection, first row, last row + 1 -> the rows between."""


def read_rows(
    collection: Collection, rows: NDArray[np.int64], read: Reader = read_block
) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
    """Read items from all over a collection, a few at a time.

    Parameters
    ----------
    collection
        Opened.
    rows
        (m,) int64 in any order.
    read
        What is read of them; by default their images.

    Yields
    ------
    positions : (b,) int64
        Where the block's items stand in ``rows``.
    block : (b, ...)
        Images (height, width, channels) uint8, or what else is read.
    """
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    apart = (np.diff(ascending) > _GAP) | (np.diff(ascending // collection.chunk_rows) > 0)
    for positions in np.split(order, np.flatnonzero(apart) + 1):
        if len(positions):
            first, last = int(rows[positions[0]]), int(rows[positions[-1]])
            yield positions, read(collection.folder, first, last + 1)[rows[positions] - first]


def spaced_rows(collection: Collection, n: int) -> NDArray[np.int64]:
    """Choose readable items, evenly spaced, hence of all labels and both splits.

    Parameters
    ----------
    collection
        Opened.
    n
        Items at most.

    Returns
    -------
    (m,) int64
        Ascending rows.
    """
    readable = np.flatnonzero(collection.items["status"].to_numpy() == "ok")
    return readable[np.unique(np.linspace(0, max(len(readable) - 1, 0), min(n, len(readable))).astype(int))]


def in_turns(queues: Sequence[Sequence[int]], limit: int) -> list[int]:
    """Take the first of every queue, then the second and so on, up to a number of distinct rows.

    Parameters
    ----------
    queues
        Rows, those wanted most first; None is passed over.
    limit
        Rows that are taken at most.

    Returns
    -------
    list of int
        In the order of the queues, the last one first.
    """
    turns = chain.from_iterable(zip_longest(*queues))
    kept: dict[int, None] = {}
    for row in turns:
        if len(kept) >= limit:
            break
        if row is not None:
            kept[row] = None
    # tiles of one cluster stand together: its page decodes one sheet or two
    return [row for row in dict.fromkeys(chain.from_iterable(reversed(queues))) if row in kept]


def affordable(collection: Collection) -> int:
    """Return how many tiles a page can hold, from what some of them take."""
    some = spaced_rows(collection, _TRIED)
    if len(some) == 0:
        return 0
    taken = sum(len(picture) for picture in pack(read_tiles(collection, some.tolist())).pictures)
    return max(1, TILE_BYTES * len(some) // taken)


def read_tiles(collection: Collection, rows: Sequence[int]) -> NDArray[np.uint8]:
    """Read items and make them small.

    Parameters
    ----------
    collection
        Opened.
    rows
        n rows in any order.

    Returns
    -------
    (n, height, width, channels) uint8
        As `sprites.tiles_of` makes them.
    """
    height, width, channels = collection.images.shape[1:]
    tiles = np.zeros((len(rows), *tiles_of(np.zeros((1, height, width, channels), np.uint8)).shape[1:]), np.uint8)
    for positions, images in read_rows(collection, np.array(rows, np.int64)):
        tiles[positions] = tiles_of(images)
    return tiles


TILE_SIDE = 64
"""Pixels of the longer side of a tile at most; smaller images keep their size."""

ACROSS = 32
"""Tiles in a row of a sheet, and rows of a sheet at most: a browser decodes one of 2,048 x 2,048 pixels in 0.05 s."""

_EXACT_SIDE = 32
"""Grey tiles up to this side are kept bit by bit, at 150 bytes one of MNIST; lossy ones would be as large."""

_BLOCK = 16
"""Lossy WebP codes blocks of 16 x 16 pixels: tiles begin at a block, or their colours would run into each other."""

_QUALITY = 80


class Sheets(NamedTuple):
    """Tiles of one size as encoded pictures. Tile i stands in sheet ``i // 1024``, in rows of 32."""

    width: int
    """Of a tile, in pixels."""
    height: int
    pitch: tuple[int, int]
    """Pixels from the left edge of a tile to that of the next, and from top to top."""
    n: int
    pictures: list[bytes]
    """WebP files."""

    @property
    def layout(self) -> dict[str, Any]:
        """What a page needs to find a tile."""
        return {"width": self.width, "height": self.height, "pitch": self.pitch, "across": ACROSS, "count": self.n}


def tiles_of(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Make tiles of images: what is larger than `TILE_SIDE` is made smaller.

    Parameters
    ----------
    images
        (n, height, width, channels) uint8; 1 or 3 channels.

    Returns
    -------
    ndarray
        (n, h, w, channels) uint8 of the same shape of picture; h and w are at most `TILE_SIDE`.
    """
    n, height, width, channels = images.shape
    if max(height, width) <= TILE_SIDE or n == 0:
        return images
    factor = TILE_SIDE / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = [np.asarray(_picture(image).resize(size, Image.Resampling.BOX)) for image in images]
    return np.stack(small).reshape(n, size[1], size[0], channels)


def pack(tiles: NDArray[np.uint8]) -> Sheets:
    """Encode tiles in sheets.

    Parameters
    ----------
    tiles
        (n, height, width, channels) uint8; 1 or 3 channels.

    Returns
    -------
    Sheets
    """
    n, height, width, channels = tiles.shape
    exact = channels == 1 and max(height, width) <= _EXACT_SIDE
    down, right = (0, 0) if exact else (-height % _BLOCK, -width % _BLOCK)
    pictures = []
    for start in range(0, n, ACROSS * ACROSS):
        part = np.pad(tiles[start : start + ACROSS * ACROSS], ((0, 0), (0, down), (0, right), (0, 0)), mode="edge")
        rows = -(-len(part) // ACROSS)
        sheet = np.zeros((rows * ACROSS, *part.shape[1:]), np.uint8)
        sheet[: len(part)] = part
        # (row, column, y, x) -> (row, y, column, x)
        grid = sheet.reshape(rows, ACROSS, *part.shape[1:]).swapaxes(1, 2)
        whole = grid.reshape(rows * part.shape[1], ACROSS * part.shape[2], channels)
        pictures.append(encode_webp(whole, exact=exact))
    return Sheets(width, height, (width + right, height + down), n, pictures)


def encode_webp(pixels: NDArray[np.uint8], *, exact: bool, quality: int = _QUALITY) -> bytes:
    """Encode a picture as WebP.

    Parameters
    ----------
    pixels
        (height, width, channels) uint8, 1 or 3 channels.
    exact
        Lossless, or lossy at ``quality``.
    quality
        0-100, of a lossy picture.

    Returns
    -------
    bytes
    """
    buffer = io.BytesIO()
    options: dict[str, Any] = {"lossless": True, "quality": 50} if exact else {"quality": quality}
    _picture(pixels).save(buffer, format="WEBP", method=2, **options)  # method 2: a third of the time, 5 % larger
    return buffer.getvalue()


def within(image: NDArray[np.uint8], side: int, *, mix: bool) -> NDArray[np.uint8]:
    """Make a picture smaller, if it is larger than ``side``.

    Parameters
    ----------
    image
        (height, width, channels) uint8.
    side
        Pixels of the longer side at most.
    mix
        Average pixels; else every pixel is one of the image, and no colour is new.

    Returns
    -------
    ndarray
        (h, w, channels) uint8.
    """
    picture = _picture(image)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS if mix else Image.Resampling.NEAREST)
    return np.asarray(picture).reshape(picture.height, picture.width, -1)


def data_uri(webp: bytes) -> str:
    """Return a WebP file as the address of a picture that lies in the page itself."""
    return "data:image/webp;base64," + base64.b64encode(webp).decode("ascii")


def _picture(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
