"""Items that are the same, or nearly the same, inside a cluster.

A task takes a range of clusters and reads the sketches of their items. Items with the same hash are exact duplicates;
of the others, those whose sketches are close are read again and measured.
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
"""Items are near duplicates if their distance is at most this share of the radius (root mean square) of their cluster.
MNIST, K = 256: no pair of its 70,000 images is so near."""

MOST_PAIRS = 10_000
"""Pairs that are listed, the nearest first: what a task returns does not grow with the collection."""

_NEIGHBOURS = 4
"""Of each item that are measured: a thousand pictures of one scene are a thousand pairs times four, not a million."""

_GROUP_ITEMS = 2**19
"""Items of a task: the 32 coordinates of each are 64 MiB."""

_READ_BYTES = 256 * 2**20
"""Rows that a task reads again at most."""

DUPLICATES_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),  # exact | near
        ("row", pa.int64()),
        ("path", pa.string()),
        ("split", pa.string()),
        ("label", pa.string()),
        ("of_row", pa.int64()),  # an earlier item
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
    """Duplicates, exact ones first, then by their distance; every array is (n,).

    Attributes
    ----------
    rows, of_rows : int64
        Row of the collection of an item, and of an earlier one that it is like.
    clusters : int32
    distances : float64
    shares : float64
        Distance as a share of the radius of the cluster; exact duplicates have -1.
    """

    rows: NDArray[np.int64]
    of_rows: NDArray[np.int64]
    clusters: NDArray[np.int32]
    distances: NDArray[np.float64]
    shares: NDArray[np.float64]


def join_pairs(parts: Sequence[Pairs]) -> Pairs:
    """Keep the nearest pairs of several ranges of clusters, at most `MOST_PAIRS`."""
    rows = np.concatenate([part.rows for part in parts])
    shares = np.concatenate([part.shares for part in parts])
    order = np.lexsort((rows, shares))[:MOST_PAIRS]
    return Pairs(
        rows[order],
        np.concatenate([part.of_rows for part in parts])[order],
        np.concatenate([part.clusters for part in parts])[order],
        np.concatenate([part.distances for part in parts])[order],
        shares[order],
    )


def duplicates_tasks(
    collection: Collection, features: Features, parts: Path, sizes: NDArray[np.int64], radii: NDArray[np.float64]
) -> list[Delayed]:
    """Make the tasks that look for duplicates, one a range of clusters.

    Parameters
    ----------
    collection
        Opened collection.
    features
        That the models were fitted on.
    parts
        Folder that the sketches were written in.
    sizes : (k,) int64
        Items of each cluster of the sketches' model.
    radii : (k,) float64
        Root mean square distance to the centre.

    Returns
    -------
    list of Delayed
        Each returns `Pairs`; combine them with `join_pairs`.
    """
    groups = np.cumsum(sizes) // _GROUP_ITEMS
    firsts = [int(first) for first in np.unique(groups, return_index=True)[1]]
    task = dask.delayed(search_clusters, pure=False, traverse=False)
    where = collection.folder, collection.chunk_rows, len(collection.labels), parts.absolute(), broadcast(features)
    return [task(*where, first, radii[first:end]) for first, end in zip(firsts, [*firsts[1:], len(sizes)], strict=True)]


def search_clusters(
    folder: Path, chunk_rows: int, n_items: int, parts: Path, features: Features, first: int, radii: NDArray[np.float64]
) -> Pairs:
    """Find the duplicates in the clusters ``first:first + len(radii)``.

    Parameters
    ----------
    folder, chunk_rows, n_items
        Of the collection.
    parts
        Folder of the sketches.
    features
        That the models were fitted on.
    first
        First cluster.
    radii : (n,) float64
        Root mean square distance to the centre of each cluster.

    Returns
    -------
    Pairs
    """
    wanted = [("cluster", ">=", first), ("cluster", "<", first + len(radii))]
    files = sorted(parts.glob("sketch-*.parquet"))
    table = pa.concat_tables([pq.read_table(readable(file), filters=wanted) for file in files]).combine_chunks()
    table = table.take(pa.array(np.lexsort((table["row"].to_numpy(), table["cluster"].to_numpy()))))
    clusters, rows = table["cluster"].to_numpy(), table["row"].to_numpy()
    hashes = np.frombuffer(b"".join(table["hash"].to_pylist()), "V16")
    _, originals, copies = np.unique(hashes, return_index=True, return_inverse=True)
    (again,) = np.nonzero(originals[copies] != np.arange(len(rows)))
    exact = Pairs(
        rows[again], rows[originals[copies[again]]], clusters[again], np.zeros(len(again)), np.full(len(again), -1.0)
    )
    if len(originals) < 2:
        return join_pairs([exact])
    single = np.sort(originals)
    sketches = table["sketch"].combine_chunks().flatten().to_numpy().reshape(len(rows), -1)[single]
    left, right = _candidates(clusters[single], sketches, radii, first)
    if len(left):
        row_bytes = features.read_chunk(folder, 0, 1).nbytes
        most = _READ_BYTES // (2 * row_bytes)
        nearest = np.argsort(((sketches[left] - sketches[right]) ** 2).sum(axis=1), kind="stable")[:most]
        left, right = left[nearest], right[nearest]
    rows, clusters = rows[single], clusters[single]
    distances = _distances(folder, features, chunk_rows, n_items, rows[left], rows[right])
    shares = np.divide(distances, radii[clusters[left] - first])
    (near,) = np.nonzero(shares <= NEAR)
    near = near[np.lexsort((shares[near], rows[right[near]]))]
    near = near[np.unique(rows[right[near]], return_index=True)[1]]  # of each item, the nearest of the earlier ones
    close = Pairs(rows[right[near]], rows[left[near]], clusters[left[near]], distances[near], shares[near])
    return join_pairs([exact, close])


def _candidates(
    clusters: NDArray[np.int32], sketches: NDArray[np.float32], radii: NDArray[np.float64], first: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of items of one cluster whose sketches are near each other; the first is always the smaller."""
    pairs = [np.empty((0, 2), np.int64)]
    starts = np.searchsorted(clusters, np.arange(first, first + len(radii) + 1))
    for radius, start, stop in zip(radii, starts[:-1], starts[1:], strict=True):
        if stop - start < 2 or not radius > 0:
            continue
        mine = sketches[start:stop]
        k = min(_NEIGHBOURS + 1, len(mine))
        # a little farther than the limit: float32 has rounded the sketches
        _, found = KDTree(mine).query(mine, k=k, distance_upper_bound=1.001 * NEAR * radius)
        near = np.stack([np.repeat(np.arange(len(mine)), k), found.ravel()], axis=1)
        near = np.sort(near[(near[:, 1] < len(mine)) & (near[:, 0] != near[:, 1])], axis=1)
        pairs.append(np.unique(near, axis=0) + start)
    both = np.concatenate(pairs)
    return both[:, 0], both[:, 1]


def _distances(
    folder: Path, features: Features, chunk_rows: int, n_items: int, left: NDArray[np.int64], right: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Read the rows of some pairs, a chunk at a time, and measure how far apart they are."""
    if not len(left):
        return np.empty(0)
    needed = np.unique(np.concatenate([left, right]))
    read: list[NDArray[Any]] = []
    for start in np.unique(needed // chunk_rows) * chunk_rows:
        here = needed[(needed >= start) & (needed < start + chunk_rows)]
        block = features.read_chunk(folder, int(start), int(min(start + chunk_rows, n_items)))
        read.append(block[here - start])
    rows = np.concatenate(read)
    pairs = zip(np.searchsorted(needed, left), np.searchsorted(needed, right), strict=True)
    return np.array([np.linalg.norm(rows[a].astype(np.float64) - rows[b]) for a, b in pairs])


def duplicates_table(pairs: Pairs, items: pa.Table) -> pa.Table:
    """Make the list of duplicates.

    Parameters
    ----------
    pairs
        Of all clusters.
    items
        Items of the collection.

    Returns
    -------
    pyarrow.Table
        `DUPLICATES_SCHEMA`; the score is 1 - distance / radius of the cluster, 1 for exact duplicates.
    """
    exact = pairs.shares < 0
    columns: dict[str, Any] = {"kind": np.where(exact, "exact", "near"), "cluster": pairs.clusters}
    columns |= {"row": pairs.rows, "of_row": pairs.of_rows, "distance": pairs.distances}
    columns["score"] = 1 - np.maximum(pairs.shares, 0.0)
    for prefix, rows in (("", pairs.rows), ("of_", pairs.of_rows)):
        columns |= {f"{prefix}{name}": items[name].take(pa.array(rows)) for name in ("path", "split", "label")}
    told = (columns[name].to_pylist() for name in ("label", "of_label", "split", "of_split"))
    columns["reason"] = [_reason(*of) for of in zip(pairs.shares, *told, strict=True)]
    return pa.table({name: columns[name] for name in DUPLICATES_SCHEMA.names}, schema=DUPLICATES_SCHEMA)


def _reason(share: float, label: str | None, of_label: str | None, split: str, of_split: str) -> str:
    said = "exactly the same" if share < 0 else f"as far apart as {share:.0%} of their cluster's radius"
    if label != of_label:
        said += f"; labels differ: {label} and {of_label}"
    return said if split == of_split else f"{said}; one is held out, the other fitted"


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
