"""What can only be told of an item when all clusters are known: a second, cheaper read of the collection.

It needs no product with all centres: the clusters are read from the rows that the first read has written.
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
from kmeans_dask.evaluation.first_pass import chunk_starts, part_of, read_chunk
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
class Known:
    """What the first read has found out of one model; every array has k rows.

    Attributes
    ----------
    name : str
        Prefix of its columns.
    centres, means : (k, n_features)
        Of the model, and of the fitted rows of each cluster.
    label_map : (k,) int32
        Class of each cluster, -1 = none.
    purities : (k,) float64
        Share of the labelled fitted items that are of it.
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
    """What one chunk, or all together, say of every model.

    Attributes
    ----------
    scatter : (k_total,) float64
        Sums of the distances of the fitted items to the means of their clusters.
    label_issues, outliers : list of Findings
        One entry a model.
    """

    scatter: NDArray[np.float64]
    label_issues: list[Findings]
    outliers: list[Findings]


def second_pass_tasks(collection: Collection, features: Features, known: Sequence[Known], parts: Path) -> list[Delayed]:
    """Make the tasks of the second read, one a chunk.

    Parameters
    ----------
    collection
        Opened collection.
    features
        That the models were fitted on.
    known
        What is known of each model.
    parts
        Folder that the tasks of the first read have written to.

    Returns
    -------
    list of Delayed
        Each returns a `SecondPass`; combine them with `join_second_passes`.
    """
    task = dask.delayed(look_at_chunk, pure=False, traverse=False)
    shared, shared_features = broadcast(list(known)), broadcast(features)
    return [
        task(collection.folder, shared_features, start, stop, shared, parts.absolute())
        for start, stop in chunk_starts(collection)
    ]


def look_at_chunk(
    folder: Path, features: Features, start: int, stop: int, known: Sequence[Known], parts: Path
) -> SecondPass:
    """Look at the items ``start:stop`` again.

    Parameters
    ----------
    folder
        Of the collection.
    features
        That the models were fitted on.
    start, stop
        Rows of one chunk.
    known
        What is known of each model.
    parts
        Folder of the rows that the first read has written.

    Returns
    -------
    SecondPass
    """
    chunk = read_chunk(folder, features, start, stop)
    columns = [f"{model.name}_{what}" for model in known for what in ("cluster", "distance")]
    part = pq.read_table(readable(part_of(parts, start)), columns=columns)
    clusters = np.stack([part[f"{model.name}_cluster"].fill_null(-1).to_numpy() for model in known])
    distances = [part[f"{model.name}_distance"].fill_null(0).to_numpy() for model in known]
    rows = np.arange(start, stop)
    means = Stack.of([model.means for model in known])
    return SecondPass(
        scatter_block(chunk.rows, chunk.splits, clusters, means),
        [
            label_issues_block(
                chunk.rows, rows, chunk.labels, mine, far, model.centres, model.label_map, model.purities
            )
            for model, mine, far in zip(known, clusters, distances, strict=True)
        ],
        [
            outliers_block(rows, mine, far, model.mean_distances, model.deviations)
            for model, mine, far in zip(known, clusters, distances, strict=True)
        ],
    )  # fmt: skip


def join_second_passes(looks: Sequence[SecondPass]) -> SecondPass:
    """Combine what several chunks say."""
    models = range(len(looks[0].label_issues))
    return SecondPass(
        np.sum([look.scatter for look in looks], axis=0),
        [join_findings([look.label_issues[m] for look in looks], MAX_LABEL_ISSUES) for m in models],
        [join_findings([look.outliers[m] for look in looks], MAX_OUTLIERS) for m in models],
    )
