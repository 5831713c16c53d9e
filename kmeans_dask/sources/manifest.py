"""The manifest: a table with one row an item, which says where its bytes or pixels lie.

It is written to disk once; tasks read their rows from it, so that no list of files travels in a graph.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from kmeans_dask.object_store import readable
from kmeans_dask.publish import publish

MANIFEST_SCHEMA = pa.schema(
    [
        ("file", pa.binary()),  # that holds the item: full path as the operating system spells it, or a URL
        ("inside", pa.string()),  # null: the file is the image; else how it lies in the file: "tar", "npz" ...
        ("member", pa.string()),  # column of a table or array of a file that has several; null else
        ("position", pa.int64()),  # byte of an archive, or row of a table or array; null: the file is the image
        ("path", pa.string()),  # name of the item, with "/"; bytes that are no text as backslash escapes
        ("bytes", pa.int64()),  # of the encoded image; of a table's row its share of the file; 0 if unknown
        ("mtime_ns", pa.int64()),  # of the file, nanoseconds since 1970; 0 if unknown
        ("label", pa.string()),  # null = none
        ("split", pa.string()),  # "train" | "holdout"
        ("black", pa.float64()),  # number that is black, of an image of numbers that are no bytes
        ("white", pa.float64()),  # and white; null: bytes, or a file that is judged for itself
    ]
)

_ROW_GROUP = 4096
"""Rows that are read at least: half a megabyte. One million items are 250 groups, a footer of 0.2 MB."""


def write_manifest(items: pa.Table, path: Path) -> None:
    """Write a manifest as a Parquet file, published by a rename; its slices are cheap to read alone."""
    with publish(path) as partial:
        pq.write_table(items, partial, row_group_size=_ROW_GROUP, write_statistics=False)


def read_manifest(path: Path, start: int = 0, stop: int | None = None) -> pa.Table:
    """Read the rows ``start:stop`` of a manifest, and of the file little more than these.

    Parameters
    ----------
    path
        Written by `write_manifest`.
    start, stop
        Row numbers; None is the end.

    Returns
    -------
    pyarrow.Table
        `MANIFEST_SCHEMA`.
    """
    with pq.ParquetFile(readable(path)) as file:
        stop = file.metadata.num_rows if stop is None else min(stop, file.metadata.num_rows)
        first, last = start // _ROW_GROUP, -(-stop // _ROW_GROUP)
        groups = file.read_row_groups(list(range(first, last)))
    return groups.slice(start - first * _ROW_GROUP, stop - start)
