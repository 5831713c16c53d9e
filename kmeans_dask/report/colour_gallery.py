"""What the report shows of quantized images: their errors, some of them before and after, palettes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kmeans_dask.colours.palette_files import read_palette
from kmeans_dask.report.gallery import short
from kmeans_dask.report.thumbnails import encode_webp, within
from kmeans_dask.sources.images import ImageError

PICTURE_BYTES = 4 * 2**20
"""Of all pictures before and after; a page is 4/3 of it, since bytes are written in base 64."""

_SIDE = 480
"""Pixels of the longer side of a picture at most."""

_WORST = 12
"""Images with the largest errors that are listed for each K."""

_BINS = 40
_COLOURS = 256
"""The largest palette that is drawn."""

Reader = Callable[[str], NDArray[np.uint8]]
"""Path -> (height, width, 3) uint8 pixels; raises ImageError."""


def error_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Sum up the errors, one row a K.

    Parameters
    ----------
    table
        ``quantized.parquet``.

    Returns
    -------
    list of dict
        ``k``, ``images``, means ``mse``, ``psnr`` (None: no image has an error) and ``mse_oklab``, sum ``bytes``.
    """
    rows = []
    for k, part in _of_each_k(table).items():
        means = {
            name: pc.mean(part[name]).as_py() for name in ("mse", "psnr", "mse_oklab") if name in part.column_names
        }
        rows.append({"k": k, "images": len(part), **means, "bytes": pc.sum(part["bytes_out"]).as_py()})
    return rows


def colour_gallery(
    table: pa.Table,
    samples: int,
    shared: Mapping[int, NDArray[np.uint8]] | None,
    folder: Path,
    original: Reader,
    output: Callable[[Path], NDArray[np.uint8]],
) -> tuple[dict[str, Any], list[bytes]]:
    """Collect what a page shows of the quantized images.

    Parameters
    ----------
    table
        ``quantized.parquet``.
    samples
        Images before and after, beside those with the largest errors.
    shared
        K -> palette (k, 3), where one palette serves all images; None: each image has its own.
    folder
        That the outputs' names start at.
    original, output
        Readers of an item by its path, and of a file that was written.

    Returns
    -------
    data : dict
        JSON.
    pictures : list of bytes
        WebP files, which ``data`` names by their numbers.
    """
    of_k = _of_each_k(table)
    worst = [
        {"k": k, **row}
        for k, part in of_k.items()
        for row in part.sort_by([("mse", "descending"), ("path", "ascending")])
        .slice(0, _WORST)
        .select(["path", "mse", "psnr"])
        .to_pylist()
    ]
    paths = list(dict.fromkeys(_done(table)["path"].to_pylist()))
    chosen = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, samples).astype(int))] if paths else []
    turns = zip_longest(*([row["path"] for row in worst if row["k"] == k] for k in of_k))
    worst_first = [path for turn in turns for path in turn if path is not None]
    images, pictures = _before_after(
        table, dict.fromkeys([*chosen[:1], *worst_first, *chosen]), folder, original, output, shared is None
    )
    data = {
        "ks": list(of_k),
        "table": error_rows(table),
        "histograms": [_histogram(k, part["mse"].to_numpy()) for k, part in of_k.items() if len(part)],
        "images": images,
        "worst": worst,
        "palettes": [{"k": k, "colours": _hex(palette)} for k, palette in (shared or {}).items() if k <= _COLOURS],
    }
    return data, pictures


def _done(table: pa.Table) -> pa.Table:
    return table.filter(pc.equal(table["status"], "ok"))


def _of_each_k(table: pa.Table) -> dict[int, pa.Table]:
    done = _done(table)
    return {k: done.filter(pc.equal(done["k"], k)) for k in dict.fromkeys(table["k"].to_pylist())}


def _histogram(k: int, errors: NDArray[np.float64]) -> dict[str, Any]:
    """Images by error, in bins of one ratio; those without error, which have no logarithm, are counted."""
    positive = errors[errors > 0]
    exact = len(errors) - len(positive)
    if len(positive) == 0:
        return {"k": k, "edges": [0.5, 1.0], "counts": [0], "median": 0.5, "exact": exact}
    edges = np.geomspace(positive.min() * 0.95, positive.max() * 1.05, _BINS + 1)
    counts, _ = np.histogram(positive, edges)
    median = float(np.median(positive))
    return {"k": k, "edges": short(edges.tolist()), "counts": counts.tolist(), "median": median, "exact": exact}


def _before_after(
    table: pa.Table,
    paths: Mapping[str, None],
    folder: Path,
    original: Reader,
    output: Callable[[Path], NDArray[np.uint8]],
    own_palettes: bool,
) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Encode images with all their versions until the page is full."""
    done = _done(table)
    rows_of: dict[str, list[dict[str, Any]]] = {path: [] for path in paths}
    wanted = done.filter(pc.is_in(done["path"], value_set=pa.array(list(paths), pa.string())))
    for row in wanted.select(["path", "k", "output", "mse", "psnr", "bytes_out"]).to_pylist():
        rows_of[row["path"]].append(row)
    images: list[dict[str, Any]] = []
    pictures: list[bytes] = []
    for path, rows in rows_of.items():
        try:
            before = within(original(path), _SIDE, mix=True)
        except ImageError:  # it was readable when it was quantized
            continue
        made = [encode_webp(before, exact=False, quality=90)]
        made += [encode_webp(within(output(folder / row["output"]), _SIDE, mix=False), exact=True) for row in rows]
        if sum(map(len, pictures)) + sum(map(len, made)) > PICTURE_BYTES and images:
            break
        first = len(pictures)
        pictures += made
        versions = [
            {
                "k": row["k"],
                "picture": first + 1 + i,
                "mse": row["mse"],
                "psnr": row["psnr"],
                "bytes": row["bytes_out"],
                "palette": _hex(read_palette(folder / row["output"])) if own_palettes and row["k"] <= _COLOURS else [],
            }
            for i, row in enumerate(rows)
        ]
        height, width = before.shape[:2]
        images.append({"path": path, "width": width, "height": height, "original": first, "versions": versions})
    return images, pictures


def _hex(palette: NDArray[np.uint8]) -> list[str]:
    return ["#" + bytes(colour).hex() for colour in palette]
