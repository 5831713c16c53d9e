"""A finished collection becomes that of a newer manifest: what has not changed is taken over, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kmeans_dask.collection.decoding import DECODE_SCHEMA, ITEMS_SCHEMA, decode_rows, with_columns
from kmeans_dask.config.sections import Ingest
from kmeans_dask.errors import UserError
from kmeans_dask.sources.manifest import MANIFEST_SCHEMA, REMOVED, read_manifest, same_files
from kmeans_dask.storage import zarr_groups
from kmeans_dask.storage.object_store import readable

_CHANGED = b"kmeans-dask changed"
"""Key in the metadata of a part of the items table: whether a pixel, or whether an item can be read, has changed."""

_READ_AGAIN = "read again what failed"
"""Fingerprint of a finished collection whose failed items the next update decodes again, though nothing has changed."""


@dataclass(frozen=True)
class Base:
    """The finished collection that an update starts from.

    Attributes
    ----------
    folder : Path
    items : (n) pyarrow.Table
        `decoding.ITEMS_SCHEMA`; the manifest goes on from these rows.
    chunk_rows : int
        Rows of a shard.
    content : str
        Hash of what is in it.
    again : bool
        Whether what could not be read is tried again.
    """

    folder: Path
    items: pa.Table
    chunk_rows: int
    content: str
    again: bool

    def touched(self, manifest: pa.Table) -> list[int]:
        """First rows of the chunks with an item to be decoded or removed: these are written anew."""
        differs = np.ones(len(manifest), bool)
        differs[: len(self.items)] = ~_kept(manifest.slice(0, len(self.items)), self.items, self.again)
        return (np.unique(np.flatnonzero(differs) // self.chunk_rows) * self.chunk_rows).tolist()

    def blocks_kept(self, manifest: pa.Table) -> tuple[Path, list[int]]:
        """Return the folder, and the first rows of all other chunks."""
        touched = set(self.touched(manifest))
        return self.folder, [start for start in range(0, len(manifest), self.chunk_rows) if start not in touched]


def base_of(manifest: pa.Table, folder: Path, settings: str) -> Base | None:
    """Return the collection in a folder, if a manifest only goes on from it.

    Parameters
    ----------
    manifest
        `sources.MANIFEST_SCHEMA`.
    folder
        Of a collection; there need not be one.
    settings
        Hash of the settings that it must have been made with.

    Returns
    -------
    Base or None
        None: everything has to be decoded.
    """
    try:
        attrs = zarr_groups.read_attrs(folder)
        items = pq.read_table(readable(folder / "items.parquet"))
    except (UserError, FileNotFoundError):
        return None
    begins = manifest.slice(0, len(items))
    goes_on = len(begins) == len(items) and all(begins[name].equals(items[name]) for name in ("file", "path"))
    if attrs.get("settings") != settings or not goes_on:
        return None
    return Base(folder, items, zarr_groups.read_layout(folder).chunk_rows, attrs["content"], _is_tried_again(attrs))


def read_failed_again(folder: Path) -> pa.Table:
    """Have the next update of a finished collection decode its failed items again, whatever became of their files.

    Parameters
    ----------
    folder
        Of a collection; there need not be one.

    Returns
    -------
    pyarrow.Table
        `decoding.ITEMS_SCHEMA`; the failed items.
    """
    try:
        items = pq.read_table(readable(folder / "items.parquet"))
    except FileNotFoundError:
        return ITEMS_SCHEMA.empty_table()
    failed = items.filter(_has_failed(items))
    if len(failed):
        zarr_groups.set_attrs(folder, {"fingerprint": _READ_AGAIN})
    return failed


def _is_tried_again(attrs: Mapping[str, Any]) -> bool:
    return bool(attrs["fingerprint"] == _READ_AGAIN)


def _has_failed(items: pa.Table) -> NDArray[np.bool_]:
    return pc.invert(pc.is_in(items["status"], pa.array(["ok", REMOVED]))).to_numpy()


def update_rows(
    manifest: pa.Table, base: Path, start: int, config: Ingest, max_pixels: int, *, careful: bool = False
) -> tuple[NDArray[np.uint8], pa.Table, bool]:
    """Decode the new and changed items of a chunk; the others are read from the finished collection.

    Parameters
    ----------
    manifest : (n) pyarrow.Table
        Rows of the chunk.
    base
        Folder of the finished collection.
    start
        First row of the chunk.
    config, max_pixels, careful
        As for `decoding.decode_rows`.

    Returns
    -------
    block : (n, height, width, channels) uint8
        An item that has been removed is black.
    items : (n) pyarrow.Table
        `decoding.ITEMS_SCHEMA`.
    changed : bool
        Whether a row has other pixels or another status than before, or is new.
    """
    old = read_manifest(base / "items.parquet", start, start + len(manifest))
    kept = np.zeros(len(manifest), bool)
    kept[: len(old)] = _kept(manifest.slice(0, len(old)), old, _is_tried_again(zarr_groups.read_attrs(base)))
    gone = pc.equal(manifest["split"], REMOVED).to_numpy()
    (todo,) = np.nonzero(~kept & ~gone)
    ended_processes = pc.is_in(old["status"].take(todo[todo < len(old)]), pa.array(["crashed", "hung"]))
    careful = careful or bool(pc.any(ended_processes).as_py())
    decoded, told = decode_rows(manifest.take(todo), config, max_pixels, careful=careful)
    block = np.zeros((len(manifest), *decoded.shape[1:]), np.uint8)
    if len(old):
        block[: len(old)] = zarr_groups.read_block(base, start, start + len(old))
    again = todo < len(old)
    changed = (
        not again.all()
        or not np.array_equal(block[todo[again]], decoded[again])
        or not told["status"].filter(again).equals(old["status"].take(todo[again]))
        or bool((gone & ~kept).any())
    )
    block[todo] = decoded
    block[gone] = 0
    # a row is what it was told before, what it is told now, or removed
    removed = with_columns(manifest.slice(0, 1), [(None, None, None, None, REMOVED, None)])
    pool = pa.concat_tables([table.select(DECODE_SCHEMA.names) for table in (old, told, removed)])
    where = np.arange(len(manifest))
    where[todo] = len(old) + np.arange(len(todo))
    where[gone] = len(pool) - 1
    return block, _items(manifest, pool.take(where)), changed


def mark_changed(items: pa.Table, changed: bool) -> pa.Table:
    """Note in the metadata of a part of the items table whether its rows have changed."""
    return items.replace_schema_metadata({_CHANGED: b"yes" if changed else b"no"})


def is_changed(manifest: pa.Table, base: Base, parts: Iterable[pa.Table]) -> bool:
    """Say whether the updated collection differs from the finished one in its rows, pixels, labels or splits."""
    same = len(manifest) == len(base.items) and all(
        manifest[name].equals(base.items[name]) for name in ("label", "split")
    )
    return not same or any((part.schema.metadata or {}).get(_CHANGED) != b"no" for part in parts)


def join_items(manifest: pa.Table, base: Base, parts: Mapping[int, pa.Table]) -> pa.Table:
    """Join the items table: chunks that were written anew say it themselves, of the others it is known.

    Parameters
    ----------
    manifest
        All rows.
    base
        The finished collection.
    parts
        First row of a chunk -> its part.

    Returns
    -------
    pyarrow.Table
        `decoding.ITEMS_SCHEMA`.
    """
    tables = []
    for start in range(0, len(manifest), base.chunk_rows):
        if start in parts:
            tables.append(parts[start].replace_schema_metadata(None))
        else:
            rows = manifest.slice(start, base.chunk_rows)
            tables.append(_items(rows, base.items.slice(start, len(rows))))
    return pa.concat_tables(tables)


def _kept(manifest: pa.Table, items: pa.Table, again: bool) -> NDArray[np.bool_]:
    """Rows that neither their file nor their being removed has changed; again: and that could be read."""
    gone = pc.equal(manifest["split"], REMOVED).to_numpy()
    was_gone = pc.equal(items["status"], REMOVED).to_numpy()
    same = same_files(manifest, items) & ~gone & ~was_gone
    return (gone & was_gone) | (same & ~_has_failed(items) if again else same)


def _items(manifest: pa.Table, told: pa.Table) -> pa.Table:
    """Put the manifest's columns before those that decoding told."""
    columns = [manifest[name] for name in MANIFEST_SCHEMA.names] + [told[name] for name in DECODE_SCHEMA.names]
    return pa.table(columns, schema=ITEMS_SCHEMA)
