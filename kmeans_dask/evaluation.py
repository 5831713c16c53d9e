"""Where every item belongs, for all models in one read of the collection.

A task writes its rows of the cluster table and returns only counts and sums, which the driver adds up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dask.delayed import Delayed
from numpy.typing import NDArray

from kmeans_dask.collection import Collection, read_items
from kmeans_dask.features import Features
from kmeans_dask.kernels import Stack, assign
from kmeans_dask.metrics import contingency_block
from kmeans_dask.models import Model
from kmeans_dask.publish import publish, remove
from kmeans_dask.reduction import share
from kmeans_dask.store import read_labels

SPLITS = ("train", "holdout")


@dataclass(frozen=True)
class Counts:
    """What one chunk, or all together, say of every model.

    Attributes
    ----------
    rows : int
        Items, readable or not.
    tables : list of (2, k, n_classes) int64
        Contingency table of each split, one entry a model; items without a label are not in it.
    sizes : list of (2, k) int64
        Items of each split and cluster.
    inertias : list of (n_models, 2) float64
        Sum of squared distances in each chunk and split, on the scale of the features.
    """

    rows: int
    tables: list[NDArray[np.int64]]
    sizes: list[NDArray[np.int64]]
    inertias: list[NDArray[np.float64]]

    def __add__(self, other: Counts) -> Counts:
        """Add up the counts of different chunks."""
        return Counts(
            self.rows + other.rows,
            [a + b for a, b in zip(self.tables, other.tables, strict=True)],
            [a + b for a, b in zip(self.sizes, other.sizes, strict=True)],
            self.inertias + other.inertias,
        )

    def total_inertias(self) -> NDArray[np.float64]:
        """Return the (n_models, 2) sums over the chunks, whatever order these have come in: they are rounded once."""
        chunks = np.stack(self.inertias)
        return np.array([[math.fsum(chunks[:, m, s]) for s in range(len(SPLITS))] for m in range(chunks.shape[1])])


def evaluation_tasks(collection: Collection, features: Features, models: Sequence[Model], parts: Path) -> list[Delayed]:
    """Make the tasks that assign every item to its cluster in every model, one a chunk.

    Parameters
    ----------
    collection
        Opened collection.
    features
        That the models were fitted on.
    models
        Fitted models.
    parts
        Folder for the tasks' rows of the cluster table, which all workers can write to; it is emptied.

    Returns
    -------
    list of Delayed
        Each returns `Counts`.
    """
    parts = parts.absolute()  # workers of a running cluster have other current folders
    remove(parts)
    parts.mkdir(parents=True)
    stack = share(stack_of(models, features))
    shared_features = share(features)
    names = [column_prefix(model) for model in models]
    task = dask.delayed(evaluate_chunk, pure=False, traverse=False)
    n_items, step = len(collection.labels), collection.chunk_rows
    return [
        task(
            collection.folder,
            shared_features,
            start,
            min(start + step, n_items),
            stack,
            names,
            len(collection.class_names),
            parts,
        )
        for start in range(0, n_items, step)
    ]


def stack_of(models: Sequence[Model], features: Features) -> Stack:
    """Stack the centres of models for `kernels.assign`, which is given rows of these features."""
    centres = [model.centres for model in models]
    if features.settings.raw:
        return Stack.of(centres)
    origin = np.concatenate(centres).mean(axis=0)  # float rows may lie far from zero, where float32 has few digits
    return Stack.of([part - origin for part in centres], origin)


def evaluate_chunk(
    folder: Path,
    features: Features,
    start: int,
    stop: int,
    stack: Stack,
    names: Sequence[str],
    n_classes: int,
    parts: Path,
) -> Counts:
    """Assign the items ``start:stop`` and count clusters against labels.

    Parameters
    ----------
    folder
        Of the collection.
    features
        That the models were fitted on.
    start, stop
        Rows of one chunk.
    stack
        Centres of all models.
    names
        Prefix of each model's columns.
    n_classes
        Number of labels.
    parts
        Folder that the rows of the cluster table are published in.

    Returns
    -------
    Counts
    """
    block = features.read_chunk(folder, start, stop)
    items = read_items(folder, start, stop)
    labels = read_labels(folder)[start:stop]
    readable = items["status"].to_numpy() == "ok"
    clusters, squared = assign(block, stack)
    ks = np.diff(stack.offsets)
    masks = [readable & (items["split"].to_numpy() == split) for split in SPLITS]
    tables, sizes, inertias = [], [], np.zeros((len(names), len(SPLITS)))
    for m, k in enumerate(ks):
        tables.append(np.stack([contingency_block(clusters[m][mask], labels[mask], k, n_classes) for mask in masks]))
        sizes.append(np.stack([np.bincount(clusters[m][mask], minlength=k) for mask in masks]))
        inertias[m] = [squared[m][mask].sum() for mask in masks]
    columns: dict[str, Any] = {"path": items["path"], "split": items["split"], "label": items["label"]}
    for m, name in enumerate(names):
        columns[f"{name}_cluster"] = pa.array(clusters[m], mask=~readable)
        columns[f"{name}_distance"] = pa.array(np.sqrt(squared[m]).astype(np.float32), mask=~readable)
    with publish(parts / f"part-{start:012d}.parquet") as partial:
        pq.write_table(pa.table(columns), partial)
    return Counts(stop - start, tables, sizes, [inertias])


def join_clusters(
    parts: Path, path: Path, label_maps: Mapping[str, NDArray[np.int32]], class_names: Sequence[str]
) -> None:
    """Join the rows of all chunks to one table, add the predicted labels, and remove the parts.

    Parameters
    ----------
    parts
        Folder that the tasks wrote to.
    path
        Parquet file; one row an item: path, split, label and, for every model, cluster, distance (Euclidean, on
        the scale of the pixels) and predicted label.
    label_maps
        Prefix of a model's columns -> (k,) class index of each cluster, -1 = none.
    class_names
        Names of the classes.
    """
    with publish(path) as partial:
        writer = None
        for part in sorted(parts.iterdir()):  # one part at a time: the table may be larger than memory
            table = pq.read_table(part)
            for prefix, mapping in label_maps.items():
                labels = pa.array([class_names[c] if c >= 0 else None for c in mapping], pa.string())
                table = table.append_column(f"{prefix}_label", labels.take(table[f"{prefix}_cluster"].combine_chunks()))
            writer = writer or pq.ParquetWriter(partial, table.schema)
            writer.write_table(table)
        assert writer is not None
        writer.close()
    remove(parts)


def nearest_items(path: Path, model: Model) -> NDArray[np.int64]:
    """Find the fitted item that is nearest to each centre.

    Parameters
    ----------
    path
        Table written by `join_clusters`.
    model
        One of its models.

    Returns
    -------
    (k,) int64
        Row of the item in the collection, of equally near ones the first; -1 for a cluster without fitted items.
    """
    prefix = column_prefix(model)
    table = pq.read_table(path, columns=["split", f"{prefix}_cluster", f"{prefix}_distance"])
    clusters = table[f"{prefix}_cluster"].fill_null(-1).to_numpy()
    fitted = np.flatnonzero((table["split"].to_numpy() == "train") & (clusters >= 0))
    order = fitted[np.lexsort((fitted, table[f"{prefix}_distance"].to_numpy()[fitted], clusters[fitted]))]
    found, first = np.unique(clusters[order], return_index=True)
    nearest = np.full(model.k, -1)
    nearest[found] = order[first]
    return nearest


def column_prefix(model: Model) -> str:
    """Return how the columns of a model begin, for example ``kmeans_k10``."""
    return f"{model.algorithm}_k{model.k}"
