"""Short descriptions of items, in which duplicates are looked for.

A sketch is a hash of the row, and its coordinates along the few axes that the centres of one model differ most in:
orthonormal axes make no distance larger, so that what is near is near in its sketch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kmeans_dask.kernels import Block
from kmeans_dask.models import Model
from kmeans_dask.publish import publish

_AXES = 32


@dataclass(frozen=True)
class Sketcher:
    """How sketches are made.

    Attributes
    ----------
    model : int
        Position of the model whose clusters are searched: the one with the most, which are the smallest.
    axes : (n_features, n_axes) float32
        Orthonormal.
    """

    model: int
    axes: NDArray[np.float32]

    @classmethod
    def of(cls, models: Sequence[Model]) -> Self:
        """Choose the model and the axes, the first right singular vectors of its centres."""
        chosen = max(range(len(models)), key=lambda m: (models[m].k, -m))
        _, _, axes = np.linalg.svd(models[chosen].centres.astype(np.float64), full_matrices=False)
        return cls(chosen, np.ascontiguousarray(axes[:_AXES].T, np.float32))


def write_sketches(
    parts: Path,
    start: int,
    block: Block,
    readable: NDArray[np.bool_],
    clusters: NDArray[np.int32],
    sketcher: Sketcher,
) -> None:
    """Write the sketches of one chunk, sorted by cluster, so that a range of clusters is read alone.

    Parameters
    ----------
    parts
        Folder; ``sketch-<start>.parquet`` is published in it.
    start
        Row of the collection of the first item.
    block : (n, n_features)
        Rows.
    readable : (n,) bool
        Items that count.
    clusters : (n,) int32
        Cluster of each in the sketcher's model.
    sketcher
        From `Sketcher.of`.
    """
    (chosen,) = np.nonzero(readable)
    order = chosen[np.argsort(clusters[chosen], kind="stable")]
    sketches = block[order].astype(np.float32) @ sketcher.axes
    hashes = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in block[order]]
    table = pa.table(
        {
            "cluster": clusters[order],
            "row": start + order,
            "hash": pa.array(hashes, pa.binary(16)),
            "sketch": pa.FixedSizeListArray.from_arrays(pa.array(sketches.ravel()), sketches.shape[1]),
        }
    )
    with publish(parts / f"sketch-{start:012d}.parquet") as partial:
        pq.write_table(table, partial, row_group_size=1024)
