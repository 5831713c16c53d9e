"""What a person wants to know of a cluster: a row a model and cluster, reduced on the workers.

The reduction keeps, of every cluster, the items nearest to its centre, the farthest ones and a random sample: block =
`extremes_block`, combine = `join_extremes`, finalize = `cluster_facts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from kmeans_dask.kmeans.sampling import row_uniforms
from kmeans_dask.storage.publish import publish

ITEMS_OF_EACH_KIND = 12
"""Items of each cluster that are kept as the nearest, as the farthest and as a sample."""

_NEAREST_CLUSTERS = 5

_SAMPLE_ROUND = 2**33
"""Key of the draws of the sample; no other draw of a run has it."""

FACTS_SCHEMA = pa.schema(
    [
        ("algorithm", pa.string()),
        ("k", pa.int32()),
        ("cluster", pa.int32()),
        ("label", pa.string()),  # null = no fitted item of it has a label
        ("size", pa.int64()),  # fitted items
        ("size_holdout", pa.int64()),
        ("purity", pa.float64()),  # share of the labelled fitted items that have the label
        ("radius_mean", pa.float64()),  # distances of the fitted items to the centre: mean,
        ("radius_rms", pa.float64()),  # root of the mean square,
        ("radius_max", pa.float64()),  # largest
        ("silhouette", pa.float64()),  # simplified, mean over the fitted items; 0 of a single one
        ("nearest_clusters", pa.list_(pa.int32())),
        ("nearest_clusters_distances", pa.list_(pa.float64())),
        ("nearest", pa.list_(pa.int64())),  # rows of the collection, of both splits, best first
        ("farthest", pa.list_(pa.int64())),
        ("sample", pa.list_(pa.int64())),
    ]
)


@dataclass(frozen=True)
class Smallest:
    """The rows with the smallest keys of every cluster.

    Attributes
    ----------
    keys : (k_total, m) float64
        Ascending; infinite where a cluster has fewer rows.
    rows : (k_total, m) int64
        Row of the collection; -1 where there is none.
    """

    keys: NDArray[np.float64]
    rows: NDArray[np.int64]

    @classmethod
    def of(
        cls, keys: NDArray[np.float64], clusters: NDArray[np.int32], rows: NDArray[np.int64], k_total: int, size: int
    ) -> Self:
        """Keep the `size` smallest keys of every cluster; of equal keys those of the first rows.

        Parameters
        ----------
        keys : (n_models, n) float64
            Finite.
        clusters : (n_models, n) int32
            Stacked cluster of every row.
        rows : (n,) int64
            Rows of the collection, ascending.
        k_total, size
            Clusters of all models; keys of each that are kept.
        """
        kept = cls(np.full((k_total, size), np.inf), np.full((k_total, size), -1, np.int64))
        _keep_smallest(keys, clusters, rows, kept.keys, kept.rows)
        return kept

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Keep the smallest of several blocks, given in the order of their rows."""
        size = parts[0].keys.shape[1]
        keys = np.concatenate([part.keys for part in parts], axis=1)
        rows = np.concatenate([part.rows for part in parts], axis=1)
        order = np.argsort(keys, axis=1, kind="stable")[:, :size]
        return cls(np.take_along_axis(keys, order, axis=1), np.take_along_axis(rows, order, axis=1))


@dataclass(frozen=True)
class Extremes:
    """Rows of every cluster that say what is in it: nearest, farthest, and a random sample."""

    nearest: Smallest
    farthest: Smallest
    sample: Smallest


def extremes_block(
    squared: NDArray[np.float64],
    stacked: NDArray[np.int32],
    readable: NDArray[np.bool_],
    start: int,
    k_total: int,
    seed: int,
) -> Extremes:
    """Choose the extreme rows of one block.

    Parameters
    ----------
    squared : (n_models, n) float64
        Squared distance of every row to its centre.
    stacked : (n_models, n) int32
        Stacked cluster of every row.
    readable : (n,) bool
        Rows that count.
    start
        Row of the collection of the first one.
    k_total
        Clusters of all models.
    seed
        Of the sample, whose draws belong to rows.

    Returns
    -------
    Extremes
    """
    rows = start + np.flatnonzero(readable)
    uniforms = row_uniforms(start, start + len(readable), seed, _SAMPLE_ROUND)[readable]
    draws = np.broadcast_to(uniforms, (len(squared), len(uniforms)))
    distances, clusters = squared[:, readable], np.ascontiguousarray(stacked[:, readable])

    def kept(keys: NDArray[np.float64]) -> Smallest:
        return Smallest.of(np.ascontiguousarray(keys), clusters, rows, k_total, ITEMS_OF_EACH_KIND)

    return Extremes(kept(distances), kept(-distances), kept(draws))


def join_extremes(parts: Sequence[Extremes]) -> Extremes:
    """Combine the extreme rows of several blocks, given in the order of their rows."""
    return Extremes(
        Smallest.join([part.nearest for part in parts]),
        Smallest.join([part.farthest for part in parts]),
        Smallest.join([part.sample for part in parts]),
    )


@numba.njit(nogil=True, cache=True)
def _keep_smallest(keys, clusters, rows, kept_keys, kept_rows):  # type: ignore[no-untyped-def]
    size = kept_keys.shape[1]
    for m in range(keys.shape[0]):
        for i in range(keys.shape[1]):
            key = keys[m, i]
            mine, mine_rows = kept_keys[clusters[m, i]], kept_rows[clusters[m, i]]
            if not key < mine[size - 1]:
                continue
            j = size - 1
            while j > 0 and key < mine[j - 1]:
                mine[j], mine_rows[j] = mine[j - 1], mine_rows[j - 1]
                j -= 1
            mine[j], mine_rows[j] = key, rows[i]


@dataclass(frozen=True)
class ClusterNumbers:
    """What has been counted and measured of the clusters of one model; every array has k rows.

    Attributes
    ----------
    algorithm : str
    centres : (k, n_features)
    label_map : (k,) int32
        Class of each cluster, -1 = none.
    table : (k, n_classes) int64
        Fitted items of each cluster and class.
    sizes : (2, k) int64
        Fitted and held-out items.
    squared, distances, largest, silhouettes : (k,) float64
        Of the fitted items, as in `spread.Spread`; `Spread.fitted_silhouettes`.
    nearest, farthest, sample : (k, m) int64
        Rows of the collection; -1 where there are fewer.
    """

    algorithm: str
    centres: NDArray[np.floating]
    label_map: NDArray[np.int32]
    table: NDArray[np.int64]
    sizes: NDArray[np.int64]
    squared: NDArray[np.float64]
    distances: NDArray[np.float64]
    largest: NDArray[np.float64]
    silhouettes: NDArray[np.float64]
    nearest: NDArray[np.int64]
    farthest: NDArray[np.int64]
    sample: NDArray[np.int64]


def cluster_facts(models: Sequence[ClusterNumbers], class_names: Sequence[str]) -> pa.Table:
    """Make the table of clusters.

    Parameters
    ----------
    models
        In the order in which they are to stand.
    class_names
        Names of the classes.

    Returns
    -------
    pyarrow.Table
        `FACTS_SCHEMA`; a model and cluster a row.
    """
    return pa.concat_tables([_facts_of(model, class_names) for model in models])


def _facts_of(model: ClusterNumbers, class_names: Sequence[str]) -> pa.Table:
    k, (sizes, held_out) = len(model.centres), model.sizes
    labelled = model.table.sum(axis=1)
    apart = cdist(model.centres, model.centres)
    np.fill_diagonal(apart, np.inf)
    neighbours = np.argsort(apart, axis=1, kind="stable")[:, : min(_NEAREST_CLUSTERS, k - 1)]

    def per_item(sums: NDArray[Any]) -> pa.Array:
        return pa.array(sums / np.maximum(sizes, 1), mask=sizes == 0)

    purities = model.table.max(axis=1, initial=0) / np.maximum(labelled, 1)
    columns = [
        pa.array([model.algorithm] * k),
        pa.array(np.full(k, k, np.int32)),
        pa.array(np.arange(k, dtype=np.int32)),
        pa.array([class_names[c] if c >= 0 else None for c in model.label_map], pa.string()),
        pa.array(sizes),
        pa.array(held_out),
        pa.array(purities, mask=labelled == 0),
        per_item(model.distances),
        pc.sqrt(per_item(model.squared)),
        pa.array(model.largest, mask=sizes == 0),
        per_item(model.silhouettes) if k > 1 else pa.nulls(k, pa.float64()),
        pa.array(list(neighbours), pa.list_(pa.int32())),
        pa.array(list(np.take_along_axis(apart, neighbours, axis=1)), pa.list_(pa.float64())),
        *(_lists(rows) for rows in (model.nearest, model.farthest, model.sample)),
    ]
    return pa.table(columns, schema=FACTS_SCHEMA)


def _lists(rows: NDArray[np.int64]) -> pa.Array:
    return pa.array([mine[mine >= 0] for mine in rows], pa.list_(pa.int64()))


def write_cluster_facts(facts: pa.Table, path: Path) -> None:
    """Write the table of clusters as Parquet, and as CSV beside it, where lists are numbers with spaces between.

    Parameters
    ----------
    facts
        `FACTS_SCHEMA`.
    path
        Of the Parquet file.
    """
    with publish(path) as partial:
        pq.write_table(facts, partial)
    plain = [
        pa.array([" ".join(map(str, values)) for values in facts[field.name].to_pylist()], pa.string())
        if pa.types.is_list(field.type)
        else facts[field.name]
        for field in FACTS_SCHEMA
    ]
    with publish(path.with_suffix(".csv")) as partial:
        pyarrow.csv.write_csv(pa.table(plain, names=FACTS_SCHEMA.names), partial)
