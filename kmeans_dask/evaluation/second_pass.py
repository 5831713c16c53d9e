"""Second pass over the collection: what depends on the statistics of all clusters, such as label issues and outliers.

It is cheaper than the first pass, because it reads the cluster of each item from the parts of the cluster table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import dask
import numpy as np
import pyarrow.parquet as pq
from dask.delayed import Delayed
from numpy.typing import NDArray

from kmeans_dask.collection.collection import Collection
from kmeans_dask.collection.features import Features
from kmeans_dask.evaluation.first_pass import chunk_bounds, part_path, read_chunk
from kmeans_dask.evaluation.internal_metrics import scatter_block
from kmeans_dask.evaluation.label_issues import (
    MAX_LABEL_ISSUES,
    MAX_OUTLIERS,
    Findings,
    join_findings,
    label_issues_block,
    outliers_block,
)
from kmeans_dask.kmeans.kernels import Stack
from kmeans_dask.reduction import broadcast
from kmeans_dask.storage.object_store import readable


@dataclass(frozen=True)
class ModelStatistics:
    """Statistics of one model from the first pass; every array has k rows.

    Attributes
    ----------
    name : str
        Prefix of its columns in the cluster table.
    centres, means : (k, n_features)
        Centres of the model, and means of the fitted rows of each cluster.
    label_map : (k,) int32
        Class of each cluster, -1 = none.
    purities : (k,) float64
        Fraction of the labelled fitted items that have this class.
    mean_distances, deviations : (k,) float64
        Mean and standard deviation of the distances of the fitted items to the centre.
    """

    name: str
    centres: NDArray[np.floating]
    means: NDArray[np.float64]
    label_map: NDArray[np.int32]
    purities: NDArray[np.float64]
    mean_distances: NDArray[np.float64]
    deviations: NDArray[np.float64]


@dataclass(frozen=True)
class SecondPass:
    """Result of the second pass for one or more chunks.

    Attributes
    ----------
    scatter : (k_total,) float64
        Sum of the distances of the fitted items to the mean of their cluster.
    label_issues, outliers : list of Findings
        One entry per model.
    """

    scatter: NDArray[np.float64]
    label_issues: list[Findings]
    outliers: list[Findings]


def second_pass_tasks(
    collection: Collection, features: Features, models: Sequence[ModelStatistics], parts: Path
) -> list[Delayed]:
    """Return the tasks of the second pass, one per chunk.

    Parameters
    ----------
    collection
        The collection.
    features
        Features that the models were fitted on.
    models
        Statistics of each model.
    parts
        Folder that the tasks of the first pass wrote to.

    Returns
    -------
    list of Delayed
        Each returns a `SecondPass`, to be combined with `join_second_passes`.
    """
    task = dask.delayed(second_pass_chunk, pure=False, traverse=False)
    shared, shared_features = broadcast(list(models)), broadcast(features)
    return [
        task(collection.folder, shared_features, start, stop, shared, parts.absolute())
        for start, stop in chunk_bounds(collection)
    ]


def second_pass_chunk(
    folder: Path, features: Features, start: int, stop: int, models: Sequence[ModelStatistics], parts: Path
) -> SecondPass:
    """Run the second pass on the items ``start:stop``.

    Parameters
    ----------
    folder
        Folder of the collection.
    features
        Features that the models were fitted on.
    start, stop
        Range of rows of the chunk.
    models
        Statistics of each model.
    parts
        Folder that the tasks of the first pass wrote to.

    Returns
    -------
    SecondPass
    """
    chunk = read_chunk(folder, features, start, stop)
    columns = [f"{model.name}_{column}" for model in models for column in ("cluster", "distance")]
    part = pq.read_table(readable(part_path(parts, start)), columns=columns)
    clusters = np.stack([part[f"{model.name}_cluster"].fill_null(-1).to_numpy() for model in models])
    distances = [part[f"{model.name}_distance"].fill_null(0).to_numpy() for model in models]
    rows = np.arange(start, stop)
    means = Stack.of([model.means for model in models])
    label_issues: list[Findings] = []
    outliers: list[Findings] = []
    for m, model in enumerate(models):
        label_issues.append(
            label_issues_block(
                chunk.rows,
                rows,
                chunk.labels,
                clusters[m],
                distances[m],
                model.centres,
                model.label_map,
                model.purities,
            )
        )
        outliers.append(outliers_block(rows, clusters[m], distances[m], model.mean_distances, model.deviations))
    return SecondPass(scatter_block(chunk.rows, chunk.splits, clusters, means), label_issues, outliers)


def join_second_passes(parts: Sequence[SecondPass]) -> SecondPass:
    """Combine the results of several chunks, given in their order."""
    models = range(len(parts[0].label_issues))
    return SecondPass(
        np.sum([part.scatter for part in parts], axis=0),
        [join_findings([part.label_issues[m] for part in parts], MAX_LABEL_ISSUES) for m in models],
        [join_findings([part.outliers[m] for part in parts], MAX_OUTLIERS) for m in models],
    )
