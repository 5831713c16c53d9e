"""How the items of a collection are cut into chunks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kmeans_dask.collection.decoding import row_shape
from kmeans_dask.config.sections import Ingest
from kmeans_dask.kmeans.kernels import slice_rows

_MIN_CHUNKS = 8
"""Chunks that a collection has at least when it has as many slices: both cores, or four, get even shares."""


class ChunkPlan(NamedTuple):
    """How the items are cut into chunks; it does not depend on the workers."""

    n_items: int
    chunk_rows: int
    """Items a chunk; the last one may have fewer."""

    @property
    def starts(self) -> range:
        """First row of each chunk."""
        return range(0, self.n_items, self.chunk_rows)

    @property
    def stops(self) -> list[int]:
        """Row after the last one of each chunk."""
        return [min(start + self.chunk_rows, self.n_items) for start in self.starts]


def chunk_rows(n_items: int, row_bytes: int, chunk_bytes: float, n_features: int) -> int:
    """Choose the items a chunk.

    Parameters
    ----------
    n_items
        Items of the collection.
    row_bytes
        Bytes of one item's pixels.
    chunk_bytes
        Upper limit of one chunk, unless a single slice of the kernels is larger.
    n_features
        Numbers an item.

    Returns
    -------
    int
        The largest power-of-two multiple of the kernels' slice within the limit that leaves 8 chunks or more,
        so that small collections keep several workers busy; at least one slice.
    """
    rows = slice_rows(n_features)
    while 2 * rows * row_bytes <= chunk_bytes and 2 * rows * _MIN_CHUNKS <= n_items:
        rows *= 2
    return rows


def plan_chunks(n_items: int, config: Ingest, chunk_bytes: float | None = None) -> ChunkPlan:
    """Cut `n_items` items into chunks for a config, or into smaller ones of at most `chunk_bytes`."""
    row_bytes = int(np.prod(row_shape(config)))
    return ChunkPlan(n_items, chunk_rows(n_items, row_bytes, chunk_bytes or config.chunk_mib * 2**20, row_bytes))
