"""Exact and near duplicates within clusters.

The first pass writes a sketch of every item: a hash of its row and a projection to a few dimensions. A task searches a
range of clusters: items with the same hash are exact duplicates; items with similar projections are candidates, whose
rows are read and compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dask.delayed import Delayed
from numpy.typing import NDArray
from scipy.spatial import KDTree

from kmeans_dask.collection.collection import Collection
from kmeans_dask.collection.features import Features
from kmeans_dask.kmeans.kernels import Block
from kmeans_dask.models.model import Model
from kmeans_dask.reduction import broadcast
from kmeans_dask.storage.object_store import readable
from kmeans_dask.storage.publish import publish

NEAR = 0.25
"""Items are near duplicates if their distance is at most this fraction of the radius (root mean square) of their
cluster. In MNIST at K = 256 no pair of the 70,000 images is that close."""

MAX_PAIRS = 10_000
"""Maximum number of pairs listed, nearest first, so that the result of a task does not grow with the collection."""

_NEIGHBOURS = 4
"""Candidates per item: a thousand pictures of one scene give four thousand pairs, not a million."""

_GROUP_ITEMS = 2**19
"""Items per task: their 32 coordinates take 64 MiB."""

_READ_BYTES = 256 * 2**20
"""Maximum size in bytes of the rows that a task reads for comparison."""

DUPLICATES_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),  # exact | near
        ("row", pa.int64()),
        ("path", pa.string()),
        ("split", pa.string()),
        ("label", pa.string()),
        ("of_row", pa.int64()),  # an earlier item that it duplicates
        ("of_path", pa.string()),
        ("of_split", pa.string()),
        ("of_label", pa.string()),
        ("cluster", pa.int32()),
        ("distance", pa.float64()),
        ("score", pa.float64()),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True)
class Pairs:
    """Pairs of duplicates, exact ones first, then by relative distance; every array has shape (n,).

    Attributes
    ----------
    rows : int64
        Row of an item in the collection.
    of_rows : int64
        Row of an earlier item that it duplicates.
    clusters : int32
        Cluster of both.
    distances : float64
        Euclidean distance between their rows.
    relative_distances : float64
        Distance as a fraction of the radius of the cluster; -1 for exact duplicates.
    """

    rows: NDArray[np.int64]
    of_rows: NDArray[np.int64]
    clusters: NDArray[np.int32]
    distances: NDArray[np.float64]
    relative_distances: NDArray[np.float64]


def join_pairs(parts: Sequence[Pairs]) -> Pairs:
    """Combine the pairs of several ranges of clusters; keep at most `MAX_PAIRS`, nearest first."""
    rows = np.concatenate([part.rows for part in parts])
    relative = np.concatenate([part.relative_distances for part in parts])
    order = np.lexsort((rows, relative))[:MAX_PAIRS]
    return Pairs(
        rows[order],
        np.concatenate([part.of_rows for part in parts])[order],
        np.concatenate([part.clusters for part in parts])[order],
        np.concatenate([part.distances for part in parts])[order],
        relative[order],
    )


def duplicates_tasks(
    collection: Collection, features: Features, parts: Path, sizes: NDArray[np.int64], radii: NDArray[np.float64]
) -> list[Delayed]:
    """Return the tasks that search for duplicates, one per range of clusters.

    Parameters
    ----------
    collection
        The collection.
    features
        Features that the models were fitted on.
    parts
        Folder of the sketches.
    sizes : (k,) int64
        Number of items in each cluster of the model used for the sketches.
    radii : (k,) float64
        Root mean square distance to the centre of each cluster.

    Returns
    -------
    list of Delayed
        Each returns `Pairs`, to be combined with `join_pairs`.
    """
    groups = np.cumsum(sizes) // _GROUP_ITEMS
    firsts = [int(first) for first in np.unique(groups, return_index=True)[1]]
    task = dask.delayed(search_clusters, pure=False, traverse=False)
    arguments = collection.folder, collection.chunk_rows, len(collection.labels), parts.absolute(), broadcast(features)
    return [
        task(*arguments, first, radii[first:end]) for first, end in zip(firsts, [*firsts[1:], len(sizes)], strict=True)
    ]


def search_clusters(
    folder: Path, chunk_rows: int, n_items: int, parts: Path, features: Features, first: int, radii: NDArray[np.float64]
) -> Pairs:
    """Find the duplicates in the clusters ``first:first + len(radii)``.

    Parameters
    ----------
    folder
        Folder of the collection.
    chunk_rows, n_items
        Rows per chunk of the collection, and number of its items.
    parts
        Folder of the sketches.
    features
        Features that the models were fitted on.
    first
        First cluster.
    radii : (n,) float64
        Root mean square distance to the centre of each cluster.

    Returns
    -------
    Pairs
    """
    in_range = [("cluster", ">=", first), ("cluster", "<", first + len(radii))]
    files = sorted(parts.glob("sketch-*.parquet"))
    table = pa.concat_tables([pq.read_table(readable(file), filters=in_range) for file in files]).combine_chunks()
    table = table.take(pa.array(np.lexsort((table["row"].to_numpy(), table["cluster"].to_numpy()))))
    clusters, rows = table["cluster"].to_numpy(), table["row"].to_numpy()
    exact, distinct = _exact_duplicates(np.frombuffer(b"".join(table["hash"].to_pylist()), "V16"), clusters, rows)
    if len(distinct) < 2:
        return join_pairs([exact])
    sketches = table["sketch"].combine_chunks().flatten().to_numpy().reshape(len(rows), -1)[distinct]
    left, right = _candidates(clusters[distinct], sketches, radii, first)
    if len(left):
        row_bytes = features.read_chunk(folder, 0, 1).nbytes
        max_pairs = _READ_BYTES // (2 * row_bytes)  # the pairs with the most similar sketches
        nearest = np.argsort(((sketches[left] - sketches[right]) ** 2).sum(axis=1), kind="stable")[:max_pairs]
        left, right = left[nearest], right[nearest]
    rows, clusters = rows[distinct], clusters[distinct]
    distances = _distances(folder, features, chunk_rows, n_items, rows[left], rows[right])
    relative = np.divide(distances, radii[clusters[left] - first])
    (near,) = np.nonzero(relative <= NEAR)
    # keep the nearest earlier item of each item
    near = near[np.lexsort((relative[near], rows[right[near]]))]
    near = near[np.unique(rows[right[near]], return_index=True)[1]]
    close = Pairs(rows[right[near]], rows[left[near]], clusters[left[near]], distances[near], relative[near])
    return join_pairs([exact, close])


def _exact_duplicates(
    hashes: NDArray[np.void], clusters: NDArray[np.int32], rows: NDArray[np.int64]
) -> tuple[Pairs, NDArray[np.int64]]:
    """Return the pairs of items with equal hashes, and the ascending positions of the first item of each hash."""
    _, firsts, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    originals = firsts[inverse]
    (copies,) = np.nonzero(originals != np.arange(len(rows)))
    n = len(copies)
    exact = Pairs(rows[copies], rows[originals[copies]], clusters[copies], np.zeros(n), np.full(n, -1.0))
    return exact, np.sort(firsts)


def _candidates(
    clusters: NDArray[np.int32], sketches: NDArray[np.float32], radii: NDArray[np.float64], first: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions of pairs of items of one cluster with similar sketches, the smaller one first."""
    pairs = [np.empty((0, 2), np.int64)]
    starts = np.searchsorted(clusters, np.arange(first, first + len(radii) + 1))
    for radius, start, stop in zip(radii, starts[:-1], starts[1:], strict=True):
        if stop - start < 2 or not radius > 0:
            continue
        points = sketches[start:stop]
        k = min(_NEIGHBOURS + 1, len(points))
        # slightly above the limit, because the sketches are rounded to float32
        _, neighbours = KDTree(points).query(points, k=k, distance_upper_bound=1.001 * NEAR * radius)
        near = np.stack([np.repeat(np.arange(len(points)), k), neighbours.ravel()], axis=1)
        near = np.sort(near[(near[:, 1] < len(points)) & (near[:, 0] != near[:, 1])], axis=1)
        pairs.append(np.unique(near, axis=0) + start)
    all_pairs = np.concatenate(pairs)
    return all_pairs[:, 0], all_pairs[:, 1]


def _distances(
    folder: Path, features: Features, chunk_rows: int, n_items: int, left: NDArray[np.int64], right: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Read the rows of some pairs, one chunk at a time, and return their Euclidean distances."""
    if not len(left):
        return np.empty(0)
    needed = np.unique(np.concatenate([left, right]))
    read: list[NDArray[Any]] = []
    for start in np.unique(needed // chunk_rows) * chunk_rows:
        in_chunk = needed[(needed >= start) & (needed < start + chunk_rows)]
        block = features.read_chunk(folder, int(start), int(min(start + chunk_rows, n_items)))
        read.append(block[in_chunk - start])
    rows = np.concatenate(read)
    pairs = zip(np.searchsorted(needed, left), np.searchsorted(needed, right), strict=True)
    return np.array([np.linalg.norm(rows[a].astype(np.float64) - rows[b]) for a, b in pairs])


def duplicates_table(pairs: Pairs, items: pa.Table) -> pa.Table:
    """Return the table of duplicates.

    Parameters
    ----------
    pairs
        Duplicates of all clusters.
    items
        Items table of the collection.

    Returns
    -------
    pyarrow.Table
        Schema `DUPLICATES_SCHEMA`; the score is 1 - distance / radius of the cluster, and 1 for exact duplicates.
    """
    exact = pairs.relative_distances < 0
    columns: dict[str, Any] = {"kind": np.where(exact, "exact", "near"), "cluster": pairs.clusters}
    columns |= {"row": pairs.rows, "of_row": pairs.of_rows, "distance": pairs.distances}
    columns["score"] = 1 - np.maximum(pairs.relative_distances, 0.0)
    for prefix, rows in (("", pairs.rows), ("of_", pairs.of_rows)):
        columns |= {f"{prefix}{name}": items[name].take(pa.array(rows)) for name in ("path", "split", "label")}
    facts = (columns[name].to_pylist() for name in ("label", "of_label", "split", "of_split"))
    columns["reason"] = [_reason(*values) for values in zip(pairs.relative_distances, *facts, strict=True)]
    return pa.table({name: columns[name] for name in DUPLICATES_SCHEMA.names}, schema=DUPLICATES_SCHEMA)


def _reason(relative: float, label: str | None, of_label: str | None, split: str, of_split: str) -> str:
    reason = "identical" if relative < 0 else f"their distance is {relative:.0%} of the radius of their cluster"
    if label != of_label:
        reason += f"; labels differ: {label} and {of_label}"
    return reason if split == of_split else f"{reason}; one is held out, the other fitted"


_AXES = 32
"""Dimensions of a sketch."""


@dataclass(frozen=True)
class Sketcher:
    """Definition of the sketches.

    Attributes
    ----------
    model : int
        Index of the model whose clusters are searched: the one with the most, and so the smallest, clusters.
    axes : (n_features, n_axes) float32
        Orthonormal directions of the projection.
    """

    model: int
    axes: NDArray[np.float32]

    @classmethod
    def of(cls, models: Sequence[Model]) -> Self:
        """Choose the model, and as axes the first right singular vectors of its centres."""
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
    """Write the sketches of one chunk, sorted by cluster so that a range of clusters can be read separately.

    Parameters
    ----------
    parts
        Folder; ``sketch-<start>.parquet`` is published in it.
    start
        Row of the collection that the chunk starts with.
    block : (n, n_features)
        Rows of uint8, float32 or float64.
    readable : (n,) bool
        Items to write.
    clusters : (n,) int32
        Cluster of each item in the model of the sketcher.
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
