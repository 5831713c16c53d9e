"""What the report shows of clusters and items: numbers as JSON, pictures as sheets of tiles.

Every item is stored once, whatever shows it; those that the page has no room for are left out of the lists.
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
    Sheets,
    affordable,
    in_turns,
    pack,
    read_rows,
    read_tiles,
    spaced_rows,
    tiles_of,
)

MAP_ITEMS = 3000
"""Items on the map."""

LISTED = 200
"""Rows of each model's label_issues and outliers, and of the duplicates, that are shown; all are in the files."""

_TURNS = 12
"""Long lists take turns in parts as long as those of a cluster: the last row of one waits no longer than theirs."""

_LISTS = ("nearest", "farthest", "sample")
_FACTS = ("size", "size_holdout", "purity", "radius_mean", "radius_max", "silhouette")


class Gallery(NamedTuple):
    """Part of a page."""

    data: dict[str, Any]
    """JSON."""
    items: Sheets
    centres: Sheets
    pictures: list[NDArray[np.uint8]]
    """For each model (k, height, width, channels): its centres, or the items nearest to them."""


def make_gallery(
    collection: Collection,
    features: Features,
    models: Sequence[Model],
    facts: pa.Table,
    clusters: Path,
    lists: Mapping[str, pa.Table],
) -> Gallery:
    """Collect what a page shows of the models of a run.

    Parameters
    ----------
    collection
        Of the run.
    features
        That the models were fitted on.
    models
        With label maps and counts.
    facts
        ``cluster_facts.parquet``.
    clusters
        ``clusters.parquet``.
    lists
        Name -> table of items, with a column ``row`` and perhaps ``of_row``, ``algorithm`` and ``k``.

    Returns
    -------
    Gallery
    """
    names = collection.class_names
    of_model = [_facts_of(facts, model) for model in models]
    shown = {name: _first_of_each_model(table) for name, table in lists.items()}
    sample = spaced_rows(collection, MAP_ITEMS)
    tables, places = crosstabs(clusters, models, names, sample)

    queues = [
        *(part for table in shown.values() for name in ("row", "of_row") for part in _parts(table, name)),
        *_cut(sample.tolist(), _TURNS),
        *(
            rows
            for facts in of_model
            for lists in zip(*(facts[name] for name in _LISTS), strict=True)
            for rows in lists
        ),
        *_cell_queues(tables),
    ]
    rows = in_turns(queues, affordable(collection))
    tile_of = {row: tile for tile, row in enumerate(rows)}
    pictures = [_pictures(collection, features, model, facts) for model, facts in zip(models, of_model, strict=True)]
    first_centres = np.cumsum([0, *(model.k for model in models)])[:-1].tolist()
    data = {
        "items": _items(collection, rows),
        "models": [_model(*parts, tile_of) for parts in zip(models, first_centres, of_model, tables, strict=True)],
        "centres_are": "centre" if features.to_pixels(models[0].centres) is not None else "item nearest to the centre",
        "scale": features.scale,
        "lists": {name: _listed(table, tile_of) for name, table in shown.items()},
        "map": _map(collection, features, models, sample, places, tile_of),
    }
    return Gallery(data, pack(read_tiles(collection, rows)), pack(tiles_of(np.concatenate(pictures))), pictures)


def _parts(table: pa.Table, name: str) -> Iterator[Sequence[int]]:
    return _cut(table[name].to_pylist() if name in table.column_names else [], _TURNS)


def _cut(values: Sequence[int], n: int) -> Iterator[Sequence[int]]:
    """Cut a list into parts of n; the last one may be shorter."""
    return (values[start : start + n] for start in range(0, len(values), n))


def _facts_of(facts: pa.Table, model: Model) -> dict[str, list[Any]]:
    mine = pc.and_(pc.equal(facts["algorithm"], model.algorithm), pc.equal(facts["k"], model.k))
    return facts.filter(mine).sort_by("cluster").to_pydict()


def _first_of_each_model(table: pa.Table) -> pa.Table:
    if "k" not in table.column_names:
        return table.slice(0, LISTED)
    parts = []
    for model in table.select(["algorithm", "k"]).group_by(["algorithm", "k"]).aggregate([]).to_pylist():
        mine = pc.and_(pc.equal(table["algorithm"], model["algorithm"]), pc.equal(table["k"], model["k"]))
        parts.append(table.filter(mine).slice(0, LISTED))
    return pa.concat_tables(parts) if parts else table


def _cell_queues(tables: Sequence[Crosstab]) -> list[list[int]]:
    """Rows of the cells that are mistakes, a queue a cell."""
    queues = []
    for table in tables:
        starts = np.flatnonzero(np.diff(table.cells, prepend=-1))
        n_classes = table.counts.shape[1]
        for cell, rows in (
            zip(table.cells[starts], np.split(table.rows, starts[1:]), strict=True) if len(starts) else ()
        ):
            if cell // n_classes != cell % n_classes:
                queues.append(rows.tolist())
    return queues


def _items(collection: Collection, rows: Sequence[int]) -> dict[str, list[Any]]:
    taken = collection.items.select(["path", "split"]).take(pa.array(rows, pa.int64()))
    return {
        "row": list(rows),
        "path": taken["path"].to_pylist(),
        "label": collection.labels[np.array(rows, np.int64)].tolist(),
        "held": [int(split == "holdout") for split in taken["split"].to_pylist()],
    }


def _pictures(
    collection: Collection, features: Features, model: Model, facts: Mapping[str, list[Any]]
) -> NDArray[np.uint8]:
    """Draw the clusters: the centres, or, where features do not lead back to pixels, the items nearest to them."""
    shape = (model.k, *collection.images.shape[1:])
    pixels = features.to_pixels(model.centres)
    if pixels is not None:
        return np.clip(np.rint(pixels), 0, 255).astype(np.uint8).reshape(shape)
    made = np.zeros(shape, np.uint8)
    nearest = {cluster: rows[0] for cluster, rows in enumerate(facts["nearest"]) if rows}
    clusters = np.array(list(nearest), np.int64)
    for positions, images in read_rows(collection, np.array(list(nearest.values()), np.int64)):
        made[clusters[positions]] = images
    return made


def _model(
    model: Model, first_centre: int, facts: dict[str, list[Any]], table: Crosstab, tile_of: Mapping[int, int]
) -> dict[str, Any]:
    assert model.label_map is not None
    n_classes = table.counts.shape[1]
    confusion = np.zeros((n_classes, n_classes + 1), np.int64)  # the last column: clusters without a label
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
        **{name: short(facts[name]) for name in _FACTS},
        "near": facts["nearest_clusters"],
        "near_distances": [short(distances) for distances in facts["nearest_clusters_distances"]],
        **{name: [[tile_of[row] for row in rows if row in tile_of] for rows in facts[name]] for name in _LISTS},
        "mix": [_largest(counts) for counts in table.counts],
        "confusion": [
            [int(label), int(predicted) if predicted < n_classes else -1, int(confusion[label, predicted])]
            for label, predicted in np.argwhere(confusion)
        ],
        "cells": cells,
    }


def _largest(counts: NDArray[np.int64]) -> list[list[int]]:
    """Label and number of items of a cluster, the most frequent first."""
    order = np.argsort(-counts, kind="stable")
    return [[int(label), int(counts[label])] for label in order if counts[label]]


def _listed(table: pa.Table, tile_of: Mapping[int, int]) -> dict[str, Any]:
    """Columns of a list, with the tiles of its rows."""
    columns = {name: short(table[name].to_pylist()) for name in table.column_names}
    for rows, tiles in (("row", "tile"), ("of_row", "of_tile")):
        if rows in columns:
            columns[tiles] = [tile_of.get(row, -1) for row in columns[rows]]
    return columns


def _map(
    collection: Collection,
    features: Features,
    models: Sequence[Model],
    sample: NDArray[np.int64],
    places: NDArray[np.int64],
    tile_of: Mapping[int, int],
) -> dict[str, Any] | None:
    """Project the sample and all centres onto the plane of the largest model's centres."""
    if len(sample) == 0:
        return None
    largest = max(models, key=lambda model: model.k)
    assert largest.counts is not None
    plane = principal_plane(largest.centres, largest.counts)
    points = np.zeros((len(sample), 2))
    for positions, block in read_rows(collection, sample, features.read_chunk):
        points[positions] = plane(block)
    return {
        "x": short(points[:, 0].tolist()),
        "y": short(points[:, 1].tolist()),
        "label": collection.labels[sample].tolist(),
        "tile": [tile_of.get(row, -1) for row in sample.tolist()],
        "cluster": places.tolist(),
        "shares": plane.shares,
        "of": [largest.algorithm, largest.k],
        "centres": [[short(axis.tolist()) for axis in plane(model.centres).T] for model in models],
    }


def short(values: Sequence[Any]) -> list[Any]:
    """Numbers with six digits; None for what JSON has no number for."""
    return [
        (float(f"{value:.6g}") if math.isfinite(value) else None) if isinstance(value, float) else value
        for value in values
    ]


class Projection(NamedTuple):
    """A plane in the space of the features."""

    mean: NDArray[np.float64]
    """(n_features,): it becomes the origin."""
    axes: NDArray[np.float64]
    """(n_features, 2), orthonormal."""
    shares: tuple[float, float]
    """Of the centres' variance, along each axis."""

    def __call__(self, rows: NDArray[np.number]) -> NDArray[np.float64]:
        """Project (m, n_features) rows onto the plane: (m, 2)."""
        return np.asarray((rows - self.mean) @ self.axes, np.float64)


def principal_plane(centres: NDArray[np.floating], weights: NDArray[np.number]) -> Projection:
    """Find the plane that shows most of how centres differ (principal component analysis).

    Parameters
    ----------
    centres
        (k, n_features).
    weights
        (k,) items of each; a centre without items does not count.

    Returns
    -------
    Projection
        Its axes point so that their largest entry is positive: the same centres give the same picture.
    """
    points = np.asarray(centres, np.float64)
    share = np.asarray(weights, np.float64) / max(np.sum(weights), 1)
    mean = share @ points
    _, lengths, axes = np.linalg.svd(np.sqrt(share)[:, None] * (points - mean), full_matrices=False)
    plane = np.zeros((points.shape[1], 2))  # one centre, or one feature, spans less than a plane
    plane[:, : min(2, len(axes))] = axes[:2].T
    plane *= np.sign(plane[np.abs(plane).argmax(axis=0), [0, 1]] + 1e-300)
    total = max(float((lengths**2).sum()), 1e-300)
    shares = [*(lengths[:2] ** 2 / total), 0.0, 0.0]
    return Projection(mean, plane, (float(shares[0]), float(shares[1])))
