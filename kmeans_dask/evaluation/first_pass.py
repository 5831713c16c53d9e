"""First pass over the collection: assign every item in all models, and count and measure their clusters.

A task reads one chunk, writes its rows of the cluster table, and returns counts and sums, which are added in a tree.
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
from kmeans_dask.evaluation.cluster_facts import Exemplars, exemplars_block, join_exemplars
from kmeans_dask.evaluation.duplicates import Sketcher, write_sketches
from kmeans_dask.evaluation.internal_metrics import WithinSums, add_within_sums, within_sums_block
from kmeans_dask.evaluation.metrics import contingency_block
from kmeans_dask.kmeans.kernels import Block, NearestTwo, Stack, assign_two
from kmeans_dask.models.model import Model, column_prefix, stack_centres
from kmeans_dask.reduction import broadcast
from kmeans_dask.storage.object_store import make_folder, readable
from kmeans_dask.storage.publish import publish, remove
from kmeans_dask.storage.zarr_groups import read_labels

SPLITS = ("train", "holdout")


class Chunk(NamedTuple):
    """The items of one chunk."""

    rows: Block
    """(n, n_features) features, as the models were fitted."""
    splits: NDArray[np.int8]
    """(n,) index into `SPLITS`; -1 if the item could not be read."""
    labels: NDArray[np.int32]
    """(n,) class of each item, -1 = none."""
    items: pa.Table
    """Rows of the items table."""


@dataclass(frozen=True)
class Counts:
    """Counts and sums over the items of one or more chunks; the clusters of all models are stacked.

    Attributes
    ----------
    tables : (2, k_total, n_classes) int64
        Contingency table of each split, without unlabelled items.
    within : WithinSums
        Sizes, sums of distances and sums of rows.
    rivals : list of (k, k) int64
        For each pair of rivals the contingency table of their clusters, fitted items only.
    """

    tables: NDArray[np.int64]
    within: WithinSums
    rivals: list[NDArray[np.int64]]


@dataclass(frozen=True)
class FirstPass:
    """Result of the first pass for one or more chunks."""

    counts: Counts
    exemplars: Exemplars


@dataclass(frozen=True)
class EvaluationContext:
    """Constants of the first pass, shared by all tasks.

    Attributes
    ----------
    features : Features
        Features that the models were fitted on.
    stack : Stack
        Centres of all models, followed by those of their rivals (fits with another seed).
    names : tuple of str
        Prefix of the columns of each model; rivals have no columns.
    rivals : tuple of (int, int)
        Pairs of positions in the stack: a model and its rival.
    n_classes : int
        Number of classes.
    sketcher : Sketcher
        Definition of the sketches for the search of duplicates.
    seed : int
        Seed of the random samples.
    """

    features: Features
    stack: Stack
    names: tuple[str, ...]
    rivals: tuple[tuple[int, int], ...]
    n_classes: int
    sketcher: Sketcher
    seed: int


def first_pass_tasks(
    collection: Collection, features: Features, models: Sequence[Model], parts: Path, seed: int = 0
) -> list[Delayed]:
    """Return the tasks of the first pass, one per chunk.

    Parameters
    ----------
    collection
        The collection.
    features
        Features that the models were fitted on.
    models
        Fitted models.
    parts
        Folder that all workers can write to, for the parts of the cluster table and the sketches; emptied first.
    seed
        Seed of the random sample of each cluster.

    Returns
    -------
    list of Delayed
        Each returns a `FirstPass`, to be combined with `join_first_passes`.
    """
    parts = parts.absolute()  # workers may have another working directory
    remove(parts)
    make_folder(parts)
    rivals = [(m, model.rival) for m, model in enumerate(models) if model.rival is not None]
    context = EvaluationContext(
        features,
        stack_centres([*(model.centres for model in models), *(rival for _, rival in rivals)], features),
        tuple(column_prefix(model) for model in models),
        tuple((m, len(models) + r) for r, (m, _) in enumerate(rivals)),
        len(collection.class_names),
        Sketcher.of(models),
        seed,
    )
    shared, task = broadcast(context), dask.delayed(evaluate_chunk, pure=False, traverse=False)
    return [task(collection.folder, start, stop, shared, parts) for start, stop in chunk_bounds(collection)]


def chunk_bounds(collection: Collection) -> list[tuple[int, int]]:
    """Return the range of rows, (start, stop), of every chunk of a collection."""
    n_items, step = len(collection.labels), collection.chunk_rows
    return [(start, min(start + step, n_items)) for start in range(0, n_items, step)]


def read_chunk(folder: Path, features: Features, start: int, stop: int) -> Chunk:
    """Read the items ``start:stop`` of a collection with their features."""
    items = read_items(folder, start, stop)
    split = items["split"].to_numpy()
    splits = np.where(split == SPLITS[0], 0, 1).astype(np.int8)
    splits[items["status"].to_numpy() != "ok"] = -1
    return Chunk(features.read_chunk(folder, start, stop), splits, read_labels(folder)[start:stop], items)


def evaluate_chunk(folder: Path, start: int, stop: int, context: EvaluationContext, parts: Path) -> FirstPass:
    """Run the first pass on the items ``start:stop``, and write their rows of the cluster table and their sketches.

    Parameters
    ----------
    folder
        Folder of the collection.
    start, stop
        Range of rows of the chunk.
    context
        The models and other constants.
    parts
        Folder for the parts of the cluster table and the sketches.

    Returns
    -------
    FirstPass
    """
    chunk = read_chunk(folder, context.features, start, stop)
    nearest = assign_two(chunk.rows, context.stack)
    n = len(context.names)
    stacked = nearest.clusters[:n] + context.stack.offsets[:n, None].astype(np.int32)
    exemplars = exemplars_block(
        nearest.squared[:n], stacked, chunk.splits >= 0, start, int(context.stack.offsets[n]), context.seed
    )
    _write_part(part_path(parts, start), chunk, nearest, context.names)
    clusters = nearest.clusters[context.sketcher.model]
    write_sketches(parts, start, chunk.rows, chunk.splits >= 0, clusters, context.sketcher)
    return FirstPass(count_block(chunk, nearest, context), exemplars)


def count_block(chunk: Chunk, nearest: NearestTwo, context: EvaluationContext) -> Counts:
    """Count and measure the clusters of all models on one chunk; every metric is computed from these counts."""
    ks = np.diff(context.stack.offsets)
    masks = [chunk.splits == s for s in range(len(SPLITS))]
    tables = [
        [
            contingency_block(nearest.clusters[m][mask], chunk.labels[mask], k, context.n_classes)
            for m, k in enumerate(ks)
        ]
        for mask in masks
    ]
    fitted = nearest.clusters[:, masks[0]]
    return Counts(
        np.stack([np.concatenate(split) for split in tables]),
        within_sums_block(chunk.rows, chunk.splits, nearest, context.stack),
        [contingency_block(fitted[a], fitted[b], ks[a], ks[b]) for a, b in context.rivals],
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
    """Add the counts of several chunks, given in their order."""
    return Counts(
        np.sum([part.tables for part in parts], axis=0),
        add_within_sums([part.within for part in parts]),
        [np.sum(tables, axis=0) for tables in zip(*(part.rivals for part in parts), strict=True)],
    )


def join_first_passes(parts: Sequence[FirstPass]) -> FirstPass:
    """Combine the results of several chunks, given in their order."""
    return FirstPass(add_counts([part.counts for part in parts]), join_exemplars([part.exemplars for part in parts]))


def part_path(parts: Path, start: int) -> Path:
    """Return the path of the part of the cluster table that holds the chunk with this first row."""
    return parts / f"part-{start:012d}.parquet"


def join_clusters(
    parts: Path, path: Path, label_maps: Mapping[str, NDArray[np.int32]], class_names: Sequence[str]
) -> None:
    """Join the parts of the cluster table, add the predicted labels, and remove the folder of the parts.

    Parameters
    ----------
    parts
        Folder that the tasks of the first pass wrote to.
    path
        Parquet file with one row per item: path, split, label and, for every model, cluster, distance (Euclidean, on
        the scale of the fitted features) and predicted label.
    label_maps
        Prefix of the columns of a model -> (k,) class index of each cluster, -1 = none.
    class_names
        Names of the classes.
    """
    with publish(path) as partial:
        writer = None
        for part in sorted(parts.glob("part-*.parquet")):  # one part at a time, as the table may not fit into memory
            table = pq.read_table(readable(part))
            for prefix, mapping in label_maps.items():
                labels = pa.array([class_names[c] if c >= 0 else None for c in mapping], pa.string())
                table = table.append_column(f"{prefix}_label", labels.take(table[f"{prefix}_cluster"].combine_chunks()))
            writer = writer or pq.ParquetWriter(partial, table.schema)
            writer.write_table(table)
        assert writer is not None
        writer.close()
    remove(parts)
