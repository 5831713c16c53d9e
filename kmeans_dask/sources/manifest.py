"""The manifest: a table with one row an item, which says where its bytes or pixels lie.

It is written to disk once; tasks read their rows from it, so that no list of files travels in a graph.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kmeans_dask.storage.object_store import readable
from kmeans_dask.storage.publish import publish

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


REMOVED = "removed"
"""Split, and status, of an item that has gone from the source: its row stays, it is no part of anything."""

_NOT_THE_FILE = ("path", "label", "split")
"""Columns of a manifest that do not say where the image lies, nor whether it has changed."""


class Changes(NamedTuple):
    """How a newer listing differs from a manifest."""

    items: pa.Table
    """The manifest as it is now: the rows of the old one in their order, then the new ones."""
    added: int
    changed: int
    """Of another size or time; whether the pixels differ is seen when they are decoded."""
    removed: int


def update_manifest(old: pa.Table, listed: pa.Table, *, keep_splits: bool) -> Changes:
    """Bring a manifest up to date.

    Parameters
    ----------
    old : (n) pyarrow.Table
        `sources.MANIFEST_SCHEMA`; its split may be ``removed``.
    listed : (m) pyarrow.Table
        The same source, listed now. An item is known by its file, its array or column in it, and its path.
    keep_splits
        Whether an item stays fitted, or held out, whatever the listing says: a share is drawn from what is there, and
        an item that has been fitted must not become one that is scored.

    Returns
    -------
    Changes
    """
    old_keys, new_keys = _keys(old), _keys(listed)
    at = pc.index_in(old_keys, value_set=new_keys)  # row in the listing; null: it has gone
    gone = pc.is_null(at).to_numpy(zero_copy_only=False)
    added = pc.is_null(pc.index_in(new_keys, value_set=old_keys)).to_numpy(zero_copy_only=False)
    was_gone = pc.equal(old["split"], REMOVED).to_numpy()
    # the rows of the listing, then those that have gone, are put into the order of the old manifest, then the new ones
    pool = pa.concat_tables([listed, _with_split(old.filter(gone), REMOVED)])
    where = pc.fill_null(at, 0).to_numpy().astype(np.int64)
    where[gone] = len(listed) + np.arange(np.count_nonzero(gone))
    items = pool.take(np.concatenate([where, np.flatnonzero(added)]))
    if keep_splits:
        splits = items["split"].to_numpy().copy()
        stays = np.flatnonzero(~gone & ~was_gone)
        splits[stays] = old["split"].to_numpy()[stays]
        items = _with_split(items, splits)
    same = same_files(items.slice(0, len(old)), old)
    return Changes(
        items.combine_chunks(),
        int(added.sum() + (was_gone & ~gone).sum()),
        int((~same & ~gone & ~was_gone).sum()),
        int((gone & ~was_gone).sum()),
    )


def same_files(items: pa.Table, others: pa.Table) -> NDArray[np.bool_]:
    """Say of each row whether both manifests speak of the same file, of the same size and time.

    Parameters
    ----------
    items, others : (n) pyarrow.Table
        They may have more columns than a manifest; those of the first count.

    Returns
    -------
    (n,) bool
    """
    same = np.ones(len(items), bool)
    for name in items.column_names:
        if name not in _NOT_THE_FILE:
            a, b = items[name], others[name]
            equal = pc.fill_null(pc.equal(a, b), False)
            same &= pc.or_(equal, pc.and_(pc.is_null(a), pc.is_null(b))).to_numpy()
    return same


def _keys(items: pa.Table) -> pa.ChunkedArray:
    names = (pc.fill_null(items[name].cast(pa.binary()), b"") for name in ("file", "member", "path"))
    return pc.binary_join_element_wise(*names, b"\0")


def _with_split(items: pa.Table, split: object) -> pa.Table:
    values = pa.repeat(split, len(items)) if isinstance(split, str) else pa.array(split, pa.string())
    return items.set_column(items.schema.get_field_index("split"), items.schema.field("split"), values)
