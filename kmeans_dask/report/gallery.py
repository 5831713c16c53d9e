"""Contents of the report's views of clusters and items: numbers as JSON, images as sheets of tiles.

The image of an item is stored once, however many views show it; items that do not fit the page are left out of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kmeans_dask.collection.collection import Collection
from kmeans_dask.collection.features import Features
from kmeans_dask.models.model import Model
from kmeans_dask.report.crosstabs import Crosstab, crosstabs
from kmeans_dask.report.thumbnails import (
    TileSheets,
    evenly_spaced_rows,
    make_tiles,
    max_tiles,
    pack,
    read_rows,
    read_tiles,
    take_turns,
)

MAP_ITEMS = 3000
"""Maximum number of items on the map."""

LISTED = 200
"""Maximum rows shown of each model's label issues and outliers, and of the duplicates; the CSV files have all rows."""

_QUEUE_LENGTH = 12
"""Long lists are cut into queues about as long as those of a cluster, so that they get their images equally early."""

_LISTS = ("nearest", "farthest", "sample")
_FACTS = ("size", "size_holdout", "purity", "radius_mean", "radius_max", "silhouette")


class Gallery(NamedTuple):
    """Contents of the views of clusters and items."""

    data: dict[str, Any]
    """JSON values."""
    items: TileSheets
    """Tiles of the items."""
    centres: TileSheets
    """Tiles of the centres, model by model."""
    cluster_images: list[NDArray[np.uint8]]
    """For each model, (k, height, width, channels): its centres, or the items nearest to them."""


def make_gallery(
    collection: Collection,
    features: Features,
    models: Sequence[Model],
    facts: pa.Table,
    clusters: Path,
    lists: Mapping[str, pa.Table],
) -> Gallery:
    """Collect what the page shows of the models of a run.

    Parameters
    ----------
    collection
        Opened collection of the run.
    features
        Features that the models were fitted on.
    models
        Models with label maps and counts.
    facts
        Table of ``cluster_facts.parquet``.
    clusters
        Path of ``clusters.parquet``.
    lists
        Name -> table of items with a column ``row``, and optionally ``of_row``, ``algorithm`` and ``k``.

    Returns
    -------
    Gallery
    """
    names = collection.class_names
    facts_of_models = [_facts_of(facts, model) for model in models]
    shown = {name: _first_of_each_model(table) for name, table in lists.items()}
    sample = evenly_spaced_rows(collection, MAP_ITEMS)
    tables, sample_clusters = crosstabs(clusters, models, names, sample)

    queues = [
        *(queue for table in shown.values() for name in ("row", "of_row") for queue in _list_queues(table, name)),
        *_chunked(sample.tolist(), _QUEUE_LENGTH),
        *(
            rows
            for model_facts in facts_of_models
            for cluster_lists in zip(*(model_facts[name] for name in _LISTS), strict=True)
            for rows in cluster_lists
        ),
        *_cell_queues(tables),
    ]
    rows = take_turns(queues, max_tiles(collection))
    tile_of = {row: tile for tile, row in enumerate(rows)}
    cluster_images = [
        _cluster_images(collection, features, model, model_facts)
        for model, model_facts in zip(models, facts_of_models, strict=True)
    ]
    first_centres = np.cumsum([0, *(model.k for model in models)])[:-1].tolist()
    data = {
        "items": _items(collection, rows),
        "models": [
            _model(*parts, tile_of) for parts in zip(models, first_centres, facts_of_models, tables, strict=True)
        ],
        "centres_are": "centre" if features.to_pixels(models[0].centres) is not None else "item nearest to the centre",
        "scale": features.scale,
        "lists": {name: _list_columns(table, tile_of) for name, table in shown.items()},
        "map": _map(collection, features, models, sample, sample_clusters, tile_of),
    }
    centres = pack(make_tiles(np.concatenate(cluster_images)))
    return Gallery(data, pack(read_tiles(collection, rows)), centres, cluster_images)


def _list_queues(table: pa.Table, name: str) -> Iterator[Sequence[int]]:
    return _chunked(table[name].to_pylist() if name in table.column_names else [], _QUEUE_LENGTH)


def _chunked(values: Sequence[int], n: int) -> Iterator[Sequence[int]]:
    """Split a list into lists of n; the last one may be shorter."""
    return (values[start : start + n] for start in range(0, len(values), n))


def _facts_of(facts: pa.Table, model: Model) -> dict[str, list[Any]]:
    is_of_model = pc.and_(pc.equal(facts["algorithm"], model.algorithm), pc.equal(facts["k"], model.k))
    return facts.filter(is_of_model).sort_by("cluster").to_pydict()


def _first_of_each_model(table: pa.Table) -> pa.Table:
    if "k" not in table.column_names:
        return table.slice(0, LISTED)
    parts = []
    for model in table.select(["algorithm", "k"]).group_by(["algorithm", "k"]).aggregate([]).to_pylist():
        is_of_model = pc.and_(pc.equal(table["algorithm"], model["algorithm"]), pc.equal(table["k"], model["k"]))
        parts.append(table.filter(is_of_model).slice(0, LISTED))
    return pa.concat_tables(parts) if parts else table


def _cell_queues(tables: Sequence[Crosstab]) -> list[list[int]]:
    """Return the rows of misclassified cells, one queue per cell."""
    queues = []
    for table in tables:
        if len(table.cells) == 0:
            continue
        starts = np.flatnonzero(np.diff(table.cells, prepend=-1))
        n_classes = table.counts.shape[1]
        for cell, rows in zip(table.cells[starts], np.split(table.rows, starts[1:]), strict=True):
            if cell // n_classes != cell % n_classes:
                queues.append(rows.tolist())
    return queues


def _items(collection: Collection, rows: Sequence[int]) -> dict[str, list[Any]]:
    selected = collection.items.select(["path", "split"]).take(pa.array(rows, pa.int64()))
    return {
        "row": list(rows),
        "path": selected["path"].to_pylist(),
        "label": collection.labels[np.array(rows, np.int64)].tolist(),
        "held": [int(split == "holdout") for split in selected["split"].to_pylist()],
    }


def _cluster_images(
    collection: Collection, features: Features, model: Model, facts: Mapping[str, list[Any]]
) -> NDArray[np.uint8]:
    """Return one image per cluster: its centre, or the item nearest to it if features cannot be turned into pixels."""
    shape = (model.k, *collection.images.shape[1:])
    pixels = features.to_pixels(model.centres)
    if pixels is not None:
        return np.clip(np.rint(pixels), 0, 255).astype(np.uint8).reshape(shape)
    cluster_images = np.zeros(shape, np.uint8)
    nearest = {cluster: rows[0] for cluster, rows in enumerate(facts["nearest"]) if rows}
    clusters = np.array(list(nearest), np.int64)
    for positions, images in read_rows(collection, np.array(list(nearest.values()), np.int64)):
        cluster_images[clusters[positions]] = images
    return cluster_images


def _model(
    model: Model, first_centre: int, facts: dict[str, list[Any]], table: Crosstab, tile_of: Mapping[int, int]
) -> dict[str, Any]:
    assert model.label_map is not None
    n_classes = table.counts.shape[1]
    confusion = np.zeros((n_classes, n_classes + 1), np.int64)  # last column: clusters without a label
    np.add.at(confusion.T, model.label_map, table.counts)
    cells: dict[int, list[int]] = {}
    for cell, row in zip(table.cells.tolist(), table.rows.tolist(), strict=True):
        if row in tile_of:
            cells.setdefault(cell, []).append(tile_of[row])
    return {
        "algorithm": model.algorithm,
        "k": model.k,
        "first_centre": first_centre,
        "label": model.label_map.tolist(),
        **{name: round_floats(facts[name]) for name in _FACTS},
        "near": facts["nearest_clusters"],
        "near_distances": [round_floats(distances) for distances in facts["nearest_clusters_distances"]],
        **{name: [[tile_of[row] for row in rows if row in tile_of] for rows in facts[name]] for name in _LISTS},
        "mix": [_label_counts(counts) for counts in table.counts],
        "confusion": [
            [int(label), int(predicted) if predicted < n_classes else -1, int(confusion[label, predicted])]
            for label, predicted in np.argwhere(confusion)
        ],
        "cells": cells,
    }


def _label_counts(counts: NDArray[np.int64]) -> list[list[int]]:
    """Return (label, number of items) pairs of a cluster, the most frequent label first."""
    order = np.argsort(-counts, kind="stable")
    return [[int(label), int(counts[label])] for label in order if counts[label]]


def _list_columns(table: pa.Table, tile_of: Mapping[int, int]) -> dict[str, Any]:
    """Return the columns of a list, with the tile of each row (-1: none)."""
    columns = {name: round_floats(table[name].to_pylist()) for name in table.column_names}
    for rows, tiles in (("row", "tile"), ("of_row", "of_tile")):
        if rows in columns:
            columns[tiles] = [tile_of.get(row, -1) for row in columns[rows]]
    return columns


def _map(
    collection: Collection,
    features: Features,
    models: Sequence[Model],
    sample: NDArray[np.int64],
    sample_clusters: NDArray[np.int64],
    tile_of: Mapping[int, int],
) -> dict[str, Any] | None:
    """Project the sample and the centres of all models onto the principal plane of the largest model's centres."""
    if len(sample) == 0:
        return None
    largest = max(models, key=lambda model: model.k)
    assert largest.counts is not None
    plane = principal_plane(largest.centres, largest.counts)
    points = np.zeros((len(sample), 2))
    for positions, block in read_rows(collection, sample, features.read_chunk):
        points[positions] = plane(block)
    return {
        "x": round_floats(points[:, 0].tolist()),
        "y": round_floats(points[:, 1].tolist()),
        "label": collection.labels[sample].tolist(),
        "tile": [tile_of.get(row, -1) for row in sample.tolist()],
        "cluster": sample_clusters.tolist(),
        "explained": plane.explained,
        "of": [largest.algorithm, largest.k],
        "centres": [[round_floats(axis.tolist()) for axis in plane(model.centres).T] for model in models],
    }


def round_floats(values: Sequence[Any]) -> list[Any]:
    """Round floats to six significant digits; NaN and infinity, which JSON cannot represent, become None."""
    return [
        (float(f"{value:.6g}") if math.isfinite(value) else None) if isinstance(value, float) else value
        for value in values
    ]


class Projection(NamedTuple):
    """A plane in feature space."""

    mean: NDArray[np.float64]
    """(n_features,) origin of the plane."""
    axes: NDArray[np.float64]
    """(n_features, 2) orthonormal axes."""
    explained: tuple[float, float]
    """Fraction of the centres' variance along each axis."""

    def __call__(self, rows: NDArray[np.number]) -> NDArray[np.float64]:
        """Project (m, n_features) rows onto the plane; returns (m, 2)."""
        return np.asarray((rows - self.mean) @ self.axes, np.float64)


def principal_plane(centres: NDArray[np.floating], weights: NDArray[np.number]) -> Projection:
    """Find the plane along which centres vary most: weighted principal component analysis.

    Parameters
    ----------
    centres : (k, n_features) float
    weights : (k,)
        Number of items of each centre.

    Returns
    -------
    Projection
        The largest entry of each axis is positive, so that equal centres give equal maps.
    """
    points = np.asarray(centres, np.float64)
    fractions = np.asarray(weights, np.float64) / max(np.sum(weights), 1)
    mean = fractions @ points
    _, lengths, axes = np.linalg.svd(np.sqrt(fractions)[:, None] * (points - mean), full_matrices=False)
    plane = np.zeros((points.shape[1], 2))  # a single centre or feature does not span a plane
    plane[:, : min(2, len(axes))] = axes[:2].T
    plane *= np.sign(plane[np.abs(plane).argmax(axis=0), [0, 1]] + 1e-300)  # an axis of zeros has sign 1
    total = max(float((lengths**2).sum()), 1e-300)
    explained = [*(lengths[:2] ** 2 / total), 0.0, 0.0]
    return Projection(mean, plane, (float(explained[0]), float(explained[1])))
