"""Update a finished collection to a newer manifest; chunks without a changed item are reused."""

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

from kmeans_dask.collection.decoding import DECODE_SCHEMA, ITEMS_SCHEMA, add_decode_columns, decode_rows
from kmeans_dask.config.sections import Ingest
from kmeans_dask.errors import UserError
from kmeans_dask.sources.manifest import MANIFEST_SCHEMA, REMOVED, read_manifest, same_files
from kmeans_dask.storage import zarr_groups
from kmeans_dask.storage.object_store import readable

_CHANGED = b"kmeans-dask changed"
"""Metadata key of a part of the items table: whether the pixels or the status of any of its items have changed."""

_RETRY_FAILED = "retry failed items"
"""Fingerprint of a finished collection whose failed items the next update decodes again, even if nothing changed."""


@dataclass(frozen=True)
class Base:
    """The finished collection that an update starts from.

    Attributes
    ----------
    folder : Path
        Folder of the zarr group.
    items : pyarrow.Table of n rows
        Schema `decoding.ITEMS_SCHEMA`; the first n rows of the manifest are these items.
    chunk_rows : int
        Rows per shard.
    content : str
        Hash of the pixels, labels and splits of the collection.
    retry_failed : bool
        Whether to decode failed items again.
    """

    folder: Path
    items: pa.Table
    chunk_rows: int
    content: str
    retry_failed: bool

    def changed_chunks(self, manifest: pa.Table) -> list[int]:
        """Return the first rows of the chunks that must be rewritten: an item in them has to be decoded or removed."""
        changed = np.ones(len(manifest), bool)
        changed[: len(self.items)] = ~_unchanged(manifest.slice(0, len(self.items)), self.items, self.retry_failed)
        return (np.unique(np.flatnonzero(changed) // self.chunk_rows) * self.chunk_rows).tolist()

    def unchanged_chunks(self, manifest: pa.Table) -> tuple[Path, list[int]]:
        """Return the folder, and the first rows of the chunks that are reused, which are all others."""
        changed = set(self.changed_chunks(manifest))
        return self.folder, [start for start in range(0, len(manifest), self.chunk_rows) if start not in changed]


def find_base(manifest: pa.Table, folder: Path, settings: str) -> Base | None:
    """Return the collection in a folder, if a manifest starts with its items.

    Parameters
    ----------
    manifest
        `sources.MANIFEST_SCHEMA`.
    folder
        Folder of a collection, which need not exist.
    settings
        Hash of the settings with which the collection must have been made.

    Returns
    -------
    Base or None
        None if everything has to be decoded.
    """
    try:
        attrs = zarr_groups.read_attrs(folder)
        items = pq.read_table(readable(folder / "items.parquet"))
    except (UserError, FileNotFoundError):
        return None
    head = manifest.slice(0, len(items))
    continues = len(head) == len(items) and all(head[name].equals(items[name]) for name in ("file", "path"))
    if attrs.get("settings") != settings or not continues:
        return None
    return Base(folder, items, zarr_groups.read_layout(folder).chunk_rows, attrs["content"], _retries_failed(attrs))


def mark_failed_for_retry(folder: Path) -> pa.Table:
    """Make the next update of a finished collection decode its failed items again, even if their files are unchanged.

    Parameters
    ----------
    folder
        Folder of a collection, which need not exist.

    Returns
    -------
    pyarrow.Table
        The failed items, `decoding.ITEMS_SCHEMA`.
    """
    try:
        items = pq.read_table(readable(folder / "items.parquet"))
    except FileNotFoundError:
        return ITEMS_SCHEMA.empty_table()
    failed = items.filter(_has_failed(items))
    if len(failed):
        zarr_groups.set_attrs(folder, {"fingerprint": _RETRY_FAILED})
    return failed


def _retries_failed(attrs: Mapping[str, Any]) -> bool:
    return bool(attrs["fingerprint"] == _RETRY_FAILED)


def _has_failed(items: pa.Table) -> NDArray[np.bool_]:
    return pc.invert(pc.is_in(items["status"], pa.array(["ok", REMOVED]))).to_numpy()


def update_rows(
    manifest: pa.Table, base: Path, start: int, config: Ingest, max_pixels: int, *, careful: bool = False
) -> tuple[NDArray[np.uint8], pa.Table, bool]:
    """Decode the new and changed items of a chunk, and read the others from the finished collection.

    Parameters
    ----------
    manifest : pyarrow.Table of n rows
        Manifest rows of the chunk.
    base
        Folder of the finished collection.
    start
        First row of the chunk.
    config, max_pixels, careful
        As for `decoding.decode_rows`.

    Returns
    -------
    block : (n, height, width, channels) uint8
        Removed items are black.
    items : pyarrow.Table of n rows
        Schema `decoding.ITEMS_SCHEMA`.
    changed : bool
        Whether any row is new, or has other pixels or another status than before.
    """
    old = read_manifest(base / "items.parquet", start, start + len(manifest))
    unchanged = np.zeros(len(manifest), bool)
    retry_failed = _retries_failed(zarr_groups.read_attrs(base))
    unchanged[: len(old)] = _unchanged(manifest.slice(0, len(old)), old, retry_failed)
    removed = pc.equal(manifest["split"], REMOVED).to_numpy()
    (pending,) = np.nonzero(~unchanged & ~removed)
    crashed = pc.is_in(old["status"].take(pending[pending < len(old)]), pa.array(["crashed", "hung"]))
    careful = careful or bool(pc.any(crashed).as_py())
    pixels, decoded_items = decode_rows(manifest.take(pending), config, max_pixels, careful=careful)
    block = np.zeros((len(manifest), *pixels.shape[1:]), np.uint8)
    if len(old):
        block[: len(old)] = zarr_groups.read_block(base, start, start + len(old))
    is_old = pending < len(old)
    changed = (
        not is_old.all()
        or not np.array_equal(block[pending[is_old]], pixels[is_old])
        or not decoded_items["status"].filter(is_old).equals(old["status"].take(pending[is_old]))
        or bool((removed & ~unchanged).any())
    )
    block[pending] = pixels
    block[removed] = 0
    # each row gets its decode columns from the old table, from the one of pending items, or from a row for removed ones
    blank = add_decode_columns(manifest.slice(0, 1), [(None, None, None, None, REMOVED, None)])
    pool = pa.concat_tables([table.select(DECODE_SCHEMA.names) for table in (old, decoded_items, blank)])
    origin = np.arange(len(manifest))
    origin[pending] = len(old) + np.arange(len(pending))
    origin[removed] = len(pool) - 1
    return block, _items(manifest, pool.take(origin)), changed


def mark_changed(items: pa.Table, changed: bool) -> pa.Table:
    """Record in the metadata of a part of the items table whether its rows have changed."""
    return items.replace_schema_metadata({_CHANGED: b"yes" if changed else b"no"})


def is_changed(manifest: pa.Table, base: Base, parts: Iterable[pa.Table]) -> bool:
    """Return whether the updated collection differs from the finished one in rows, pixels, labels or splits."""
    same = len(manifest) == len(base.items) and all(
        manifest[name].equals(base.items[name]) for name in ("label", "split")
    )
    return not same or any((part.schema.metadata or {}).get(_CHANGED) != b"no" for part in parts)


def join_items(manifest: pa.Table, base: Base, parts: Mapping[int, pa.Table]) -> pa.Table:
    """Join the items table from the parts of the rewritten chunks and, for the others, the finished collection.

    Parameters
    ----------
    manifest
        All rows.
    base
        The finished collection.
    parts
        First row of each rewritten chunk -> its part.

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


def _unchanged(manifest: pa.Table, items: pa.Table, retry_failed: bool) -> NDArray[np.bool_]:
    """Return which rows need no decoding or removal; a retry excludes rows that failed."""
    removed = pc.equal(manifest["split"], REMOVED).to_numpy()
    was_removed = pc.equal(items["status"], REMOVED).to_numpy()
    same = same_files(manifest, items) & ~removed & ~was_removed
    return (removed & was_removed) | (same & ~_has_failed(items) if retry_failed else same)


def _items(manifest: pa.Table, decoded: pa.Table) -> pa.Table:
    """Combine the columns of the manifest with the decode columns of another table."""
    columns = [manifest[name] for name in MANIFEST_SCHEMA.names] + [decoded[name] for name in DECODE_SCHEMA.names]
    return pa.table(columns, schema=ITEMS_SCHEMA)
