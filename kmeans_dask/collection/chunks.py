"""How a collection is split into chunks; a chunk is one zarr shard and one Dask block."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kmeans_dask.collection.decoding import row_shape
from kmeans_dask.config.sections import Ingest
from kmeans_dask.kmeans.kernels import slice_rows

_MIN_CHUNKS = 8
"""Minimum number of chunks of a collection with that many slices, so that two or four cores get equal work."""


class ChunkPlan(NamedTuple):
    """How items are split into chunks; it does not depend on the workers."""

    n_items: int
    """Number of items in the collection."""
    chunk_rows: int
    """Items per chunk; the last one may have fewer."""

    @property
    def starts(self) -> range:
        """First row of each chunk."""
        return range(0, self.n_items, self.chunk_rows)

    @property
    def stops(self) -> list[int]:
        """Row after the last row of each chunk."""
        return [min(start + self.chunk_rows, self.n_items) for start in self.starts]


def chunk_rows(n_items: int, row_bytes: int, chunk_bytes: float, n_features: int) -> int:
    """Choose the number of items per chunk.

    Parameters
    ----------
    n_items
        Number of items in the collection.
    row_bytes
        Bytes per item.
    chunk_bytes
        Maximum size of a chunk in bytes, unless a single slice of the kernels is larger.
    n_features
        Features per item, which determine the slice.

    Returns
    -------
    int
        The kernels' slice times the largest power of two that stays within the limit and leaves at least 8 chunks,
        so that small collections keep several workers busy. At least one slice.
    """
    rows = slice_rows(n_features)
    while 2 * rows * row_bytes <= chunk_bytes and 2 * rows * _MIN_CHUNKS <= n_items:
        rows *= 2
    return rows


def plan_chunks(n_items: int, config: Ingest, chunk_bytes: float | None = None) -> ChunkPlan:
    """Split `n_items` items into chunks as configured, or into smaller ones of at most `chunk_bytes`."""
    row_bytes = int(np.prod(row_shape(config)))
    return ChunkPlan(n_items, chunk_rows(n_items, row_bytes, chunk_bytes or config.chunk_mib * 2**20, row_bytes))
