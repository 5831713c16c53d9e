"""The manifest: a table with one row per item that says where its bytes or pixels are stored.

It is written to disk once, and each task reads its own rows, so task graphs carry no file lists.
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
        ("file", pa.binary()),  # file containing the item: full path in the OS encoding, or a URL
        ("inside", pa.string()),  # container format, "tar", "npz" ...; null: the file is the image
        ("member", pa.string()),  # column of a table, or array of a file with several; else null
        ("position", pa.int64()),  # byte offset in an archive, or row of a table or array; else null
        ("path", pa.string()),  # item name, with "/"; undecodable bytes as backslash escapes
        ("bytes", pa.int64()),  # size of the encoded image; estimated for rows of a table; 0 if unknown
        ("mtime_ns", pa.int64()),  # modification time of the file, nanoseconds since 1970; 0 if unknown
        ("label", pa.string()),  # null if the item has none
        ("split", pa.string()),  # "train" | "holdout"
        ("black", pa.float64()),  # value shown as black, for images whose values are not bytes
        ("white", pa.float64()),  # value shown as white; null: bytes, or a file whose range is inferred
    ]
)

_ROW_GROUP = 4096
"""Rows per Parquet row group, the smallest unit read: half a megabyte. One million items make 250 groups and a footer
of 0.2 MB."""


def write_manifest(items: pa.Table, path: Path) -> None:
    """Write a manifest as a Parquet file, atomically and in small row groups, so that slices are cheap to read."""
    with publish(path) as partial:
        pq.write_table(items, partial, row_group_size=_ROW_GROUP, write_statistics=False)


def read_manifest(path: Path, start: int = 0, stop: int | None = None) -> pa.Table:
    """Read the rows ``start:stop`` of a manifest without reading much more of the file.

    Parameters
    ----------
    path
        Written by `write_manifest`.
    start, stop
        Row numbers; None means the end.

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
"""Split and status of an item that is gone from the source: its row stays, but nothing uses it."""

_NOT_FILE_COLUMNS = ("path", "label", "split")
"""Manifest columns that neither locate an image nor show whether it has changed."""


class Changes(NamedTuple):
    """Differences between a manifest and a newer listing."""

    items: pa.Table
    """The updated manifest: the old rows in their order, then the new ones."""
    added: int
    """Number of new items, and of removed ones that are back."""
    changed: int
    """Number of items whose size or modification time differs; only decoding shows whether the pixels do."""
    removed: int
    """Number of items that are gone from the source."""


def update_manifest(old: pa.Table, listed: pa.Table, *, keep_splits: bool) -> Changes:
    """Bring a manifest up to date.

    Parameters
    ----------
    old : (n) pyarrow.Table
        `MANIFEST_SCHEMA`; the split may be ``removed``.
    listed : (m) pyarrow.Table
        `MANIFEST_SCHEMA`; a new listing of the same source. Items are matched by file, array or column, and path.
    keep_splits
        Keep known items in their split, whatever the listing says: a holdout fraction is drawn from the current items,
        so it could hold out an item that has already been fitted.

    Returns
    -------
    Changes
    """
    old_keys, new_keys = _keys(old), _keys(listed)
    listed_row = pc.index_in(old_keys, value_set=new_keys)  # row in the listing; null: gone
    gone = pc.is_null(listed_row).to_numpy(zero_copy_only=False)
    added = pc.is_null(pc.index_in(new_keys, value_set=old_keys)).to_numpy(zero_copy_only=False)
    was_gone = pc.equal(old["split"], REMOVED).to_numpy()
    # reorder the listing plus the removed rows: in the order of the old manifest, then the new items
    pool = pa.concat_tables([listed, _with_split(old.filter(gone), REMOVED)])
    where = pc.fill_null(listed_row, 0).to_numpy().astype(np.int64)
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
    """Return for each row whether both tables refer to the same file with the same size and modification time.

    Parameters
    ----------
    items, others : (n) pyarrow.Table
        Manifests, or tables with more columns; the columns of `items` are compared.

    Returns
    -------
    (n,) bool
    """
    same = np.ones(len(items), bool)
    for name in items.column_names:
        if name not in _NOT_FILE_COLUMNS:
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
