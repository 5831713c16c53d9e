"""Bytes that a stage has read and written: sizes of files, each counted once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from kmeans_dask.sources.manifest import REMOVED, read_manifest
from kmeans_dask.storage.object_store import readable, total_bytes
from kmeans_dask.storage.run_folder import RunFolder


def bytes_of_stage(stage: str, folder: RunFolder) -> tuple[int, int]:
    """Add up the sizes of the files that a finished stage has read and written.

    Parameters
    ----------
    stage
        Name of the stage.
    folder
        Run folder.

    Returns
    -------
    n_read, n_written : int
        Bytes of the files read, and of those written, including what an earlier start wrote. A file counts once,
        however often it is read.
    """
    if stage == "ingest":
        return _bytes_of_images(folder), _bytes([folder.collection])
    if stage == "quantize":
        written = pc.sum(pq.read_table(readable(folder.quantized), columns=["bytes_out"])["bytes_out"]).as_py() or 0
        return _bytes_of_images(folder), written
    rows, models = [folder.collection, folder.features], folder.path / "models"
    tables = [
        folder.clusters,
        folder.cluster_facts,
        folder.confusion,
        folder.label_issues,
        folder.outliers,
        folder.metrics,
    ]
    reads, writes = {
        "fit": (rows, [models]),
        "evaluate": ([*rows, models], tables),
        "report": ([*rows, models, *tables, folder.quantized], [folder.report, folder.sheets]),
    }[stage]
    return _bytes(reads), _bytes(writes)


def _bytes_of_images(folder: RunFolder) -> int:
    items = read_manifest(folder.manifest)
    return int(pc.sum(items.filter(pc.not_equal(items["split"], REMOVED))["bytes"]).as_py() or 0)


def _bytes(paths: Iterable[Path]) -> int:
    """Add up the bytes of files and of all files below folders; missing ones count as 0."""
    return sum(map(total_bytes, paths))
