"""Ingest the items of a manifest into a collection: one task per chunk decodes them, then one rename publishes it.

Until then, the collection has a temporary name. A task writes its shard first, and then, as its marker, its part of the
items table; an interrupted ingest resumes with the chunks that have no marker. Since an object store has no rename, the
objects are copied to their final names there, the marker of the group last.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import NamedTuple

import dask
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from dask.delayed import Delayed

from kmeans_dask.collection.chunks import ChunkPlan, plan_chunks
from kmeans_dask.collection.collection import Collection, open_collection
from kmeans_dask.collection.decoding import decode_rows, row_shape
from kmeans_dask.collection.update import Base, find_base, is_changed, join_items, mark_changed, update_rows
from kmeans_dask.config.sections import Ingest, Input
from kmeans_dask.errors import JobError, UserError
from kmeans_dask.reduction import task_key
from kmeans_dask.sources.manifest import REMOVED, read_manifest, write_manifest
from kmeans_dask.sources.normalize import POLICY
from kmeans_dask.sources.sandbox import attempt
from kmeans_dask.storage import zarr_groups
from kmeans_dask.storage.fingerprint import file_digest, fingerprint_of
from kmeans_dask.storage.object_store import is_local, make_folder, move, readable
from kmeans_dask.storage.publish import publish, remove


class ChunkSummary(NamedTuple):
    """Result of an ingest task."""

    start: int
    """First row of the chunk."""
    items: int
    """Number of items in the chunk."""
    failed: int
    """Number of items that could not be decoded."""
    bytes: int
    """Total size of the image files."""
    seconds: float
    """Wall time of the task."""


def plan_of(folder: Path) -> ChunkPlan:
    """Return the chunks of the collection that `ingest_tasks` has created or found finished."""
    partial = _partial_of(folder)
    return _plan_of(partial if _fingerprint_of(partial) else folder)


def ingest_tasks(
    manifest_path: Path, folder: Path, config: Ingest, source: Input, chunk_bytes: float | None = None
) -> list[Delayed]:
    """Make the remaining tasks that ingest a manifest, one per chunk.

    Chunks of an earlier call with the same manifest and settings are kept; any others are removed.

    Parameters
    ----------
    manifest_path
        Manifest written by `sources.write_manifest`, readable by all workers.
    folder
        Final path of the collection, writable by all workers.
    config
        Size, mode and chunk size.
    source
        Section `input` of the config; images with more than its `max_pixels` are not decoded.
    chunk_bytes
        Maximum size of a chunk in bytes, if the collection has to be created; None: as configured.

    Returns
    -------
    list of Delayed
        Each returns a `ChunkSummary`. Empty if every chunk is written.
    """
    fingerprint = _fingerprint(manifest_path, config, source)
    folder = folder.absolute()
    partial = _partial_of(folder)
    if _is_made_from(fingerprint, folder) or _is_joined(fingerprint, partial):
        return []
    manifest = read_manifest(manifest_path)
    base = find_base(manifest, folder, _settings(config, source))
    if not _is_made_from(fingerprint, partial):
        _create(partial, manifest, config, source, fingerprint, base, chunk_bytes)
    task = dask.delayed(ingest_chunk, pure=False, traverse=False)
    plan = _plan_of(partial)
    old = base.folder if base else None
    pending = set(base.changed_chunks(manifest) if base else plan.starts) - set(_starts_written(partial))
    manifest_path, settings = manifest_path.absolute(), (config, source.max_pixels, old)
    return [
        task(manifest_path, partial, start, stop, *settings, dask_key_name=task_key("ingest_chunk", start, stop))
        for start, stop in zip(plan.starts, plan.stops, strict=True)
        if start in pending
    ]


def ingest_chunk(
    manifest_path: Path, folder: Path, start: int, stop: int, config: Ingest, max_pixels: int, base: Path | None = None
) -> ChunkSummary:
    """Decode the items ``start:stop`` one by one, write their shard, then their part of the items table.

    A bad image becomes a black row, with the reason in the table. If there is a finished collection, `base`, to update,
    only new and changed items are decoded.
    """
    started = time.perf_counter()
    manifest = read_manifest(manifest_path, start, stop)
    part = _part_of(folder, start)
    with attempt(part.with_suffix(".begun")) as careful:
        if base is None:
            block, items = decode_rows(manifest, config, max_pixels, careful=careful)
            changed = True
        else:
            block, items, changed = update_rows(manifest, base, start, config, max_pixels, careful=careful)
        zarr_groups.write_block(folder, start, block)
        with publish(part) as unfinished:
            pq.write_table(mark_changed(items, changed), unfinished)
    failed = len(items) - pc.count(items["error"], mode="only_null").as_py()
    n_bytes = int(pc.sum(manifest["bytes"]).as_py())
    return ChunkSummary(start, len(manifest), failed, n_bytes, time.perf_counter() - started)


def finish_collection(manifest_path: Path, folder: Path, config: Ingest, source: Input) -> Collection:
    """Join the parts of the items table and publish the collection, unless this has been done.

    Parameters
    ----------
    manifest_path, folder, config, source
        As given to `ingest_tasks`.

    Returns
    -------
    Collection

    Raises
    ------
    JobError
        Some chunks have not been written.
    """
    fingerprint = _fingerprint(manifest_path, config, source)
    folder = folder.absolute()
    if not _is_made_from(fingerprint, folder):
        partial = _partial_of(folder)
        if not _is_made_from(fingerprint, partial):
            raise JobError(f"{folder} has not been ingested from {manifest_path}; run the stage ingest")
        if not _is_joined(fingerprint, partial):
            base = find_base(read_manifest(manifest_path), folder, _settings(config, source))
            _join_parts(manifest_path, folder, base)
        _put_in_place(partial, folder)
    return open_collection(folder)


def _join_parts(manifest_path: Path, folder: Path, base: Base | None) -> None:
    """Write the items table of an unpublished collection, which is its last file."""
    partial, manifest = _partial_of(folder), read_manifest(manifest_path)
    starts = base.changed_chunks(manifest) if base else _plan_of(partial).starts
    missing = len(set(starts) - _starts_written(partial))
    if missing:
        raise JobError(f"{missing} of {len(starts)} chunks of {folder} are missing; rerun ingest")
    parts = {start: pq.read_table(readable(_part_of(partial, start))) for start in starts}
    if base and not is_changed(manifest, base, parts.values()):
        zarr_groups.set_attrs(partial, {"content": base.content})
    items = join_items(manifest, base, parts) if base else pa.concat_tables(parts.values())
    write_manifest(items, partial / "items.parquet")


def _put_in_place(partial: Path, folder: Path) -> None:
    """Replace the old collection; if this is killed half-way, the next call finishes the job."""
    if not is_local(folder):
        remove(partial / "items")
        move(partial, folder)
        return
    old = folder.with_name(folder.name + ".old")
    remove(old)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    remove(old)
    remove(folder / "items")


def _create(
    folder: Path,
    manifest: pa.Table,
    config: Ingest,
    source: Input,
    fingerprint: str,
    base: Base | None,
    chunk_bytes: float | None,
) -> None:
    """Create the collection with its labels and attrs, and, in an update, with the unchanged shards."""
    labels = pc.if_else(pc.equal(manifest["split"], REMOVED), None, manifest["label"])
    class_names = list(source.classes) or sorted(pc.unique(labels.drop_null()).to_pylist(), key=_natural)
    index = pc.fill_null(pc.index_in(labels, pa.array(class_names, pa.string())), -1)
    rows = base.chunk_rows if base else plan_chunks(len(manifest), config, chunk_bytes).chunk_rows
    layout = zarr_groups.Layout((len(manifest), *row_shape(config)), rows)
    attrs = {
        "class_names": class_names,
        "mode": config.mode,
        "policy": POLICY,
        "ingest": config.model_dump(mode="json"),
        "settings": _settings(config, source),
        "fingerprint": fingerprint,
        # a retry has the same items and settings, but some items may now be readable
        "content": fingerprint_of(fingerprint, base.content) if base and base.retry_failed else fingerprint,
    }
    make_folder(folder.parent)
    blocks = base.unchanged_chunks(manifest) if base else None
    zarr_groups.create_collection(folder, layout, index.to_numpy().astype(np.int32), attrs, blocks)


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that compares digits as numbers and the rest as text: "2" before "10"."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), part) if i % 2 else (0, part) for i, part in enumerate(parts)]


def _settings(config: Ingest, source: Input) -> str:
    """Fingerprint of the settings that affect every image; an update needs a collection with the same ones."""
    return fingerprint_of(config.model_dump(), source.max_pixels, source.classes, POLICY, zarr_groups.FORMAT_VERSION)


def _fingerprint(manifest_path: Path, config: Ingest, source: Input) -> str:
    """Fingerprint of everything that the collection depends on: the items, the settings and the layout."""
    return fingerprint_of(file_digest(manifest_path), _settings(config, source))


def _is_joined(fingerprint: str, partial: Path) -> bool:
    """Whether a collection is complete but for its final name."""
    return (partial / "items.parquet").exists() and _is_made_from(fingerprint, partial)


def _is_made_from(fingerprint: str, folder: Path) -> bool:
    return _fingerprint_of(folder) == fingerprint


def _fingerprint_of(folder: Path) -> str | None:
    try:
        return str(zarr_groups.read_attrs(folder)["fingerprint"])
    except UserError:  # absent, incomplete, or written by another version
        return None


def _plan_of(folder: Path) -> ChunkPlan:
    layout = zarr_groups.read_layout(folder)
    return ChunkPlan(layout.shape[0], layout.chunk_rows)


def _partial_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


def _starts_written(folder: Path) -> set[int]:
    """Return the first rows of all chunks that have their part of the items table; one listing."""
    return {int(path.stem.removeprefix("part-")) for path in (folder / "items").glob("part-*.parquet")}


def _part_of(folder: Path, start: int) -> Path:
    return folder / "items" / f"part-{start:012d}.parquet"
