"""The table of clusters, one row per model and cluster, with exemplars that are selected on the workers.

The reduction keeps, for every cluster, the items nearest to its centre, the farthest ones and a random sample: block =
`exemplars_block`, combine = `join_exemplars`, finalize = `cluster_facts`.
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

N_EXEMPLARS = 12
"""Items kept per cluster as the nearest, as the farthest, and as the sample."""

_N_NEAREST_CLUSTERS = 5
"""Number of neighbouring clusters listed for each cluster."""

_SAMPLE_ROUND = 2**33
"""Key of the random draws of the sample, used by no other draw of a run."""

FACTS_SCHEMA = pa.schema(
    [
        ("algorithm", pa.string()),
        ("k", pa.int32()),
        ("cluster", pa.int32()),
        ("label", pa.string()),  # null if no fitted item has a label
        ("size", pa.int64()),  # fitted items
        ("size_holdout", pa.int64()),
        ("purity", pa.float64()),  # fraction of the labelled fitted items with this label
        ("radius_mean", pa.float64()),  # mean distance of the fitted items to the centre
        ("radius_rms", pa.float64()),  # root mean square distance
        ("radius_max", pa.float64()),  # maximum distance
        ("silhouette", pa.float64()),  # simplified silhouette, mean over the fitted items; 0 for a single item
        ("nearest_clusters", pa.list_(pa.int32())),
        ("nearest_clusters_distances", pa.list_(pa.float64())),
        ("nearest", pa.list_(pa.int64())),  # rows of the collection, both splits, best first
        ("farthest", pa.list_(pa.int64())),
        ("sample", pa.list_(pa.int64())),
    ]
)


@dataclass(frozen=True)
class SmallestKeys:
    """The rows with the smallest keys in every cluster.

    Attributes
    ----------
    keys : (k_total, m) float64
        Keys in ascending order, padded with infinity.
    rows : (k_total, m) int64
        Rows of the collection, padded with -1.
    """

    keys: NDArray[np.float64]
    rows: NDArray[np.int64]

    @classmethod
    def of(
        cls, keys: NDArray[np.float64], clusters: NDArray[np.int32], rows: NDArray[np.int64], k_total: int, size: int
    ) -> Self:
        """Select the `size` smallest keys of every cluster; ties go to the first rows.

        Parameters
        ----------
        keys : (n_models, n) float64
            Finite keys.
        clusters : (n_models, n) int32
            Cluster of every row in every model, as an index into the stacked clusters.
        rows : (n,) int64
            Rows of the collection, ascending.
        k_total
            Number of clusters of all models.
        size
            Number of keys to keep per cluster.

        Returns
        -------
        SmallestKeys
        """
        smallest = cls(np.full((k_total, size), np.inf), np.full((k_total, size), -1, np.int64))
        _keep_smallest(keys, clusters, rows, smallest.keys, smallest.rows)
        return smallest

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Combine several blocks, given in the order of their rows."""
        size = parts[0].keys.shape[1]
        keys = np.concatenate([part.keys for part in parts], axis=1)
        rows = np.concatenate([part.rows for part in parts], axis=1)
        order = np.argsort(keys, axis=1, kind="stable")[:, :size]
        return cls(np.take_along_axis(keys, order, axis=1), np.take_along_axis(rows, order, axis=1))


@dataclass(frozen=True)
class Exemplars:
    """Exemplars of every cluster: the rows nearest to its centre, those farthest from it, and a random sample."""

    nearest: SmallestKeys
    farthest: SmallestKeys
    sample: SmallestKeys


def exemplars_block(
    squared: NDArray[np.float64],
    stacked: NDArray[np.int32],
    readable: NDArray[np.bool_],
    start: int,
    k_total: int,
    seed: int,
) -> Exemplars:
    """Select the exemplars of one block.

    Parameters
    ----------
    squared : (n_models, n) float64
        Squared distance of every row to its centre.
    stacked : (n_models, n) int32
        Cluster of every row, as an index into the stacked clusters.
    readable : (n,) bool
        Rows to consider.
    start
        Row of the collection that the block starts with.
    k_total
        Number of clusters of all models.
    seed
        Seed of the sample. The draw of a row depends only on the seed and the row, not on the chunks.

    Returns
    -------
    Exemplars
    """
    rows = start + np.flatnonzero(readable)
    uniforms = row_uniforms(start, start + len(readable), seed, _SAMPLE_ROUND)[readable]
    draws = np.broadcast_to(uniforms, (len(squared), len(uniforms)))
    distances, clusters = squared[:, readable], np.ascontiguousarray(stacked[:, readable])

    def smallest(keys: NDArray[np.float64]) -> SmallestKeys:
        return SmallestKeys.of(np.ascontiguousarray(keys), clusters, rows, k_total, N_EXEMPLARS)

    return Exemplars(smallest(distances), smallest(-distances), smallest(draws))


def join_exemplars(parts: Sequence[Exemplars]) -> Exemplars:
    """Combine the exemplars of several blocks, given in the order of their rows."""
    return Exemplars(
        SmallestKeys.join([part.nearest for part in parts]),
        SmallestKeys.join([part.farthest for part in parts]),
        SmallestKeys.join([part.sample for part in parts]),
    )


@numba.njit(nogil=True, cache=True)
def _keep_smallest(keys, clusters, rows, kept_keys, kept_rows):  # type: ignore[no-untyped-def]
    """Insert every key and its row into the sorted arrays of its cluster, which keep their size."""
    size = kept_keys.shape[1]
    for m in range(keys.shape[0]):
        for i in range(keys.shape[1]):
            key = keys[m, i]
            own_keys, own_rows = kept_keys[clusters[m, i]], kept_rows[clusters[m, i]]
            if not key < own_keys[size - 1]:
                continue
            j = size - 1
            while j > 0 and key < own_keys[j - 1]:
                own_keys[j], own_rows[j] = own_keys[j - 1], own_rows[j - 1]
                j -= 1
            own_keys[j], own_rows[j] = key, rows[i]


@dataclass(frozen=True)
class ClusterMeasurements:
    """Counts and distances of the clusters of one model, from the first pass.

    Attributes
    ----------
    algorithm : str
        Algorithm of the model.
    centres : (k, n_features)
        Centres of the model.
    label_map : (k,) int32
        Class of each cluster, -1 = none.
    contingency : (k, n_classes) int64
        Fitted items of each cluster and class.
    sizes : (2, k) int64
        Fitted and held-out items of each cluster.
    squared_distances, distances, max_distances : (k,) float64
        Sum of squared distances, sum of distances and maximum distance of the fitted items to their centre.
    silhouettes : (k,) float64
        `internal_metrics.WithinSums.fitted_silhouettes`.
    nearest, farthest, sample : (k, m) int64
        Rows of the collection, padded with -1.
    """

    algorithm: str
    centres: NDArray[np.floating]
    label_map: NDArray[np.int32]
    contingency: NDArray[np.int64]
    sizes: NDArray[np.int64]
    squared_distances: NDArray[np.float64]
    distances: NDArray[np.float64]
    max_distances: NDArray[np.float64]
    silhouettes: NDArray[np.float64]
    nearest: NDArray[np.int64]
    farthest: NDArray[np.int64]
    sample: NDArray[np.int64]

    @property
    def radii(self) -> NDArray[np.float64]:
        """Root mean square distance of the fitted items to the centre, (k,); 0 for empty clusters."""
        return np.asarray(np.sqrt(self.squared_distances / np.maximum(self.sizes[0], 1)))

    @property
    def purities(self) -> NDArray[np.float64]:
        """Fraction of the labelled fitted items of each cluster that have its label, (k,); 0 if none has a label."""
        labelled = self.contingency.sum(axis=1)
        return np.asarray(self.contingency.max(axis=1, initial=0) / np.maximum(labelled, 1))


def cluster_facts(models: Sequence[ClusterMeasurements], class_names: Sequence[str]) -> pa.Table:
    """Return the table of clusters.

    Parameters
    ----------
    models
        Models, in the order of the table.
    class_names
        Names of the classes.

    Returns
    -------
    pyarrow.Table
        Schema `FACTS_SCHEMA`; one row per model and cluster.
    """
    return pa.concat_tables([_facts_of(model, class_names) for model in models])


def _facts_of(model: ClusterMeasurements, class_names: Sequence[str]) -> pa.Table:
    k, (sizes, held_out) = len(model.centres), model.sizes
    labelled = model.contingency.sum(axis=1)
    distances = cdist(model.centres, model.centres)
    np.fill_diagonal(distances, np.inf)
    neighbours = np.argsort(distances, axis=1, kind="stable")[:, : min(_N_NEAREST_CLUSTERS, k - 1)]

    def per_item(sums: NDArray[Any]) -> pa.Array:
        return pa.array(sums / np.maximum(sizes, 1), mask=sizes == 0)

    columns = [
        pa.array([model.algorithm] * k),
        pa.array(np.full(k, k, np.int32)),
        pa.array(np.arange(k, dtype=np.int32)),
        pa.array([class_names[c] if c >= 0 else None for c in model.label_map], pa.string()),
        pa.array(sizes),
        pa.array(held_out),
        pa.array(model.purities, mask=labelled == 0),
        per_item(model.distances),
        pc.sqrt(per_item(model.squared_distances)),
        pa.array(model.max_distances, mask=sizes == 0),
        per_item(model.silhouettes) if k > 1 else pa.nulls(k, pa.float64()),
        pa.array(list(neighbours), pa.list_(pa.int32())),
        pa.array(list(np.take_along_axis(distances, neighbours, axis=1)), pa.list_(pa.float64())),
        *(_lists(rows) for rows in (model.nearest, model.farthest, model.sample)),
    ]
    return pa.table(columns, schema=FACTS_SCHEMA)


def _lists(rows: NDArray[np.int64]) -> pa.Array:
    return pa.array([row[row >= 0] for row in rows], pa.list_(pa.int64()))


def write_cluster_facts(facts: pa.Table, path: Path) -> None:
    """Write the table of clusters as Parquet, and as a CSV file next to it in which lists are separated by spaces.

    Parameters
    ----------
    facts
        Table with schema `FACTS_SCHEMA`.
    path
        Parquet file; the CSV file has the same name.
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
