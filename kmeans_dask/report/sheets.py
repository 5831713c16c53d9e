"""Figures of a run as PNG files: samples, centres, curves, confusion matrices, images before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kmeans_dask.collection.collection import Collection
from kmeans_dask.colours.palette_files import read_palette
from kmeans_dask.models.model import Model
from kmeans_dask.report.colour_gallery import ItemReader, OutputReader
from kmeans_dask.report.colour_plots import error_distribution, palette_strips
from kmeans_dask.report.plots import (
    before_after_sheet,
    centroid_sheet,
    confusion_matrix,
    label_counts,
    metric_curves,
    sample_sheet,
    save,
)
from kmeans_dask.report.thumbnails import evenly_spaced_rows, read_rows
from kmeans_dask.sources.images import ImageError

_WORST = 8
"""Number of images shown with the largest errors."""
_STRIPS = 6
"""Number of images whose palettes are drawn."""
_STRIP_COLOURS = 256
"""Largest palette that is drawn."""


def draw_collection(sheets: Path, collection: Collection, samples: int) -> None:
    """Draw the number of items per label, and a sample of the items.

    Parameters
    ----------
    sheets
        Output folder.
    collection
        Opened collection of the run.
    samples
        Number of items on the sample sheet.
    """
    counts = np.bincount(collection.labels[collection.labels >= 0], minlength=len(collection.class_names))
    if len(counts):
        save(label_counts(collection.class_names, counts.tolist()), sheets / "label-counts.png")
    rows = evenly_spaced_rows(collection, samples)
    images = np.empty((len(rows), *collection.images.shape[1:]), np.uint8)
    for positions, block in read_rows(collection, rows):
        images[positions] = block
    titles = [_label_name(collection.labels[row], collection.class_names) for row in rows]
    save(sample_sheet(images, titles), sheets / "samples.png")


def draw_models(
    sheets: Path,
    names: Sequence[str],
    models: Sequence[Model],
    metrics: Sequence[Mapping[str, Any]],
    cluster_images: Sequence[NDArray[np.uint8]],
    confusions: Sequence[Sequence[Sequence[int]]],
) -> None:
    """Draw the clusters and the confusion matrix of every model, and the metrics over K.

    Parameters
    ----------
    sheets
        Output folder.
    names
        Class names.
    models
        Models with label maps and counts.
    metrics
        One row per model.
    cluster_images
        For each model, (k, height, width, channels) uint8.
    confusions
        For each model, (label, predicted label or -1, number of items) of each non-empty cell.
    """
    if len({row["k"] for row in metrics}) > 1:
        save(metric_curves(metrics), sheets / "curves.png")
    for model, images, cells in zip(models, cluster_images, confusions, strict=True):
        assert model.label_map is not None
        assert model.counts is not None
        titles = [_label_name(label, names) for label in model.label_map]
        sheet = centroid_sheet(images, titles, model.counts.tolist())
        save(sheet, sheets / f"centres-{model.algorithm}-k{model.k}.png")
        if names:
            table = np.zeros((len(names), len(names)), np.int64)
            for label, predicted, items in cells:
                if predicted >= 0:
                    table[label, predicted] = items
            save(confusion_matrix(table, names), sheets / f"confusion-{model.algorithm}-k{model.k}.png")


def draw_colours(
    folder: Path, sheets: Path, table: pa.Table, samples: int, palette: str, original: ItemReader, output: OutputReader
) -> None:
    """Draw the distribution of errors, images before and after, the ones with the largest errors, and palettes.

    Parameters
    ----------
    folder
        Run folder, which output names are relative to.
    sheets
        Output folder of the figures.
    table
        Table of ``quantized.parquet``.
    samples
        Number of images shown before and after.
    palette
        Value of ``quantize.palette`` in the config.
    original, output
        Functions that read an item by its path, and a quantized file.
    """
    done = table.filter(pc.equal(table["status"], "ok"))
    if len(done) == 0:
        return
    of_k = {k: done.filter(pc.equal(done["k"], k)) for k in dict.fromkeys(done["k"].to_pylist())}
    save(error_distribution({k: part["mse"].to_pylist() for k, part in of_k.items()}), sheets / "quantized-errors.png")
    paths = list(dict.fromkeys(done["path"].to_pylist()))
    chosen = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, samples).astype(int))]
    worst = of_k[max(of_k)].sort_by([("mse", "descending"), ("path", "ascending")]).slice(0, _WORST)["path"].to_pylist()
    for name, selected in (("before-after", chosen), ("quantized-worst", worst)):
        outputs: dict[str, dict[int, str]] = {path: {} for path in selected}
        rows = done.filter(pc.is_in(done["path"], value_set=pa.array(selected, pa.string())))
        for row in rows.select(["path", "k", "output"]).to_pylist():
            outputs[row["path"]][row["k"]] = row["output"]
        originals, versions, titles = [], [], []
        for path, written in outputs.items():
            if len(written) < len(of_k):  # not written in every K
                continue
            try:
                originals.append(original(path))
            except ImageError:  # the file has changed since it was quantized
                continue
            versions.append([output(folder / written[k]) for k in of_k])
            titles.append(path)
        save(before_after_sheet(originals, versions, list(of_k), titles), sheets / f"{name}.png")
    _draw_palettes(folder, sheets, done, palette, chosen[:_STRIPS])


def _draw_palettes(folder: Path, sheets: Path, done: pa.Table, palette: str, paths: Sequence[str]) -> None:
    """Draw the palettes of some images, or the shared palette of each K."""
    strips, titles = [], []
    if palette == "image":
        rows = done.filter(pc.is_in(done["path"], value_set=pa.array(paths, pa.string())))
        for row in rows.select(["path", "k", "output"]).to_pylist():
            if row["k"] <= _STRIP_COLOURS:
                strips.append(read_palette(folder / row["output"]))
                titles.append(f"{row['path']}, K = {row['k']}")
    else:
        for k in dict.fromkeys(done["k"].to_pylist()):
            if k <= _STRIP_COLOURS:
                strips.append(read_palette(folder / "palettes" / f"{k}.gpl"))
                titles.append(f"K = {k}")
    if strips:
        save(palette_strips(strips, titles), sheets / "palettes.png")


def _label_name(label: int, class_names: Sequence[str]) -> str:
    return class_names[label] if label >= 0 else "–"
