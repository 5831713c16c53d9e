"""Where every item belongs, and every metric, for all models in one read of the collection.

A task writes its rows of the cluster table and returns counts and sums of clusters, which a tree adds up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dask.delayed import Delayed
from numpy.typing import NDArray

from kmeans_dask.collection.collection import Collection, read_items
from kmeans_dask.collection.features import Features
from kmeans_dask.evaluation.cluster_facts import Extremes, extremes_block, join_extremes
from kmeans_dask.evaluation.duplicates import Sketcher, write_sketches
from kmeans_dask.evaluation.internal_metrics import Spread, add_spreads, spread_block
from kmeans_dask.evaluation.metrics import contingency_block
from kmeans_dask.kmeans.kernels import Block, NearestTwo, Stack, assign_two
from kmeans_dask.models.model import Model, column_prefix, stacked
from kmeans_dask.reduction import broadcast
from kmeans_dask.storage.object_store import make_folder, readable
from kmeans_dask.storage.publish import publish, remove
from kmeans_dask.storage.zarr_groups import read_labels

SPLITS = ("train", "holdout")


class Chunk(NamedTuple):
    """The items of one chunk."""

    rows: Block
    """(n, n_features): what the models were fitted on."""
    splits: NDArray[np.int8]
    """(n,) position in `SPLITS`; -1 where the item could not be read."""
    labels: NDArray[np.int32]
    """(n,) class of each item, -1 = none."""
    items: pa.Table
    """Their rows of the items table."""


@dataclass(frozen=True)
class Counts:
    """What one chunk, or all together, say of every model; the clusters of all models are stacked.

    Attributes
    ----------
    tables : (2, k_total, n_classes) int64
        Contingency table of each split; items without a label are not in it.
    spread : Spread
        Sizes, sums of distances, sums of rows.
    rivals : list of (k, k) int64
        For each pair of rivals the fitted items of their clusters.
    """

    tables: NDArray[np.int64]
    spread: Spread
    rivals: list[NDArray[np.int64]]


@dataclass(frozen=True)
class FirstPass:
    """What the first read returns of one chunk, or of all together."""

    counts: Counts
    extremes: Extremes


@dataclass(frozen=True)
class EvaluationContext:
    """What all chunks are evaluated with.

    Attributes
    ----------
    features : Features
        That the models were fitted on.
    stack : Stack
        Centres of all models, after them those of their rivals.
    names : tuple of str
        Prefix of each model's columns; rivals have none.
    rivals : tuple of (int, int)
        Positions in the stack of models that are compared.
    n_classes : int
        Number of labels.
    sketcher : Sketcher
        Makes what duplicates are found with.
    seed : int
        Of the random samples.
    """

    features: Features
    stack: Stack
    names: tuple[str, ...]
    rivals: tuple[tuple[int, int], ...]
    n_classes: int
    sketcher: Sketcher
    seed: int


def evaluation_tasks(
    collection: Collection, features: Features, models: Sequence[Model], parts: Path, seed: int = 0
) -> list[Delayed]:
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
    seed
        Of the random sample of each cluster.

    Returns
    -------
    list of Delayed
        Each returns a `FirstPass`; combine them with `join_first_passes`.
    """
    parts = parts.absolute()  # workers of a running cluster have other current folders
    remove(parts)
    make_folder(parts)
    rivals = [(m, model.rival) for m, model in enumerate(models) if model.rival is not None]
    task = EvaluationContext(
        features,
        stacked([*(model.centres for model in models), *(rival for _, rival in rivals)], features),
        tuple(column_prefix(model) for model in models),
        tuple((m, len(models) + r) for r, (m, _) in enumerate(rivals)),
        len(collection.class_names),
        Sketcher.of(models),
        seed,
    )
    shared, call = broadcast(task), dask.delayed(evaluate_chunk, pure=False, traverse=False)
    return [call(collection.folder, start, stop, shared, parts) for start, stop in chunk_starts(collection)]


def chunk_starts(collection: Collection) -> list[tuple[int, int]]:
    """First row and end of every chunk of a collection."""
    n_items, step = len(collection.labels), collection.chunk_rows
    return [(start, min(start + step, n_items)) for start in range(0, n_items, step)]


def read_chunk(folder: Path, features: Features, start: int, stop: int) -> Chunk:
    """Read the items ``start:stop`` of a collection as the models see them."""
    items = read_items(folder, start, stop)
    split = items["split"].to_numpy()
    splits = np.where(split == SPLITS[0], 0, 1).astype(np.int8)
    splits[items["status"].to_numpy() != "ok"] = -1
    return Chunk(features.read_chunk(folder, start, stop), splits, read_labels(folder)[start:stop], items)


def evaluate_chunk(folder: Path, start: int, stop: int, task: EvaluationContext, parts: Path) -> FirstPass:
    """Assign the items ``start:stop``, count, measure, and write their rows of the cluster table.

    Parameters
    ----------
    folder
        Of the collection.
    start, stop
        Rows of one chunk.
    task
        The models.
    parts
        Folder that the rows of the cluster table are published in.

    Returns
    -------
    FirstPass
    """
    chunk = read_chunk(folder, task.features, start, stop)
    nearest = assign_two(chunk.rows, task.stack)
    n = len(task.names)
    mine = nearest.clusters[:n] + task.stack.offsets[:n, None].astype(np.int32)
    extremes = extremes_block(
        nearest.squared[:n], mine, chunk.splits >= 0, start, int(task.stack.offsets[n]), task.seed
    )
    _write_part(part_of(parts, start), chunk, nearest, task.names)
    write_sketches(parts, start, chunk.rows, chunk.splits >= 0, nearest.clusters[task.sketcher.model], task.sketcher)
    return FirstPass(count_block(chunk, nearest, task), extremes)


def count_block(chunk: Chunk, nearest: NearestTwo, task: EvaluationContext) -> Counts:
    """Count and measure the clusters of all models on the rows of one chunk: what every metric is made of."""
    ks = np.diff(task.stack.offsets)
    masks = [chunk.splits == s for s in range(len(SPLITS))]
    tables = [
        [contingency_block(nearest.clusters[m][mask], chunk.labels[mask], k, task.n_classes) for m, k in enumerate(ks)]
        for mask in masks
    ]
    fitted = nearest.clusters[:, masks[0]]
    return Counts(
        np.stack([np.concatenate(of_split) for of_split in tables]),
        spread_block(chunk.rows, chunk.splits, nearest, task.stack),
        [contingency_block(fitted[a], fitted[b], ks[a], ks[b]) for a, b in task.rivals],
    )


def _write_part(path: Path, chunk: Chunk, nearest: NearestTwo, names: Sequence[str]) -> None:
    unread = chunk.splits < 0
    columns: dict[str, Any] = {name: chunk.items[name] for name in ("path", "split", "label")}
    for m, name in enumerate(names):
        columns[f"{name}_cluster"] = pa.array(nearest.clusters[m], mask=unread)
        columns[f"{name}_distance"] = pa.array(np.sqrt(nearest.squared[m]).astype(np.float32), mask=unread)
    with publish(path) as partial:
        pq.write_table(pa.table(columns), partial)


def add_counts(parts: Sequence[Counts]) -> Counts:
    """Add up the counts of several chunks, given in their order."""
    return Counts(
        np.sum([part.tables for part in parts], axis=0),
        add_spreads([part.spread for part in parts]),
        [np.sum(tables, axis=0) for tables in zip(*(part.rivals for part in parts), strict=True)],
    )


def join_first_passes(looks: Sequence[FirstPass]) -> FirstPass:
    """Combine what several chunks return, given in their order."""
    return FirstPass(add_counts([look.counts for look in looks]), join_extremes([look.extremes for look in looks]))


def part_of(parts: Path, start: int) -> Path:
    """Rows of the cluster table of the chunk that begins with a row."""
    return parts / f"part-{start:012d}.parquet"


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
        for part in sorted(parts.glob("part-*.parquet")):  # one part at a time: the table may be larger than memory
            table = pq.read_table(readable(part))
            for prefix, mapping in label_maps.items():
                labels = pa.array([class_names[c] if c >= 0 else None for c in mapping], pa.string())
                table = table.append_column(f"{prefix}_label", labels.take(table[f"{prefix}_cluster"].combine_chunks()))
            writer = writer or pq.ParquetWriter(partial, table.schema)
            writer.write_table(table)
        assert writer is not None
        writer.close()
    remove(parts)
