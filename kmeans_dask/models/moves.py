"""How clusters moved between two models of the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import dask.array as da
import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from kmeans_dask.kmeans.kernels import Block, Floats, Stack, assign
from kmeans_dask.models.model import Model
from kmeans_dask.reduction import broadcast, map_chunks, tree_reduce
from kmeans_dask.storage.publish import publish


@dataclass(frozen=True)
class Moves:
    """How the clusters of a model moved.

    Attributes
    ----------
    model : Model
        The newer model.
    distances : (k,) float64
        Euclidean distance between the old and the new centre, on the scale of the fitted rows.
    table : (k, k) int64
        Number of rows by old cluster (axis 0) and new cluster (axis 1).
    """

    model: Model
    distances: NDArray[np.float64]
    table: NDArray[np.int64]

    @property
    def changed(self) -> int:
        """Number of rows that changed cluster."""
        return int(self.table.sum() - np.trace(self.table))


def measure_moves(X: da.Array, old: Floats, model: Model) -> Moves:
    """Assign all rows to the old and the new centres in one pass, and compare.

    Parameters
    ----------
    X : (n, n_features) da.Array
    old : (k, n_features)
        Old centres.
    model
        New model with the same K; its cluster i was refined from the old cluster i.

    Returns
    -------
    Moves
    """
    origin = None if X.dtype == np.uint8 else model.centres.mean(axis=0)
    models = [old.astype(model.centres.dtype), model.centres]
    stack = broadcast(Stack.of(models if origin is None else [centres - origin for centres in models], origin))
    table = tree_reduce(map_chunks(_count_pairs, X, stack=stack, k=model.k), _add).compute()
    shifts = model.centres.astype(np.float64) - old
    return Moves(model, np.sqrt(np.einsum("ij,ij->i", shifts, shifts)), table)


def write_moves(moves: Sequence[Moves], path: Path) -> None:
    """Publish a CSV file with one row per model and cluster.

    Parameters
    ----------
    moves
        Moves of each model.
    path
        Destination. Columns: algorithm, k, cluster, distance, before and after (number of fitted items), left and came
        (number of items that left and joined the cluster).
    """
    tables = [
        pa.table(
            {
                "algorithm": pa.repeat(move.model.algorithm, move.model.k),
                "k": pa.repeat(move.model.k, move.model.k),
                "cluster": np.arange(move.model.k),
                "distance": move.distances,
                "before": move.table.sum(axis=1),
                "after": move.table.sum(axis=0),
                "left": move.table.sum(axis=1) - move.table.diagonal(),
                "came": move.table.sum(axis=0) - move.table.diagonal(),
            }
        )
        for move in moves
    ]
    with publish(path) as partial:
        pyarrow.csv.write_csv(pa.concat_tables(tables), partial)


def _count_pairs(block: Block, *, stack: Stack, k: int) -> NDArray[np.int64]:
    (before, after), _ = assign(block, stack)
    return np.bincount(before.astype(np.int64) * k + after, minlength=k * k).reshape(k, k)


def _add(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.sum(parts, axis=0)
