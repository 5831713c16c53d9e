"""The pictures of a run as files: centres, samples, curves, confusion, images before and after."""

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
from kmeans_dask.report.colour_gallery import Reader
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
from kmeans_dask.report.thumbnails import read_rows, spaced_rows
from kmeans_dask.sources.images import ImageError

_WORST, _STRIPS, _STRIP_COLOURS = 8, 6, 256
"""Images with the largest errors; images whose palettes are drawn; the largest K whose palette is drawn."""


def draw_collection(sheets: Path, collection: Collection, samples: int) -> None:
    """Draw how many items each label has, and a sample of the items.

    Parameters
    ----------
    sheets
        Folder of the pictures.
    collection
        Of the run.
    samples
        Items on the sample sheet.
    """
    counts = np.bincount(collection.labels[collection.labels >= 0], minlength=len(collection.class_names))
    if len(counts):
        save(label_counts(collection.class_names, counts.tolist()), sheets / "label-counts.png")
    rows = spaced_rows(collection, samples)
    pictures = np.empty((len(rows), *collection.images.shape[1:]), np.uint8)
    for positions, images in read_rows(collection, rows):
        pictures[positions] = images
    titles = [_name(collection.labels[row], collection.class_names) for row in rows]
    save(sample_sheet(pictures, titles), sheets / "samples.png")


def draw_models(
    sheets: Path,
    names: Sequence[str],
    models: Sequence[Model],
    metrics: Sequence[Mapping[str, Any]],
    pictures: Sequence[NDArray[np.uint8]],
    confusions: Sequence[Sequence[Sequence[int]]],
) -> None:
    """Draw the centres of every model, its confusion matrix, and the figures over K.

    Parameters
    ----------
    sheets
        Folder of the pictures.
    names
        Labels.
    models
        With label maps and counts.
    metrics
        One row a model.
    pictures
        For each model (k, height, width, channels) uint8.
    confusions
        For each model label, predicted label (-1: none) and items of each cell.
    """
    if len({row["k"] for row in metrics}) > 1:
        save(metric_curves(metrics), sheets / "curves.png")
    for model, drawn, cells in zip(models, pictures, confusions, strict=True):
        assert model.label_map is not None
        assert model.counts is not None
        titles = [_name(label, names) for label in model.label_map]
        sheet = centroid_sheet(drawn, titles, model.counts.tolist())
        save(sheet, sheets / f"centres-{model.algorithm}-k{model.k}.png")
        if names:
            table = np.zeros((len(names), len(names)), np.int64)
            for label, predicted, items in cells:
                if predicted >= 0:
                    table[label, predicted] = items
            save(confusion_matrix(table, names), sheets / f"confusion-{model.algorithm}-k{model.k}.png")


def draw_colours(
    folder: Path, sheets: Path, table: pa.Table, samples: int, palette: str, original: Reader, output: Any
) -> None:
    """Draw the distribution of the errors, images before and after, those with the largest errors, and palettes.

    Parameters
    ----------
    folder
        That the outputs' names start at.
    sheets
        Folder of the pictures.
    table
        ``quantized.parquet``.
    samples
        Images before and after.
    palette
        The config's ``quantize.palette``.
    original, output
        Readers of an item by its path, and of a file that was written.
    """
    done = table.filter(pc.equal(table["status"], "ok"))
    if len(done) == 0:
        return
    of_k = {k: done.filter(pc.equal(done["k"], k)) for k in dict.fromkeys(done["k"].to_pylist())}
    save(error_distribution({k: part["mse"].to_pylist() for k, part in of_k.items()}), sheets / "quantized-errors.png")
    paths = list(dict.fromkeys(done["path"].to_pylist()))
    chosen = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, samples).astype(int))]
    worst = of_k[max(of_k)].sort_by([("mse", "descending"), ("path", "ascending")]).slice(0, _WORST)["path"].to_pylist()
    for name, drawn in (("before-after", chosen), ("quantized-worst", worst)):
        outputs: dict[str, dict[int, str]] = {path: {} for path in drawn}
        wanted = done.filter(pc.is_in(done["path"], value_set=pa.array(drawn, pa.string())))
        for row in wanted.select(["path", "k", "output"]).to_pylist():
            outputs[row["path"]][row["k"]] = row["output"]
        originals, versions, titles = [], [], []
        for path, written in outputs.items():
            if len(written) < len(of_k):  # one of them could not be written
                continue
            try:
                originals.append(original(path))
            except ImageError:  # it was readable when it was quantized
                continue
            versions.append([output(folder / written[k]) for k in of_k])
            titles.append(path)
        save(before_after_sheet(originals, versions, list(of_k), titles), sheets / f"{name}.png")
    _draw_palettes(folder, sheets, done, palette, chosen[:_STRIPS])


def _draw_palettes(folder: Path, sheets: Path, done: pa.Table, palette: str, paths: Sequence[str]) -> None:
    """Draw the one palette of each K, or some images' own."""
    strips, titles = [], []
    if palette == "image":
        wanted = done.filter(pc.is_in(done["path"], value_set=pa.array(paths, pa.string())))
        for row in wanted.select(["path", "k", "output"]).to_pylist():
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


def _name(label: int, class_names: Sequence[str]) -> str:
    return class_names[label] if label >= 0 else "–"
