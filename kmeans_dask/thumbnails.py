"""Which items a page has small pictures of, and those pictures, read from all over the collection.

Lists take turns to be given pictures, so that with many clusters all lists become shorter, and none is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmeans_dask.collection import Collection
from kmeans_dask.sprites import pack, tiles_of
from kmeans_dask.store import read_block

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
