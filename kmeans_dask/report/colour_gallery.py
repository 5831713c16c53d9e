"""Contents of the report's page on quantized images: errors, images before and after, palettes."""

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
from kmeans_dask.report.gallery import round_floats
from kmeans_dask.report.thumbnails import encode_webp, shrink
from kmeans_dask.sources.images import ImageError

IMAGE_BYTES = 4 * 2**20
"""Limit of all images before and after together; base 64 makes them a third larger in the page."""

_MAX_SIDE = 480
"""Maximum length of an image's longer side in pixels."""

_WORST = 12
"""Number of images listed for each K with the largest errors."""

_BINS = 40
"""Bins of a histogram of errors."""
_MAX_COLOURS = 256
"""Largest palette that is drawn."""

ItemReader = Callable[[str], NDArray[np.uint8]]
"""Path of an item -> (height, width, 3) uint8; raises ImageError."""

OutputReader = Callable[[Path], NDArray[np.uint8]]
"""Quantized file -> (height, width, 3) uint8."""


def error_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Summarize the errors in one row per K.

    Parameters
    ----------
    table
        Table of ``quantized.parquet``.

    Returns
    -------
    list of dict
        ``k``; ``images``, their number; the means ``mse``, ``psnr`` in dB (None if no image has an error) and
        ``mse_oklab``; and ``bytes``, the total size of the outputs.
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
    original: ItemReader,
    output: OutputReader,
) -> tuple[dict[str, Any], list[bytes]]:
    """Collect what the page shows of quantized images.

    Parameters
    ----------
    table
        Table of ``quantized.parquet``.
    samples
        Number of images shown before and after, in addition to those with the largest errors.
    shared
        K -> (k, 3) uint8 palette shared by all images; None: each image has its own.
    folder
        Run folder, which output names are relative to.
    original, output
        Functions that read an item by its path, and a quantized file.

    Returns
    -------
    data : dict
        JSON values.
    images : list of bytes
        WebP files that `data` refers to by index.
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
    rounds = zip_longest(*([row["path"] for row in worst if row["k"] == k] for k in of_k))
    worst_paths = [path for paths in rounds for path in paths if path is not None]
    images, encoded = _before_after(
        table, dict.fromkeys([*chosen[:1], *worst_paths, *chosen]), folder, original, output, shared is None
    )
    data = {
        "ks": list(of_k),
        "table": error_rows(table),
        "histograms": [_histogram(k, part["mse"].to_numpy()) for k, part in of_k.items() if len(part)],
        "images": images,
        "worst": worst,
        "palettes": [{"k": k, "colours": _hex(palette)} for k, palette in (shared or {}).items() if k <= _MAX_COLOURS],
    }
    return data, encoded


def _done(table: pa.Table) -> pa.Table:
    return table.filter(pc.equal(table["status"], "ok"))


def _of_each_k(table: pa.Table) -> dict[int, pa.Table]:
    done = _done(table)
    return {k: done.filter(pc.equal(done["k"], k)) for k in dict.fromkeys(table["k"].to_pylist())}


def _histogram(k: int, errors: NDArray[np.float64]) -> dict[str, Any]:
    """Histogram of the errors in logarithmic bins; images without error are counted separately."""
    positive = errors[errors > 0]
    exact = len(errors) - len(positive)
    if len(positive) == 0:
        return {"k": k, "edges": [0.5, 1.0], "counts": [0], "median": 0.5, "exact": exact}
    edges = np.geomspace(positive.min() * 0.95, positive.max() * 1.05, _BINS + 1)
    counts, _ = np.histogram(positive, edges)
    median = float(np.median(positive))
    return {"k": k, "edges": round_floats(edges.tolist()), "counts": counts.tolist(), "median": median, "exact": exact}


def _before_after(
    table: pa.Table,
    paths: Mapping[str, None],
    folder: Path,
    original: ItemReader,
    output: OutputReader,
    own_palettes: bool,
) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Encode images together with all their quantized versions, up to `IMAGE_BYTES`."""
    done = _done(table)
    rows_of: dict[str, list[dict[str, Any]]] = {path: [] for path in paths}
    selected = done.filter(pc.is_in(done["path"], value_set=pa.array(list(paths), pa.string())))
    for row in selected.select(["path", "k", "output", "mse", "psnr", "bytes_out"]).to_pylist():
        rows_of[row["path"]].append(row)
    images: list[dict[str, Any]] = []
    encoded: list[bytes] = []
    for path, rows in rows_of.items():
        try:
            before = shrink(original(path), _MAX_SIDE, smooth=True)
        except ImageError:  # the file has changed since it was quantized
            continue
        files = [encode_webp(before, lossless=False, quality=90)]
        files += [
            encode_webp(shrink(output(folder / row["output"]), _MAX_SIDE, smooth=False), lossless=True) for row in rows
        ]
        if sum(map(len, encoded)) + sum(map(len, files)) > IMAGE_BYTES and images:
            break
        first = len(encoded)
        encoded += files
        versions = [
            {
                "k": row["k"],
                "image": first + 1 + i,
                "mse": row["mse"],
                "psnr": row["psnr"],
                "bytes": row["bytes_out"],
                "palette": _hex(read_palette(folder / row["output"]))
                if own_palettes and row["k"] <= _MAX_COLOURS
                else [],
            }
            for i, row in enumerate(rows)
        ]
        height, width = before.shape[:2]
        images.append({"path": path, "width": width, "height": height, "original": first, "versions": versions})
    return images, encoded


def _hex(palette: NDArray[np.uint8]) -> list[str]:
    return ["#" + bytes(colour).hex() for colour in palette]
