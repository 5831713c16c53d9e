"""The final tables of a job, also printed by `kmeans-dask show`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from kmeans_dask.pipeline.console import show_table
from kmeans_dask.report.colour_gallery import error_rows

_METRICS = {
    "K": ("k", "d"),
    "seconds": ("seconds", ".2f"),
    "passes": ("iterations", "d"),
    "inertia/sample": ("inertia_per_sample", ",.1f"),
    "silhouette": ("silhouette", ".4f"),
    "homogeneity": ("homogeneity", ".4f"),
    "V": ("v_measure", ".4f"),
    "ARI": ("adjusted_rand", ".4f"),
    "accuracy, train": ("accuracy_train", ".4f"),
    "accuracy, held-out": ("accuracy_holdout", ".4f"),
}
"""Column heading -> key of metrics.json, and number format."""


def show_metrics(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the metrics of every model; columns without any value are left out.

    Parameters
    ----------
    name
        Name of the run.
    rows
        Rows of ``metrics.json``.
    """
    columns = {
        heading: column for heading, column in _METRICS.items() if any(row.get(column[0]) is not None for row in rows)
    }
    cells = [
        [
            row["algorithm"],
            *("–" if row.get(key) is None else format(row[key], spec) for key, spec in columns.values()),
        ]
        for row in rows
    ]
    show_table(f"{name}: {len(rows)} models", ["algorithm", *columns], cells, keys=2)


def show_colours(name: str, table: pa.Table) -> None:
    """Print the mean error of the quantized images for every K.

    Parameters
    ----------
    name
        Name of the run.
    table
        ``quantized.parquet``.
    """
    cells = [
        [
            str(row["k"]),
            f"{row['images']:,}",
            *(["–"] * 3 if row["mse"] is None else [f"{row['mse']:,.2f}", _decibels(row["psnr"]), _kilobytes(row)]),
        ]
        for row in error_rows(table)
    ]
    show_table(f"{name}: colours", ["K", "images", "mean MSE", "mean PSNR, dB", "mean kB"], cells)


def _decibels(psnr: float | None) -> str:
    return "∞" if psnr is None else f"{psnr:.2f}"


def _kilobytes(row: Mapping[str, Any]) -> str:
    return f"{row['bytes'] / row['images'] / 1000:,.1f}"
